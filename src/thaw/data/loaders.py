"""What a trainer asks the data for: loaders whose batches are the same wherever and however often they are made."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import lightning as L
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from thaw.cache import Cache
from thaw.data.loader import ResumableLoader, start_worker
from thaw.data.progress import bar
from thaw.data.sampler import EpochBatches, Key, Transformed
from thaw.data.samples import Samples
from thaw.data.targets import Targets
from thaw.data.workers import Choice, choose

Split = Literal["train", "val", "test"]


class Loaders(L.LightningDataModule):
    """Loads the splits of a DataModule, which says what they hold."""

    #: Whether samples of similar length go together.
    by_length = False
    #: Most tokens a batch, padding included.
    max_tokens: int | None = None
    #: How many variants of a training sample there are: 1 without augmentation, None where every epoch draws anew.
    variants: int | None = None
    #: What to write for training samples that are the same in every epoch, where they are not.
    steady_with = ""

    splits: dict[str, Samples]
    targets: Targets
    batch_size: int

    def __init__(
        self, seed: int, sampler: Literal["shuffle", "balanced"], num_workers: int | Literal["auto"], timeout: int
    ) -> None:
        super().__init__()
        self.seed, self.sampler, self.num_workers, self.worker_timeout = seed, sampler, num_workers, timeout
        self.rank, self.ranks = 0, 1  # of several processes, which of them this is
        self.transforms: dict[str, Callable[[Any], Any]] = {}
        # What stands in for the loading of a split: makes a batch from its (epoch, index) keys.
        self.ready: dict[str, Callable[[Sequence[Key]], tuple[Any, Tensor]]] = {}
        self.cache: Cache | None = None  # keeps what takes long to make and is the same every time
        self.remarks: list[str] = []  # on how samples are loaded, for the screen
        self.track = bar  # shows how far it is: `track(items, total, description)`
        self._choices: dict[str, Choice] = {}  # by `auto`

    def lengths(self, split: Split) -> np.ndarray | None:
        """Length of each sample (samples,); None where all are alike."""
        return None

    def collate(self, inputs: Sequence[Any]) -> Any:
        """One batch of transformed samples."""
        return default_collate(list(inputs))

    def _collate(self, items: Sequence[tuple[Any, Any]]) -> tuple[Any, Tensor]:
        inputs, targets = zip(*items, strict=True)
        return self.collate(inputs), self.targets.collate(targets)

    def batches(self, split: Split) -> EpochBatches:
        """Which samples go together, in which order."""
        samples, train = self.splits[split], split == "train"
        return EpochBatches(
            len(samples),
            self.batch_size,
            self.seed,
            shuffle=train,
            epoch=self._epoch,
            lengths=self.lengths(split) if self.by_length else None,
            max_tokens=self.max_tokens,
            weights=self._weights(samples) if train and self.sampler == "balanced" else None,
            drop_single=train and not self.by_length,  # else it would be the longest, every time
            rank=self.rank,
            ranks=self.ranks,
        )

    def _weights(self, samples: Samples) -> np.ndarray:
        strata = self.targets.strata(samples.targets)
        return 1 / np.bincount(strata)[strata]

    def __getstate__(self) -> dict[str, Any]:
        # What a spawned loader worker gets: not the trainer and what stands in for loading, which cannot be pickled,
        # nor the cache's open files.
        return self.__dict__ | {"trainer": None, "ready": {}, "cache": None, "track": bar}

    def served(self, split: Split) -> tuple[Samples, Callable[[Any], Any]]:
        """The samples of a split as a loader opens them, and what it makes of each before they become a batch."""
        return self.splits[split], self.transforms["train" if split == "train" else "eval"]

    def keep(self, split: Split) -> bool:
        """Asked when a split is about to be read, now and again: whether it is served otherwise from now on."""
        return False

    def _transformed(self, split: Split) -> Transformed:
        return Transformed(*self.served(split), self.seed, self.variants if split == "train" else 1)

    def _loader(self, split: Split) -> ResumableLoader:
        samples, order = self._transformed(split), self.batches(split)
        loader = self._loader_of(samples, order, self._workers(split, samples, len(order)))
        loader.ready = lambda: self.ready.get(split) or self._about_to_read(split, samples)
        return loader

    def _loader_of(self, samples: Transformed, order: EpochBatches, workers: int) -> ResumableLoader:
        strategy = getattr(self.trainer, "strategy", None)
        device = strategy.root_device.type if strategy else "cpu"
        return ResumableLoader(
            samples,
            batch_sampler=order,
            collate_fn=self._collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device == "cuda",
            timeout=self.worker_timeout if workers else 0,
            worker_init_fn=partial(start_worker, yields=device == "cpu"),
        )

    def _about_to_read(self, split: Split, samples: Transformed) -> None:
        if samples.samples is self.splits[split] and self.keep(split):
            samples.samples, samples.transform = self.served(split)

    def in_order(self, split: Split) -> list[list[int]]:
        """Indices of the batches of all samples of a split, unshuffled, for one process alone."""
        return self._unshuffled(split, 0).batches(0)

    def loader_in_order(self, split: Split, variant: int, skip: int = 0, busy: float = 0) -> ResumableLoader:
        """Loads those batches after the first `skip`, of one variant of the samples.

        Args:
            busy: seconds in which a batch then takes all cores; 0 where they are free meanwhile.
        """
        order, samples = self._unshuffled(split, variant), self._transformed(split)
        order.skip = skip
        workers = self._workers(split, samples, len(order))
        if workers and self.num_workers == "auto" and self._choices[split].batch_seconds <= busy:
            workers = 0  # they would take their cores from what works on a batch, and gain less than they cost
        return self._loader_of(samples, order, workers)

    def _unshuffled(self, split: Split, variant: int) -> EpochBatches:
        return EpochBatches(
            len(self.splits[split]),
            self.batch_size,
            self.seed,
            shuffle=False,
            epoch=lambda: variant,
            lengths=self.lengths(split) if self.by_length else None,
            max_tokens=self.max_tokens,
        )

    def batch(self, split: Split, keys: Sequence[Key]) -> tuple[Any, Tensor]:
        """The batch of these samples, loaded here and now."""
        samples = self._transformed(split)
        return self._collate([samples[key] for key in keys])

    def batch_targets(self, split: Split, keys: Sequence[Key]) -> Tensor:
        """The targets of that batch, without its inputs."""
        targets = self.splits[split].targets
        return self.targets.collate([targets[index] for _, index, *_ in keys])

    def _workers(self, split: Split, samples: Transformed, batches: int) -> int:
        if self.num_workers != "auto":
            return self.num_workers
        if split not in self._choices:
            processes = getattr(self.trainer, "num_devices", 1)
            self._choices[split] = choose(samples, batches, processes)
            self.remarks.append(f"{split}: {self._choices[split].told}")
        return self._choices[split].workers

    def _epoch(self) -> int:
        # `trainer.current_epoch` is still 0 when a resumed run draws its first order; this is what it will be.
        return self.trainer.fit_loop.epoch_progress.current.processed if self.trainer else 0

    def train_dataloader(self) -> DataLoader:
        loader = self._train_loader()
        loader.done = lambda: self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return loader

    def _train_loader(self) -> ResumableLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")
