"""Bootstrap intervals of a task's own metrics, over the samples of a split (Efron & Tibshirani, 1993)."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thaw.task.task import Task

LEVEL = 0.95
# Samples are drawn anew so many times; a fifth of that for metrics that read every prediction each time.
RESAMPLES, RESAMPLES_READ = 1000, 200
MOST_READ = 2 * 10**7  # numbers that the states of all samples may hold, or that the second kind may read in all
# How far a metric of the rows, whose probabilities are rounded, may be from the figure that was printed.
ROUNDING = 1e-4


class Interval(NamedTuple):
    """Between its ends lie 95 % of what the metric is in samples drawn anew from these, with replacement."""

    low: float
    high: float


def intervals(
    task: Task, split: str, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, float], seed: int = 0
) -> dict[str, Interval]:
    """Full name → interval, of the metrics of a split that can be computed from the rows of its samples.

    Left out is what the rows do not reproduce, such as a metric of probabilities where they hold the answer alone.

    Args:
        rows: of predictions.csv.
        metrics: as they were measured, by full name.
    """
    answers = task.read_back(rows)
    # The same samples for every metric: (resamples, samples), how often each sample is drawn.
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES) if answers else None
    found = {}
    for name, metric in task.metrics[f"{split}_"].items() if answers else ():
        states = _States(metric, answers)
        if states.few and abs(states.value() - metrics.get(name, math.nan)) <= ROUNDING:
            values = states.resampled(counts)
            if np.isfinite(values).all():
                low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
                found[name] = Interval(float(low), float(high))
    return found


class _States:
    """What each sample brings a metric into: its sums, or the predictions that it keeps.

    Of any samples the metric is computed from the sum of theirs, or from the list: as from the samples themselves.
    """

    def __init__(self, metric: Any, answers: Sequence[tuple[Any, Any]]) -> None:
        self.metric, self.size = metric.clone().cpu(), len(answers)
        if hasattr(self.metric, "validate_args"):
            self.metric.validate_args = False
        defaults = self.metric._defaults
        self.keeps = any(isinstance(default, list) for default in defaults.values())
        each = [self._of(*answer) for answer in answers]
        self.held: dict[str, list[Tensor]] = {name: [state[name] for state in each] for name in defaults}
        read = sum(part.numel() for parts in self.held.values() for part in parts)
        summed = all("sum" in getattr(how, "__name__", "") for how in self.metric._reductions.values())
        self.few = (self.keeps or summed) and read * (RESAMPLES_READ if self.keeps else 1) <= MOST_READ

    def _of(self, prediction: Any, target: Any) -> dict[str, Tensor]:
        self.metric.reset()
        self.metric.update(prediction, target)
        held = {name: getattr(self.metric, name) for name in self.metric._defaults}
        return {name: torch.cat(value) if isinstance(value, list) else value for name, value in held.items()}

    def value(self) -> float:
        """Of all samples, once each."""
        return float(self.resampled(np.ones((1, self.size), dtype=int))[0])

    def resampled(self, counts: np.ndarray) -> np.ndarray:
        """Of each row of `counts` (resamples, samples)."""
        if self.keeps:
            chosen = [np.repeat(np.arange(self.size), row) for row in counts[:RESAMPLES_READ]]
            joined = ({n: [torch.cat([h[i] for i in some])] for n, h in self.held.items()} for some in chosen)
            return np.array([self._compute(state) for state in joined])
        times = torch.from_numpy(counts).double()
        sums = {}
        for name, parts in self.held.items():
            every = torch.stack(parts)
            total = times @ every.reshape(self.size, -1).double()
            sums[name] = total.to(every.dtype).reshape(len(counts), *every.shape[1:])
        return np.array([self._compute({n: s[i] for n, s in sums.items()}) for i in range(len(counts))])

    def _compute(self, state: Mapping[str, Any]) -> float:
        vars(self.metric).update(state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class may be missing among the samples drawn
            # The class's own: around that of an instance torchmetrics adds a wait for other processes.
            return float(type(self.metric).compute(self.metric).float().mean())
