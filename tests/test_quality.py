"""Leaks, duplicates and the other findings about a data set, counted before training."""

import csv
import json

import pytest
from conftest import SHARED

from thaw.data.quality import Leak, Quality, duplicates, hash_of, summary, text_key


def test_texts_are_the_same_but_for_case_and_white_space() -> None:
    assert text_key(" What Is it?\n") == text_key("what is it?")
    assert text_key("what is it") != text_key("what is it?")


def test_files_are_the_same_by_their_bytes() -> None:
    assert hash_of(b"same") == hash_of(b"same") != hash_of(b"other")


@pytest.mark.fault("E16")
def test_leaks_count_the_samples_of_the_later_split() -> None:
    keys = {"train": ["a", "b", "b", "c"], "val": ["b", "d"], "test": ["x", "b", "d", "b", "a", "c"]}
    within, leaks = duplicates(keys)
    assert within == {"train": 1, "val": 0, "test": 1}
    assert leaks == [
        Leak("train", "val", 1, [(1, 0)], ["b"]),
        Leak("train", "test", 4, [(1, 1), (1, 3), (0, 4)], ["b", "b", "a"]),
        Leak("val", "test", 3, [(0, 1), (1, 2), (0, 3)], ["b", "d", "b"]),
    ]


def test_no_leaks_without_a_second_split_and_none_of_bytes_are_shown_as_text() -> None:
    assert duplicates({"train": [b"1", b"1"]}) == ({"train": 1}, [])
    assert duplicates({"train": [b"1"], "test": [b"1"]})[1] == [Leak("train", "test", 1, [(0, 0)], [])]
    named = duplicates({"train": [b"1"], "test": [b"1"]}, {"train": ["a.wav"], "test": ["b.wav"]})
    assert named[1][0].texts == ["b.wav"]


def test_each_key_is_looked_up_a_few_times_however_many_there_are() -> None:
    looked_up = 0

    class Key(str):
        def __hash__(self) -> int:
            nonlocal looked_up
            looked_up += 1
            return super().__hash__()

    keys = {split: [Key(number) for number in range(2000)] for split in ("train", "test")}
    duplicates(keys)
    assert 4000 <= looked_up <= 4 * 4000


@pytest.mark.parametrize(("folder", "count"), [("banking77", 6), ("trec", 11)])
def test_the_known_leaks_of_published_data_are_found(folder: str, count: int) -> None:
    if not (SHARED / "data" / folder).is_dir():
        pytest.skip(f"needs {SHARED / 'data' / folder}")
    texts = {}
    for split in ("train", "test"):
        with (SHARED / "data" / folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
            texts[split] = [row["text"] for row in csv.DictReader(file)]
    [leak] = duplicates({split: [text_key(text) for text in own] for split, own in texts.items()}, texts)[1]
    assert (leak.earlier, leak.later, leak.samples) == ("train", "test", count)
    assert all(text_key(texts["train"][a]) == text_key(texts["test"][b]) for a, b in leak.examples)


@pytest.mark.fault("E6")
def test_rare_classes_and_labels_of_one_split() -> None:
    counts = {"train": {"a": 90, "b": 9, "c": 2, "d": 0}, "test": {"a": 10, "b": 1, "c": 0, "d": 1}}
    quality = Quality({"train": 101, "test": 12}, counts)
    assert list(quality.rare_classes.items()) == [("d", 0), ("c", 2), ("b", 9)]
    assert quality.lacking == {"train": ["d"], "test": ["c"]}
    assert Quality({"train": 2}, {"train": {"a": 1, "b": 1}}).lacking == {}
    assert Quality({"train": 2, "test": 2}, {"train": {"a": 2}, "test": {"a": 0}}).lacking == {}  # without labels


def test_a_summary_is_of_numbers() -> None:
    assert summary(list(range(101))) == {"min": 0, "median": 50, "p95": 95, "max": 100}
    assert summary([]) == {}


def test_all_of_it_goes_into_json() -> None:
    counts = {"train": {"a": 1}, "val": {"b": 2}}
    quality = Quality({"train": 1, "val": 2}, counts, leaks=duplicates({"train": ["x"], "val": ["x", "y"]})[1])
    found = json.loads(json.dumps(quality.to_dict()))
    assert found["leaks"] == [{"earlier": "train", "later": "val", "samples": 1, "examples": [[0, 0]], "texts": ["x"]}]
    assert found["rare_classes"] == {"a": 1}
    assert found["lacking"] == {"train": ["b"], "val": ["a"]}
