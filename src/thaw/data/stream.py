"""Text that is read as it comes: train sets larger than the disk, with memory for no more than a pool of samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import datasets
import numpy as np
from torch.utils.data import IterableDataset

from thaw.data.raw_labels import missing
from thaw.data.sampler import EpochBatches
from thaw.data.table import chunks, first_rows, labels
from thaw.data.targets import Targets
from thaw.data.tokens import TextEncoder, blank
from thaw.errors import UserError

POOL = 10_000  # samples that are shuffled, and batched by length, among one another

# What a stream cannot do, and how it is off.
OFF = {"shots": None, "test_size": None, "sampler": "shuffle", "max_tokens": None, "token_dropout": 0.0}


def epoch_size(train_size: Any, options: Mapping[str, Any]) -> int:
    """Samples an epoch of a stream.

    Args:
        options: further settings of the data, by name.

    Raises:
        UserError: not given as a count, beside options that need all of the data, or for tags or next tokens.
    """
    if options.get("target") in ("text", "tags"):
        raise UserError(
            "data.streaming=true must have one label or number for each sample. Write data.streaming=false."
        )
    wrong = [f"no data.{name}={options[name]}" for name, off in OFF.items() if options.get(name, off) != off]
    if wrong or not isinstance(train_size, int):
        also = f", and with {', '.join(wrong)}" if wrong else ""
        raise UserError(
            f"data.streaming=true must come with data.train_size, the samples of an epoch{also}; got {train_size}."
        )
    return train_size


def begin(
    streams: Mapping[str, datasets.IterableDataset], size: int, val_share: float
) -> tuple[dict[str, datasets.Dataset], datasets.IterableDataset]:
    """Val, test and the first rows of train, which stand for all of it, in memory; and the rows train is read from.

    Args:
        size: samples an epoch.
        val_share: of `size`, taken from the head of train where there is no val.

    Raises:
        UserError: nothing of train is left beside val.
    """
    rows, held = streams["train"], 0
    tables = {split: first_rows(stream) for split, stream in streams.items() if split != "train"}
    if "val" not in tables:
        held = max(1, round(val_share * size))
        tables["val"] = first_rows(rows, held)
        rows = rows.skip(held)
    train = first_rows(rows, min(POOL, size))
    if not len(train):
        raise UserError(
            f"data must hold more than the {held} rows that val takes of it. Write a smaller data.train_size."
        )
    return {"train": train} | tables, rows


def encoded(
    rows: datasets.IterableDataset,
    start: int,
    encode: TextEncoder,
    label_column: str | Sequence[str],
    targets: Targets,
) -> Iterator[tuple[dict[str, Any], Any, int]]:
    """Tokens, target and length of each row from the start-th on; after the last row comes the first.

    Raises:
        UserError: a row without text or label, or with a label that the first rows have not.
    """
    for table in chunks(rows, start):
        raw = labels(table, label_column)
        lacking = (missing(label) and targets.kind != "labels" for label in raw)
        texts = zip(*(table[name] for name in encode.columns), strict=True)
        if any(lacks or blank(parts) for lacks, parts in zip(lacking, texts, strict=True)):
            raise UserError("data: every sample of a stream must have a text and a label; one of train has not.")
        encoded_targets, tokens = targets.encode(raw, "train"), encode(table[:])
        for number, target in enumerate(encoded_targets):
            sample = {name: column[number] for name, column in tokens.items()}
            yield sample, target, len(sample["input_ids"])


class Stream(IterableDataset):
    """Batches of `epoch_size` samples an epoch, going on in the next epoch where the last one ended.

    What epoch e holds depends on e alone, so that a resumed run reads on where it must; the order within a pool of
    10,000 samples depends on (seed, epoch).

    Args:
        read: start → endless iterator over encoded (sample, target, length), from the start-th on.
        epoch: tells the epoch whenever an iterator is made.
        collate: makes a batch of (sample, target) pairs.
    """

    def __init__(
        self,
        read: Callable[[int], Iterator[tuple[Any, Any, int]]],
        epoch_size: int,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        collate: Callable[[Sequence[tuple[Any, Any]]], Any],
    ) -> None:
        self.read, self.epoch_size, self.batch_size, self.seed = read, epoch_size, batch_size, seed
        self.epoch, self.collate = epoch, collate
        self.skip = 0
        self._samples: Iterator[tuple[Any, Any, int]] = iter(())
        self._next_epoch = -1

    def __len__(self) -> int:
        full, rest = divmod(self.epoch_size, POOL)
        return full * _batches(POOL, self.batch_size) + _batches(rest, self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch()
        skip, self.skip = self.skip, 0
        if epoch != self._next_epoch:
            self._samples = self.read(epoch * self.epoch_size)
        self._next_epoch = -1  # unless this one is read to its end
        for start in range(0, self.epoch_size, POOL):
            pool = list(islice(self._samples, min(POOL, self.epoch_size - start)))
            lengths = np.array([length for _, _, length in pool])
            order = EpochBatches(len(pool), self.batch_size, self.seed + start, True, int, lengths=lengths)
            for batch in order.batches(epoch):
                if skip:
                    skip -= 1
                    continue
                yield self.collate([pool[index][:2] for index in batch])
        self._next_epoch = epoch + 1


def _batches(samples: int, batch_size: int) -> int:
    return -(-samples // batch_size)
