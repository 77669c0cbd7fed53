"""The run directory: unique, locked, and described by one atomically written run.json."""

import contextlib
import functools
import json
import math
import os
import shlex
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from thaw.errors import RunError, UserError
from thaw.redaction import redacted
from thaw.run import disk
from thaw.run.folder import earlier, make_unique
from thaw.run.lock import lock, read_json, unlock
from thaw.run.provenance import git, other_code, versions
from thaw.run.unfinished import replacing

if TYPE_CHECKING:
    from thaw.run.resume import Found

Resume = Literal["never", "auto", "must"]
ERROR_LOG = "error.log"
MODEL_FILES = "model"  # the folder of what a transformer needs beside its weights


class Run:
    """One run's directory and its record, `run.json`.

    Used as a context manager it holds the directory's lock, and the record's status always says how the run ended.

    Args:
        folder: the directory, which exists.
        record: what `run.json` holds already.
        leads: whether this process writes; of several that share a run, one does.
        resume: as the command has it.

    Attributes:
        at_once: how many runs this process computes at the same time; each counts for its share of the seconds.
    """

    def __init__(
        self, folder: Path, record: Mapping[str, Any] | None = None, leads: bool = True, resume: Resume = "never"
    ) -> None:
        self.folder, self.leads, self.resume, self.at_once = folder, leads, resume, 1
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
            overrides: the command's overrides, by which `resume` knows the same command again. A job that SLURM has
                started again finds its own directory by its own number.
            resume: `never`; `auto`, go on if there is something to go on from; `must`.

        Raises:
            UserError: nothing to resume with `must`, no run or no whole checkpoint; or the directory cannot be written.
        """
        wanted = Path(folder) if folder else Path("runs") / name
        if not wanted.name:
            raise UserError(f"run.dir must name a directory of its own; got '{folder}'. Write e.g. run.dir=runs/mine.")
        same = [redacted(text) for text in overrides if not text.startswith(("resume=", "run.dir="))]
        job = slurm_job()
        if job and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            for candidate in earlier(wanted):
                if (record := read_record(candidate) or {}).get("slurm_job") == job:
                    lock(candidate)
                    return cls(candidate, record, resume="auto")._ready_to_go_on()
        if resume != "never":
            for candidate in [wanted] if folder and read_record(wanted) else earlier(wanted):
                record = read_record(candidate) or {}
                if (folder and candidate == wanted) or record.get("overrides") == same:
                    lock(candidate)
                    return cls(candidate, record, resume=resume)._ready_to_go_on()
            if resume == "must":
                raise UserError(f"resume=must needs an earlier run of the same command; found none at '{wanted}'.")
        try:
            made = make_unique(wanted)
        except OSError as error:
            raise UserError(f"run.dir must be writable; '{wanted}' is not ({error.strerror}).") from None
        command = shlex.join([Path(sys.argv[0]).name, *redacted(sys.argv[1:])])
        started = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"command": f"python {command}", "overrides": same, "started": started}
        return cls(made, record | ({"slurm_job": job} if job else {}), resume=resume)

    def _ready_to_go_on(self) -> "Run":
        # What a killed process was writing; the lock tells that nobody writes now.
        for left in (*self.folder.glob(".*.tmp"), *(self.folder / "checkpoints").glob(".*.tmp")):
            with contextlib.suppress(OSError):  # where nothing can be written is told with all else
                left.unlink()
        try:
            if self.resume == "must" and not self.finished and not self.last:
                wrong = "; ".join(self.found.left_out) or "there is none"
                raise UserError(
                    f"resume=must needs a whole checkpoint in '{self.folder / 'checkpoints'}'; {wrong}. "
                    "Write resume=auto to start afresh in the same directory."
                )
        except UserError:
            self.release()
            raise
        return self

    @property
    def finished(self) -> bool:
        return self.record.get("status") == "finished"

    @property
    def resume_command(self) -> str:
        """The same command, going on in this directory."""
        return resume_command(self.folder, self.record)

    @functools.cached_property
    def found(self) -> "Found":
        """The newest whole checkpoint as the run began, and what is wrong with newer ones."""
        from thaw.run.resume import find  # torch comes with it

        return find(self.folder / "checkpoints")

    @property
    def last(self) -> Path | None:
        """The checkpoint to go on from."""
        return self.found.path

    def update(self, **fields: Any) -> None:
        """Write the record so that a reader sees the old one or the new one, never a half."""
        record = self.record | fields
        if not self.leads:
            self.record = record
            return
        with replacing(self.folder / "run.json") as file:
            file.write(json.dumps(_strict(record), indent=2, allow_nan=False) + "\n")
        self.record = record

    def __enter__(self) -> "Run":
        self._began = time.monotonic()
        self._before = self.record.get("seconds", 0.0)
        if self.leads:
            (self.folder / ERROR_LOG).unlink(missing_ok=True)  # of an earlier try
        before = self.record
        self.update(status="running", reason=None, versions=versions(), git=git())
        self.other_code = other_code(before, self.record) if self.last else []
        return self

    def finish(self) -> None:
        """Say that the run has finished; nothing that comes after can change that."""
        self._end("finished")

    def _end(self, status: str, reason: str | None = None) -> None:
        seconds = round(self._before + (time.monotonic() - self._began) / self.at_once, 2)
        go_on = {} if status == "finished" else {"resume": self.resume_command}
        self.update(status=status, reason=reason, seconds=seconds, **go_on)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self.finished:
            self.release()
            return
        told = None
        if isinstance(error, OSError) and error.errno in disk.FULL:
            told = RunError(disk.refusal(error, self.folder))
        if kind is None:
            status, reason = "finished", None
        elif issubclass(kind, (KeyboardInterrupt, SystemExit)):
            way = "Ctrl-C" if kind is KeyboardInterrupt else f"exit {error}"
            status, reason = "interrupted", getattr(error, "reason", way)
        else:
            status, reason = "failed", redacted(f"{type(told or error).__name__}: {told or error}")
        try:
            self._end(status, reason)
            if status == "failed" and self.leads:
                (self.folder / ERROR_LOG).write_text(redacted("".join(traceback.format_exception(kind, error, trace))))
        except OSError as full:
            if error is None:
                raise RunError(disk.refusal(full, self.folder)) from full
            # Else what ended the run is told: that its record could not be written comes of the same.
        finally:
            self.release()
        if told:
            raise told from error

    def release(self) -> None:
        if self.leads:
            # On a disk that has become read-only it stays; the lock of a dead process is anybody's.
            with contextlib.suppress(OSError):
                unlock(self.folder)

    def abandon(self) -> None:
        """Give back a directory in which the run cannot begin, and leave none that is empty."""
        self.release()
        if self.leads:
            with contextlib.suppress(OSError):
                self.folder.rmdir()


def resume_command(folder: Path, record: Mapping[str, Any]) -> str:
    """The command of a run, going on in its directory."""
    return shlex.join(["python", "train.py", *record.get("overrides", []), f"run.dir={folder}", "resume=auto"])


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def slurm_job() -> str | None:
    """The number of the SLURM job this process belongs to, as `scontrol` reads it."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a run directory, or None where there is none."""
    return read_json(folder / "run.json")
