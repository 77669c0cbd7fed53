"""A folder of what is computed once and used by many epochs, seeds, trials and runs; bounded, and cleaned by age."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from thaw.run.disk import free_bytes
from thaw.run.lock import read_json

# Written last: an entry without it is none.
SEAL = "entry.json"
# What `Cache` names its folders, and those that it has not filled yet: a user's own beside them are not its business.
OWN = re.compile(r"(?P<whole>[0-9a-f]{24})|\.(?P<unfinished>[0-9a-f]{24})\.[0-9a-f]{32}\.tmp")
# Days without use after which an entry goes, however much room there is.
MOST_DAYS = 30
# Of the room on the disk, what is left to everything else.
MOST_OF_FREE = 0.5


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/thaw`, or `~/.cache/thaw`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thaw"


class Cache:
    """Entries are folders of files, each under the whole of what its content depends on.

    An entry is sealed by its key and the checksums of its files, so that one that is cut short, altered or of another
    key is never used, and it is written by one process while those that want the same wait. An entry is not cleaned
    away while a process holds the object that has given it.

    Args:
        max_bytes: of all entries; 0 keeps none. What has not been used for longest goes first.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._held: dict[str, int] = {}  # entry → the open file that holds its lock

    def entry(self, key: Mapping[str, Any], size: int, fill: Callable[[Path], None]) -> Path | None:
        """The folder of the entry under exactly this key; None where it cannot be kept.

        Args:
            key: all that the content depends on, as JSON has it.
            size: bytes that `fill` is about to write.
            fill: writes the files of the entry into an empty folder.

        Raises:
            OSError: the disk is full.
        """
        found = self.find(key)
        if found or not self.max_bytes or size > self.max_bytes or size > MOST_OF_FREE * self._free():
            return found
        for _ in range(50):
            name = name_of(key)
            lock = self._open(name)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # another process fills it, and then lets all read it
                os.close(lock)
                if found := self.find(key):
                    return found
                time.sleep(0.1)
                continue
            try:
                if self._clean(self.max_bytes - size) + size > self.max_bytes:
                    return None  # others use the rest
                self._fill(name, key, fill)
            finally:
                os.close(lock)
            return self._find(key, written=True)
        return None  # what lies there is damaged, and a process that lives has it open

    def find(self, key: Mapping[str, Any]) -> Path | None:
        """The folder of a whole entry under exactly this key, after waiting for one that is being written."""
        return self._find(key)

    def _find(self, key: Mapping[str, Any], written: bool = False) -> Path | None:
        """The same; where this process has just written it, without summing its files once more."""
        name = name_of(key)
        path = self.folder / name
        if name in self._held:
            return path
        if not self.max_bytes or not self.folder.is_dir():
            return None
        try:
            lock = self._open(name)
        except OSError:  # nothing may be written there, and so no lock either
            return None
        fcntl.flock(lock, fcntl.LOCK_SH)
        seal = read_json(path / SEAL) or {}
        if seal.get("key") != _plain(key) or not (written or _whole(path, seal.get("files", {}))):
            os.close(lock)
            return None
        with contextlib.suppress(OSError):  # a folder that this user may only read
            os.utime(path / SEAL)
        self._held[name] = lock
        return path

    def discard(self, key: Mapping[str, Any]) -> None:
        """Serve an entry that is not what its key says to nobody any more."""
        path = self.folder / name_of(key)
        (path / SEAL).unlink(missing_ok=True)
        if (lock := self._held.pop(path.name, None)) is not None:
            os.close(lock)

    def __del__(self) -> None:
        for lock in self._held.values():
            os.close(lock)

    def _free(self) -> int:
        """Bytes that this user can still write; 0 where that is nothing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return free_bytes(self.folder) if os.access(self.folder, os.W_OK) else 0
        except OSError:
            return 0

    def _open(self, name: str) -> int:
        path = self.folder / f"{name}.lock"
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:  # of another user
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _fill(self, name: str, key: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
        for left in self.folder.glob(f".{name}.*.tmp"):  # of a process that was killed: this one has the lock
            shutil.rmtree(left, ignore_errors=True)
        written = self.folder / f".{name}.{uuid.uuid4().hex}.tmp"
        written.mkdir()
        try:
            fill(written)
            files = {path.name: [path.stat().st_size, _digest(path)] for path in sorted(written.iterdir())}
            (written / SEAL).write_text(json.dumps({"key": _plain(key), "files": files}, indent=1))
            shutil.rmtree(self.folder / name, ignore_errors=True)
            os.replace(written, self.folder / name)
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def _clean(self, room: int) -> int:
        """Remove what is old, and then what was used longest ago, until the rest fits into `room` bytes.

        Returns:
            Bytes of what is left; what processes use stays.
        """
        entries = []
        for path in self.folder.iterdir():
            if not (own := OWN.fullmatch(path.name)):
                continue
            with contextlib.suppress(OSError):  # another process cleans too
                size = sum(file.stat().st_size for file in path.iterdir())
                seal = path / SEAL
                sealed = own["whole"] and seal.exists()  # else left by a process that was killed
                entries.append((seal.stat().st_mtime if sealed else 0.0, size, path, own["whole"] or own["unfinished"]))
        total = sum(size for _, size, *_ in entries)
        for used, size, path, name in sorted(entries):
            if total <= room and time.time() - used < MOST_DAYS * 86400:
                break
            if path.name not in self._held and self._remove(path, name):
                total -= size
        return total

    def _remove(self, path: Path, name: str) -> bool:
        lock = self._open(name)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            return not path.exists()
        except OSError:  # a process uses it
            return False
        finally:
            os.close(lock)


def name_of(key: Mapping[str, Any]) -> str:
    """Name of an entry's folder: of equal keys the same."""
    return hashlib.sha256(json.dumps(_plain(key), sort_keys=True).encode()).hexdigest()[:24]


def _plain(key: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(key))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole(path: Path, files: Mapping[str, Any]) -> bool:
    try:
        return bool(files) and all(
            (path / name).stat().st_size == size and _digest(path / name) == digest
            for name, (size, digest) in files.items()
        )
    except (OSError, ValueError, TypeError):
        return False
