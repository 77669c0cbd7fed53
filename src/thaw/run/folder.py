"""Where a run writes: its name, a directory of its own, and those that earlier runs have left."""

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path

from thaw.errors import UserError
from thaw.run.lock import lock

LONGEST_NAME = 255  # bytes, in every usual file system


def run_name(choices: Mapping[str, str | None]) -> str:
    """The name of a run for which none is given, by the option chosen of each group; always of one folder."""
    name = choices.get("experiment") or f"{choices['data']}-{choices['model']}-{choices['freezing']}"
    return re.sub(r"[^\w.=+-]+", "-", name).strip(".-") or "run"


def folder_name(path: str) -> str:
    """A path that a folder can have.

    Raises:
        ValueError: it is an address, holds a zero byte, or a part of it is longer than file systems take.
    """
    advice = "Write e.g. run.dir=runs/mine."
    if "\0" in path or "://" in path:
        raise ValueError("must be the path of a folder", advice)
    if any(len(part.encode()) > LONGEST_NAME for part in Path(path).parts):
        raise ValueError(f"must have names of at most {LONGEST_NAME} bytes", advice)
    return path


def free_folder(folder: str | None, name: str) -> Path:
    """Where a fresh run would write if it began now."""
    wanted = Path(folder) if folder else Path("runs") / name
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([wanted], numbered) if not path.is_dir() or not any(path.iterdir()))


def assert_writable(folder: str | None) -> None:
    """Check a run directory before anything is made.

    Raises:
        UserError: nothing can be written there.
    """
    place = Path(folder or "runs").absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK) or _read_only(place):
        raise UserError(f"run.dir must be a folder that can be written; got '{folder}'. Write e.g. run.dir=runs/mine.")


def _read_only(place: Path) -> bool:
    # The root user may write anywhere by its rights; some file systems still refuse.
    probe = place / f".thaw-{os.getpid()}.tmp"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError:
        return True
    return False


def earlier(wanted: Path) -> list[Path]:
    """Run directories called `wanted` or `wanted-<number>`, the newest first."""
    names = re.compile(re.escape(wanted.name) + r"(-\d+)?")
    there = [path for path in wanted.parent.iterdir() if names.fullmatch(path.name)] if wanted.parent.is_dir() else []
    runs = [path / "run.json" for path in there if (path / "run.json").is_file()]
    return [path.parent for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True)]


def make_unique(wanted: Path) -> Path:
    number, folder = 1, wanted
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            try:
                lock(folder)  # whoever creates the lock owns the directory, also when eight start at once
                return folder
            except UserError:
                pass
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
