"""What a run measures of itself, epoch by epoch, into run.json; and its predictions."""

import csv
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from rich.markup import escape

from thaw.console import say
from thaw.data.datamodule import DataModule
from thaw.data.quality import Quality
from thaw.distributed import gathered, load_whole
from thaw.errors import Interrupted
from thaw.freezing.freezing import Freezing
from thaw.lean import lean
from thaw.memory import peak_memory
from thaw.model.files import fingerprint, save_files
from thaw.model.network import Network
from thaw.module import FineTuner
from thaw.run.interruption import CODES, requeue
from thaw.run.run import MODEL_FILES, Run
from thaw.run.unfinished import replacing_folder
from thaw.tables import parameter_counts
from thaw.task.task import Task

# Share of the training time from which on waiting for data is told.
LONG_WAIT = 0.2
LESS_WAIT = "Write data.num_workers=auto"


class Recorder(Checkpoint):
    """Keeps `run.json` true after each epoch; a `Checkpoint`, because Lightning calls those last."""

    def __init__(self, run: Run, freezing: Freezing) -> None:
        self.run, self.freezing = run, freezing
        self._samples, self._seconds, self._waited = 0, 0.0, 0.0
        self._contract: list[Any] = []  # as it was checked at the start of each stage
        self._history: list[float | None] = []  # the monitor, epoch by epoch

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # What came after the checkpoint is done again.
        checked = self.run.record.get("contract", [])
        self._contract = [stage for stage in checked if stage["epoch"] <= checkpoint["epoch"]]
        whole = checkpoint["epoch"] + (not checkpoint.get("gathered"))
        self._history = self.run.record.get("history", [])[:whole]
        if len(self._history) < whole:  # killed after the checkpoint was saved, and before the record
            self._history.append(checkpoint.get("metrics", {}).get(pl_module.monitor))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began, self._waited_before = time.monotonic(), _waited(trainer)
        checked = self.freezing.contract[-1]
        if not self._contract or checked["groups"] != self._contract[-1]["groups"]:  # else a stage that goes on
            self._contract.append(checked)
        if self.run.record.get("contract") != self._contract:
            self.run.update(contract=[*self._contract])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(batch[1])
        if trainer.is_last_batch:
            self._seconds += time.monotonic() - self._began
            self._waited += _waited(trainer) - self._waited_before

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total, training = parameter_counts(self.freezing.states)
        remarks = getattr(trainer.datamodule, "remarks", [])  # of loaders alone nothing is known
        while remarks:
            say(f"[dim]{escape(remarks.pop(0))}[/]")
        value = trainer.callback_metrics.get(pl_module.monitor)
        self._history.append(None if value is None else float(value))
        self.run.update(
            history=self._history,
            epochs=trainer.current_epoch + 1,
            steps=trainer.global_step,
            samples_per_second=round(self._samples * trainer.world_size / max(self._seconds, 1e-9), 1),
            data_wait=round(self.data_wait, 4),
            peak_memory_bytes=peak_memory(),
            parameters={"total": total, "trainable_at_end": training},
            timeline=[stage._asdict() for stage in self.freezing.timeline],
            freezing=self.freezing.state_dict(),
        )

    @property
    def data_wait(self) -> float:
        """Share of the training time, without validation, in which nothing was done but wait for a batch."""
        return self._waited / max(self._seconds, 1e-9)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.data_wait > LONG_WAIT:
            advice = LESS_WAIT if trainer.datamodule.num_workers == 0 else "Give the command more cores"
            say(f"[yellow]{self.data_wait:.0%} of the training time went by in waiting for data.[/] {advice}.")


def _waited(trainer: L.Trainer) -> float:
    return getattr(trainer.train_dataloader, "waited", 0.0)  # not every source of batches need be waited for


def describe(data: DataModule, quality: Quality) -> dict[str, Any]:
    """What `run.json` holds of the data."""
    return {
        "fingerprint": data.fingerprint,
        "sizes": data.sizes,
        "classes": data.classes,
        "quality": quality.to_dict(),
        "skipped": [f"{split} '{name}' ({reason})" for split, name, reason in data.skipped],
    }


def keep_model(run: Run, data: DataModule, network: Network) -> None:
    """Write what predicting needs beside a checkpoint: how inputs are prepared, and the files of a transformer."""
    run.update(inputs=data.inputs | {"preprocessing": fingerprint(network.preprocessing)})
    if run.leads:
        with replacing_folder(run.folder / MODEL_FILES) as folder:
            save_files(network, folder)


def fit(trainer: L.Trainer, module: FineTuner, data: DataModule, run: Run) -> None:
    """Train, from the run's last checkpoint where there is one.

    Raises:
        KeyboardInterrupt: after Ctrl-C, which Lightning turns into a plain exit.
    """
    lean(trainer, module)
    with _telling(trainer, run):
        trainer.fit(module, data, ckpt_path=run.last, weights_only=True)


def evaluate(
    trainer: L.Trainer,
    module: FineTuner,
    data: DataModule,
    run: Run,
    checkpoint: Mapping[str, Any],
    test: bool = True,
) -> tuple[str, dict[str, float]]:
    """Measure a checkpoint on the test split, or on validation where there is none or it is not to be read.

    Returns:
        the split, and its metrics.

    Raises:
        KeyboardInterrupt: after Ctrl-C, which Lightning turns into a plain exit.
    """
    split = "test" if test and "test" in data.splits else "val"
    load_whole(module, checkpoint["state_dict"])
    module.predictions.clear()
    measure = trainer.test if split == "test" else trainer.validate
    with _telling(trainer, run):
        return split, measure(module, data, verbose=False)[0]


@contextmanager
def _telling(trainer: L.Trainer, run: Run) -> Iterator[None]:
    """Tell how an interrupted run goes on."""
    try:
        yield
    except SystemExit as end:
        say(f"Interrupted. Go on with: {escape(run.resume_command)}")
        if isinstance(end, Interrupted) and end.reason == "SIGUSR1" and run.leads:
            say("SLURM will start this job again." if requeue() else "SLURM would not start this job again.")
        if trainer.interrupted and end.code not in CODES.values():
            raise KeyboardInterrupt("Ctrl-C") from None
        raise


def predictions(data: DataModule, module: FineTuner, split: str) -> dict[int, dict[str, Any]]:
    """Index in the split → row of `predictions.csv`, of all that was evaluated last, on all processes."""
    order = [index for batch in data.batches(split).batches(0) for index in batch]
    # Not strict: trainer.limit_test_batches may have left the rest out.
    return dict(sorted(gathered(list(zip(order, module.predictions, strict=False))), key=lambda pair: pair[0]))


def write_predictions(
    run: Run, data: DataModule, task: Task, split: str, rows: Mapping[int, dict[str, Any]]
) -> dict[str, list[float]]:
    """Write `predictions.csv`, one row a sample in the data's own order, and `per_class.csv`; return its columns."""
    if not rows or not run.leads:
        return {}
    names = list(data.names(data.splits[split]))
    with open(run.folder / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["split", "sample", *next(iter(rows.values()))])
        writer.writeheader()
        for index, row in rows.items():
            writer.writerow({"split": split, "sample": names[index]} | row)
    columns = task.per_class(list(rows.values()))
    if columns:
        with open(run.folder / "per_class.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["class", *columns])
            writer.writerows(zip(data.classes, *columns.values(), strict=True))
    return columns
