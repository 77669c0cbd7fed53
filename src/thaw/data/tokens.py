"""Tokens of tables of text: made once and kept on disk, cut into blocks for language modelling, padded in batches."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from thaw.data.raw_labels import words
from thaw.data.table import show_progress


@dataclass(frozen=True)
class TextEncoder:
    """Turns columns of text into columns of tokens, with each text's `full_length` before it was cut.

    Args:
        tokenizer: the network's own.
        columns: the text, and the second one of a pair.
        target: the kind of target: `tags` asks for the words, `text` for tokens that nothing was cut from.
        max_length: tokens a sample.
    """

    tokenizer: Any
    columns: Sequence[str]
    target: str
    max_length: int

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        texts, *pairs = ([("" if part is None else part) for part in batch[name]] for name in self.columns)
        if self.target == "tags":
            return self.tokenizer.encode_words([words(text) for text in texts], self.max_length)
        second = [str(text) for text in pairs[0]] if pairs else None
        most = None if self.target == "text" else self.max_length  # what is cut into blocks is not truncated
        return self.tokenizer.encode([str(text) for text in texts], second, most)


def tokenised(table: Dataset, encode: TextEncoder) -> Dataset:
    """The tokens of every row."""
    tokenizer = encode.tokenizer.fingerprint, inspect.getsource(type(encode.tokenizer))
    return _mapped(table, encode, (table._fingerprint, encode.columns, encode.target, encode.max_length, tokenizer))


def blocks(tokens: Dataset, rows: np.ndarray, length: int, end_id: int | None) -> Dataset:
    """The texts of these rows, one document after the other, in blocks of `length` tokens.

    Args:
        end_id: stands between two documents; None where the vocabulary has no such token.
    """
    cut = partial(_cut, length=length, end=[] if end_id is None else [end_id])
    return _mapped(tokens.select(rows), cut, (tokens._fingerprint, rows.tobytes(), length, end_id))


def _cut(batch: Mapping[str, Sequence[list[int]]], length: int, end: list[int]) -> dict[str, list[Any]]:
    documents = (ids if ids[-1:] == end else [*ids, *end] for ids in batch["input_ids"])
    stream = [token for ids in documents for token in ids]
    cut = [stream[start : start + length] for start in range(0, len(stream) - 1, length)]
    return {"input_ids": cut, "full_length": [len(block) for block in cut]}


def _mapped(table: Dataset, function: Callable[[Mapping[str, Any]], Mapping[str, Any]], what: Any) -> Dataset:
    # Named by all that decides the result, so that the same work is found on disk by every later run.
    code = Path(__file__).read_text(encoding="utf-8")
    name = hashlib.sha256(repr((what, code)).encode()).hexdigest()[:32]
    show_progress(len(table))
    return table.map(function, batched=True, remove_columns=table.column_names, new_fingerprint=name)


def padded(samples: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """One batch (samples, tokens), as long as its longest sample, with the mask of what is no padding."""
    ids = [torch.as_tensor(sample["input_ids"]) for sample in samples]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
    }
    if "token_type_ids" in samples[0]:
        kinds = [torch.as_tensor(sample["token_type_ids"]) for sample in samples]
        batch["token_type_ids"] = pad_sequence(kinds, batch_first=True)
    return batch


def blank(texts: Sequence[Any]) -> bool:
    """Whether one of the texts of a sample, or lists of words, is missing or nothing but white space."""
    return not all("".join(words(text or "")) for text in texts)
