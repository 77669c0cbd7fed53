"""The order of samples and the randomness of each, as functions of (seed, epoch, index) alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs in an order that depends on (seed, epoch) only.

    Args:
        epoch: tells the epoch whenever an order is drawn. Asked and not told, because loader workers fetch the first
            batches of a resumed run before Lightning calls any `set_epoch`.
    """

    def __init__(self, size: int, seed: int, shuffle: bool, epoch: Callable[[], int]) -> None:
        self.size, self.seed, self.shuffle, self.epoch = size, seed, shuffle, epoch
        self.skip = 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch()
        skip, self.skip = self.skip, 0
        if not self.shuffle:
            return ((epoch, index) for index in range(skip, self.size))
        generator = torch.Generator().manual_seed(_mixed(self.seed, epoch, 0))
        return ((epoch, index) for index in torch.randperm(self.size, generator=generator).tolist()[skip:])


class Transformed(Dataset[tuple[Tensor, int]]):
    """Samples under a transform whose random draws depend on (seed, epoch, index) only.

    So augmentation is the same with any number of workers, and after a resume.
    """

    def __init__(self, samples: Sequence[tuple[Any, int]], transform: Callable[[Any], Tensor], seed: int) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        sample, target = self.samples[index]
        state = torch.get_rng_state()
        # The CPU generator alone: `torch.manual_seed` would also reach for CUDA in every worker.
        torch.default_generator.manual_seed(_mixed(self.seed, epoch, index + 1))
        try:
            return self.transform(sample), target
        finally:
            torch.set_rng_state(state)


def _mixed(*numbers: int) -> int:
    # Python's own hash of a tuple of ints is the same in every process, unlike that of strings.
    return hash(numbers) & 0x7FFF_FFFF_FFFF_FFFF
