"""Tasks: the loss, what counts as a prediction, and the metrics."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchmetrics.utilities.data import dim_zero_cat


class PresentAUROC(MulticlassAUROC):
    """ROC-AUC of one class against the rest, averaged over the classes where it is defined.

    torchmetrics counts a class without samples as 0, which makes a perfect classifier look poor on a small split.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:
        counts = torch.bincount(dim_zero_cat(self.target), minlength=self.num_classes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No (positive|negative) samples")  # those classes are left out below
            return super().compute()[(counts > 0) & (counts < counts.sum())].mean()


class Task(nn.Module, ABC):
    """What a network is trained for.

    Args:
        metrics: torchmetrics over (predictions, targets), cloned for each split.
        evaluation_only: names of metrics that keep every prediction, too many of them in training.
    """

    def __init__(self, metrics: MetricCollection, evaluation_only: Collection[str] = ()) -> None:
        super().__init__()
        light = MetricCollection({n: m for n, m in metrics.items() if n not in evaluation_only}, compute_groups=False)
        clones = {"train_": light.clone("train/"), "val_": metrics.clone("val/"), "test_": metrics.clone("test/")}
        self.metrics = nn.ModuleDict(clones)
        # "disable" keeps a NaN and does not wait for the device; it also ignores weights (see `update`).
        losses = {f"{split}_": MeanMetric(nan_strategy="disable") for split in ("train", "val", "test")}
        self.losses = nn.ModuleDict(losses)

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar; with regularisation only in train mode."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Turn the network's outputs (batch, num_outputs) into what metrics and people read."""

    @abstractmethod
    def labels(self, targets: Tensor) -> Tensor:
        """Hard targets (batch,), also where mixing made them soft."""

    def names(self, split: str) -> list[str]:
        """Full names of the metrics of a split, e.g. `val/accuracy`."""
        return [f"{split}/loss", *self.metrics[f"{split}_"].keys()]

    def direction(self, name: str) -> Literal["min", "max"]:
        """Which way a metric such as `val/accuracy` gets better."""
        name = name.rpartition("/")[2]
        return "min" if name == "loss" or not self.metrics["val_"][name].higher_is_better else "max"

    def update(self, split: str, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Gather one batch on its own device, without waiting for it."""
        self.losses[f"{split}_"].update(loss.detach().expand(len(outputs)))
        self.metrics[f"{split}_"].update(self.predict(outputs.detach()), self.labels(targets))

    def compute(self, split: str) -> dict[str, Tensor]:
        """The metrics of all batches since the last call, by full name."""
        metrics = {f"{split}/loss": self.losses[f"{split}_"].compute(), **self.metrics[f"{split}_"].compute()}
        self.losses[f"{split}_"].reset()
        self.metrics[f"{split}_"].reset()
        return metrics


class Classification(Task):
    """One class out of several: cross-entropy; accuracy, macro-F1, ROC-AUC (one against the rest), top-5.

    Args:
        num_outputs: number of classes; top-5 is measured from ten classes on.
        label_smoothing: share of each target spread over all classes in training (arXiv:1512.00567).
    """

    def __init__(self, num_outputs: int, label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> None:
        metrics = {
            "accuracy": MulticlassAccuracy(num_outputs, average="micro"),
            "f1": MulticlassF1Score(num_outputs, average="macro"),
            "auroc": PresentAUROC(num_outputs),
        }
        if num_outputs >= 10:
            metrics["top5"] = MulticlassAccuracy(num_outputs, top_k=5, average="micro")
        super().__init__(MetricCollection(metrics, compute_groups=False), evaluation_only=("auroc",))
        self.num_outputs, self.label_smoothing = num_outputs, label_smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing if self.training else 0.0)

    def predict(self, outputs: Tensor) -> Tensor:
        """Class probabilities (batch, num_outputs), in float32 whatever the precision."""
        return outputs.float().softmax(dim=-1)

    def labels(self, targets: Tensor) -> Tensor:
        return targets.argmax(dim=-1) if targets.ndim == 2 else targets

    def per_class(self, predictions: Tensor, targets: Tensor) -> dict[str, list[float]]:
        """Precision, recall, F1 and support of each class, from probabilities (samples, num_outputs)."""
        metrics = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
        table = {
            name: metric(self.num_outputs, average=None)(predictions, targets).tolist()
            for name, metric in metrics.items()
        }
        return table | {"support": torch.bincount(targets, minlength=self.num_outputs).tolist()}
