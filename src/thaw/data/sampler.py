"""The order of samples and the randomness of each, as functions of (seed, epoch, index) alone."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from thaw.errors import UserError

# Lengths within a tenth of one another count as the same, so that batches differ from epoch to epoch.
BUCKET = 1.1

Key = tuple[int, ...]  # (epoch, index)


class EpochBatches(Sampler[list[Key]]):
    """Yields batches of (epoch, index) pairs in an order that depends on (seed, epoch) only.

    With lengths, a batch holds samples of similar length and the batches come in random order; their number is the same
    in every epoch.

    Args:
        size: samples in all.
        batch_size: most samples a batch.
        epoch: tells the epoch whenever an order is drawn. Asked and not told, because loader workers fetch the first
            batches of a resumed run before Lightning calls any `set_epoch`.
        lengths: of each sample (size,), to batch by.
        max_tokens: most tokens a batch, padding included, where lengths are given.
        weights: of each sample (size,), to draw by with replacement.
        drop_single: leave out a last batch of one sample, which has no variance for BatchNorm to normalise by.
        rank, ranks: this process and how many there are. Shuffled batches are those of one process with batches `ranks`
            times as large, cut into equal parts, where a last one is filled up from its own samples; without shuffling
            each process takes its part of the samples, each sample once.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        epoch: Callable[[], int],
        lengths: np.ndarray | None = None,
        max_tokens: int | None = None,
        weights: np.ndarray | None = None,
        drop_single: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.size, self.seed, self.shuffle, self.epoch = size, seed, shuffle, epoch
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self.rank, self.ranks = rank, ranks
        self.skip = 0
        self._buckets = None if lengths is None else _buckets(lengths)
        # The longest bucket ends at the longest sample: what was cut to one length fills a budget without a rest.
        costs = (
            [0] * size
            if lengths is None
            else np.sort(np.minimum(_bucket_size(self._buckets), np.max(lengths, initial=0)))
        )
        if shuffle:
            self._bounds = _bounds(costs, batch_size * ranks, max_tokens and max_tokens * ranks)
        else:
            self._bounds = _bounds(costs[rank::ranks], batch_size, max_tokens)
        if drop_single and batch_size > 1 and len(self._bounds) > 2 and self._bounds[-1] - self._bounds[-2] <= ranks:
            self._bounds.pop()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def batches(self, epoch: int) -> list[list[int]]:
        """The indices of every batch of an epoch."""
        generator = torch.Generator().manual_seed(_mixed(self.seed, epoch, 0))
        if self.weights is not None and self.shuffle:
            order = torch.multinomial(self.weights, self.size, replacement=True, generator=generator).numpy()
        elif self.shuffle:
            order = torch.randperm(self.size, generator=generator).numpy()
        else:
            order = np.arange(self.size)
        if self._buckets is not None:
            order = order[np.argsort(self._buckets[order], kind="stable")]
        if not self.shuffle:
            order = order[self.rank :: self.ranks]
        cut = [order[start:end].tolist() for start, end in zip(self._bounds, self._bounds[1:], strict=False)]
        if self._buckets is not None and self.shuffle:
            cut = [cut[number] for number in torch.randperm(len(cut), generator=generator).tolist()]
        return [self._part(batch) for batch in cut] if self.shuffle else cut

    def _part(self, batch: list[int]) -> list[int]:
        most = -(-len(batch) // self.ranks) * self.ranks
        return list(islice(cycle(batch), self.rank, most, self.ranks))

    def __iter__(self) -> Iterator[list[Key]]:
        # All this at the first batch: a loader with workers makes two iterators, and draws from the second alone.
        epoch = self.epoch()
        skip, self.skip = self.skip, 0
        batches = [[(epoch, index) for index in batch] for batch in self.batches(epoch)]
        yield from (batches if self.weights is None else _told_apart(batches))[skip:]


def _told_apart(batches: list[list[Key]]) -> list[list[Key]]:
    """A third number for each further time that a sample is drawn, so that it is augmented in another way."""
    drawn: Counter[Key] = Counter()
    found: list[list[Key]] = []
    for batch in batches:
        found.append([])
        for key in batch:
            found[-1].append((*key, drawn[key]) if drawn[key] else key)
            drawn[key] += 1
    return found


def _buckets(lengths: np.ndarray) -> np.ndarray:
    return np.ceil(np.log(np.maximum(lengths, 1e-3)) / np.log(BUCKET) - 1e-9).astype(int)


def _bucket_size(buckets: np.ndarray) -> np.ndarray:
    return np.floor(BUCKET ** buckets.astype(float) + 1e-9).astype(int)


def _bounds(costs: Sequence[int], batch_size: int, max_tokens: int | None) -> list[int]:
    """Where to cut samples of ascending cost, so that (samples × highest cost) stays within the budget."""
    bounds = [0]
    for index, cost in enumerate(costs):
        count = index - bounds[-1]
        if count and (count == batch_size or (max_tokens and (count + 1) * cost > max_tokens)):
            bounds.append(index)
    return [*bounds, len(costs)]


class Transformed(Dataset[tuple[Tensor, int]]):
    """Samples under a transform whose random draws depend on (seed, epoch, index) only.

    So augmentation is the same with any number of workers, and after a resume.

    Args:
        views: how many variants of a sample there are: epoch e sees number e modulo `views`; None draws a new one in
            every epoch.
    """

    def __init__(
        self,
        samples: Sequence[tuple[Any, Any]],
        transform: Callable[[Any], Any],
        seed: int,
        views: int | None = None,
    ) -> None:
        self.samples, self.transform, self.seed, self.views = samples, transform, seed, views

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> tuple[Any, Any]:
        epoch, index, *again = key if self.views is None else (key[0] % self.views, key[1])
        try:
            return self._transformed(epoch, index, *again)
        except UserError as error:  # that names the file
            raise UserError(*(f"{problem} It is sample {index} of its split." for problem in error.problems)) from None
        except Exception as error:
            error.add_note(f"This is of sample {index} of its split.")
            raise

    def _transformed(self, epoch: int, index: int, *again: int) -> tuple[Any, Any]:
        sample, target = self.samples[index]
        state = torch.get_rng_state()
        # The CPU generator alone: `torch.manual_seed` would also reach for CUDA in every worker.
        torch.default_generator.manual_seed(_mixed(self.seed, epoch, index + 1, *again))
        try:
            return self.transform(sample), target
        finally:
            torch.set_rng_state(state)


def _mixed(*numbers: int) -> int:
    # Python's own hash of a tuple of ints is the same in every process, unlike that of strings.
    return hash(numbers) & 0x7FFF_FFFF_FFFF_FFFF
