"""Tables written row by row, that have their name only once they are whole."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from thaw.errors import UserError
from thaw.run.unfinished import replacing

FORMATS = (".csv", ".parquet", ".jsonl")
Rows = Sequence[Mapping[str, Any]]


def assert_format(path: Path) -> None:
    """Check a name before any work is done.

    Raises:
        UserError: no such format, or no folder to write to.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; got '{path}'.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--out must lie in a folder that is there; '{path.parent}' is not. Make it first.")


@contextmanager
def table(path: Path, columns: Mapping[str, type]) -> Iterator[Callable[[Rows], None]]:
    """Yields what writes some rows; a cell that a row lacks is empty.

    Args:
        columns: name → `str` or `float`.
    """
    suffix = path.suffix.lower()
    with replacing(path, binary=suffix == ".parquet", newline="") as file:
        if suffix == ".parquet":
            kinds = {str: pa.string(), float: pa.float64()}
            schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
            with pq.ParquetWriter(file, schema) as writer:
                yield lambda rows: writer.write_table(
                    pa.table({name: [row.get(name) for row in rows] for name in columns}, schema=schema)
                )
        elif suffix == ".csv":
            writer = csv.DictWriter(file, list(columns), restval="")
            writer.writeheader()
            yield writer.writerows
        else:
            yield lambda rows: file.writelines(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
