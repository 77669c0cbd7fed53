"""What a network answers on a split, as arrays: made of the rows of predictions.csv."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Answers:
    """The rows of all samples.

    Args:
        kind: of the task's targets: `class`, `labels`, `number`, `tags`, `transcript` or `text`.
        classes: names of what is answered, in index order.
    """

    kind: str
    classes: Sequence[str]
    rows: Sequence[Mapping[str, Any]]

    @cached_property
    def truth(self) -> np.ndarray:
        """Indices (samples,) of classes or (words,) of tags, labels (samples, labels) or numbers (samples, numbers)."""
        return self._read("target")

    @cached_property
    def guess(self) -> np.ndarray:
        """What was predicted, as `truth`."""
        return self._read("prediction")

    @cached_property
    def probabilities(self) -> np.ndarray | None:
        """(samples, classes) or (samples, labels); None where the rows hold none."""
        names = [f"probability/{name}" for name in self.classes]
        if not self.rows or not names or not all(name in self.rows[0] for name in names):
            return None
        return np.array([[row[name] for name in names] for row in self.rows], dtype=float)

    def _read(self, column: str) -> np.ndarray:
        if self.kind == "number":
            return np.array([[row[f"{column}/{name}"] for name in self.classes] for row in self.rows], dtype=float)
        index = {name: number for number, name in enumerate(self.classes)}
        if self.kind == "labels":
            held = np.zeros((len(self.rows), len(self.classes)), dtype=int)
            for number, row in enumerate(self.rows):
                held[number, [index[name] for name in row[column].split(";") if name]] = 1
            return held
        if self.kind == "tags":
            return np.array([index[tag] for row in self.rows for tag in row[column].split()], dtype=int)
        if self.kind == "class":
            return np.array([index[row[column]] for row in self.rows], dtype=int)
        return np.array([row[column] for row in self.rows], dtype=object)


@dataclass(frozen=True)
class Verdict:
    """How one sample was answered.

    Args:
        row: its number among the rows.
        confidence: the more, the worse a mistake and the better a right answer; of what is measured by distance, how
            far off it is.
        told: that number in words.
    """

    row: int
    right: bool
    truth: str
    guess: str
    confidence: float
    told: str


def verdicts(answers: Answers) -> list[Verdict]:
    """Of each sample whether it is right, and how sure the network was, or how far off it is."""
    judge = {"class": _of_classes, "labels": _of_labels, "number": _of_numbers}
    if answers.kind in judge:
        right, confidence, words = judge[answers.kind](answers)
    else:
        right, confidence, words = _of_sequences(answers)
    shown = _shown_numbers if answers.kind == "number" else _shown
    return [
        Verdict(number, bool(right[number]), *shown(row, answers.classes), float(confidence[number]), words[number])
        for number, row in enumerate(answers.rows)
    ]


Judged = tuple[np.ndarray, np.ndarray, list[str]]


def _of_classes(answers: Answers) -> Judged:
    sure = answers.probabilities.max(axis=1)
    return answers.truth == answers.guess, sure, [percent(value) for value in sure]


def _of_labels(answers: Answers) -> Judged:
    sure = np.where(answers.guess, answers.probabilities, 1 - answers.probabilities)
    wrong = answers.truth != answers.guess
    # A set of labels is as right as its least sure label, and as wrong as the surest of its wrong ones.
    confidence = np.where(wrong.any(axis=1), np.where(wrong, sure, 0).max(axis=1), sure.min(axis=1))
    return ~wrong.any(axis=1), confidence, [percent(value) for value in confidence]


def _of_numbers(answers: Answers) -> Judged:
    spread = np.maximum(answers.truth.std(axis=0), 1e-9)
    off = (np.abs(answers.guess - answers.truth) / spread).max(axis=1)
    return np.zeros(len(off), dtype=bool), off, [f"off by {value:.2f} SD" for value in off]


def _of_sequences(answers: Answers) -> Judged:
    tags = answers.kind == "tags"
    split = str.split if tags else list
    pairs = [(split(row["target"]), split(row["prediction"])) for row in answers.rows]
    if tags:
        off = [sum(one != other for one, other in zip(*pair, strict=True)) for pair in pairs]
        words = [f"{wrong} of {len(pair[0])} words" for wrong, pair in zip(off, pairs, strict=True)]
    else:
        from torchmetrics.functional.text import char_error_rate

        off = [float(char_error_rate(row["prediction"], row["target"] or " ")) for row in answers.rows]
        words = [f"CER {share:.2f}" for share in off]
    return np.array([one == other for one, other in pairs], dtype=bool), np.array(off, dtype=float), words


def _shown(row: Mapping[str, Any], classes: Sequence[str]) -> tuple[str, str]:
    return row["target"] or "–", row["prediction"] or "–"


def _shown_numbers(row: Mapping[str, Any], classes: Sequence[str]) -> tuple[str, str]:
    truth, guess = ([f"{row[f'{column}/{name}']:.4g}" for name in classes] for column in ("target", "prediction"))
    return ", ".join(truth), ", ".join(guess)


def percent(share: float) -> str:
    """A share as people read it, with as many digits as tell it from all and from nothing."""
    return f"{share:.0%}" if 0.01 <= share < 0.995 else f"{share:.2%}" if share < 0.99995 else "100%"
