"""Jobs in processes of their own, forked from one that has imported all that they need: a crash costs one job."""

import contextlib
import faulthandler
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

# What the process that all jobs are forked from imports, once.
IMPORTED = ["thaw.run.restore", "transformers", "sklearn.metrics", "matplotlib.figure"]
# Seconds for a job to save its state once it is asked to end.
GRACE = 30


@dataclass
class Job:
    """A process at work.

    Args:
        slot: which of the places for jobs it has, and with it which cores or device.
        line: held open as long as this process lives; the job ends when it is gone.
    """

    process: ForkServerProcess
    slot: int
    line: Connection
    asked: bool = False


class Processes:
    """At most `slots` jobs at once, each on cores or on a device of its own.

    Args:
        script: what each job runs, e.g. `train.py`, with its overrides as arguments.
        flags: arguments before the overrides, e.g. `--config-dir`.
        environment: of each job; that of the process they are forked from is older.
        each: GPUs of a job; with 0 its devices and cores are those of this process.
    """

    progress = ""

    def __init__(
        self, script: str, flags: Sequence[str], slots: int, environment: Mapping[str, str], each: int = 1
    ) -> None:
        self.each = each
        self.script, self.flags, self.slots, self.environment = script, list(flags), slots, dict(environment)
        self.jobs: dict[str, Job] = {}
        self._server = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(IMPORTED)

    @property
    def free(self) -> int:
        return self.slots - len(self.jobs)

    def start(self, name: str, overrides: Sequence[str], log: Path) -> None:
        """Begin a job; what it prints goes into `log`."""
        slot = next(slot for slot in range(self.slots) if slot not in {job.slot for job in self.jobs.values()})
        ours, theirs = self._server.Pipe()
        words = [self.script, *self.flags, *overrides]
        place = _place(slot, self.slots, self.each) if self.each else {}
        given = (words, os.getcwd(), str(log), theirs, place, self.environment)
        process = self._server.Process(target=_run, args=given)
        process.start()
        theirs.close()
        self.jobs[name] = Job(process, slot, ours)

    def wait(self, seconds: float) -> None:
        """Until a job ends, but no longer than this."""
        if self.jobs:
            wait([job.process.sentinel for job in self.jobs.values()], seconds)
        else:
            time.sleep(seconds)

    def ended(self) -> dict[str, int]:
        """Exit codes of the jobs that have ended since the last call; minus the signal where one has killed them."""
        codes = {name: job.process.exitcode for name, job in self.jobs.items() if job.process.exitcode is not None}
        for name in codes:
            job = self.jobs.pop(name)
            job.line.close()
            _kill_group(job.process.pid, signal.SIGKILL)  # loader processes that a killed one has left
        return codes

    def stop(self, name: str) -> None:
        """Ask a job to save its state and end."""
        job = self.jobs[name]
        if not job.asked and job.process.pid:
            job.asked = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(job.process.pid, signal.SIGTERM)

    def close(self) -> dict[str, int]:
        """End all jobs, those that do not hear by force; their exit codes."""
        for name in self.jobs:
            self.stop(name)
        deadline, codes = time.monotonic() + GRACE, {}
        while self.jobs:
            if time.monotonic() > deadline:
                for job in self.jobs.values():
                    job.process.kill()
            codes |= self.ended()
            time.sleep(0.05)
        return codes


def _run(
    words: Sequence[str],
    folder: str,
    log: str,
    line: Connection,
    place: Mapping[str, str],
    environment: Mapping[str, str],
) -> None:
    """In the job's process: the script as from a shell, and its end as soon as the sweep is gone."""
    os.chdir(folder)
    os.setsid()  # Ctrl-C is the sweep's; and what this starts ends with it
    with open(log, "a", buffering=1, encoding="utf-8", errors="replace") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    faulthandler.enable(sys.stderr)
    os.environ.clear()
    os.environ.update(environment)
    cores = place.get("cores")
    if cores:
        import torch

        own = [int(core) for core in cores.split(",")]
        os.sched_setaffinity(0, own)
        torch.set_num_threads(len(own))
        os.environ["OMP_NUM_THREADS"] = str(len(own))  # of what this starts
    if "device" in place:
        os.environ["CUDA_VISIBLE_DEVICES"] = place["device"]
    threading.Thread(target=_end_with_the_sweep, args=(line,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = list(words)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _end_with_the_sweep(line: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        line.recv()  # nothing is ever sent
    os.kill(os.getpid(), signal.SIGTERM)


def _place(slot: int, slots: int, each: int) -> dict[str, str]:
    """The devices or the cores of a slot."""
    if devices := visible_devices():
        return {"device": ",".join(devices[(slot * each + number) % len(devices)] for number in range(each))}
    if not hasattr(os, "sched_getaffinity"):
        return {}
    cores = sorted(os.sched_getaffinity(0))
    share = cores[slot::slots] or [cores[slot % len(cores)]]
    return {"cores": ",".join(map(str, share))}


def visible_devices() -> list[str]:
    """Names of the GPUs that jobs may use, without waking them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def default_slots(each: int) -> int:
    """As many jobs as there are GPUs for, or else cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (len(visible_devices()) or cores) // each)


def _kill_group(group: int | None, number: int) -> None:
    if group:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
