"""Text: tables of sentences or pairs of sentences, tokenised once, batched by length."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from thaw.data.datamodule import DataModule
from thaw.data.files import Root, labelled_files
from thaw.data.loader import ResumableLoader
from thaw.data.quality import text_key
from thaw.data.raw_labels import words
from thaw.data.samples import Samples
from thaw.data.stream import Stream, begin, encoded, epoch_size
from thaw.data.table import BETWEEN_PARTS, Rows, columns, is_table, labels, read_hub, read_table
from thaw.data.targets import IGNORED
from thaw.data.token_dropout import TokenDropout
from thaw.data.tokens import TextEncoder, blank, blocks, padded, tokenised
from thaw.errors import UserError

MOST_TOKENS = 512  # a sample, where the network itself would take more


class Text(DataModule):
    """Sentences, pairs of sentences or lists of words.

    Args:
        root: a CSV, TSV, JSON lines or Parquet file; a folder of `train.csv val.csv test.csv` or the like; or class
            folders of .txt files.
        hub: a data set of the Hub instead, `owner/name` or `owner/name:configuration`.
        text_column, pair_column: the sentence, and the second one of a pair.
        label_column: one column, or a list of columns, which are several labels or numbers.
        max_length: tokens a sample; None takes what the network can read, at most 512. With `task=language_modeling`
            the length of the blocks into which all text is cut.
        max_tokens: most tokens a batch, padding included; None takes batches of `batch_size` samples.
        token_dropout: share of a training sample's tokens that is hidden.
        streaming: read train as it comes, `train_size` samples an epoch, rather than all of it onto the disk; classes
            and screen are of its first 10,000 samples.
        data: see DataModule.

    Raises:
        UserError: no such file or column, or samples without text.
    """

    unit = "tokens"
    by_length = True

    def __init__(
        self,
        root: Root | None = None,
        hub: str | None = None,
        text_column: str = "text",
        pair_column: str | None = None,
        label_column: str | list[str] = "label",
        max_length: Annotated[int, Field(ge=4)] | None = None,
        max_tokens: Annotated[int, Field(ge=8)] | None = None,
        token_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        streaming: bool = False,
        **data: Any,
    ) -> None:
        self.root, self.hub = root, hub
        self.text_column, self.pair_column, self.label_column = text_column, pair_column, label_column
        self.max_length, self.max_tokens, self.token_dropout = max_length, max_tokens, token_dropout
        self.target, self.val_share = data.get("target", "class"), data.get("val_size", 0.1)
        self._lengths: dict[str, np.ndarray] = {}
        if max_tokens and data.get("sampler") == "balanced":
            raise UserError("data.max_tokens must be null with data.sampler=balanced, which draws other lengths.")
        if token_dropout and self.target == "text":
            raise UserError("data.token_dropout must be 0 with task=language_modeling, which is asked for every token.")
        self.epoch_size: int | None = None  # of a stream
        if streaming:
            own = {"max_tokens": max_tokens, "token_dropout": token_dropout}
            self.epoch_size = epoch_size(data.pop("train_size", None), data | own)
        super().__init__(**data)
        if max_tokens and not data.get("batch_size"):
            self.batch_size = max_tokens  # no other bound: a sample has a token at least

    def tables(self) -> dict[str, Dataset]:
        """The splits as tables, before anything is carved."""
        if (self.root is None) == (self.hub is None):
            raise UserError("data.root must be given, or data.hub instead. Write e.g. data.root=folder.")
        if self.hub or is_table(Path(self.root)):
            streams = self.epoch_size is not None
            found = read_hub(self.hub, streams) if self.hub else read_table(Path(self.root), streams)
            if streams:
                found, self._rows = begin(found, self.epoch_size, self.val_share)
            return found
        if self.epoch_size:
            raise UserError(f"data.streaming=true must read tables; '{self.root}' holds none. Leave it out.")
        files = labelled_files(Path(self.root), (".txt",), "", "")
        return {
            split: Dataset.from_dict(
                {self.text_column: [_contents(path) for path in paths], self.label_column: classes}
            )
            for split, (paths, classes) in files.items()
        }

    def _stream(self, start: int) -> Iterator[tuple[Any, Any, int]]:
        return encoded(self._rows, start, self.encode, self.label_column, self.targets)

    @property
    def inputs(self) -> dict[str, Any]:
        return {"medium": "text", "columns": self._columns, "max_length": self.encode.max_length}

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | ({"train": self.epoch_size} if self.epoch_size else {})

    def batches(self, split: str) -> Any:
        if not (self.epoch_size and split == "train"):
            return super().batches(split)
        return Stream(self._stream, self.epoch_size, self.batch_size, self.seed, self._epoch, self._collate)

    def _train_loader(self) -> ResumableLoader:
        return ResumableLoader(self.batches("train"), batch_size=None) if self.epoch_size else super()._train_loader()

    def read(self) -> dict[str, Samples]:
        self._tables = self.tables()
        found = {}
        for split, table in self._tables.items():
            columns(table, self.text_column, "data.text_column")
            if self.pair_column:
                columns(table, self.pair_column, "data.pair_column")
            raw = np.zeros(len(table)) if self.target == "text" else labels(table, self.label_column)
            found[split] = Samples(Rows(split, np.arange(len(table))), raw, self._open, self._show)
        return found

    def problems(self, samples: Samples) -> dict[int, str]:
        if self.target == "text":  # an empty line between documents is none
            return {}
        texts = list(self._parts(samples))
        empty = {index: "no text" for index, parts in enumerate(texts) if blank(parts)}
        if self.target != "tags":
            return empty
        pairs = zip(texts, samples.targets, strict=True)
        counts = ((len(words(parts[0] or [])), len(words(raw or []))) for parts, raw in pairs)
        uneven = {i: f"{held} words and {tags} tags" for i, (held, tags) in enumerate(counts) if held != tags}
        return uneven | empty

    def keys(self, samples: Samples) -> list[str]:
        return [text_key(text) for text in self.names(samples)]

    def names(self, samples: Samples) -> Iterator[str]:
        return map(self._readable, self._parts(samples))

    def _parts(self, samples: Samples) -> Iterator[tuple[Any, ...]]:
        """The text of each sample, and the second one of a pair, as they stand in the table."""
        rows = samples.inputs
        for batch in self._tables[rows.source].select(rows.numbers).iter(batch_size=1000):
            yield from zip(*(batch[name] for name in self._columns), strict=True)

    @property
    def _columns(self) -> list[str]:
        return [self.text_column, self.pair_column] if self.pair_column else [self.text_column]

    def _show(self, item: tuple[str, int]) -> str:
        source, row = item
        return self._readable([self._tables[source][row][name] for name in self._columns])

    def _readable(self, parts: Sequence[Any]) -> str:
        tagged = self.target == "tags"
        return BETWEEN_PARTS.join(
            "" if part is None else " ".join(words(part)) if tagged else str(part) for part in parts
        )

    def _open(self, item: tuple[str, int]) -> Mapping[str, Any]:
        source, row = item
        return self._tokens[source][row]

    def for_text(self, tokenizer: Any, max_length: int | None) -> None:
        length = self.max_length or min(max_length or MOST_TOKENS, MOST_TOKENS)
        if max_length and length > max_length:
            raise UserError(f"data.max_length must be at most {max_length} for this model; got {length}.")
        if self.max_tokens and self.max_tokens < length:
            raise UserError(f"data.max_tokens must hold a sample of data.max_length={length}; got {self.max_tokens}.")
        self.tokenizer, self.encode = tokenizer, TextEncoder(tokenizer, self._columns, self.target, length)
        self._tokens = {split: tokenised(table, self.encode) for split, table in self._tables.items()}
        if self.target == "text":
            self._cut_into_blocks(length)
        hide = TokenDropout(self.token_dropout, tokenizer.mask_id, tokenizer.special_ids)
        self.transforms = {"train": hide if self.token_dropout else _as_it_is, "eval": _as_it_is}
        self.variants = None if self.token_dropout or self.epoch_size else 1
        self.steady_with = "data.streaming=false" if self.epoch_size else "data.token_dropout=0"
        self._lengths = {}
        for split, samples in self.splits.items():
            rows = samples.inputs
            full = np.asarray(self._tokens[rows.source]["full_length"][:])[rows.numbers]
            self._lengths[split] = np.minimum(full, length)
            self.truncated[split] = int((full > length).sum())

    def lengths(self, split: str) -> np.ndarray | None:
        return self._lengths.get(split)

    def _cut_into_blocks(self, length: int) -> None:
        for split, samples in list(self.splits.items()):
            rows, name = samples.inputs, f"blocks of {split}"
            self._tokens[name] = blocks(self._tokens[rows.source], rows.numbers, length, self.tokenizer.end_id)
            count = len(self._tokens[name])
            self.splits[split] = Samples(Rows(name, np.arange(count)), np.zeros(count), self._open)

    def collate(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return padded(inputs, self.tokenizer.pad_id)

    def _collate(self, items: Sequence[tuple[Any, Any]]) -> tuple[dict[str, Tensor], Tensor]:
        if self.target == "text":
            batch = self.collate([sample for sample, _ in items])
            return batch, batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        if self.target == "tags":
            items = [
                (sample, [tags[word] if word >= 0 else IGNORED for word in sample["word_ids"]])
                for sample, tags in items
            ]
        return super()._collate(items)


def _as_it_is(sample: Any) -> Any:
    return sample


def _contents(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None  # counted among the samples that cannot be used
