"""What a single run goes by, for one head among others: its rates, its best epoch, and when it stops early."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import EarlyStopping

from thaw.scheduler import Schedule


class Probe:
    """One head among others: its rates, its schedule, and when it is best and ends.

    Args:
        group: of the optimizer that it would have alone; weights decay, and biases share the rate.
        stopping: rules of its own.

    Attributes:
        best_epoch: as `best.ckpt` would be kept: of equal ones the last, and none whose metric is no number.
    """

    def __init__(
        self,
        name: str,
        dropout: float,
        group: Mapping[str, Any],
        schedule: Schedule,
        stopping: Sequence[EarlyStopping],
        mode: Literal["min", "max"],
    ) -> None:
        self.name, self.dropout, self.mode = name, dropout, mode
        self.lr, self.weight_decay = group["lr"], group["weight_decay"]
        self.schedule, self.stopping = schedule, stopping
        self.history: list[float] = []
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.loss = math.nan  # of training in the best epoch

    def observe(self, value: float, loss: float) -> bool:
        """Take note of the monitored metric and the training loss of an epoch; whether it is the best so far."""
        self.schedule.observe(value, self.mode)
        self.history.append(value)
        better = self.best is None or (value >= self.best if self.mode == "max" else value <= self.best)
        if better := better and math.isfinite(value):
            self.best, self.best_epoch, self.loss = value, len(self.history) - 1, loss
        return better

    def stops(self) -> bool:
        """Whether it trains no further epoch; asked once an epoch."""
        value = torch.tensor(self.history[-1])
        told = [rule._evaluate_stopping_criteria(value)[0] for rule in self.stopping]  # each counts for itself
        return any(told)
