"""What can be said of a sweep: the settings `search.*`, and what each may be."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field

SETTINGS: Mapping[str, Any] = {
    "search.dir": str | None,
    "search.space": dict[str, str],
    "search.sampler": Literal["grid", "random", "tpe", "gp", "cmaes"],
    "search.n_trials": Annotated[int, Field(ge=1)] | None,
    "search.n_random": Annotated[int, Field(ge=0)],
    "search.defaults_first": bool,
    "search.pruner": Literal["none", "median", "halving", "hyperband", "wilcoxon", "asha"],
    "search.prune_after": Annotated[int, Field(ge=1)],
    "search.seed": Annotated[int, Field(ge=0, lt=2**32)],
    "search.from": str | None,
    "search.storage": str | None,
    "search.batched": bool,
}


@dataclass(frozen=True)
class Search:
    """The settings of a sweep.

    Args:
        dir: where it writes; None takes a folder below `runs/sweeps`, named by what is swept.
        space: setting → values, written as in an override, where the command line sweeps nothing but the seed.
        sampler: what chooses the next values. `tpe`: arXiv:2304.11127; `gp`: Gaussian processes, which learn nothing
            from what was pruned; `cmaes`: numbers only.
        n_trials: how many are to be finished; None takes all combinations of a grid.
        n_random: how many are drawn at random before the sampler learns from them.
        defaults_first: whether the configuration as it is, where it lies in the space, is tried before all.
        pruner: what ends a trial early: by the median of the others at the same epoch, by successive halving or
            Hyperband, by Wilcoxon's test over seeds, or by Ray Tune's ASHA, which then also runs the jobs.
        prune_after: epochs that a trial has in any case; for `halving`, `hyperband` and `asha` the first rung.
        seed: of the sampler.
        start_from: an earlier sweep's folder, whose finished trials the sampler learns from.
        storage: an address such as `postgresql+psycopg://host/name`, where several machines share a sweep; None
            takes `study.db` in the folder.
        batched: whether the heads of all trials, which must be linear probes, train in one pass; see `probe.py`.
    """

    dir: str | None
    space: Mapping[str, str]
    sampler: str
    n_trials: int | None
    n_random: int
    defaults_first: bool
    pruner: str
    prune_after: int
    seed: int
    start_from: str | None
    storage: str | None
    batched: bool

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Search":
        """From the section `search` of a configuration."""
        named = {"start_from" if key == "from" else key: value for key, value in settings.items()}
        return cls(**{each.name: named.get(each.name) for each in fields(cls)})
