"""How many processes load data: as many as the time of a batch asks for, and none where they would not pay."""

import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Seconds that a batch from another process takes of this one: 1 ms at 32 pixels, 8 ms at 224, where memory is new.
HANDING_OVER = 0.004
MOST = 8
TRIED = 8  # samples


def cores(processes: int = 1) -> int:
    """Those that one of several processes of this machine may take."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, free // processes)


def seconds_a_sample(samples: Sequence[Any]) -> float:
    """Median over some samples, one after another in this process; the very first, which may load code, is left out."""
    found = []
    for index in np.linspace(0, len(samples) - 1, min(TRIED, len(samples)) + 1).astype(int).tolist():
        began = time.perf_counter()
        samples[(0, index)]
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def worthwhile(batch_seconds: float, most: int) -> int:
    """Processes for batches that take one of them so long: no more than can hand over at once, 8 at most."""
    return 0 if batch_seconds < HANDING_OVER else min(most, MOST, math.ceil(batch_seconds / HANDING_OVER))


@dataclass(frozen=True)
class Choice:
    """How many processes load a split.

    Args:
        batch_seconds: that one of them takes for a batch.
        told: the choice and its reason, for the screen.
    """

    workers: int
    batch_seconds: float
    told: str


def choose(samples: Sequence[Any], batches: int, processes: int = 1) -> Choice:
    """How many load these samples in so many batches, where several processes train on this machine."""
    each = seconds_a_sample(samples)
    batch_seconds = each * len(samples) / batches
    chosen = worthwhile(batch_seconds, cores(processes))
    return Choice(chosen, batch_seconds, f"{1000 * each:.2g} ms to load a sample, data.num_workers={chosen}")
