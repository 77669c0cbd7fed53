"""Runs that differ in more than their seed, told apart from the noise of the seeds."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from thaw.search.ledger import Row

# What is said to differ does so by chance in fewer than one of twenty comparisons.
LEVEL = 0.05


@dataclass(frozen=True)
class Configuration:
    """The finished runs of one configuration, by seed.

    Args:
        settings: setting → value, of those that differ between configurations.
        rows: seed → run.
    """

    settings: Mapping[str, str]
    rows: Mapping[str, Row]

    @property
    def name(self) -> str:
        return " ".join(f"{key}={short(value)}" for key, value in self.settings.items()) or "as it is"

    def values(self, metric: str, seeds: Iterable[str] | None = None) -> np.ndarray:
        """(seeds,), of the seeds that have the metric."""
        rows = [self.rows[seed] for seed in (self.rows if seeds is None else seeds)]
        return np.array([row.metrics[metric] for row in rows if metric in row.metrics])


@dataclass(frozen=True)
class Difference:
    """How much larger a metric is in one configuration than in another, over the seeds that both have.

    Args:
        mean: of the differences, seed by seed.
        interval: half the width of its 95 % interval, by Student's t.
        p: how likely so large a mean is where there is no difference (paired t-test).
        seeds: how many.
    """

    mean: float
    interval: float
    p: float
    seeds: int

    @property
    def noise(self) -> bool:
        """Whether it may well be that of the seeds."""
        return not self.p < LEVEL


def interval(values: Sequence[float] | np.ndarray) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def folded(rows: Iterable[Row]) -> list[Configuration]:
    """Finished runs by configuration, in the order in which they first occur."""
    found: dict[tuple[tuple[str, str], ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row.status == "finished":
            found[tuple(row.settings.items())][row.seed] = row
    return [Configuration(dict(settings), by_seed) for settings, by_seed in found.items()]


def difference(one: Configuration, other: Configuration, metric: str) -> Difference | None:
    """Of two configurations, paired by seed; None where they share fewer than two."""
    seeds = [seed for seed in one.rows if seed in other.rows]
    seeds = [seed for seed in seeds if all(metric in c.rows[seed].metrics for c in (one, other))]
    if len(seeds) < 2:
        return None
    apart = one.values(metric, seeds) - other.values(metric, seeds)
    if not apart.std():  # no noise: the same everywhere, or apart by the same everywhere
        return Difference(float(apart.mean()), 0.0, 0.0 if apart.any() else 1.0, len(seeds))
    return Difference(float(apart.mean()), interval(apart), float(stats.ttest_1samp(apart, 0).pvalue), len(seeds))


def verdict(
    one: Configuration, other: Configuration, metric: str, mode: str, names: tuple[str, str] | None = None
) -> str:
    """Which of two configurations is better, in words; `names` are shorter ones for both."""
    found = difference(one, other, metric)
    first, second = names or (one.name, other.name)
    if found is None:
        return f"{first} and {second} share fewer than two seeds: nothing can be said of their difference."
    if found.noise:
        return (
            f"{first} and {second} are within seed noise: {found.mean:+.4g} ± {found.interval:.2g}, "
            f"p = {found.p:.2g}, {found.seeds} seeds."
        )
    better, worse = (first, second) if (found.mean > 0) == (mode == "max") else (second, first)
    return (
        f"{better} beats {worse} by {abs(found.mean):.4g} ± {found.interval:.2g}, p = {found.p:.2g}, "
        f"{found.seeds} seeds."
    )


def ranked(configurations: Sequence[Configuration], metric: str, mode: str) -> list[Configuration]:
    """The best mean first; of equal ones the earlier."""
    sign = -1 if mode == "max" else 1
    measured = [c for c in configurations if len(c.values(metric))]
    return sorted(measured, key=lambda c: sign * float(c.values(metric).mean()))


def cell(values: np.ndarray) -> str:
    """`0.954 ± 0.012`, or the value alone where there is one."""
    if not len(values):
        return "–"
    return f"{values.mean():.4f}" + (f" ± {interval(values):.4f}" if len(values) > 1 else "")


def short(value: str) -> str:
    """A setting's value for a table: numbers of four digits, where a sampler has drawn sixteen."""
    try:
        return value if len(value) < 8 else f"{float(value):.4g}"
    except ValueError:
        return value
