"""Advice where a library fails in words of its own: for want of memory, or because another process is gone."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from thaw import memory
from thaw.errors import LoaderError, MemoryShortError, ProcessError, RunError, UserError, first_line
from thaw.run.run import Run

SHARED_MEMORY = "/dev/shm"


@contextmanager
def in_words(settings: Callable[[], Mapping[str, Any]], run: Run | None = None) -> Iterator[None]:
    """Raise what is known to happen with advice, and with the first error as its cause; let all else pass.

    Args:
        settings: gives the whole configuration, as plain containers.
        run: tells what was settled, once it is open.

    Raises:
        UserError: an optional package is not installed.
        MemoryShortError: memory is spent.
        LoaderError: a process that loads data was killed, or gives nothing.
        ProcessError: another process of the run has ended, or hangs.
    """
    try:
        yield
    except (RunError, UserError):
        raise
    except Exception as raised:
        error: BaseException | None = raised
        if isinstance(raised, ModuleNotFoundError):
            package = f" Write pip install {raised.name.partition('.')[0]}." if raised.name else ""
            raise UserError(f"A package must be installed: {first_line(raised)}.{package}") from None
        while error:  # Lightning's own clearing up may fail as well, and then hides what came first
            if lines := _loader(error, settings):
                raise LoaderError("\n".join(lines)) from raised
            if memory.is_short(error):
                settled = run.record.get("settled", {}) if run else {}
                lines = [f"Memory must be enough; it is not: {first_line(error)}.", *memory.advice(settings(), settled)]
                raise MemoryShortError("\n".join(lines)) from raised
            if isinstance(error, RuntimeError) and re.search(r"\bgloo\b|NCCL|ProcessGroup", str(error)):
                raise ProcessError(
                    f"The processes of a run must go on together; one has ended or hangs: {first_line(error, 200)}.\n"
                    "Its own error, if it could tell one, stands above. Where it is only slow, write a larger "
                    "trainer.strategy.timeout."
                ) from raised
            error = error.__cause__ or error.__context__
        raise


def _loader(error: BaseException, settings: Callable[[], Mapping[str, Any]]) -> list[str]:
    """What happened to the processes that load data, and what to write; nothing where it is not about them."""
    said = str(error)
    if not isinstance(error, (RuntimeError, OSError)):
        return []
    if re.search(r"shared memory|unable to mmap|<?/torch_\d+", said):
        what = f"The processes that load data must have room in {SHARED_MEMORY}; it is full ({_room()})."
        return [what, "Write data.num_workers=0 or a smaller data.batch_size; in a container, --shm-size=8g."]
    if seconds := re.search(r"DataLoader timed out after (\S+) seconds", said):
        return [
            f"Every batch of {_name(settings())} must come within {float(seconds[1]):g} s; one did not: a process that "
            "loads data hangs.",
            "Is the disk or the server that holds it there? Write data.num_workers=0 to see where it waits; "
            "or, where it is only slow, +data.worker_timeout=3600.",
        ]
    if found := re.search(r"DataLoader worker \(pid(?:\(s\))? [^)]*\) ([^.]*)", said):
        return [
            f"The processes that load {_name(settings())} must live as long as the run; one {found[1].strip()}.",
            f"Most often the system killed it for want of memory (RAM), or {SHARED_MEMORY} is too small ({_room()}).",
            "Write data.num_workers=0 or fewer, or a smaller data.batch_size; in a container, --shm-size=8g.",
        ]
    return []


def _room() -> str:
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return "there is none"
    return f"{usage.free / 2**20:,.0f} of {usage.total / 2**20:,.0f} MiB free"


def _name(settings: Mapping[str, Any]) -> str:
    data = settings.get("data", {})
    place = data.get("root") or data.get("hub")
    return data.get("_target_", "data").rpartition(".")[2] + (f" at '{place}'" if place else "")
