"""The tokens of a checkpoint's own tokenizer, and of plain bytes."""

import copy
import subprocess
import sys

import pytest
import transformers
from conftest import SHARED

from thaw.model.tokenizer import Tokenizer, byte_tokenizer, pretrained_tokenizer

MINILM = SHARED / "weights" / "minilm"
TEXTS = ["thaw", "a longer text", "größer als ein Byte"]


@pytest.mark.skipif(not MINILM.is_dir(), reason="$THAW_SHARED/weights/minilm is not there")
def test_the_tokenizer_of_a_checkpoint() -> None:
    tokenizer = pretrained_tokenizer(str(MINILM))
    plain = tokenizer.encode(["Break the ice.", "word " * 50], max_length=10)
    assert plain["full_length"] == [6, 52]
    assert [len(ids) for ids in plain["input_ids"]] == [6, 10]
    assert all(ids[0] == 101 and ids[-1] == 102 for ids in plain["input_ids"])  # [CLS] and [SEP] stay
    assert "token_type_ids" not in plain
    pairs = tokenizer.encode(["one two"], ["three " * 30], max_length=9)
    assert pairs["token_type_ids"] == [[0, 0, 0, 0, 1, 1, 1, 1, 1]]
    words = tokenizer.encode_words([["unthawed", "ice", "."], ["snow"] * 20], max_length=6)
    assert words["word_ids"][1] == [-1, 0, 1, 2, 3, -1]
    first = [index for index in words["word_ids"][0] if index >= 0]
    assert first == sorted(set(first))
    assert words["full_length"][1] == 22
    assert tokenizer.decode(plain["input_ids"][0]) == "break the ice."
    assert (tokenizer.pad_id, tokenizer.end_id, tokenizer.vocab_size) == (0, 102, 30522)


def test_bytes_are_tokens_without_any_file() -> None:
    tokenizer = byte_tokenizer(token_types=True)
    encoded = tokenizer.encode([*TEXTS, ""])
    assert encoded["full_length"] == [len(text.encode()) + 1 for text in [*TEXTS, ""]]
    assert [tokenizer.decode(ids) for ids in encoded["input_ids"]] == [*TEXTS, ""]
    assert (tokenizer.pad_id, tokenizer.end_id, tokenizer.vocab_size) == (0, 1, 258)
    words = tokenizer.encode_words([["ab", "c"]])
    assert words["word_ids"] == [[0, -1, 1, -1, -1]]  # a, b, space, c, end: as in running text
    assert words["input_ids"] == tokenizer.encode(["ab c"])["input_ids"]
    assert tokenizer.encode(["a"], ["bc"])["token_type_ids"] == [[0, 0, 1, 1, 1]]
    assert tokenizer.encode([]) == {"input_ids": [], "full_length": []}


def test_an_empty_text_still_is_one_token() -> None:
    backend = copy.deepcopy(byte_tokenizer()._tokenizer.backend_tokenizer)
    backend.post_processor = None
    bare = Tokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert bare.encode(["", "a"])["input_ids"][0] == [bare.end_id]
    assert bare.pad_id == bare.end_id == 1  # as in GPT-2, which has no token for padding


def test_two_texts_stay_apart_also_where_the_tokenizer_puts_nothing_between() -> None:
    bare = Tokenizer(byte_tokenizer()._tokenizer)
    bare._tokenizer.num_special_tokens_to_add = lambda pair: 0  # as GPT-2's
    assert "good\nbad" in bare.decode(bare.encode(["good"], ["bad"])["input_ids"][0])


@pytest.mark.medium
def test_the_fingerprint_is_the_same_in_every_process_and_another_for_another_tokenizer() -> None:
    code = "from thaw.model.tokenizer import byte_tokenizer as t; print(t().fingerprint)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == byte_tokenizer().fingerprint
    assert found != byte_tokenizer(token_types=True).fingerprint
