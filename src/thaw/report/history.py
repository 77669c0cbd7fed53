"""What a run has measured while it trained, as its record and metrics.csv have it."""

import csv
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from thaw.plan.drawing import Bar


class History:
    """The epochs of a run.

    Args:
        record: its run.json.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.record = record
        self.epochs = max(int(record.get("epochs", 0)), 1)
        self._rows: list[dict[str, str]] = []
        if (path := folder / "metrics.csv").is_file():
            with open(path, newline="", encoding="utf-8") as file:
                self._rows = list(csv.DictReader(file))

    @property
    def steps_an_epoch(self) -> float:
        return max(self.record.get("steps", 0), 1) / self.epochs

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """(epochs done, values) of a metric."""
        told = [(float(row["epoch"]) + 1, float(row[name])) for row in self._rows if row.get(name) and row["epoch"]]
        # What was measured after the training counts for no epoch of its own.
        kept = {epoch: value for epoch, value in told if epoch <= self.epochs}
        return list(kept), list(kept.values())

    @cached_property
    def rates(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Layer group → epochs done, and → its learning rate then; its matrices and its vectors have the same."""
        groups = [state["group"] for state in self.states[0]["groups"]] if self.states else []
        columns = {name.removeprefix("lr/").partition("/")[0]: name for name in (self._rows[0] if self._rows else ())}
        at: dict[str, list[float]] = {}
        values: dict[str, list[float]] = {}
        for group in groups:
            if name := columns.get(group):
                told = [row for row in self._rows if row.get(name) and row.get("step")]
                at[group] = [(float(row["step"]) + 1) / self.steps_an_epoch for row in told]
                values[group] = [float(row[name]) for row in told]
        return at, values

    @property
    def states(self) -> Sequence[Mapping[str, Any]]:
        """Of each stage: the epoch since which it holds, and what each layer group does in it."""
        return self.record.get("contract", [])

    @property
    def parameters(self) -> dict[str, int]:
        """Layer group → its parameters, in forward order."""
        return {state["group"]: state["parameters"] for state in self.states[0]["groups"]}

    @property
    def bars(self) -> dict[str, list[Bar]]:
        """Layer group → when it trains."""
        found: dict[str, list[Bar]] = {group: [] for group in self.parameters}
        ends = [*(stage["epoch"] for stage in self.states[1:]), self.epochs]
        for stage, end in zip(self.states, ends, strict=True):
            for state in stage["groups"]:
                if state["trainable"]:
                    own, whole = found[state["group"]], state["trainable"] == state["parameters"]
                    goes_on = own and own[-1][1:] == (stage["epoch"], whole)
                    start = own.pop()[0] if goes_on else stage["epoch"]
                    own.append((start, end, whole))
        return found

    @property
    def thaws(self) -> dict[int, list[str]]:
        """Epochs done before it → layer groups that begin to train then; the first epoch's are none."""
        found, before = {}, None
        for stage in self.record.get("timeline", []):
            if before is not None and (new := [group for group in stage["groups"] if group not in before]):
                found[stage["epoch"]] = new
            before = stage["groups"]
        return found

    @property
    def best(self) -> float | None:
        """Epochs done when the best one had ended."""
        epoch = self.record.get("best_epoch")
        return None if epoch is None else epoch + 1


def finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
