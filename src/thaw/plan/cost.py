"""What a plan costs: each phase tried for three batches."""

import time
from collections.abc import Callable, Sequence

import lightning as L
import torch

from thaw.data.datamodule import DataModule
from thaw.errors import UserError
from thaw.freezing.freezing import Freezing, Stage
from thaw.memory import peak_memory
from thaw.module import FineTuner
from thaw.plan.plan import Cost, Plan, enter

# Timed after one that warms up.
BATCHES = 3


def measure(
    plan: Plan, module: FineTuner, freezing: Freezing, data: DataModule, make_trainer: Callable[..., L.Trainer]
) -> None:
    """Train three batches of each phase, after one that warms up, and fill in the plan's costs.

    The module's weights move: this comes last. A copy of them would count in the peak of the memory.

    Raises:
        UserError: a phase does not fit into the memory of the GPU.
    """
    for phase in plan.phases:
        clock = _Clock(freezing, phase.stage)
        limits = {"max_epochs": 1, "limit_train_batches": BATCHES + 1, "limit_val_batches": BATCHES + 1}
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            make_trainer(callbacks=[clock], **limits).fit(module, data)
        except torch.OutOfMemoryError:
            raise UserError(
                f"data.batch_size must fit into the memory of the GPU; {data.batch_size} does not, in {phase.epochs}. "
                f"Write data.batch_size={max(data.batch_size // 2, 1)} trainer.accumulate_grad_batches=2."
            ) from None
        plan.costs.append(Cost(_each(clock.training), _each(clock.validation), peak_memory()))


class _Clock(L.Callback):
    def __init__(self, freezing: Freezing, stage: Stage) -> None:
        self.freezing, self.stage = freezing, stage
        self.training: list[float] = []
        self.validation: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        enter(pl_module.network, self.freezing, self.stage)
        self.training.append(_now())

    def on_train_batch_end(self, *_: object) -> None:
        self.training.append(_now())

    def on_validation_epoch_start(self, *_: object) -> None:
        self.validation.append(_now())

    def on_validation_batch_end(self, *_: object) -> None:
        self.validation.append(_now())


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _each(times: Sequence[float]) -> float:
    """Seconds of one batch, without the first where there are more."""
    counted = times[1:] if len(times) > 2 else times
    return (counted[-1] - counted[0]) / max(len(counted) - 1, 1) if counted else 0.0
