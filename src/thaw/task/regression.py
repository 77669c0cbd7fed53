"""Regression: one number, or several."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from thaw.task.metrics import Metrics, build_metrics
from thaw.task.task import Task

LOSSES = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.smooth_l1_loss}
MEASURES = {"mae": "MeanAbsoluteError", "rmse": "RootMeanSquaredError"}


class Regression(Task):
    """Numbers, learned in units of their standard deviation in train and told in their own unit.

    Args:
        classes: names of the numbers.
        mean, std: of each number over the training samples.
        loss: `mse`, `mae` or `huber`, in standard deviations.
        metrics: see `build_metrics`; they read numbers (samples,), or (samples, numbers) where there are several.
    """

    target = "number"

    def __init__(
        self,
        classes: Sequence[str],
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        loss: Literal["mse", "mae", "huber"] = "mse",
        metrics: Metrics = MEASURES,
    ) -> None:
        super().__init__(classes, build_metrics(metrics, num_outputs=len(classes)), len(classes))
        numbers = torch.arange(4.0)[:, None].expand(4, len(classes))
        self._loss = LOSSES[loss]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.assert_measurable(numbers.sin(), numbers)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(outputs, (targets - self.mean) / self.std)

    def predict(self, outputs: Tensor) -> Tensor:
        """Numbers (batch, num_outputs) in their own unit."""
        return outputs.float() * self.std + self.mean

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        predictions = self.predict(outputs)
        # torchmetrics wants (samples,) for a single number.
        return (predictions[:, 0], targets[:, 0]) if len(self.classes) == 1 else (predictions, targets)

    def truths(self, targets: Tensor) -> list[dict[str, Any]]:
        return self._told("target", targets)

    def answers(self, outputs: Tensor, targets: Tensor) -> list[dict[str, Any]]:
        return self._told("prediction", self.predict(outputs))

    def _told(self, what: str, numbers: Tensor) -> list[dict[str, Any]]:
        return [
            {f"{what}/{name}": value for name, value in zip(self.classes, row, strict=True)} for row in numbers.tolist()
        ]

    def read_back(self, rows: Sequence[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
        def numbers(row: dict[str, Any], column: str) -> Tensor:
            found = torch.tensor([row[f"{column}/{name}"] for name in self.classes])
            return found if len(self.classes) == 1 else found[None]

        return [(numbers(row, "prediction"), numbers(row, "target")) for row in rows]
