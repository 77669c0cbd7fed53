"""Tables from files: every format gives the same rows, texts stay as they are written, and mistakes are named."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features

from thaw.data import table as tables
from thaw.data.table import Rows, columns, is_table, labels, read_hub, read_table
from thaw.errors import UserError

ROWS = [
    {"text": "one, two", "label": "a"},
    {"text": "größer 中文 🙂", "label": "b"},
    {"text": "third", "label": "a"},
]


def write_csv(path: Path, rows: list[dict]) -> None:
    Dataset.from_list(rows).to_csv(path)


def write_tsv(path: Path, rows: list[dict]) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict]) -> None:
    Dataset.from_list(rows).to_parquet(path)


WRITERS = {"csv": write_csv, "tsv": write_tsv, "jsonl": write_jsonl, "json": write_json, "parquet": write_parquet}


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_table(root)
    assert len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


@pytest.mark.parametrize(("suffix", "write"), WRITERS.items())
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str, write: Callable, case: Callable) -> None:
    path = tmp_path / f"all.{case(suffix)}"
    write(path, ROWS)
    assert is_table(path)
    found = read_table(path)
    assert list(found) == ["train"]
    assert list(found["train"]) == ROWS


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev"])
def test_a_folder_has_a_table_for_each_split(tmp_path: Path, val: str) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    write_jsonl(tmp_path / f"{val}.jsonl", ROWS[:2])
    write_parquet(tmp_path / "test.parquet", ROWS[1:])
    assert is_table(tmp_path)
    assert {split: list(table) for split, table in read_table(tmp_path).items()} == {
        "train": ROWS, "val": ROWS[:2], "test": ROWS[1:]
    }  # fmt: skip


def test_a_folder_without_a_table_for_train_is_none(tmp_path: Path) -> None:
    write_csv(tmp_path / "test.csv", ROWS)
    assert not is_table(tmp_path)
    assert "a folder with train.csv|.tsv|" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["NA", "null", "None", "nan", "N/A", "#N/A", "-", "  x  "])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_text_that_looks_like_nothing_stays_a_text(tmp_path: Path, suffix: str, text: str) -> None:
    WRITERS[suffix](tmp_path / f"a.{suffix}", [{"text": text, "label": "a"}, *ROWS])
    assert read_table(tmp_path / f"a.{suffix}")["train"][0]["text"] == text


@pytest.mark.parametrize("text", ['he said "go', '"', 'a "quoted" word', "'", '"whole"'])
def test_in_tsv_a_quotation_mark_is_a_character_like_any_other(tmp_path: Path, text: str) -> None:
    rows = [{"text": text, "label": "a"}, *ROWS]
    write_tsv(tmp_path / "a.tsv", rows)
    assert list(read_table(tmp_path / "a.tsv")["train"]) == rows


def test_in_csv_a_quoted_text_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"one, ""two""\nthree",a\nplain,b\n')
    assert read_table(tmp_path / "a.csv")["train"]["text"][:] == ['one, "two"\nthree', "plain"]


def test_every_cell_of_a_csv_file_is_the_text_that_stands_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n007,00\n000.50,true\n1e3,01\n")
    found = read_table(tmp_path / "a.csv")["train"]
    assert found["text"][:] == ["007", "000.50", "1e3"]
    assert found["label"][:] == ["00", "true", "01"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\nä,b\n".encode("utf-8-sig"))
    assert list(read_table(tmp_path / "a.csv")["train"]) == [{"text": "ä", "label": "b"}]


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    for rows in (ROWS, ROWS[:1]):
        write_csv(tmp_path / "a.csv", rows)
        assert list(read_table(tmp_path / "a.csv")["train"]) == rows


@pytest.mark.fault("E15")
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_file_that_is_not_utf_8_is_refused_in_words(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"a.{suffix}", ROWS)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(path.read_bytes().decode().replace("中文 🙂", "").encode("latin-1"))
    said = refusal(path)
    assert f"'{path}' must be a table in UTF-8" in said
    assert "utf" in said.partition("(")[2].lower()


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_empty_file_is_refused_in_words(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").touch()
    assert f"a.{suffix}' must be a table" in refusal(tmp_path / f"a.{suffix}")


@pytest.mark.fault("E8")
@pytest.mark.parametrize(
    ("name", "contents"), [("a.csv", "text,label\n"), ("a.tsv", "text\tlabel\n"), ("a.json", "[]"), ("a.jsonl", "\n")]
)
def test_a_table_without_rows_is_refused_in_words(tmp_path: Path, name: str, contents: str) -> None:
    (tmp_path / name).write_text(contents)
    assert f"{name}' must be a table" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "contents"),
    [("a.jsonl", '{"text": "x", '), ("a.parquet", "no parquet"), ("a.csv", "a,b\n1,2,3,4\n1\n5,6,7,8,9\n")],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, contents: str) -> None:
    (tmp_path / name).write_text(contents)
    assert str(tmp_path / name) in refusal(tmp_path / name)


# Columns and labels


def test_a_missing_column_is_named_with_what_was_meant() -> None:
    table = Dataset.from_list(ROWS)
    assert columns(table, "text", "data.text_column") == ["text"]
    assert columns(table, ["label", "text"], "data.label_column") == ["label", "text"]
    with pytest.raises(UserError) as caught:
        columns(table, "txt", "data.text_column")
    assert str(caught.value) == "data.text_column must be a column of the table; got 'txt'. Did you mean 'text'?"
    with pytest.raises(UserError, match=r"data\.label_column must be .* got 'lable'\. Did you mean 'label'\?"):
        labels(table, ["text", "lable"])


def test_labels_of_one_column_are_as_they_are_and_of_several_by_name() -> None:
    table = Dataset.from_dict({"a": [1, 2], "b": ["x", None], "tags": [["N", "V"], ["N"]]})
    assert labels(table, "a") == [1, 2]
    assert labels(table, "b") == ["x", None]
    assert labels(table, "tags") == [["N", "V"], ["N"]]
    assert labels(table, ["a", "b"]) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]


@pytest.mark.fault("E7")
def test_class_indices_become_names_and_minus_one_is_no_label() -> None:
    kinds = ClassLabel(names=["bad", "good"])
    table = Dataset.from_dict({"label": [1, 0, -1, None]}, features=Features({"label": kinds}))
    assert labels(table, "label") == ["good", "bad", None, None]


def test_lists_of_class_indices_become_lists_of_names() -> None:
    tags = datasets.List(ClassLabel(names=["O", "PER"]))
    table = Dataset.from_dict({"tags": [[0, 1], [1]]}, features=Features({"tags": tags}))
    assert labels(table, "tags") == [["O", "PER"], ["PER"]]


def test_class_indices_of_several_columns_keep_their_numbers() -> None:
    kinds = ClassLabel(names=["no", "yes"])
    table = Dataset.from_dict({"a": [0, 1], "b": [1, 1]}, features=Features({"a": kinds, "b": kinds}))
    assert labels(table, ["b", "a"]) == [{"b": 1, "a": 0}, {"b": 1, "a": 1}]


def test_rows_are_numbers_of_a_source() -> None:
    rows = Rows("train", np.arange(10, 20))
    assert len(rows) == 10
    assert rows[3] == ("train", 13)
    taken = rows[np.array([0, 9])]
    assert isinstance(taken, Rows)
    assert list(taken) == [("train", 10), ("train", 19)]


# The Hub


def test_what_the_hub_does_not_give_is_told_with_a_way_out() -> None:
    with pytest.raises(UserError) as caught:
        read_hub("no-such-owner/no-such-data:plain")
    assert "'no-such-owner/no-such-data:plain' was not (" in str(caught.value)
    assert "data=text_csv data.root=" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev"])
def test_splits_of_the_hub_go_by_several_names(monkeypatch: pytest.MonkeyPatch, val: str) -> None:
    asked = []

    def load(*names: str | None, **_: object) -> dict[str, Dataset]:
        asked.append(names)
        return {name: Dataset.from_list(ROWS) for name in ("train", val, "test", "unsupervised")}

    monkeypatch.setattr(tables.datasets, "load_dataset", load)
    assert list(read_hub("owner/name:config")) == ["train", "val", "test"]
    assert list(read_hub("owner/name")) == ["train", "val", "test"]
    assert asked == [("owner/name", "config"), ("owner/name", None)]


def test_nothing_is_written_beside_the_data_or_to_the_home_folder(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ROWS)
    found = read_table(tmp_path / "a.csv")["train"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert all(entry["filename"].startswith(os.environ["HF_DATASETS_CACHE"]) for entry in found.cache_files)


def test_a_stream_of_a_parquet_file_is_its_rows_in_order_across_row_groups(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"text {number}" for number in range(2500)], "label": [number % 2 for number in range(2500)]}
    table = Dataset.from_dict(rows, features=features)
    table.to_parquet(str(tmp_path / "train.parquet"), batch_size=700)
    assert pq.ParquetFile(tmp_path / "train.parquet").num_row_groups > 3
    stream = read_table(tmp_path, streaming=True)["train"]
    assert stream.features == features
    assert list(stream) == list(table)
    assert list(stream.skip(1399).take(3)) == [table[number] for number in range(1399, 1402)]
    assert [len(batch["text"]) for batch in stream.skip(600).iter(batch_size=1000)] == [1000, 900]
