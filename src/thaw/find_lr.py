"""The learning-rate range test (arXiv:1506.01186): the loss while the rate rises from nothing to far too much."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch.optim import Optimizer

from thaw.batch_size import train_all
from thaw.console import console
from thaw.data.datamodule import DataModule
from thaw.errors import UserError
from thaw.freezing.freezing import Freezing
from thaw.module import FineTuner
from thaw.scheduler import Schedule
from thaw.trainer import Trainer

LOWEST, HIGHEST = 1e-7, 1.0
STEPS = 150
SMOOTHING = 0.9  # of the running mean: a loss counts for about ten steps
EXPLODED = 4  # times the smallest smoothed loss
BACK = 10  # the suggestion lies so far below the rate at which the loss was smallest
WIDTH = 40  # characters of a bar on the screen


@dataclass
class Curve:
    """The loss after a step at each rate.

    Args:
        rates: as `optimizer.lr` has them, ascending; every layer group has its own multiple.
        losses: of one step each.
        smoothed: a running mean of them, without the bias of its start.
    """

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    _mean: float = 0.0

    def add(self, rate: float, loss: float) -> None:
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append(self._mean / (1 - SMOOTHING ** len(self.rates)))

    @property
    def exploded(self) -> bool:
        """Whether a larger rate can tell no more."""
        return not math.isfinite(self.smoothed[-1]) or self.smoothed[-1] > EXPLODED * min(self.smoothed)

    @property
    def lowest(self) -> int:
        """Where the smoothed loss is smallest."""
        return min(
            range(len(self.smoothed)), key=lambda step: (not math.isfinite(self.smoothed[step]), self.smoothed[step])
        )

    @property
    def suggestion(self) -> float:
        """A tenth of the rate at which the smoothed loss is smallest.

        Raises:
            UserError: the loss has not fallen.
        """
        if self.smoothed[self.lowest] > 0.98 * self.smoothed[0] or self.rates[self.lowest] < BACK * self.rates[0]:
            raise UserError(
                f"The loss must fall at some rate from {LOWEST:g} to {HIGHEST:g}; it does not. Look at the data and "
                "their labels, or write e.g. freezing=none."
            )
        return self.rates[self.lowest] / BACK


def find_lr(
    module: FineTuner, freezing: Freezing, data: DataModule, make_trainer: Callable[..., Trainer], steps: int = STEPS
) -> Curve:
    """Train a module that nobody needs afterwards while the rate rises, until the loss explodes.

    All that the strategy ever trains does so from the first step, and the rates of the layer groups keep their ratios.

    Args:
        make_trainer: builds the run's trainer for one process, without a trace on disk or screen.
    """
    base = module.optimizer(module.network).defaults["lr"]
    module.schedule = Schedule(lambda share: LOWEST * (HIGHEST / LOWEST) ** share / base)
    rising = _Rising(freezing, base, steps)
    limits = {"max_epochs": -1, "max_steps": steps, "limit_val_batches": 0, "compile": False}
    with rising.progress:
        make_trainer(callbacks=[rising], **limits).try_out(module, data)
    return rising.curve


class _Rising(L.Callback):
    def __init__(self, freezing: Freezing, base: float, steps: int) -> None:
        self.freezing, self.base, self.curve = freezing, base, Curve()
        self._losses: list[float] = []  # of the batches of a step
        self._rates: list[float] = []  # of the steps so far
        self._steps = 0
        columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(TextColumn("{task.description}"), *columns, console=console, transient=True)
        self._bar = self.progress.add_task("finding the rate", total=steps)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.freezing.on_train_start(trainer, pl_module)  # some find out only now what trains
        train_all(pl_module, self.freezing)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        group = optimizer.param_groups[0]
        self._rates.append(self.base * group["lr"] / group["initial_lr"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)  # Lightning divides it
        if trainer.global_step == self._steps:  # a step has further batches
            return
        self._steps = trainer.global_step
        loss, self._losses = sum(self._losses) / len(self._losses), []
        if len(self._rates) > 1:  # what a step does shows in the next one
            self.curve.add(self._rates[-2], loss)
            self.progress.update(self._bar, advance=1, description=f"lr {self._rates[-2]:.1e}  loss {loss:.3f}")
            trainer.should_stop = trainer.should_stop or self.curve.exploded


def on_screen(curve: Curve) -> Table:
    """The smoothed loss at three rates a decade, as far as it is worth showing."""
    table = Table("optimizer.lr", "loss", "", title="The loss while the rate rises", title_justify="left")
    shown = [*dict.fromkeys(round(math.log10(rate) * 3) for rate in curve.rates)]
    steps = [min(range(len(curve.rates)), key=lambda n: abs(math.log10(curve.rates[n]) * 3 - third)) for third in shown]
    top = 1.2 * curve.smoothed[0]
    for step in steps:
        value, mark = curve.smoothed[step], ""
        nearest = {"suggested": curve.suggestion, "smallest loss": curve.rates[curve.lowest]}
        for name, rate in nearest.items():
            if step == min(steps, key=lambda n: abs(math.log10(curve.rates[n] / rate))):
                mark = f" ← {name}"
        filled = round(WIDTH * min(value / top, 1)) if math.isfinite(value) else WIDTH
        table.add_row(f"{curve.rates[step]:.1e}", f"{value:.3f}", "█" * filled + mark)
    return table


def draw(curve: Curve, title: str, path: Path) -> None:
    """Draw the losses, their running mean and the suggestion into a PNG."""
    from matplotlib import colormaps  # takes a second
    from matplotlib.figure import Figure

    dark, light = colormaps["viridis"](0.15), colormaps["viridis"](0.7)
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses, ".", color="0.75", markersize=4, label="one step")
    axes.plot(curve.rates, curve.smoothed, color=dark, linewidth=2, label="running mean")
    low, start = curve.smoothed[curve.lowest], curve.smoothed[0]
    axes.plot(curve.rates[curve.lowest], low, "o", color=dark, markersize=7)
    axes.annotate(
        "smallest", (curve.rates[curve.lowest], low), (0, -14), textcoords="offset points", ha="center", fontsize=8
    )
    axes.axvline(curve.suggestion, color=light, linewidth=2)
    told = f" optimizer.lr={curve.suggestion:.2g} "
    axes.annotate(told, (curve.suggestion, 0.97), xycoords=("data", "axes fraction"), ha="right", va="top", fontsize=9)
    axes.set_xscale("log")
    axes.set_ylim(max(low - 0.25 * (start - low), 0), start + 0.6 * (start - low))
    axes.set(xlabel="optimizer.lr", ylabel="training loss")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
