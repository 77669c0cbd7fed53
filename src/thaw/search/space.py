"""What a sweep tries: settings given several values become dimensions, the others hold for every job."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from thaw.errors import UserError

# They say where and how a job runs, not what.
NOT_OF_THE_JOB = ("run.dir", "resume", "test", "report", "search", "hydra")


@dataclass(frozen=True)
class Space:
    """What a sweep tries.

    Args:
        fixed: overrides of every job.
        dimensions: setting → its values.
        written: setting → its values as the user wrote them.
        seeds: of each trial of a sampler, one run each; none where the seed is a dimension as any other.
    """

    fixed: Sequence[str] = ()
    dimensions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[str] = ()

    @classmethod
    def of(cls, overrides: Sequence[Any], grid: bool) -> "Space":
        """From Hydra's parsed overrides.

        Args:
            grid: every dimension is a list of values, also the seed's.

        Raises:
            UserError: an interval in a grid, or one without both ends.
        """
        fixed, dimensions, written, seeds, problems = [], {}, {}, (), []
        for override in overrides:
            key = override.get_key_element()
            text = override.input_line
            if not override.is_sweep_override():
                if key.lstrip("+~").partition(".")[0] != "search" and key != "resume":  # a sweep always goes on
                    fixed.append(text)
                if key == "run.dir":
                    problems.append("run.dir must be left out of a sweep: each job has its own. Write search.dir=…")
                continue
            written[key] = text.partition("=")[2]
            if key == "seed" and not grid and override.is_discrete_sweep():
                seeds = tuple(override.sweep_string_iterator())
                continue
            try:
                dimensions[key] = _distribution(override, grid)
            except ValueError as error:
                problems.append(f"{text}: {error}")
        if problems:
            raise UserError(*problems)
        return cls(fixed, dimensions, written, seeds)

    @property
    def reads_test(self) -> bool:
        """Whether every job is to read the test split, and not the chosen one alone."""
        return "test=true" in self.fixed

    def combinations(self) -> Iterator[dict[str, Any]]:
        """All points of a grid, the last dimension first to change."""
        values = [distribution.choices for distribution in self.dimensions.values()]
        return (dict(zip(self.dimensions, point, strict=True)) for point in itertools.product(*values))

    def corners(self) -> Iterator[dict[str, Any]]:
        """Points in which each choice and both ends of each range occur, to check them before the first trial."""
        ends = {key: _ends(distribution) for key, distribution in self.dimensions.items()}
        for number in range(max(map(len, ends.values()), default=0)):
            yield {key: values[number % len(values)] for key, values in ends.items()}

    def texts(self, point: Mapping[str, Any]) -> dict[str, str]:
        """The values of a point as an override has them."""
        return {key: repr(value) if isinstance(value, float) else str(value) for key, value in point.items()}

    def overrides(self, point: Mapping[str, Any], seed: str | None = None) -> list[str]:
        """The overrides of a job at a point of the space."""
        values = [f"{key}={text}" for key, text in self.texts(point).items()]
        return [*self.fixed, *values, *([f"seed={seed}"] if seed is not None else [])]


def directory(folder: Path) -> str:
    """The override that lets a job write there, quoted where a sign in it means something to Hydra."""
    path = str(folder)
    if not re.fullmatch(r"[\w./+-]+", path, re.ASCII):
        # A backslash means itself but before a quote.
        path = "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", r"\'"), path) + "'"
    return f"run.dir={path}"


def job_name(overrides: Sequence[str]) -> str:
    """Name of a job's directory: the same overrides in any order have the same."""
    own = [text for text in overrides if _key(text) not in NOT_OF_THE_JOB]
    own = [text for text in own if _key(text).partition(".")[0] not in NOT_OF_THE_JOB]
    return hashlib.sha256("\0".join(sorted(own)).encode()).hexdigest()[:10]


def value_of(text: str, distribution: BaseDistribution) -> Any:
    """What a setting's text is as a value of a dimension; None where it does not lie in it."""
    if isinstance(distribution, CategoricalDistribution):
        return next((choice for choice in distribution.choices if _equal(choice, text)), None)
    try:
        value = int(text) if isinstance(distribution, IntDistribution) else float(text)
    except ValueError:
        return None
    return value if distribution.low <= value <= distribution.high else None


def _equal(one: str, other: str) -> bool:
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _distribution(override: Any, grid: bool) -> BaseDistribution:
    swept = override.value()
    if override.is_discrete_sweep() and (grid or override.is_choice_sweep()):
        if not (choices := list(dict.fromkeys(override.sweep_string_iterator()))):
            raise ValueError("there must be a value in it. Write e.g. optimizer.lr=1e-5,1e-4.")
        return CategoricalDistribution(choices)
    log = "log" in swept.tags
    if override.is_range_sweep():
        values = list(override.sweep_iterator())
        kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
        step = values[1] - values[0] if len(values) > 1 else 1
        return kind(min(values), max(values), step=None if kind is FloatDistribution and log else abs(step), log=log)
    if grid:
        raise ValueError(
            "a grid must have values; an interval has none of its own. Write search=random or search=bayes."
        )
    if swept.start is None or swept.end is None or swept.start >= swept.end:
        raise ValueError("an interval must go from a smaller number to a larger one. Write e.g. interval(1e-5,1e-2).")
    if log and swept.start <= 0:
        raise ValueError("an interval on a logarithmic scale must begin above 0. Write e.g. tag(log,interval(1e-5,1)).")
    whole = "int" in swept.tags or (isinstance(swept.start, int) and isinstance(swept.end, int))
    return (
        IntDistribution(int(swept.start), int(swept.end), log=log)
        if whole
        else FloatDistribution(float(swept.start), float(swept.end), log=log)
    )


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return [distribution.low, distribution.high]
