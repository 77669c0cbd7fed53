"""Tokens for language models: the checkpoint's own tokenizer, or plain bytes where there is no checkpoint."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from torch import nn

from thaw.errors import UserError, first_line
from thaw.model.hub import from_cache_or_hub

UNLIMITED = 1e6  # the library says 1e30 where a tokenizer knows no limit


class Tokenizer:
    """A fast tokenizer of the transformers library, as the data uses it: lists in, plain lists out, no padding.

    Attributes:
        pad_id: what fills a batch up.
        end_id: what stands between documents; None where the vocabulary has no such token.
        mask_id: what stands for a hidden token; None where the vocabulary has no such token.
        special_ids: tokens that are no text.
        vocab_size: number of tokens.
        max_length: tokens that the tokenizer itself allows; None where it does not say.
        fingerprint: a hash of all that decides the tokens, the same in every process.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        ends = [tokenizer.eos_token_id, tokenizer.sep_token_id]
        self.end_id: int | None = next((token for token in ends if token is not None), None)
        # GPT has no padding token; whatever stands there is masked, and its own end is sure to exist.
        pads = [tokenizer.pad_token_id, self.end_id, 0]
        self.pad_id: int = next(token for token in pads if token is not None)
        self.mask_id: int | None = tokenizer.mask_token_id
        self.special_ids: list[int] = list(tokenizer.all_special_ids)
        self.vocab_size = len(tokenizer)
        limit = tokenizer.model_max_length
        self.max_length: int | None = int(limit) if limit and limit < UNLIMITED else None
        self._word_prefix = self._find_word_prefix()
        known = [tokenizer.backend_tokenizer.to_str(), tokenizer.model_input_names, self.pad_id, self.end_id]
        self.fingerprint = hashlib.sha256(repr([*known, self._word_prefix]).encode()).hexdigest()

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int | None = None
    ) -> dict[str, list[Any]]:
        """Tokens of each text, or of each pair, cut to `max_length` with the special tokens kept.

        Returns:
            `input_ids`, `full_length` (tokens before the cut), and `token_type_ids` for pairs where the model has them.
        """
        return self._encode(list(texts), None if pairs is None else list(pairs), max_length)

    def encode_words(self, words: Sequence[Sequence[str]], max_length: int | None = None) -> dict[str, list[Any]]:
        """Tokens of texts that are already cut into words.

        Returns:
            As `encode`, and `word_ids`: the word that each token begins, or -1 for special and further tokens.
        """
        prefix = self._word_prefix
        spaced = [[prefix + word if place else word for place, word in enumerate(text)] for text in words]
        return self._encode(spaced, None, max_length, is_split_into_words=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens, without the special ones."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write the files that the library reads it from, the same before and after it has cut texts."""
        if backend := getattr(self._tokenizer, "backend_tokenizer", None):
            backend.no_truncation()
            backend.no_padding()
        self._tokenizer.save_pretrained(folder)

    def _encode(
        self, texts: list[Any], pairs: list[str] | None, max_length: int | None, **how: bool
    ) -> dict[str, list[Any]]:
        columns = ["input_ids"]
        if pairs is not None and "token_type_ids" in self._tokenizer.model_input_names:
            columns.append("token_type_ids")
        words = "is_split_into_words" in how
        result: dict[str, list[Any]] = {name: [] for name in [*columns, *["word_ids"] * words, "full_length"]}
        if not texts:
            return result
        types = "token_type_ids" in columns
        if pairs is not None and not self._tokenizer.num_special_tokens_to_add(pair=True):
            # GPT's own way would glue the two texts together, without so much as a space.
            pairs = ["\n" + pair for pair in pairs]
        call = partial(self._tokenizer, return_attention_mask=False, return_token_type_ids=types, verbose=False, **how)
        encoded = call(texts, pairs)
        result |= {name: encoded[name] for name in columns}
        result["full_length"] = [len(ids) for ids in encoded["input_ids"]]
        if words:
            result["word_ids"] = [_first_tokens(encoded.word_ids(index)) for index in range(len(texts))]
        # Only what is too long is read again, by the tokenizer itself: it knows which special tokens must stay.
        long = [index for index, length in enumerate(result["full_length"]) if max_length and length > max_length]
        if long:
            some = [texts[index] for index in long], pairs and [pairs[index] for index in long]
            cut = call(*some, truncation=True, max_length=max_length)
            for place, index in enumerate(long):
                for name in columns:
                    result[name][index] = cut[name][place]
                if words:
                    result["word_ids"][index] = _first_tokens(cut.word_ids(place))
        for index, length in enumerate(result["full_length"]):
            if length == 0:  # an empty text under a tokenizer without special tokens: no network can read nothing
                result["input_ids"][index] = [self.pad_id if self.end_id is None else self.end_id]
                result["full_length"][index] = 1
                for name in {"token_type_ids", "word_ids"} & set(result):
                    result[name][index] = [-1 if name == "word_ids" else 0]
        return result

    def _find_word_prefix(self) -> str:
        """A space where the tokenizer takes it as part of the word that follows, as GPT-2's does."""

        def ids(text: Any, **how: bool) -> list[int]:
            return self._tokenizer(text, add_special_tokens=False, verbose=False, **how)["input_ids"]

        whole = ids("a b")
        plain, spaced = (ids(words, is_split_into_words=True) for words in (["a", "b"], ["a", " b"]))
        return " " if whole != plain and whole == spaced else ""


def _first_tokens(word_ids: list[int | None]) -> list[int]:
    before = [None, *word_ids]
    return [-1 if word is None or word == last else word for last, word in zip(before, word_ids, strict=False)]


def pretrained_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that lies beside a checkpoint.

    Raises:
        UserError: there is none, or the library cannot read it.
    """
    load = partial(transformers.AutoTokenizer.from_pretrained, name, trust_remote_code=False)
    reason = "no tokenizer.json or other vocabulary"
    try:
        tokenizer = from_cache_or_hub(load, name)
        # Without any file the library makes one that knows its special tokens and nothing else.
        found = tokenizer.is_fast and set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) - {"▁"}
        reason = reason if tokenizer.is_fast else "only a slow one, which Thaw does not read"
    except (OSError, ValueError, TypeError, ImportError) as error:
        found, reason = None, first_line(error)
    if not found:
        raise UserError(
            f"model.name must have a tokenizer beside its weights; '{name}' has none that can be read ({reason}).\n"
            "Put tokenizer.json there, or install sentencepiece if it has only a .model file."
        )
    return Tokenizer(tokenizer)


def byte_tokenizer(token_types: bool = False) -> Tokenizer:
    """One token for each byte, `<pad>` = 0 and `</s>` = 1 after each text: needs no file and knows every script.

    Args:
        token_types: whether the model tells the two texts of a pair apart.
    """
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", *sorted(ByteLevel.alphabet())])}
    backend = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteDecoder()
    backend.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    columns = ["input_ids", "token_type_ids", "attention_mask"] if token_types else ["input_ids", "attention_mask"]
    return Tokenizer(
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", model_input_names=columns
        )
    )


def assert_fits(tokenizer: Tokenizer, model: nn.Module) -> None:
    """Check that every token has an embedding.

    Raises:
        UserError: the tokenizer has more tokens than the model has embeddings.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"model.name must have an embedding for each of the tokenizer's {tokenizer.vocab_size} tokens; "
            f"'{model.config.model_type}' has {rows}. Set model.options.vocab_size, or leave it out."
        )


def max_length(tokenizer: Tokenizer, model: nn.Module) -> int | None:
    """Tokens that tokenizer and model can read at most; None where nothing limits them."""
    limits = [tokenizer.max_length] if tokenizer.max_length else []
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and positions > 0:
        # RoBERTa and its kin begin to count positions after the padding index.
        tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
        begins = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
        limits.append(positions - max(begins, default=0))
    return min(limits, default=None)
