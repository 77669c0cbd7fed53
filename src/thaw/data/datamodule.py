"""The DataModule every kind of data builds on: splits, subsets and loaders."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import lightning as L
import numpy as np
from pydantic import Field
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader

from thaw.data.sampler import EpochSampler, Transformed
from thaw.defaults import default_batch_size
from thaw.errors import UserError

Split = Literal["train", "val", "test"]
Size = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Samples(Sequence[tuple[Any, int]]):
    """Labelled samples, each opened only when it is asked for.

    Args:
        inputs: what `open` turns into a sample: a path, an array, a text.
        targets: class index of each sample (samples,).
    """

    inputs: Sequence[Any]
    targets: np.ndarray
    open: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.open(self.inputs[index]), int(self.targets[index])

    def take(self, indices: np.ndarray) -> "Samples":
        return Samples([self.inputs[index] for index in indices], self.targets[indices], self.open)


class ResumableLoader(DataLoader):
    """Goes on after the batches that a run resumed within an epoch has trained on."""

    done: Callable[[], int] = staticmethod(lambda: 0)

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.done()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.skip = state["batches"] % len(self) * self.batch_size


class DataModule(L.LightningDataModule, ABC):
    """Train, val and test splits of one data set.

    Args:
        seed: seeds the splits, the subset, the order and the augmentation.
        batch_size: samples a step; None takes 32, or less where there are few labels.
        num_workers: loader processes; None takes the cores, at most 4.
        train_size: a stratified subset of train, as a count of samples (int) or a share (float).
        val_size, test_size: share carved from train where the data has no such split.

    Raises:
        UserError: fewer than two classes, or a split that cannot be stratified.
    """

    def __init__(
        self,
        seed: int = 0,
        batch_size: Annotated[int, Field(ge=1)] | None = None,
        num_workers: Annotated[int, Field(ge=0)] | None = None,
        train_size: Size | None = None,
        val_size: Share = 0.1,
        test_size: Share | None = None,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.num_workers = min(os.cpu_count() or 1, 4) if num_workers is None else num_workers
        self.classes, splits = self.read()
        if len(self.classes) < 2:
            raise UserError(
                f"data must have at least two classes, each in a folder or under a label of its own; "
                f"found {len(self.classes)}: {', '.join(self.classes)}."
            )
        self.splits = self._carve(splits, train_size, val_size, test_size)
        self.batch_size = batch_size or default_batch_size(len(self.splits["train"]))
        self.transforms: dict[str, Callable[[Any], Any]] = {}

    @abstractmethod
    def read(self) -> tuple[list[str], dict[str, Samples]]:
        """Class names in index order, and the splits the data itself has; `train` at least."""

    @abstractmethod
    def preprocess(self, **preprocessing: Any) -> None:
        """Build `self.transforms['train']` and `['eval']` from what the network asks for."""

    @property
    def network_arguments(self) -> dict[str, Any]:
        """What the network must know of the data."""
        return {"num_outputs": len(self.classes)}

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(samples) for split, samples in self.splits.items()}

    @property
    def fingerprint(self) -> str:
        """A hash of the class names and of which sample stands in which split under which label."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split, samples in self.splits.items():
            digest.update(split.encode() + np.asarray(samples.targets, dtype=np.int64).tobytes())
            for item in samples.inputs:
                digest.update(item.tobytes() if isinstance(item, np.ndarray) else str(item).encode())
        return digest.hexdigest()[:16]

    def _carve(
        self, splits: dict[str, Samples], train_size: int | float | None, val_size: float, test_size: float | None
    ) -> dict[str, Samples]:
        splits = dict(splits)
        for split, share in (("test", test_size), ("val", val_size)):
            if split not in splits and share:
                splits["train"], splits[split] = self._cut(splits["train"], share, f"data.{split}_size")
        if train_size is not None:
            splits["train"] = self._subset(splits["train"], train_size)
        return {split: splits[split] for split in ("train", "val", "test") if split in splits}

    def _subset(self, samples: Samples, size: int | float) -> Samples:
        count = int(size * len(samples)) if isinstance(size, float) else size
        held = np.bincount(samples.targets, minlength=len(self.classes))
        if not len(self.classes) <= count <= len(samples):
            raise UserError(
                f"data.train_size must leave every class at least one sample and be no more than there are; got {size} "
                f"of {len(samples)} samples in {len(self.classes)} classes."
            )
        shares = held * (count / len(samples))
        taken = np.maximum(1, np.floor(shares)).astype(int)
        for _ in range(abs(count - taken.sum())):
            step = 1 if taken.sum() < count else -1
            taken[np.argmax(np.where((taken > 1) | (step > 0), step * (shares - taken), -np.inf))] += step
        generator = np.random.default_rng(self.seed)
        parts = [generator.permutation(np.flatnonzero(samples.targets == k))[:n] for k, n in enumerate(taken)]
        return samples.take(np.sort(np.concatenate(parts)))

    def _cut(self, samples: Samples, test_size: float, option: str) -> tuple[Samples, Samples]:
        try:
            kept, cut = train_test_split(
                np.arange(len(samples)),
                test_size=test_size,
                stratify=samples.targets,
                random_state=self.seed,
            )
        except ValueError as error:
            raise UserError(
                f"{option} must leave every class at least one sample on both sides of the cut; got {test_size} of "
                f"{len(samples)} samples in {len(self.classes)} classes ({error})."
            ) from None
        return samples.take(np.sort(kept)), samples.take(np.sort(cut))

    def _loader(self, split: Split) -> DataLoader:
        samples, train = self.splits[split], split == "train"
        transform = self.transforms["train" if train else "eval"]
        return ResumableLoader(
            Transformed(samples, transform, self.seed),
            batch_size=self.batch_size,
            sampler=EpochSampler(len(samples), self.seed, shuffle=train, epoch=self._epoch),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # A last batch of one sample has no variance for BatchNorm to normalise by.
            drop_last=train and len(samples) > self.batch_size and len(samples) % self.batch_size == 1,
        )

    def _epoch(self) -> int:
        # `trainer.current_epoch` is still 0 when a resumed run draws its first order; this is what it will be.
        return self.trainer.fit_loop.epoch_progress.current.processed if self.trainer else 0

    def train_dataloader(self) -> DataLoader:
        loader = self._loader("train")
        loader.done = lambda: self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return loader

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")
