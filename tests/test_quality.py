"""Leaks, duplicates and the other findings about a data set, counted before training."""

import csv
import json
import time
from collections.abc import Callable

import pytest
from conftest import SHARED
from rich.console import Console

from thaw.data.quality import Leak, Quality, duplicates, findings, hash_of, screen, summary, text_key


def printed(quality: Quality, width: int = 100) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        for part in screen(quality):
            console.print(part, soft_wrap=isinstance(part, str))
    return captured.get()


def test_texts_are_the_same_but_for_case_and_white_space() -> None:
    assert text_key(" What Is it?\n") == text_key("what is it?")
    assert text_key("what is it") != text_key("what is it?")


def test_files_are_the_same_by_their_bytes() -> None:
    assert hash_of(b"same") == hash_of(b"same") != hash_of(b"other")


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


def test_a_hundred_thousand_texts_take_no_time() -> None:
    texts = [f"How do I find my card number {number} before it expires?" for number in range(100_000)]
    start = time.process_time()
    duplicates({"train": [text_key(text) for text in texts], "test": [text_key(text) for text in texts[:10_000]]})
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("folder", "key", "count"),
    [
        ("banking77", lambda text: text.lower().strip(), 6),
        ("banking77", text_key, 6),
        ("trec", text_key, 11),
    ],
)
def test_the_known_leaks_of_published_data_are_found(folder: str, key: Callable[[str], str], count: int) -> None:
    if not (SHARED / "data" / folder).is_dir():
        pytest.skip(f"needs {SHARED / 'data' / folder}")
    texts = {}
    for split in ("train", "test"):
        with (SHARED / "data" / folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
            texts[split] = [row["text"] for row in csv.DictReader(file)]
    [leak] = duplicates({split: [key(text) for text in own] for split, own in texts.items()}, texts)[1]
    assert (leak.earlier, leak.later, leak.samples) == ("train", "test", count)
    assert all(key(texts["train"][a]) == key(texts["test"][b]) for a, b in leak.examples)


def test_rare_classes_and_labels_of_one_split() -> None:
    counts = {"train": {"a": 90, "b": 9, "c": 2, "d": 0}, "test": {"a": 10, "b": 1, "c": 0, "d": 1}}
    quality = Quality({"train": 101, "test": 12}, counts)
    assert list(quality.rare_classes.items()) == [("d", 0), ("c", 2), ("b", 9)]
    assert quality.lone_labels == {"c": "train", "d": "test"}
    assert Quality({"train": 2}, {"train": {"a": 1, "b": 1}}).lone_labels == {}


def test_a_summary_is_of_numbers() -> None:
    assert summary(list(range(101))) == {"min": 0, "median": 50, "p95": 95, "max": 100}
    assert summary([]) == {}


def test_clean_data_is_a_table_and_nothing_else() -> None:
    quality = Quality({"train": 1200, "test": 30}, {"train": {"a": 700, "b": 500}, "test": {"a": 15, "b": 15}})
    lines = printed(quality).splitlines()
    assert [line.split() for line in lines] == [
        ["data", "samples", "classes"],
        ["train", "1,200", "2", "(500", "–", "700", "each)"],
        ["test", "30", "2", "(15", "–", "15", "each)"],
    ]
    assert findings(quality) == []


def test_every_finding_is_one_line() -> None:
    leak = Leak("train", "test", 2, [(5, 1), (7, 3)], ["[red]so[/red]\nlong\x1b[31m " + "x" * 90])
    quality = Quality(
        sizes={"train": 10, "test": 4},
        class_counts={"train": {"a[b]": 8, **{f"c{n}": 0 for n in range(9)}}, "test": {"a[b]": 3, "new": 1}},
        lengths={"train": summary([1.5, 2, 3]), "test": summary([])},
        unit="seconds",
        duplicates={"train": 3, "test": 0},
        leaks=[leak, Leak("train", "val", 1, [(0, 9)])],
        skipped={"empty": 2, "unreadable": 0},
        truncated={"train": 1, "test": 0},
    )
    lines = printed(quality).splitlines()
    assert " ".join(lines[0].split()) == "data samples classes seconds, min – median – 95 % – max"
    assert lines[1].endswith("1.5 – 2 – 2.9 – 3")
    assert lines[3:6] == [
        f"2 of test also in train: “[red]so[/red] long [31m {'x' * 35}…”",
        "1 of val also in train: val 9 = train 0",
        "duplicates: 3 in train",
    ]
    assert lines[6:8] == ["skipped: 2 empty", "truncated: 1 of train"]
    assert lines[8] == "under 10 training samples: c0 0, c1 0, c2 0, c3 0, c4 0 and 5 more"
    assert lines[9] == "in one split only: new (test)"
    assert len(lines) == 10


def test_numbers_take_the_place_of_classes() -> None:
    quality = Quality({"train": 3}, numbers={"train": summary([0.5, 1, 4])})
    assert "targets, min – median – max" in printed(quality)
    assert "0.5 – 1 – 4" in printed(quality)


def test_all_of_it_goes_into_json() -> None:
    counts = {"train": {"a": 1}, "val": {"b": 2}}
    quality = Quality({"train": 1, "val": 2}, counts, leaks=duplicates({"train": ["x"], "val": ["x", "y"]})[1])
    found = json.loads(json.dumps(quality.to_dict()))
    assert found["leaks"] == [{"earlier": "train", "later": "val", "samples": 1, "examples": [[0, 0]], "texts": ["x"]}]
    assert found["rare_classes"] == {"a": 1}
    assert found["lone_labels"] == {"a": "train", "b": "val"}
