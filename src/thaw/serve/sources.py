"""What to predict: samples from a file, a folder, a table or standard input, one at a time."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.data.inputs import Inputs
from thaw.data.table import BETWEEN_PARTS, FORMATS, columns, read_table, rows
from thaw.errors import UserError

STDIN = "-"


@dataclass(frozen=True)
class Sample:
    """One of them.

    Args:
        name: stands for it in the table of predictions.
        content: what `Inputs.prepare` takes.
        error: why there is none.
    """

    name: str
    content: Any = None
    error: str = ""


def samples(place: str, inputs: Inputs, column: str | None = None) -> tuple[Iterator[Sample], int | None]:
    """The samples in a stable order, and how many there are where that is known.

    Args:
        place: a file or a folder of them; a table of texts, or of paths relative to it; or `-`, whose lines are texts
            or paths. Of a .txt file each line is a sample, of a folder of them each file.
        column: of the table, in place of the run's own.

    Raises:
        UserError: nothing is there that this run can read.
    """
    path = Path(place)
    if place == STDIN:
        return _lines(sys.stdin.buffer, inputs), None
    if not path.exists():
        raise UserError(f"INPUT must be a file, a folder, a table or -; there is no '{place}'.")
    if path.is_dir():
        count = sum(1 for _ in _files(path, inputs.suffixes))
        if not count:
            raise UserError(f"INPUT must hold files that this run can read ({_listed(inputs)}); '{place}' has none.")
        return (_file(name, inputs) for name in _files(path, inputs.suffixes)), count
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        return _table(path, inputs, column)
    if suffix not in inputs.suffixes:
        raise UserError(
            f"INPUT must be of the kind that the run was trained on ({_listed(inputs)}, or a table of them); "
            f"got '{place}'."
        )
    if inputs.known["medium"] == "text":
        return _lines(open(path, "rb"), inputs), None
    return iter([_file(place, inputs)]), 1


def _listed(inputs: Inputs) -> str:
    return ", ".join(inputs.suffixes)


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Paths of the files below a folder, in order, without holding all of them."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(Path(entry.path), suffixes)
        elif Path(entry.name).suffix.lower() in suffixes:
            yield entry.path


def _file(path: str, inputs: Inputs) -> Sample:
    try:
        return Sample(path, inputs.open_file(path))
    except UserError as error:
        return Sample(path, error=str(error))


def _lines(file: Any, inputs: Inputs) -> Iterator[Sample]:
    with file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield Sample(f"line {number}", error=f"line {number} is not in UTF-8")
                continue
            if inputs.known["medium"] == "text":
                yield Sample(text or f"line {number}", text)
            elif text:
                yield _file(text, inputs)


def _table(path: Path, inputs: Inputs, column: str | None) -> tuple[Iterator[Sample], int | None]:
    table = read_table(path, streaming=True)["train"]
    wanted = [column, *inputs.columns[1:]] if column else list(inputs.columns)
    text = inputs.known["medium"] == "text"

    def found() -> Iterator[Sample]:
        for row in rows(table, path):
            parts = [row.get(name) for name in wanted]
            if text:
                content = dict(zip(inputs.columns, parts, strict=True))
                yield Sample(BETWEEN_PARTS.join("" if part is None else str(part) for part in parts), content)
            else:
                yield _file(str(path.parent / str(parts[0] or "")), inputs)

    columns(table, wanted, "--column")
    return found(), None
