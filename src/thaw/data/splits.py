"""Splits: what is carved from train by seed, stratified by class where there are classes."""

import math
from collections.abc import Mapping

import numpy as np

from thaw.data.samples import Samples
from thaw.data.targets import Targets
from thaw.errors import UserError


def carve(
    splits: Mapping[str, Samples],
    targets: Targets,
    seed: int,
    train_size: int | float | None,
    shots: int | None,
    val_size: float,
    test_size: float | None,
) -> dict[str, Samples]:
    """Train, val and test in this order: what is missing is cut from train, and then train is cut to size.

    Raises:
        UserError: a size that does not leave every class a sample.
    """
    splits = dict(splits)
    for split, share in (("test", test_size), ("val", val_size)):
        if split not in splits and share:
            splits["train"], splits[split] = _cut(splits["train"], targets, seed, share, f"data.{split}_size")
    if train_size is not None:
        splits["train"] = _subset(splits["train"], targets, seed, train_size)
    if shots is not None:
        splits["train"] = _shots(splits["train"], targets, seed, shots)
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _cut(samples: Samples, targets: Targets, seed: int, share: float, option: str) -> tuple[Samples, Samples]:
    strata = targets.strata(samples.targets)
    size = math.ceil(share * len(samples))
    held = np.array([len(samples)]) if strata is None else np.unique(strata, return_counts=True)[1]
    if min(size, len(samples) - size) < len(held) or (strata is not None and held.min() < 2):
        raise UserError(
            f"{option} must leave every class at least one sample on both sides of the cut; got {share} of "
            f"{len(samples)} samples in {len(targets.classes)} classes, the smallest of {held.min()}."
        )
    kept, cut = stratified(strata, len(samples), size, seed)
    return samples.take(kept), samples.take(cut)


def stratified(strata: np.ndarray | None, samples: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of those kept and of `size` cut out, from each class its share: the sets of `train_test_split`.

    scikit-learn's own takes a second to import; a test holds the two together.

    Args:
        strata: class of each sample (samples,); None where there are none.
    """
    generator = np.random.RandomState(seed)
    if strata is None:
        order = generator.permutation(samples)
        return np.sort(order[size:]), np.sort(order[:size])
    _, strata, held = np.unique(strata, return_inverse=True, return_counts=True)
    kept = _shares(held, samples - size, generator)
    cut = _shares(held - kept, size, generator)
    orders = [np.flatnonzero(strata == k)[generator.permutation(count)] for k, count in enumerate(held)]
    parts = [np.split(order, [k, k + c])[:2] for order, k, c in zip(orders, kept, cut, strict=True)]
    first, second = zip(*parts, strict=True)
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def _shares(held: np.ndarray, size: int, generator: np.random.RandomState) -> np.ndarray:
    """How many of each class, out of `held` (classes,), make `size`: rounded down, the largest remainders then up."""
    exact = held / held.sum() * size
    taken = np.floor(exact)
    missing = int(size - taken.sum())
    for remainder in np.unique(exact - taken)[::-1]:
        equal = np.flatnonzero(exact - np.floor(exact) == remainder)
        up = min(len(equal), missing)
        if up:
            taken[generator.choice(equal, size=up, replace=False)] += 1
        missing -= up
    return taken.astype(int)


def _subset(samples: Samples, targets: Targets, seed: int, size: int | float) -> Samples:
    count = int(size * len(samples)) if isinstance(size, float) else size
    strata = targets.strata(samples.targets)
    held = np.array([len(samples)]) if strata is None else np.bincount(strata, minlength=len(targets.classes))
    if not len(held) <= count <= len(samples):
        raise UserError(
            f"data.train_size must leave every class at least one sample and be no more than there are; got {size} "
            f"of {len(samples)} samples in {len(held)} classes."
        )
    shares = held * (count / len(samples))
    taken = np.maximum(1, np.floor(shares)).astype(int)
    for _ in range(abs(count - taken.sum())):
        step = 1 if taken.sum() < count else -1
        taken[np.argmax(np.where((taken > 1) | (step > 0), step * (shares - taken), -np.inf))] += step
    return _drawn(samples, np.zeros(len(samples), int) if strata is None else strata, taken, seed)


def _shots(samples: Samples, targets: Targets, seed: int, shots: int) -> Samples:
    strata = targets.strata(samples.targets)
    if strata is None:
        raise UserError("data.shots must be of samples with one class each. Write data.train_size instead.")
    held = np.bincount(strata, minlength=len(targets.classes))
    if held.min() < shots:
        scarce = f"'{targets.classes[int(held.argmin())]}' has {held.min()}"
        raise UserError(f"data.shots must be no more than the samples of every class; got {shots}, and {scarce}.")
    return _drawn(samples, strata, np.full(len(held), shots), seed)


def _drawn(samples: Samples, strata: np.ndarray, counts: np.ndarray, seed: int) -> Samples:
    generator = np.random.default_rng(seed)
    parts = [generator.permutation(np.flatnonzero(strata == k))[:count] for k, count in enumerate(counts)]
    return samples.take(np.sort(np.concatenate(parts)))
