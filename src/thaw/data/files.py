"""Files with labels: from class folders, from zip files of them, or from a table of paths."""

import os
import zipfile
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Annotated

from pydantic import AfterValidator

from thaw.errors import UserError, first_line

# Up to here every file is read once before training; beyond, a broken or doubled one is met in training or not at all.
CHECKED_FILES = 20_000
# A zip file of a megabyte can hold a gigabyte of zeros.
MOST_BYTES = 2**30


def _existing(root: str | None) -> str | None:
    if root is not None and not Path(root).exists():
        raise ValueError("must be an existing folder or table", f"There is no '{Path(root).absolute()}'.")
    return root


Root = Annotated[str, AfterValidator(_existing)]


def labelled_files(
    root: Path, suffixes: Collection[str], path_column: str, label_column: str | Sequence[str]
) -> dict[str, tuple[list[str], list]]:
    """Split → (paths, raw labels). A path may be `archive.zip::entry`; those of a table are relative to the table.

    Raises:
        UserError: no folder, no file with one of the suffixes, a split without files, a name that is no text, or a
            table that lacks a column.
    """
    # datasets and pandas come with it, which data that is embedded has no use for.
    from thaw.data.table import FORMATS, SPLITS, columns, is_table, labels, read_table

    if not root.exists():
        raise UserError(f"data.root must be an existing folder or table; there is no '{root.absolute()}'.")
    if is_table(root):
        folder = root if root.is_dir() else root.parent
        return {
            split: (
                [str(folder / str(path or "")) for path in table[columns(table, path_column, "data.path_column")[0]]],
                labels(table, label_column),
            )
            for split, table in read_table(root).items()
        }
    if root.is_file():
        raise UserError(f"data.root must be a folder or a table ({', '.join(FORMATS)}); got the file '{root}'.")
    found = {split: _listed(root, names, suffixes) for split, names in SPLITS.items()}
    found = {split: files for split, files in found.items() if files is not None}
    if "train" not in found:
        found = {"train": _files(root, suffixes)}
    if not found["train"]:
        raise UserError(
            f"data.root must hold train/<class>/<file> or <class>/<file> ({', '.join(suffixes)}), or train.csv; "
            f"found none in '{root}'."
        )
    if empty := [split for split, files in found.items() if not files]:
        raise UserError(
            f"data.root: every split in '{root}' must hold <class>/<file> ({', '.join(suffixes)}); "
            f"{' and '.join(empty)} has none. Fill or remove it."
        )
    if strange := [path for files in found.values() for _, path in files if not _is_text(path)]:
        raise UserError(
            f"data.root: every name must be in UTF-8; {len(strange)} are not, the first {strange[0]!r}. Rename them."
        )
    return {split: ([path for _, path in files], [name for name, _ in files]) for split, files in found.items()}


def _listed(root: Path, names: tuple[str, ...], suffixes: Collection[str]) -> list[tuple[str, str]] | None:
    for name in names:
        if (root / name).is_dir():
            return _files(root / name, suffixes)
        if (root / f"{name}.zip").is_file():
            path = root / f"{name}.zip"
            try:
                entries = sorted(archive(str(path), os.getpid())[0].namelist())
            except Exception as error:  # a damaged directory raises more than BadZipFile
                reason = first_line(error)
                raise UserError(f"data.root: '{path}' must be a zip file ({reason}). Mend or remove it.") from None
            files = [Path(entry) for entry in entries if _counts(Path(entry), suffixes)]
            top = 1 if all(file.parts[0] == name and len(file.parts) > 2 for file in files) else 0
            return [(f.parts[top], f"{path}::{f.as_posix()}") for f in files if len(f.parts) >= top + 2]
    return None


def _files(folder: Path, suffixes: Collection[str]) -> list[tuple[str, str]]:
    """(class name, path) of every file below the class folders, in sorted order."""
    return [
        (entry.name, str(path))
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
        for path in sorted(entry.rglob("*"))
        if _counts(path.relative_to(folder), suffixes) and path.is_file()
    ]


def _counts(path: Path, suffixes: Collection[str]) -> bool:
    # An entry of a zip file may be called ../x or /x; nothing is ever unpacked, and such a name is no class either.
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in suffixes and not hidden and not path.is_absolute()


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes of a name that are no UTF-8
        return False
    return True


@cache
def archive(path: str, process: int) -> tuple[zipfile.ZipFile, Lock]:
    """One handle a process, for one thread at a time: forked loader workers must not share a file position."""
    return zipfile.ZipFile(path), Lock()


def contents(path: str) -> bytes:
    """The bytes of a file, or of `archive.zip::entry`.

    Raises:
        OSError: they cannot be read, or are more than `MOST_BYTES`.
    """
    container, _, entry = path.partition(".zip::")
    if not entry:
        _assert_bounded(os.stat(path).st_size)
        return Path(path).read_bytes()
    try:
        zipped, alone = archive(f"{container}.zip", os.getpid())
        # Its reader stops at the size that stands here, whatever the entry would unpack to.
        _assert_bounded(zipped.getinfo(entry).file_size)
        with alone:
            return zipped.read(entry)
    except Exception as error:  # of the disk, of zipfile, and of each way to compress
        raise OSError(first_line(error)) from None


def _assert_bounded(size: int) -> None:
    if size > MOST_BYTES:
        raise OSError(f"{size:,} bytes are more than {MOST_BYTES:,}")


def stamp(path: str) -> bytes:
    """Name, size and time of change of a file, or of the archive it lies in; empty where it cannot be had."""
    container, archived, _ = path.partition(".zip::")
    try:
        found = os.stat(f"{container}.zip" if archived else path)
    except OSError:
        return b""  # what opens it tells
    return f"{path} {found.st_size} {found.st_mtime_ns}".encode("utf-8", "surrogateescape")
