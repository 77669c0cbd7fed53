"""What a network is to answer: raw labels turned into numbers, one class for each kind of target."""

import reprlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from thaw.data.raw_labels import class_name, label_set, missing, transcript, words
from thaw.errors import UserError

IGNORED = -100  # the target index that every loss of torch leaves out


class Targets(ABC):
    """Fitted on the raw labels of train; encodes those of every split.

    Attributes:
        classes: names of what is answered, in index order: classes, labels, tags, letters or numbers.
    """

    classes: list[str]
    kind: ClassVar[str]
    source = "train"  # what the classes are known from

    @abstractmethod
    def __init__(self, train: Sequence[Any]) -> None: ...

    @classmethod
    def of(cls, classes: Sequence[str]) -> "Targets":
        """Those of a run whose classes are known, whatever the samples hold."""
        known = cls.__new__(cls)
        known.classes, known.source = list(classes), "the run"
        return known

    @staticmethod
    def fault(raw: Any) -> str:
        """Why one raw label can be no target; empty where it can."""
        return "no label" if missing(raw) else ""

    @abstractmethod
    def encode(self, raw: Sequence[Any], split: str) -> Sequence[Any]:
        """Targets of one split, an array (samples, …) where all have one shape."""

    def strata(self, targets: Sequence[Any]) -> np.ndarray | None:
        """Class of each sample (samples,) to stratify a split by; None where there are none."""
        return None

    def counts(self, targets: Sequence[Any]) -> list[int]:
        """Samples of each class; empty where classes cannot be counted."""
        return []

    def collate(self, targets: Sequence[Any]) -> Tensor:
        """One batch (batch, …), padded with IGNORED where lengths differ."""
        return torch.as_tensor(np.asarray(targets))

    def task_arguments(self, train: Sequence[Any]) -> dict[str, Any]:
        """What a task may need to know of the training targets."""
        return {"classes": self.classes, "class_counts": self.counts(train)}


class ClassTargets(Targets):
    """One class out of several, given by its name."""

    kind = "class"

    def __init__(self, train: Sequence[Any]) -> None:
        self.classes = sorted({class_name(raw) for raw in train})
        if len(self.classes) < 2:
            raise UserError(
                f"data must have at least two classes, each in a folder or under a label of its own; "
                f"found {len(self.classes)}: {', '.join(self.classes)}."
            )

    def encode(self, raw: Sequence[Any], split: str) -> np.ndarray:
        return _indices([class_name(label) for label in raw], self, split, "classes")

    def strata(self, targets: Sequence[Any]) -> np.ndarray:
        return np.asarray(targets)

    def counts(self, targets: Sequence[Any]) -> list[int]:
        return np.bincount(targets, minlength=len(self.classes)).tolist()


class LabelSetTargets(Targets):
    """Any number of labels at once: a list, a text such as `news;sport`, or one column of 0 and 1 for each label."""

    kind = "labels"

    @staticmethod
    def fault(raw: Any) -> str:
        return ""  # no label at all is a set of them like any other

    def __init__(self, train: Sequence[Any]) -> None:
        held = {name for row in train for name in label_set(row)}
        columns = {name for row in train[:1] if isinstance(row, dict) for name in row}
        self.classes = sorted(held | columns)
        if not held:
            raise UserError("data must have at least one label, e.g. a column of texts such as 'news;sport'.")

    def encode(self, raw: Sequence[Any], split: str) -> np.ndarray:
        rows = [label_set(row) for row in raw]
        flat = _indices([name for row in rows for name in row], self, split, "labels")
        targets = np.zeros((len(rows), len(self.classes)), dtype=np.float32)
        targets[np.repeat(np.arange(len(rows)), [len(row) for row in rows]), flat] = 1
        return targets

    def counts(self, targets: Sequence[Any]) -> list[int]:
        return np.asarray(targets).sum(axis=0).astype(int).tolist()

    def task_arguments(self, train: Sequence[Any]) -> dict[str, Any]:
        return super().task_arguments(train) | {"samples": len(train)}


class NumberTargets(Targets):
    """One number, or several."""

    kind = "number"

    @staticmethod
    def fault(raw: Any) -> str:
        if missing(raw):
            return "no label"
        try:
            numbers = [float(value) for value in (raw.values() if isinstance(raw, dict) else [raw])]
        except (TypeError, ValueError):
            return f"label {reprlib.repr(raw)} is no number"
        return "" if np.isfinite(numbers).all() else f"label {reprlib.repr(raw)} is not finite"

    def __init__(self, train: Sequence[Any]) -> None:
        first = next(iter(train), 0)
        self.classes = list(first) if isinstance(first, dict) else ["value"]

    def encode(self, raw: Sequence[Any], split: str) -> np.ndarray:
        try:
            rows = [[float(v) for v in (row.values() if isinstance(row, dict) else [row])] for row in raw]
        except (TypeError, ValueError) as error:
            raise UserError(f"data: every target of {split} must be a number ({error}).") from None
        if not np.isfinite(rows).all():
            raise UserError(f"data: every target of {split} must be a number; some are infinite or not a number.")
        return np.asarray(rows, dtype=np.float32).reshape(len(rows), len(self.classes))

    def task_arguments(self, train: Sequence[Any]) -> dict[str, Any]:
        values = np.asarray(train, dtype=np.float64)
        spread = np.maximum(values.std(axis=0), 1e-6)
        return super().task_arguments(train) | {"mean": values.mean(axis=0).tolist(), "std": spread.tolist()}


class TagTargets(Targets):
    """One tag for each word, as a list or separated by spaces."""

    kind = "tags"

    def __init__(self, train: Sequence[Any]) -> None:
        self.classes = sorted({tag for row in train for tag in words(row)})

    def encode(self, raw: Sequence[Any], split: str) -> list[np.ndarray]:
        return [_indices(words(row), self, split, "tags") for row in raw]

    def counts(self, targets: Sequence[Any]) -> list[int]:
        held = Counter(int(tag) for row in targets for tag in row)
        return [held[number] for number in range(len(self.classes))]

    def collate(self, targets: Sequence[Any]) -> Tensor:
        return _padded(targets)


class TranscriptTargets(Targets):
    """What was said, letter by letter."""

    kind = "transcript"

    def __init__(self, train: Sequence[Any]) -> None:
        self.classes = sorted({letter for text in train for letter in transcript(text)})

    def encode(self, raw: Sequence[Any], split: str) -> list[np.ndarray]:
        return [_indices(list(transcript(text)), self, split, "letters") for text in raw]

    def collate(self, targets: Sequence[Any]) -> Tensor:
        return _padded(targets)


class NextTokenTargets(Targets):
    """No label: the text itself is the target."""

    kind = "text"

    @staticmethod
    def fault(raw: Any) -> str:
        return ""

    def __init__(self, train: Sequence[Any]) -> None:
        self.classes = []

    def encode(self, raw: Sequence[Any], split: str) -> np.ndarray:
        return np.zeros(len(raw), dtype=np.int64)


KINDS: dict[str, type[Targets]] = {
    kind.kind: kind
    for kind in (ClassTargets, LabelSetTargets, NumberTargets, TagTargets, TranscriptTargets, NextTokenTargets)
}


def _indices(names: Sequence[str], known: Targets, split: str, what: str) -> np.ndarray:
    index = {name: number for number, name in enumerate(known.classes)}
    if unknown := sorted({name for name in names if name not in index}):
        if known.source == "train":
            letters = "Write these transcripts in letters of train, or move one that has them to train."
            advice = letters if what == "letters" else "Mend the names, or move samples of them to train."
        else:
            advice = "Mend the names, or leave those samples out."
        raise UserError(
            f"data.root: {split} has {what} that {known.source} lacks: {unknown[:5]}. "
            f"{known.source.capitalize()} has {_few(known.classes)}.\n{advice}"
        )
    return np.array([index[name] for name in names], dtype=np.int64)


def _few(names: Sequence[str], shown: int = 10) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _padded(rows: Sequence[Any]) -> Tensor:
    longest = max(len(row) for row in rows)
    batch = torch.full((len(rows), longest), IGNORED, dtype=torch.int64)
    for number, row in enumerate(rows):
        batch[number, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return batch
