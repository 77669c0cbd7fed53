"""Optuna's samplers and pruners, by the names and settings of `search`."""

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

from thaw.search.settings import Search


def sampler(search: Search, seed: int) -> BaseSampler:
    """What chooses the values of the next trial."""
    match search.sampler:
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=search.n_random, multivariate=True, constant_liar=True)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=search.n_random)
        case "cmaes":
            pruned = search.pruner != "none"
            return CmaEsSampler(seed=seed, n_startup_trials=search.n_random, consider_pruned_trials=pruned)
    return RandomSampler(seed=seed)


def pruner(search: Search) -> BasePruner:
    """What ends a trial early."""
    match search.pruner:
        case "median":
            return MedianPruner(n_startup_trials=5, n_warmup_steps=search.prune_after)
        case "halving":
            return SuccessiveHalvingPruner(min_resource=search.prune_after, reduction_factor=3)
        case "hyperband":
            return HyperbandPruner(min_resource=search.prune_after)
        case "wilcoxon":
            return WilcoxonPruner()
    return NopPruner()
