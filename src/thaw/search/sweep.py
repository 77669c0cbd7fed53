"""A sweep: jobs handed out while trials are left, watched by their records, and told to the study as they end."""

import math
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from optuna.trial import Trial, TrialState

from thaw.run.lock import held_by, unlock
from thaw.run.run import read_record
from thaw.search.space import Space, directory, job_name
from thaw.search.study import Trials

# Seconds between two looks at the epochs of what runs, and at the study; a job that ends is seen at once.
LOOK_EVERY, TELL_EVERY = 0.1, 1.0


class Workers(Protocol):
    """What runs jobs: in processes of this machine, or by a launcher of Hydra elsewhere."""

    #: How far the jobs at work are, in words, where that is not told by their number.
    progress: str

    @property
    def free(self) -> int: ...

    def start(self, name: str, overrides: Sequence[str], log: Path) -> None: ...

    def wait(self, seconds: float) -> None: ...

    def ended(self) -> dict[str, int]: ...

    def stop(self, name: str) -> None: ...

    def close(self) -> dict[str, int]: ...


@dataclass
class Running:
    """A trial at work: its runs, one for each seed."""

    trial: Trial
    waiting: deque[str]
    names: dict[str, str] = field(default_factory=dict)  # of directories, by seed; as all that follow
    at_work: set[str] = field(default_factory=set)
    values: dict[str, float] = field(default_factory=dict)
    reported: int = 0  # epochs
    pruned: bool = False
    reason: str | None = None

    @property
    def ending(self) -> bool:
        return self.pruned or self.reason is not None


class Sweep:
    """Works on the trials of a study until as many as wanted have ended.

    Args:
        folder: of the sweep; each run writes into one of its own below.
        monitor: the metric whose best epoch is a run's objective.
        tell: called at every look, for the screen and the ledger.
    """

    def __init__(
        self,
        folder: Path,
        trials: Trials,
        workers: Workers,
        monitor: str,
        tell: Callable[["Sweep"], None],
    ) -> None:
        self.folder, self.trials, self.workers, self.monitor, self.tell = folder, trials, workers, monitor, tell
        self.space: Space = trials.space
        self.running: list[Running] = []
        self.interrupted = False
        self._looked = 0.0

    def run(self) -> None:
        """Until all trials have ended, or Ctrl-C or SIGTERM: then running jobs save their state first."""
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            self.trials.resume()
            self._work()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self._told(self.workers.close(), asked=True)
            for running in self.running:
                self.trials.give_back(running.trial)
            self.running.clear()
            signal.signal(signal.SIGTERM, before)
            self.tell(self)

    def _work(self) -> None:
        while self._step():
            self.workers.wait(LOOK_EVERY)

    def look(self, at_once: bool = False) -> None:
        """Say that the running trials are worked on, and show how far all are; now, or when it is time again."""
        if at_once or time.monotonic() - self._looked > TELL_EVERY:
            self._looked = time.monotonic()
            self.trials.tend([running.trial for running in self.running])
            self.tell(self)

    def _step(self) -> bool:
        ended = self.workers.ended()
        self._told(ended)
        for running in list(self.running):
            self._compare_epochs(running)
        while self.workers.free and self._start():
            pass
        self.look(at_once=bool(ended))
        return bool(self.running) or self.trials.open > 0

    def _start(self) -> bool:
        """Begin one job: of a trial that has seeds left, or of a new one."""
        running = next((r for r in self.running if r.waiting and not r.ending), None)
        if running is None:
            if (trial := self.trials.take()) is None:
                return False
            running = Running(trial, deque(self.space.seeds or [""]))
            self.running.append(running)
        seed = running.waiting.popleft()
        overrides = self.space.overrides(running.trial.params, seed or None)
        name = running.names[seed] = job_name(overrides)
        if objective(self.folder / name, self.monitor) is not None:  # computed before
            self._take_note(running, seed, name, 0)
            return True
        at_work = {r.names[seed] for r in self.running for seed in r.at_work}
        if name not in at_work and self._held(running, self.folder / name):
            running.waiting.appendleft(seed)
            return False
        running.at_work.add(seed)
        if name not in at_work:  # else another trial with the same values has begun it
            self.begin(name, overrides, "resume=auto", *self.not_test)
        return True

    @property
    def not_test(self) -> list[str]:
        """What keeps a job from reading the test split and from writing a report, which are for the chosen one."""
        return [] if self.space.reads_test else ["test=false", "report.depth=none"]

    def _held(self, running: Running, folder: Path) -> bool:
        """Whether somebody still works on a job, e.g. saves the state of an earlier try."""
        held = held_by(folder)
        if held and held[0] != socket.gethostname() and held[0] == self.trials.owner_before(running.trial):
            unlock(folder)  # that computer has not been heard of for long, and its jobs end with their sweep
            return False
        return held is not None

    def jobs_of(self, trial: Any) -> list[tuple[str, list[str]]]:
        """(name, overrides) of each run of a trial, one for each seed."""
        jobs = [self.space.overrides(trial.params, seed or None) for seed in self.space.seeds or [""]]
        return [(job_name(overrides), overrides) for overrides in jobs]

    def jobs(self) -> list[tuple[str, list[str]]]:
        """Those of all trials that have ended."""
        return [job for trial in self.trials.ended() for job in self.jobs_of(trial)]

    def begin(self, name: str, overrides: Sequence[str], *more: str) -> None:
        """Begin a job in its own directory."""
        place = directory(self.folder / name)
        self.workers.start(name, [*overrides, place, *more], self.folder / "logs" / f"{name}.txt")

    def _told(self, codes: Mapping[str, int], asked: bool = False) -> None:
        """Take note of jobs that have ended; where all were asked to, of those alone that had finished by then."""
        for name, code in codes.items():
            if asked and objective(self.folder / name, self.monitor) is None:
                continue
            for running, seed in [(r, seed) for r in self.running for seed in r.at_work if r.names[seed] == name]:
                self._take_note(running, seed, name, code)

    def _take_note(self, running: Running, seed: str, name: str, code: int) -> None:
        running.at_work.discard(seed)
        value = objective(self.folder / name, self.monitor) if code == 0 else None
        if value is not None:
            running.values[seed] = value
            self._compare_seeds(running, seed, value)
        elif not running.pruned:
            running.reason = running.reason or why(self.folder, name, code)
        if not running.at_work and (running.ending or not running.waiting):
            self._end(running)

    def _end(self, running: Running) -> None:
        self.running.remove(running)
        if running.pruned:
            self.trials.tell(running.trial, TrialState.PRUNED)
        elif running.reason:
            self.trials.tell(running.trial, TrialState.FAIL, reason=running.reason)
        else:
            self.trials.tell(running.trial, TrialState.COMPLETE, fmean(running.values.values()))

    def _compare_epochs(self, running: Running) -> None:
        if running.ending or self.trials.search.pruner in ("none", "wilcoxon"):
            return
        name = next(iter(running.names.values()))  # of several seeds the first, as for all other trials
        history = (read_record(self.folder / name) or {}).get("history", [])
        for epoch, value in list(enumerate(history, 1))[running.reported :]:
            if value is not None:
                running.trial.report(value, epoch)
        if len(history) > running.reported:
            running.reported = len(history)
            self._prune(running)

    def _compare_seeds(self, running: Running, seed: str, value: float) -> None:
        if self.trials.search.pruner == "wilcoxon" and running.waiting:
            running.trial.report(value, self.space.seeds.index(seed))
            self._prune(running)

    def _prune(self, running: Running) -> None:
        if running.trial.should_prune():
            running.pruned = True
            for seed in running.at_work:
                self.workers.stop(running.names[seed])


def objective(folder: Path, monitor: str) -> float | None:
    """The best epoch's monitored metric of a finished run; None where there is none that is a number."""
    record = read_record(folder) or {}
    value = record.get("metrics", {}).get(monitor) if record.get("status") == "finished" else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def why(folder: Path, name: str, code: int) -> str:
    """What ended a job, in one line: as its record says, else as the system does, else its last printed line."""
    if code == 0:
        return "it ended without a result that is a number"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    record = read_record(folder / name) or {}
    if record.get("status") == "failed" and record.get("reason"):
        return record["reason"].splitlines()[0]
    log = folder / "logs" / f"{name}.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    told = next((line for line in lines[::-1] if line.startswith("error: ")), "")
    return f"exit code {code}{told and ': '}{told.removeprefix('error: ')}"


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
