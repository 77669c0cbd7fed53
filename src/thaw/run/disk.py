"""Room on the disk: asked for before training, and told in words where it ends all the same."""

import errno
import os
import shutil
from pathlib import Path

from thaw.errors import UserError

# What a full disk, a quota, a limit on files or a disk that has become read-only says.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def free_bytes(folder: Path) -> int:
    """What this user can still write below a folder, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def assert_room(folder: Path, needed: int) -> None:
    """Check the free space of a folder.

    Raises:
        UserError: there is less than `needed` bytes.
    """
    if (free := free_bytes(folder)) < needed:
        raise UserError(
            f"run.dir must have room for its checkpoints, about {megabytes(needed)}; '{folder}' has {megabytes(free)} "
            "free. Make room, or write run.dir=… on another disk."
        )


def refusal(error: OSError, folder: Path, needed: int | None = None) -> str:
    """Why nothing more can be written into a folder, in words; `needed` in bytes where it is known."""
    reason = error.strerror or os.strerror(error.errno or errno.EIO)
    try:
        free = f"{megabytes(free_bytes(folder))} are free"
    except OSError:
        free = "how much is free cannot be told"
    size = f" of {megabytes(needed)}" if needed else ""
    return (
        f"'{folder}' must take a file{size}; it does not: {reason}, {free}. "
        "What was saved before is whole: make room, then go on with resume=auto."
    )


def megabytes(size: int) -> str:
    """A size in words, never 0 of what is there."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
