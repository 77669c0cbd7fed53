"""What the body of a network makes of each sample of a split, kept in the cache."""

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thaw.cache import Cache
from thaw.data.datamodule import DataModule
from thaw.data.loaders import Split
from thaw.data.sampler import EpochBatches
from thaw.data.splits import stratified
from thaw.frozen_part import FrozenPart
from thaw.model.network import Network

# More training samples change what a probe says by less than its noise, and the body has to run over each.
MOST = 5_000


@dataclass(frozen=True)
class Features:
    """Samples as the head sees them.

    Args:
        values: (samples, width), of float32 on the CPU.
        classes: index of each sample's class (samples,).
    """

    values: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def take(self, indices: np.ndarray | Tensor) -> "Features":
        indices = torch.as_tensor(indices)
        return Features(self.values[indices], self.classes[indices])


def refusal(data: DataModule) -> str:
    """Why there can be no features to probe, in words; empty where there can."""
    if data.targets.kind != "class":
        return "the task asks for more than one class a sample"
    if not isinstance(data.batches("train"), EpochBatches):
        return "the training samples come as a stream"
    return ""


def unaugmented(data: DataModule, most: int = MOST) -> DataModule:
    """The same data with its training samples as an evaluation would see them, and no more of them than `most`."""
    plain = copy.copy(data)
    plain.trainer, plain.variants = None, 1
    plain.transforms = data.transforms | {"train": data.transforms["eval"]}
    samples = data.splits["train"]
    if len(samples) > most:
        kept = stratified(data.targets.strata(samples.targets), len(samples), most, data.seed)[1]
        plain.splits = data.splits | {"train": samples.take(kept)}
        plain.sources = data.sources | {"train": data.sources["train"].take(kept)}
        hashes = data.known_hashes["train"]
        plain.known_hashes = data.known_hashes | {"train": hashes and [hashes[index] for index in kept]}
        plain.lengths = partial(_lengths, data, kept)
    return plain


def _lengths(data: DataModule, kept: np.ndarray, split: Split) -> np.ndarray | None:
    found = data.lengths(split)
    return found[kept] if found is not None and split == "train" else found


def body_features(
    network: Network,
    data: DataModule,
    split: Split,
    cache: Cache,
    track: Callable[..., Iterable[Any]],
    on_device: Callable[[Any], Any],
    context: Callable[[], AbstractContextManager],
) -> Features:
    """Run the body over a split, or read from the cache what it made of it before.

    Args:
        data: see `unaugmented`.
        track, on_device, context: see `FrozenPart`.

    Raises:
        NoCutError: the features of a sample depend on more than the sample.
    """
    network.train_groups(["head"])
    network.train(False)
    part = FrozenPart(network, list(network.groups)[:-1], data, split, on_device, context)
    kept, _ = part.kept(cache, track)
    rows = list(range(len(data.splits[split])))
    if kept is None:  # there is no room for them on the disk
        values = torch.empty(part.shape, dtype=part.example.dtype)
        for indices, found in track(part.parts(), part.steps, f"features of {split}"):
            values[indices] = found.cpu()
    else:
        values = kept[rows]
    classes = data.batch_targets(split, [(0, row) for row in rows])
    return Features(values.float().flatten(1), classes.long())


def relabelled(data: DataModule, targets: np.ndarray) -> DataModule:
    """The same data with other training targets."""
    other = copy.copy(data)
    other.splits = data.splits | {"train": replace(data.splits["train"], targets=targets)}
    return other
