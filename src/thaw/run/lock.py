"""The lock of a run directory: one process at a time, told by its number and its computer."""

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from thaw.errors import UserError

LOCK = "run.lock"


def lock(folder: Path) -> None:
    """Take a run directory for this process, also one that a process left behind when it died.

    Raises:
        UserError: another process holds it.
    """
    path, host = folder / LOCK, socket.gethostname()
    for _ in range(2):
        try:
            with open(path, "x") as file:
                json.dump({"pid": os.getpid(), "host": host}, file)
            return
        except FileExistsError:
            holder = read_json(path)
            if not holder:
                raise UserError(
                    f"'{path}' must tell which process holds the directory; it is empty. Remove it."
                ) from None
            if holder.get("host") != host or alive(holder.get("pid", 0)):
                break
            # Left behind by a process that is gone. Renamed and not removed: only one can rename what it has read.
            mine = path.with_name(f"{LOCK}.{os.getpid()}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, mine)
                if read_json(mine) != holder:
                    with contextlib.suppress(FileExistsError):
                        os.link(mine, path)  # another was faster, and this was its lock
                mine.unlink()
            holder = read_json(path) or holder
    raise UserError(
        f"A run directory must be in use by one process; '{folder}' is held by process {holder.get('pid')} on "
        f"{holder.get('host')}, for {_age(path)}. Wait for it, or choose another run.dir."
    )


def held_by(folder: Path) -> tuple[str, int] | None:
    """(computer, process) that holds a run directory; None where nobody does, or a process here that is gone."""
    told = read_json(folder / LOCK) or {}
    host, process = told.get("host"), told.get("pid", 0)
    return None if not told or (host == socket.gethostname() and not alive(process)) else (host, process)


def _age(path: Path) -> str:
    try:
        minutes = (time.time() - path.stat().st_mtime) / 60
    except OSError:
        return "a moment"
    return "a moment" if minutes < 2 else f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def unlock(folder: Path) -> None:
    """Give a run directory back."""
    (folder / LOCK).unlink(missing_ok=True)
