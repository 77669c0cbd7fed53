"""Files while they are being written: nobody else may read or replace them, whatever the umask."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_UMASK = os.umask(0o077)  # it can only be read by setting it
os.umask(_UMASK)


def private(path: str, flags: int) -> int:
    """An `opener` for `open(path, "x")`: a new file of this user alone.

    Raises:
        FileExistsError: something lies there already, also a link.
    """
    return os.open(path, flags | os.O_EXCL, 0o600)


def publish(file: IO) -> None:
    """Give a file that is complete the rights that any other new file has."""
    os.fchmod(file.fileno(), 0o666 & ~_UMASK)


def unfinished(path: Path) -> Path:
    """A name beside the file for what is being written; `Run.open` removes what a killed process has left of these."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextlib.contextmanager
def replacing(path: Path, binary: bool = False, newline: str | None = None) -> Iterator[IO]:
    """A file that takes the place of `path` once it is whole: a reader sees the old one or the new one."""
    written = unfinished(path)
    how = {"mode": "xb"} if binary else {"mode": "x", "encoding": "utf-8", "newline": newline}
    try:
        with open(written, opener=private, **how) as file:
            yield file
            publish(file)
            file.flush()
            os.fsync(file.fileno())
        rename(written, path)
    finally:
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder beside it that becomes `folder` once it is whole; where that is there, file by file. None if empty."""
    written = unfinished(folder)
    written.mkdir(parents=True, mode=0o700)
    try:
        yield written
        files = sorted(written.iterdir())
        for file in files:
            file.chmod(0o666 & ~_UMASK)
        if folder.is_dir():
            for file in files:
                rename(file, folder / file.name)
        elif files:
            written.chmod(0o777 & ~_UMASK)
            rename(written, folder)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def rename(written: Path, path: Path) -> None:
    """Give a file its final name, and wait until the folder on the disk knows it."""
    os.replace(written, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
