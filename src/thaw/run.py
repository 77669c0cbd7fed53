"""The run directory: unique, locked, and described by one atomically written run.json."""

import itertools
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from thaw.errors import UserError
from thaw.lock import lock, read_json, unlock

Resume = Literal["never", "auto", "must"]
ERROR_LOG = "error.log"
PACKAGES = ("torch", "lightning", "timm", "transformers", "peft", "hydra-core", "torchmetrics", "torchvision")


class Run:
    """One run's directory and its record, `run.json`.

    Used as a context manager it holds the directory's lock, and the record's status always says how the run ended.

    Args:
        folder: the directory, which exists.
        record: what `run.json` holds already.
        leads: whether this process writes; of several that share a run, one does.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any] | None = None, leads: bool = True) -> None:
        self.folder, self.leads = folder, leads
        self.record: dict[str, Any] = dict(record or {})

    @classmethod
    def following(cls, folder: str | Path) -> "Run":
        """A run that another process has opened."""
        return cls(Path(folder), read_record(Path(folder)), leads=False)

    @classmethod
    def open(cls, folder: str | None, name: str, overrides: Sequence[str], resume: Resume = "never") -> "Run":
        """Create a fresh directory, or find the one that the same command used before.

        Args:
            folder: where to write; None takes `runs/<name>`. A fresh run never shares a directory: the second gets
                `<folder>-2`.
            overrides: the command's overrides, by which `resume` knows the same command again.
            resume: `never`; `auto`, go on if there is something to go on from; `must`.

        Raises:
            UserError: nothing to resume with `must`, or the directory cannot be written.
        """
        wanted = Path(folder) if folder else Path("runs") / name
        if not wanted.name:
            raise UserError(f"run.dir must name a directory of its own; got '{folder}'. Write e.g. run.dir=runs/mine.")
        same = [text for text in overrides if not text.startswith(("resume=", "run.dir="))]
        if resume != "never":
            for candidate in [wanted] if folder and read_record(wanted) else _earlier(wanted):
                record = read_record(candidate) or {}
                if (folder and candidate == wanted) or record.get("overrides") == same:
                    lock(candidate)
                    return cls(candidate, record)
            if resume == "must":
                raise UserError(f"resume=must needs an earlier run of the same command; found none at '{wanted}'.")
        try:
            made = _make_unique(wanted)
        except OSError as error:
            raise UserError(f"run.dir must be writable; '{wanted}' is not ({error.strerror}).") from None
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(made, {"command": f"python {command}", "overrides": same, "started": started})

    @property
    def finished(self) -> bool:
        return self.record.get("status") == "finished"

    @property
    def resume_command(self) -> str:
        """The same command, going on in this directory."""
        return shlex.join(["python", "train.py", *self.record["overrides"], f"run.dir={self.folder}", "resume=auto"])

    @property
    def last(self) -> Path | None:
        """The newest checkpoint to go on from."""
        path = self.folder / "checkpoints" / "last.ckpt"
        return path if path.is_file() else None

    def update(self, **fields: Any) -> None:
        """Write the record so that a reader sees the old one or the new one, never a half."""
        record = self.record | fields
        if not self.leads:
            self.record = record
            return
        unfinished = self.folder / f".run.json.{os.getpid()}.tmp"
        unfinished.write_text(json.dumps(_strict(record), indent=2, allow_nan=False) + "\n")
        os.replace(unfinished, self.folder / "run.json")
        self.record = record

    def __enter__(self) -> "Run":
        self._began = time.monotonic()
        self._before = self.record.get("seconds", 0.0)
        if self.leads:
            (self.folder / ERROR_LOG).unlink(missing_ok=True)  # of an earlier try
        self.update(status="running", reason=None, versions=_versions(), git=_git())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            status, reason = "finished", None
        elif issubclass(kind, (KeyboardInterrupt, SystemExit)):
            status, reason = "interrupted", "Ctrl-C" if kind is KeyboardInterrupt else f"exit {error}"
        else:
            status, reason = "failed", f"{kind.__name__}: {error}"
        if status == "failed" and self.leads:
            (self.folder / ERROR_LOG).write_text("".join(traceback.format_exception(kind, error, trace)))
        self.update(status=status, reason=reason, seconds=round(self._before + time.monotonic() - self._began, 2))
        self.release()

    def release(self) -> None:
        if self.leads:
            unlock(self.folder)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_name(choices: Mapping[str, str | None]) -> str:
    """The name of a run for which none is given, by the option chosen of each group."""
    return choices.get("experiment") or f"{choices['data']}-{choices['model']}-{choices['freezing']}"


def free_folder(folder: str | None, name: str) -> Path:
    """Where a fresh run would write if it began now."""
    wanted = Path(folder) if folder else Path("runs") / name
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([wanted], numbered) if not path.is_dir() or not any(path.iterdir()))


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a run directory, or None where there is none."""
    return read_json(folder / "run.json")


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


def _earlier(wanted: Path) -> list[Path]:
    """Run directories called `wanted` or `wanted-<number>`, the newest first."""
    names = re.compile(re.escape(wanted.name) + r"(-\d+)?")
    there = [path for path in wanted.parent.iterdir() if names.fullmatch(path.name)] if wanted.parent.is_dir() else []
    runs = [path / "run.json" for path in there if (path / "run.json").is_file()]
    return [path.parent for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True)]


def _make_unique(wanted: Path) -> Path:
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


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def _git() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        root = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "--verify", "--quiet", "HEAD") or None,
            "dirty": bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
