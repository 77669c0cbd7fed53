"""Files while they are being written: nobody else may read or replace them, whatever the umask."""

import os
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
