"""Tables of samples: CSV, TSV, JSON lines and Parquet files, folders of them, and data sets of the Hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset
from datasets.iterable_dataset import ArrowExamplesIterable

from thaw.errors import UserError, did_you_mean, first_line

FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
BETWEEN_PARTS = " | "  # the two texts of a pair, for people
# Up to here reading and tokenising take a second or two, and a bar would only flicker.
QUIET_ROWS = 20_000


@dataclass(frozen=True)
class Rows(Sequence[tuple[str, int]]):
    """Some rows of one of several tables, told apart by `source`, without their contents.

    Args:
        numbers: of the rows (samples,).
    """

    source: str
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, np.ndarray):
            return Rows(self.source, self.numbers[index])
        return self.source, int(self.numbers[index])


def show_progress(rows: int) -> None:
    """Let `datasets` draw its bars for work that takes longer than a glance."""
    (datasets.enable_progress_bars if rows > QUIET_ROWS else datasets.disable_progress_bars)()


def is_table(root: Path) -> bool:
    """Whether `root` is a table, or a folder that holds one for train."""
    return root.suffix.lower() in FORMATS if root.is_file() else _find(root, SPLITS["train"]) is not None


def read_table(root: Path, streaming: bool = False) -> dict[str, Dataset | IterableDataset]:
    """The splits of one file (train alone), or of a folder with `train.csv`, `val.csv`, `test.csv` or the like.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    if root.is_file():
        files = {"train": root}
    else:
        found = {split: _find(root, names) for split, names in SPLITS.items()}
        files = {split: path for split, path in found.items() if path}
    if "train" not in files:
        raise UserError(f"data.root must be a table, or a folder with train{'|'.join(FORMATS)}; got '{root}'.")
    return {split: _load(path, streaming) for split, path in files.items()}


def read_hub(name: str, streaming: bool = False) -> dict[str, Dataset | IterableDataset]:
    """The splits of a data set of the Hub, `owner/name` or `owner/name:configuration`, from the cache or the network.

    Raises:
        UserError: it cannot be had.
    """
    repository, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(repository, configuration or None, streaming=streaming)
    except Exception as error:  # the Hub's client raises many unrelated types
        raise UserError(
            f"data.hub must be had from the local cache or the Hub; '{name}' was not ({first_line(error)}).\n"
            "Connect to the network, or download its files and write data=text_csv data.root=…"
        ) from None
    return {split: found[name] for split, names in SPLITS.items() for name in names if name in found}


def chunks(stream: IterableDataset, start: int = 0, size: int = 1000) -> Iterator[Dataset]:
    """The rows of a stream from the start-th on, in tables of up to `size` rows; after the last comes the first."""
    while True:
        reached = False
        with readable("a stream"):
            for batch in stream.skip(start).iter(batch_size=size):
                reached = True
                yield Dataset.from_dict(batch, features=stream.features)
        # A start beyond the last row is in a later round.
        start = 0 if reached or not start else start % sum(1 for _ in stream)


def first_rows(stream: IterableDataset, count: int | None = None) -> Dataset:
    """Some rows of a stream as a table in memory; all of them where `count` is None."""
    with readable("a stream"):
        rows = list(stream if count is None else stream.take(count))
    columns = {name: [row[name] for row in rows] for name in stream.features or {}}
    return Dataset.from_dict(columns, features=stream.features) if columns else Dataset.from_list(rows)


def rows(stream: IterableDataset, path: Path) -> Iterator[dict[str, Any]]:
    """One row after the other.

    Raises:
        UserError: the table is damaged from some row on.
    """
    with readable(path):
        yield from stream


def columns(table: Dataset | IterableDataset, wanted: str | Sequence[str], option: str) -> list[str]:
    """The wanted columns as a list.

    Raises:
        UserError: the table lacks one.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    known = table.column_names or list(next(iter(table), {}))  # of some streams they are not told
    if missing := [name for name in names if name not in known]:
        advice = did_you_mean(missing[0], known)
        raise UserError(f"{option} must be a column of the table; got '{missing[0]}'. {advice}")
    return names


def labels(table: Dataset, wanted: str | Sequence[str], option: str = "data.label_column") -> list:
    """Raw labels: of one column as they are, with the names of class indices; of several as {column: value}."""
    names = columns(table, wanted, option)
    if isinstance(wanted, str):
        feature = table.features[wanted]
        inner = getattr(feature, "feature", feature)  # a list of class indices
        values = table[wanted][:]
        return _named(values, inner.names, option) if hasattr(inner, "int2str") else values
    return [dict(zip(names, row, strict=True)) for row in zip(*(table[name][:] for name in names), strict=True)]


def _named(values: Sequence[Any], names: Sequence[str], option: str) -> list:
    """Class indices, or lists of them, by their names; -1 is no label."""
    flat = ((row, index) for row, value in enumerate(values) for index in (value if _is_list(value) else [value]))
    wrong = [f"row {row + 1} has {index}" for row, index in flat if index is not None and not -1 <= index < len(names)]
    if wrong:
        told = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise UserError(
            f"{option} must hold indices of the {len(names)} classes that the table names, from 0 to {len(names) - 1}, "
            f"or -1 for none; {told}. Mend the rows or the names."
        )
    find = [*names, None].__getitem__  # -1 is the last
    return [
        [find(index) for index in value] if _is_list(value) else None if value is None else find(value)
        for value in values
    ]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence)


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in FORMATS]
    return next((path for path in candidates if path.is_file()), None)


def _load(path: Path, streaming: bool) -> Dataset | IterableDataset:
    show_progress(path.stat().st_size // 100)
    options = {}
    if FORMATS[path.suffix.lower()] == "csv":
        options["keep_default_na"] = False  # a text may well be "NA" or "null"
    if path.suffix.lower() == ".tsv":
        options |= {"sep": "\t", "quoting": 3}  # in TSV a quotation mark is a character like any other
    kind, where = FORMATS[path.suffix.lower()], str(path)
    with readable(path):
        if kind == "csv":  # every cell is the text that stands there: 007 is no 7, and one split reads like another
            header = pd.read_csv(path, nrows=0, **options).columns
            options["features"] = datasets.Features({name: datasets.Value("string") for name in header})
        if streaming and kind == "parquet":
            return _parquet_stream(path)
        found = datasets.load_dataset(kind, data_files=where, split="train", streaming=streaming, **options)
        if not streaming:
            found.data.validate(full=True)  # the JSON reader takes any bytes for text
        return found


def _parquet_stream(path: Path, rows: int = 1000) -> IterableDataset:
    # Asked for more than a row group at once, the reader takes the whole file into memory.
    def tables() -> Iterator[tuple[int, pa.Table]]:
        with pq.ParquetFile(path) as file:
            groups = (file.iter_batches(rows, [group], use_threads=False) for group in range(file.num_row_groups))
            for number, batch in enumerate(chain.from_iterable(groups)):
                yield number, pa.Table.from_batches([batch])

    features = datasets.Features.from_arrow_schema(pq.read_schema(path))
    return IterableDataset(ArrowExamplesIterable(tables, {}), info=datasets.DatasetInfo(features=features))


@contextmanager
def readable(what: str | Path) -> Iterator[None]:
    """Turn whatever reading a table raises into words about it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of pandas, pyarrow and datasets, each with types of its own
        reason = first_line(error.__cause__ or error)
        if (cache := str(datasets.config.HF_DATASETS_CACHE)) in str(error):
            raise UserError(
                f"HF_DATASETS_CACHE must be a folder that can be written; '{cache}' is not ({reason}). "
                "Write e.g. HF_DATASETS_CACHE=/tmp/datasets before the command."
            ) from None
        raise UserError(f"data.root: '{what}' must be a table in UTF-8 ({reason}). Mend or remove it.") from None
