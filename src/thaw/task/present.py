"""Metrics that torchmetrics gets wrong on small data: it counts what does not occur as 0."""

import warnings

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.classification import (
    MulticlassAUROC,
    MultilabelAUROC,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)
from torchmetrics.utilities.data import dim_zero_cat


class PresentAUROC(MulticlassAUROC):
    """ROC-AUC of one class against the rest, averaged over the classes where it is defined."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:
        counts = torch.bincount(dim_zero_cat(self.target), minlength=self.num_classes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No (positive|negative) samples")  # those classes are left out below
            return super().compute()[(counts > 0) & (counts < counts.sum())].mean()


def _present(held: Tensor, values: Tensor) -> Tensor:
    """The mean over the labels that occur; NaN where none does."""
    return values[held].mean()


class PresentMultilabelF1(MultilabelF1Score):
    """Macro-F1 over the labels that occur, in targets or predictions."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none")

    def compute(self) -> Tensor:
        return _present(self.tp + self.fp + self.fn > 0, super().compute())


class PresentMultilabelAUROC(MultilabelAUROC):
    """ROC-AUC averaged over the labels that some samples carry and some do not."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none")

    def compute(self) -> Tensor:
        held = dim_zero_cat(self.target).float().mean(dim=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No (positive|negative) samples")
            return _present((held > 0) & (held < 1), super().compute())


class PresentMultilabelAveragePrecision(MultilabelAveragePrecision):
    """Average precision over the labels that occur."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none")

    def compute(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive samples")
            return _present(dim_zero_cat(self.target).any(dim=0), super().compute())


class R2Score(torchmetrics.R2Score):
    """The share of the variance that is explained; NaN of a single sample, where torchmetrics raises."""

    def compute(self) -> Tensor:
        return super().compute() if self.total >= 2 else self.sum_error.new_tensor(float("nan")).mean()


class RootMeanSquaredError(torchmetrics.MeanSquaredError):
    """The root of the mean squared error, in the unit of the targets."""

    def __init__(self, num_outputs: int = 1) -> None:
        super().__init__(squared=False, num_outputs=num_outputs)
