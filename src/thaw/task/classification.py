"""Classification: one class out of several, or any number of labels at once."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassF1Score, MulticlassPrecision, MulticlassRecall

from thaw.errors import UserError
from thaw.task.metrics import Metrics, build_metrics
from thaw.task.task import Task

ClassWeights = Literal["none", "balanced"] | list[Annotated[float, Field(gt=0)]]
SINGLE = {"accuracy": {"name": "MulticlassAccuracy", "average": "micro"}, "f1": "MulticlassF1Score"}
MULTI = {"f1": "PresentMultilabelF1", "average_precision": "PresentMultilabelAveragePrecision"}


def loss_weights(chosen: ClassWeights, counts: Sequence[int], classes: Sequence[str]) -> Tensor | None:
    """Weight of each class in the loss (classes,), with mean 1 over the training samples.

    Args:
        chosen: `none`; `balanced`, inverse to the class's count; or one number for each class, taken as it is.

    Raises:
        UserError: a list of another length than there are classes.
    """
    if chosen == "none":
        return None
    if chosen == "balanced":
        held = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
        return held.sum() / (len(held) * held)
    if len(chosen) != len(classes):
        raise UserError(
            f"task.class_weights must have one number for each of the {len(classes)} classes "
            f"({', '.join(classes[:5])} …, in this order), or be none or balanced; got {len(chosen)}."
        )
    return torch.tensor(chosen, dtype=torch.float32)


class Classification(Task):
    """One class out of several: cross-entropy.

    Args:
        class_counts: training samples of each class, for `class_weights=balanced`.
        label_smoothing: share of each target spread over all classes in training (arXiv:1512.00567).
        class_weights: see `loss_weights`; in training only.
        focal_gamma: how much less a sample counts that is already right (arXiv:1708.02002); 0 is cross-entropy.
        metrics: see `build_metrics`; they read probabilities (samples, classes).
    """

    target = "class"

    def __init__(
        self,
        classes: Sequence[str],
        class_counts: Sequence[int] = (),
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        class_weights: ClassWeights = "none",
        focal_gamma: Annotated[float, Field(ge=0)] = 0.0,
        metrics: Metrics = SINGLE,
    ) -> None:
        super().__init__(classes, build_metrics(metrics, num_classes=len(classes)), len(classes))
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.register_buffer("weights", loss_weights(class_weights, class_counts, classes), persistent=False)
        self.assert_measurable(torch.zeros(4, len(classes)), torch.arange(4) % len(classes))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self.training:
            return F.cross_entropy(outputs, targets)
        weights = self.weights
        if not self.focal_gamma:
            return F.cross_entropy(outputs, targets, weights, label_smoothing=self.label_smoothing)
        each = F.cross_entropy(outputs, targets, weights, label_smoothing=self.label_smoothing, reduction="none")
        # The chance given to the right class, or to the mixture of them that mixing made.
        right = torch.exp(-F.cross_entropy(outputs, targets, reduction="none"))
        each = (1 - right) ** self.focal_gamma * each
        # As torch does: mixed targets count as one sample each, whatever their classes' weights.
        return each.mean() if weights is None or targets.ndim == 2 else each.sum() / weights[targets].sum()

    def predict(self, outputs: Tensor) -> Tensor:
        """Class probabilities (batch, num_outputs), in float32 whatever the precision."""
        return outputs.float().softmax(dim=-1)

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(outputs), self.labels(targets)

    def labels(self, targets: Tensor) -> Tensor:
        """Hard targets (batch,), also where mixing made them soft."""
        return targets.argmax(dim=-1) if targets.ndim == 2 else targets

    def truths(self, targets: Tensor) -> list[dict[str, Any]]:
        return [{"target": self.classes[target]} for target in self.labels(targets).tolist()]

    def answers(self, outputs: Tensor, targets: Tensor) -> list[dict[str, Any]]:
        probabilities = self.predict(outputs)
        return [
            {"prediction": self.classes[guess]} | _shares(self.classes, row)
            for guess, row in zip(probabilities.argmax(dim=-1).tolist(), probabilities.tolist(), strict=True)
        ]

    def read_back(self, rows: Sequence[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
        index = {name: torch.tensor([number]) for number, name in enumerate(self.classes)}
        return [(_probabilities(row, self.classes), index[row["target"]]) for row in rows]

    def per_class(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
        """Precision, recall, F1 and support of each class."""
        index = {name: number for number, name in enumerate(self.classes)}
        targets, predictions = (torch.tensor([index[row[key]] for row in rows]) for key in ("target", "prediction"))
        metrics = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
        table = {
            name: metric(len(self.classes), average=None)(predictions, targets).tolist()
            for name, metric in metrics.items()
        }
        return table | {"support": torch.bincount(targets, minlength=len(self.classes)).tolist()}


class Multilabel(Task):
    """Any number of labels at once: binary cross-entropy for each.

    Args:
        class_counts, samples: training samples that carry each label, and in all, for `class_weights=balanced`.
        class_weights: `none`; `balanced`, which lets a label's presence count as much as its absence; or one number for
            each label; in training only.
        focal_gamma: how much less a label counts that is already right (arXiv:1708.02002); 0 is cross-entropy.
        metrics: see `build_metrics`; they read probabilities (samples, labels).
    """

    target = "labels"

    def __init__(
        self,
        classes: Sequence[str],
        class_counts: Sequence[int] = (),
        samples: int = 0,
        class_weights: ClassWeights = "none",
        focal_gamma: Annotated[float, Field(ge=0)] = 0.0,
        metrics: Metrics = MULTI,
    ) -> None:
        super().__init__(classes, build_metrics(metrics, num_labels=len(classes)), len(classes))
        self.focal_gamma = focal_gamma
        balanced = class_weights == "balanced"
        held = torch.tensor(class_counts, dtype=torch.float32).clamp(min=1)
        rarity = ((samples - held) / held).clamp(min=1 / max(samples, 1)) if balanced else None
        weights = None if balanced else loss_weights(class_weights, class_counts, classes)
        # The weight of a label's presence, that of its absence being 1.
        self.register_buffer("rarity", rarity, persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.assert_measurable(torch.zeros(4, len(classes)), torch.arange(4)[:, None].expand(4, len(classes)) % 2.0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self.training:
            return F.binary_cross_entropy_with_logits(outputs, targets)
        each = F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=self.rarity, reduction="none")
        if self.focal_gamma:
            right = torch.exp(-F.binary_cross_entropy_with_logits(outputs, targets, reduction="none"))
            each = (1 - right) ** self.focal_gamma * each
        return (each if self.weights is None else each * self.weights).mean()

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.float().sigmoid(), targets.long()

    def truths(self, targets: Tensor) -> list[dict[str, Any]]:
        return [{"target": self._joined(truth)} for truth in targets.tolist()]

    def answers(self, outputs: Tensor, targets: Tensor) -> list[dict[str, Any]]:
        return [
            {"prediction": self._joined([share >= 0.5 for share in row])} | _shares(self.classes, row)
            for row in outputs.float().sigmoid().tolist()
        ]

    def read_back(self, rows: Sequence[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
        held = [row["target"].split(";") for row in rows]
        return [
            (_probabilities(row, self.classes), torch.tensor([[int(name in names) for name in self.classes]]))
            for row, names in zip(rows, held, strict=True)
        ]

    def _joined(self, held: Sequence[float]) -> str:
        return ";".join(name for name, one in zip(self.classes, held, strict=True) if one)


def _probabilities(row: dict[str, Any], classes: Sequence[str]) -> Tensor:
    """(1, classes), from a row of `predictions.csv`."""
    return torch.tensor([[row[f"probability/{name}"] for name in classes]])


def _shares(classes: Sequence[str], row: Sequence[float]) -> dict[str, float]:
    return {f"probability/{name}": round(share, 6) for name, share in zip(classes, row, strict=True)}
