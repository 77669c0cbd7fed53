"""Text: tables of sentences or pairs of sentences, tokenised once, batched by length."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from thaw.data.datamodule import DataModule, ResumableLoader
from thaw.data.files import Root, labelled_files
from thaw.data.quality import text_key
from thaw.data.samples import Samples, missing
from thaw.data.stream import Stream, begin, epoch_size
from thaw.data.table import Rows, chunks, columns, is_table, labels, read_hub, read_table, show_progress
from thaw.data.targets import IGNORED, words
from thaw.data.token_dropout import TokenDropout
from thaw.errors import UserError

MOST_TOKENS = 512  # a sample, where the network itself would take more
BETWEEN = " | "  # the two texts of a pair, for people


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
        self.streaming = 0  # samples an epoch, of a stream
        if streaming:
            whole = {
                "data.max_tokens": max_tokens,
                "data.token_dropout": token_dropout,
                "task": self.target in ("text", "tags"),
            }
            self.streaming = epoch_size(data.pop("train_size", None), whole | {f"data.{k}": v for k, v in data.items()})
        super().__init__(**data)
        if max_tokens and not data.get("batch_size"):
            self.batch_size = max_tokens  # no other bound: a sample has a token at least

    def tables(self) -> dict[str, Dataset]:
        """The splits as tables, before anything is carved."""
        if (self.root is None) == (self.hub is None):
            raise UserError("data.root must be given, or data.hub instead. Write e.g. data.root=folder.")
        if self.hub or is_table(Path(self.root)):
            streams = self.streaming > 0
            found = read_hub(self.hub, streams) if self.hub else read_table(Path(self.root), streams)
            if streams:
                found, self._rows = begin(found, self.streaming, self.val_share)
            return found
        if self.streaming:
            raise UserError(f"data.streaming=true must read tables; '{self.root}' holds none. Leave it out.")
        files = labelled_files(Path(self.root), (".txt",), "", "")
        return {
            split: Dataset.from_dict(
                {self.text_column: [_contents(path) for path in paths], self.label_column: classes}
            )
            for split, (paths, classes) in files.items()
        }

    def _stream(self, start: int) -> Iterator[tuple[Any, Any, int]]:
        for table in chunks(self._rows, start):
            raw = labels(table, self.label_column)
            parts = zip(*(table[name] for name in self._columns), strict=True)
            lacking = (missing(label) and self.target != "labels" for label in raw)
            if any(lacks or _blank(texts) for lacks, texts in zip(lacking, parts, strict=True)):
                raise UserError("data: every sample of a stream must have a text and a label; one of train has not.")
            targets = self.targets.encode(raw, "train")
            tokens = self._encode(table[:], self.block)
            for number, target in enumerate(targets):
                sample = {name: column[number] for name, column in tokens.items()}
                yield sample, target, len(sample["input_ids"])

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | ({"train": self.streaming} if self.streaming else {})

    def batches(self, split: str) -> Any:
        if not (self.streaming and split == "train"):
            return super().batches(split)
        return Stream(self._stream, self.streaming, self.batch_size, self.seed, self._epoch, self._collate)

    def _train_loader(self) -> ResumableLoader:
        return ResumableLoader(self.batches("train"), batch_size=None) if self.streaming else super()._train_loader()

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
        empty = {index: "no text" for index, parts in enumerate(texts) if _blank(parts)}
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
        return BETWEEN.join("" if part is None else " ".join(words(part)) if tagged else str(part) for part in parts)

    def _open(self, item: tuple[str, int]) -> Mapping[str, Any]:
        source, row = item
        return self._tokens[source][row]

    def for_text(self, tokenizer: Any, max_length: int | None) -> None:
        length = self.max_length or min(max_length or MOST_TOKENS, MOST_TOKENS)
        if max_length and length > max_length:
            raise UserError(f"data.max_length must be at most {max_length} for this model; got {length}.")
        if self.max_tokens and self.max_tokens < length:
            raise UserError(f"data.max_tokens must hold a sample of data.max_length={length}; got {self.max_tokens}.")
        self.tokenizer, self.block = tokenizer, length
        self._tokens = {split: self._tokenised(table, length) for split, table in self._tables.items()}
        if self.target == "text":
            self._cut_into_blocks(length)
        hide = TokenDropout(self.token_dropout, tokenizer.mask_id, tokenizer.special_ids)
        self.transforms = {"train": hide if self.token_dropout else _as_it_is, "eval": _as_it_is}
        self._lengths = {}
        for split, samples in self.splits.items():
            rows = samples.inputs
            full = np.asarray(self._tokens[rows.source]["full_length"])[rows.numbers]
            self._lengths[split] = np.minimum(full, length)
            self.truncated[split] = int((full > length).sum())

    def lengths(self, split: str) -> np.ndarray | None:
        return self._lengths.get(split)

    def _encode(self, batch: Mapping[str, list[Any]], length: int) -> dict[str, list[Any]]:
        texts = [[("" if part is None else part) for part in batch[name]] for name in self._columns]
        if self.target == "tags":
            return self.tokenizer.encode_words([words(text) for text in texts[0]], length)
        pairs = [str(text) for text in texts[1]] if self.pair_column else None
        most = None if self.target == "text" else length  # what is cut into blocks is not truncated
        return self.tokenizer.encode([str(text) for text in texts[0]], pairs, most)

    def _tokenised(self, table: Dataset, length: int) -> Dataset:
        code = inspect.getsource(type(self)) + inspect.getsource(type(self.tokenizer))
        what = (table._fingerprint, self.tokenizer.fingerprint, length, self._columns, self.target, code)
        return _mapped(table, partial(self._encode, length=length), what)

    def _cut_into_blocks(self, length: int) -> None:
        """All text of a split, one document after the other, in blocks of `length` tokens."""
        end = [] if self.tokenizer.end_id is None else [self.tokenizer.end_id]

        def cut(batch: Mapping[str, list[list[int]]]) -> dict[str, list[Any]]:
            documents = (ids if ids[-1:] == end else [*ids, *end] for ids in batch["input_ids"])
            stream = [token for ids in documents for token in ids]
            blocks = [stream[start : start + length] for start in range(0, len(stream) - 1, length)]
            return {"input_ids": blocks, "full_length": [len(block) for block in blocks]}

        for split, samples in list(self.splits.items()):
            rows = samples.inputs
            table = self._tokens[rows.source].select(rows.numbers)
            name = f"blocks of {split}"
            self._tokens[name] = _mapped(table, cut, (self._tokens[rows.source]._fingerprint, rows.numbers.tobytes()))
            count = len(self._tokens[name])
            self.splits[split] = Samples(Rows(name, np.arange(count)), np.zeros(count), self._open)

    def collate(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        ids = [torch.as_tensor(sample["input_ids"]) for sample in inputs]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        }
        if "token_type_ids" in inputs[0]:
            kinds = [torch.as_tensor(sample["token_type_ids"]) for sample in inputs]
            batch["token_type_ids"] = pad_sequence(kinds, batch_first=True)
        return batch

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


def _blank(parts: Sequence[Any]) -> bool:
    return not all("".join(words(part)) for part in (part or "" for part in parts))


def _as_it_is(sample: Any) -> Any:
    return sample


def _mapped(table: Dataset, function: Callable[[Mapping[str, Any]], Mapping[str, Any]], what: Any) -> Dataset:
    # Named by what decides the result, so that the same work is found on disk by every later run.
    name = hashlib.sha256(repr(what).encode()).hexdigest()[:32]
    show_progress(len(table))
    return table.map(function, batched=True, remove_columns=table.column_names, new_fingerprint=name)


def _contents(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None  # counted among the samples that cannot be used
