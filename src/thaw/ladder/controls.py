"""Controls: shuffled labels teach nothing, no sample stands in two splits, and what the simplest ways reach."""

import math

import numpy as np
import torch
from scipy import stats
from torch.nn import functional as F

from thaw.ladder.bench import Bench
from thaw.ladder.rung import Outcome, fails, passes, skips
from thaw.probing.features import Features, relabelled
from thaw.probing.linear_probe import probe

SHUFFLES, FEW = 8, 1_000  # probes on shuffled labels, and the samples of each
LEVEL = 0.99  # of one-sided intervals: of a hundred sound data sets one is suspected
TWINS = 0.9999  # cosine of features


def leakage(bench: Bench) -> Outcome:
    """No sample of a split may stand in another one, byte for byte or letter for letter."""
    quality = bench.data.quality()
    if len(quality.duplicates) < 2:
        return skips("the samples are too many, or of a kind that cannot be told apart")
    if not quality.leaks:
        return passes(f"no sample of {' or '.join(list(quality.sizes)[1:])} stands in another split{_twins(bench)}")
    told = [f"{leak.samples:,} of {leak.later} also in {leak.earlier}" for leak in quality.leaks]
    example = next((f", e.g. “{text[:60]}”" for leak in quality.leaks for text in leak.texts), "")
    return fails(
        "; ".join(told) + example,
        "Remove them from one of the splits: what was learnt by heart counts as understood.",
    )


def _twins(bench: Bench) -> str:
    """How many samples of validation look to the body like one of training."""
    if bench.refusal:
        return ""
    centre = bench.features("train").values.mean(0)
    train, val = (F.normalize(bench.features(split).values - centre) for split in ("train", "val"))
    count = int(((val @ train.T).amax(1) > TWINS).sum())
    return f"; but {count:,} of val have all but the same features as one of train: look at them" if count else ""


def shuffled_labels(bench: Bench) -> Outcome:
    """Probes trained on shuffled labels must be at chance: what is above that has seen the answers another way."""
    if bench.refusal:
        return skips(bench.refusal)
    train, val = bench.features("train"), bench.features("val")
    generator = np.random.default_rng(bench.data.seed)
    targets = np.asarray(bench.plain.splits["train"].targets)
    above = []
    for number in range(SHUFFLES):
        bench.tell(f"probe {number + 1} of {SHUFFLES} on shuffled labels")
        mixed = relabelled(bench.plain, generator.permutation(targets))
        rows = generator.permutation(len(train))[:FEW]
        given = mixed.batch_targets("train", [(0, int(row)) for row in rows])  # as training reads them
        guesses = probe(Features(train.values[rows], given.long()), val.values)
        above.append(float((guesses == val.classes).double().mean()) - _chance(guesses, val.classes))
    mean, width = 100 * np.mean(above), 100 * stats.t.ppf(LEVEL, SHUFFLES - 1) * stats.sem(above)
    told = f"probes on them are {mean:+.1f} ± {width:.1f} points from chance on validation"
    if mean <= width:
        return passes(told)
    return fails(
        f"{told}: the answers reach the training another way",
        "Look at where the data module takes its targets from, and at what validation measures.",
    )


def _chance(guesses: torch.Tensor, truth: torch.Tensor) -> float:
    """Accuracy of as many guesses of each class, given at random."""
    count = int(max(guesses.max(), truth.max())) + 1
    shares = [torch.bincount(held, minlength=count).double() / len(held) for held in (guesses, truth)]
    return float(shares[0] @ shares[1])


def baselines(bench: Bench) -> Outcome:
    """A linear probe must be better than always telling the most frequent class; a run must be better than both."""
    if bench.refusal:
        return skips(bench.refusal)
    train, val = bench.features("train"), bench.features("val")
    bench.tell("a linear probe")
    right = probe(train, val.values) == val.classes
    share, majority = float(right.double().mean()), bench.majority
    width = stats.norm.ppf(LEVEL) * math.sqrt(max(majority * (1 - majority), 1e-9) / len(val))
    told = f"on validation the majority class reaches {majority:.1%}, a linear probe on frozen features {share:.1%}"
    if not bench.module.network.pretrained:
        return passes(f"{told}, which are random: the least that a run has to beat")
    if share > majority + width:
        return passes(f"{told}: what a run has to beat")
    return fails(
        f"{told}, which is no better",
        "Do labels belong to their inputs, and are inputs prepared as the weights expect? If so these features say "
        "nothing of the task: write freezing=none, or another model.",
    )
