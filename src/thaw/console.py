"""What a run says on the screen: the plan, the progress, each thaw, and the results."""

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from thaw.data.quality import Quality
from thaw.freezing.contract import GroupState
from thaw.freezing.freezing import Freezing
from thaw.model.network import Network
from thaw.redaction import redacted
from thaw.run.run import Run
from thaw.tables import data_table, findings, parameter_counts, per_class_table, plan_table, results_table

console = Console(highlight=False)
# More rows than this are better read in per_class.csv.
MOST_CLASSES = 20
# Seconds between two moves of the bar, which is drawn no oftener.
SHORTEST = 0.1


def say(text: str) -> None:
    """Print one line, however long, so that it can be copied and searched whole."""
    console.print(redacted(text), soft_wrap=True)


class Screen(Checkpoint):
    """One bar for the whole run, one line an epoch, and every thaw as it happens.

    A `Checkpoint`, because Lightning calls those last, when the epoch's metrics are complete.

    Args:
        monitor: the metric shown for each epoch beside the losses.
    """

    def __init__(self, freezing: Freezing, monitor: str) -> None:
        self.freezing, self.monitor = freezing, monitor
        self._shown: list[GroupState] = []
        self._moved = 0.0
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._bar = self._progress.add_task("training", total=None)

    def track(self, items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
        """A second bar, for a wait within the run or after it."""
        within = self._progress.live.is_started
        self._progress.start()
        bar = self._progress.add_task(description, total=total)
        try:
            for item in items:
                yield item
                self._progress.advance(bar)
        finally:
            self._progress.remove_task(bar)
            if not within:
                self._progress.stop()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = int(trainer.estimated_stepping_batches)
        self._progress.update(self._bar, total=steps, completed=trainer.global_step)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.monotonic()
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        if not self._shown:
            if decision := self.freezing.decision():
                say(decision)
            console.print(plan_table(self.freezing.states))
            self._progress.start()
        elif self._shown is not self.freezing.states:
            say(f"[cyan]{epoch}  {_change(self._shown, self.freezing.states)}[/]")
        self._shown = self.freezing.states
        self._progress.update(self._bar, description=epoch)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if time.monotonic() - self._moved > SHORTEST or trainer.is_last_batch:
            self._progress.update(self._bar, completed=trainer.global_step)
            self._moved = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        names = dict.fromkeys(["train/loss", "val/loss", self.monitor, "val/f1"])
        shown = "  ".join(f"{name} {float(metrics[name]):.4f}" for name in names if name in metrics)
        seconds = time.monotonic() - self._began
        say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}  [dim]{seconds:.1f} s[/]")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._progress.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._progress.stop()


def _change(before: Sequence[GroupState], now: Sequence[GroupState]) -> str:
    old, new = ({state.group for state in states if state.trains} for states in (before, now))
    thawed = [f"{state.group} (lr {state.lr:.2g})" for state in now if state.group in new - old]
    frozen = [state.group for state in now if state.group in old - new]
    total, training = parameter_counts(now)
    parts = [f"thaws {', '.join(thawed)}"] * bool(thawed) + [f"freezes {', '.join(frozen)}"] * bool(frozen)
    parts = parts or [f"lr {max(state.lr for state in now):.2g}"]
    return f"{'; '.join(parts)}: {training:,} of {total:,} parameters train"


def say_start(run: Run, precision: str, epochs: int, batching: str) -> None:
    """One line on the data and the length of the run, before the first wait."""
    for wrong in run.found.left_out:
        say(f"[yellow]Left out: {escape(wrong)}.[/]")
        if run.last and "best.ckpt" in wrong:
            say("[yellow]The best epoch is chosen among those still to come.[/]")
    afresh = ", afresh: there is no checkpoint to go on from" if run.resume == "auto" else ""
    again = f", going on from {escape(str(run.last))}" if run.last else afresh
    say(f"[bold]{escape(str(run.folder))}[/]: {epochs} epochs, {batching}, {precision}{again}")
    if run.other_code:
        say(f"[yellow]Gone on with other code: {escape('; '.join(run.other_code))}.[/]")


def say_quality(quality: Quality) -> None:
    """What there is to know of the data, in one screen."""
    console.print(data_table(quality))
    for line in findings(quality):
        say(line)


def say_random_weights(network: Network, freezing: Freezing, epochs: int) -> None:
    """Nothing is gained by keeping random weights frozen."""
    groups = list(network.groups)
    if not network.pretrained and len(freezing.trains(groups, 0, epochs)) < len(groups):
        say("[yellow]The network starts from random weights, and some stay frozen at first: write freezing=none.[/]")


def say_finished(run: Run) -> None:
    """The same command has already come to its end."""
    say(f"Already finished: {escape(str(run.folder))}. Run with resume=never to start afresh.")
    console.print(results_table(run.record["metrics"], run.record["best_epoch"]))


def say_results(run: Run, per_class: Mapping[str, Sequence[float]], split: str) -> None:
    """The final tables and where everything lies."""
    classes = run.record["data"]["classes"]
    if per_class and len(classes) <= MOST_CLASSES:
        console.print(per_class_table(classes, per_class, split))
    console.print(results_table(run.record["metrics"], run.record["best_epoch"]))
    if split != "test":
        why = "The test split was not read" if "test" in run.record["data"]["sizes"] else "There is no test split"
        say(f"{why}: the figures are of validation, which also chose the epoch.")
    say(f"Run directory: [bold]{escape(str(run.folder))}[/]")


def quiet_lightning() -> None:
    """Keep Lightning's own chatter off a screen that says the same in its own words."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ours = (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*",
        ".*sync_dist=True.*",
        ".*DistributedSampler.*",
        ".*in eval mode at the start of training.*",  # what is frozen is, and the plan tells which
        ".*overrides the configure_model callback.*",  # a network is sharded under trainer=fsdp alone
    )
    for message in ours:
        warnings.filterwarnings("ignore", message)
    for message in (".*logging interval.*", ".*treespec, LeafSpec.*", ".*IterableDataset. has .__len__.*"):
        warnings.filterwarnings("ignore", message)
