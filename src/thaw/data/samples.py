"""Labelled samples, and those of them that can be used."""

import contextlib
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thaw.errors import UserError

MOST_SKIPPED = 0.01  # share of a split's samples
SHOWN = 3  # bad samples in a message
ALL_BAD = "bad_samples.csv"  # where more than those are listed
CUT = 300  # characters of a sample in a message: all of a path, and not all of a book


@dataclass(frozen=True)
class Samples(Sequence[tuple[Any, Any]]):
    """Labelled samples, each opened only when it is asked for.

    Args:
        inputs: what `open` turns into a sample: a path, an array, the number of a row (samples, …).
        targets: the raw label of each sample, then its encoded target.
        open: turns one of the inputs into what the transform takes.
        show: turns one of the inputs into what people read; None shows paths as they are, and else the index.
    """

    inputs: Sequence[Any]
    targets: Sequence[Any]
    open: Callable[[Any], Any]
    show: Callable[[Any], str] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.open(self.inputs[index]), self.targets[index]

    def take(self, indices: np.ndarray) -> "Samples":
        return replace(self, inputs=_taken(self.inputs, indices), targets=_taken(self.targets, indices))

    def name(self, index: int) -> str:
        """What stands for a sample in `predictions.csv` and in messages."""
        item = self.inputs[index]
        return self.show(item) if self.show else item if isinstance(item, str) else str(index)


def _taken(values: Sequence[Any], indices: np.ndarray) -> Sequence[Any]:
    return [values[index] for index in indices] if isinstance(values, list) else values[indices]


def sound(
    splits: Mapping[str, Samples], problems: Mapping[str, Mapping[int, str]], skip: bool
) -> tuple[dict[str, Samples], list[tuple[str, str, str]]]:
    """The splits without the samples that cannot be used, and (split, name, reason) of what was left out.

    Args:
        problems: split → index → reason.
        skip: leave them out, up to 1 % of a split, rather than raise.

    Raises:
        UserError: with `skip` off, or too many of them; the first three are named, and all of them in `bad_samples.csv`
            of the working directory.
    """
    indices = [(split, index) for split, bad in problems.items() for index in sorted(bad)]
    told = [
        # What has no text has no name either.
        (split, splits[split].name(index).strip(" |") or f"row {index + 1}", reason)
        for split, bad in problems.items()
        for index, reason in sorted(bad.items())
    ]
    if told and not (skip and all(len(problems[split]) <= MOST_SKIPPED * len(splits[split]) for split in problems)):
        shown = ", ".join(
            f"{split}[{index}] '{_readable(name)}' ({reason})"
            for (split, index), (_, name, reason) in zip(indices[:SHOWN], told, strict=False)
        )
        if len(told) > SHOWN:
            shown += f" and {len(told) - SHOWN} more" + (f", all in {ALL_BAD}" if _written(indices, told) else "")
        raise UserError(
            f"data: every sample must be readable and labelled; {len(told)} cannot be used: {shown}.\n"
            + (
                "More than 1 % of a split is never left out. Mend or remove them."
                if skip
                else "Mend or remove them; or write data.on_bad_sample=skip, which leaves out at most 1 % of a split."
            )
        )
    kept = {
        split: samples.take(np.setdiff1d(np.arange(len(samples)), list(problems[split]))) if told else samples
        for split, samples in splits.items()
    }
    return kept, told


def _readable(name: str) -> str:
    """On one line, and never longer than a screen."""
    plain = "".join(c if c.isprintable() else " " for c in name[: CUT + 1])
    return plain if len(plain) <= CUT else plain[:CUT] + "…"


def _written(indices: Sequence[tuple[str, int]], told: Sequence[tuple[str, str, str]]) -> bool:
    with contextlib.suppress(OSError), open(Path(ALL_BAD), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("split", "index", "sample", "reason"))
        writer.writerows((*at, name, reason) for at, (_, name, reason) in zip(indices, told, strict=True))
        return True
    return False


def unlabelled(samples: Samples, fault: Callable[[Any], str]) -> dict[int, str]:
    """Index → reason, of the samples whose raw label can be no target by `Targets.fault`."""
    return {index: reason for index, raw in enumerate(samples.targets) if (reason := fault(raw))}
