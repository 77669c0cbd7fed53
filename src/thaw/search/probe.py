"""Linear probes in one pass: the body runs once over the data, and the heads of all trials train on its features."""

import contextlib
import copy
import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from thaw import config
from thaw.run.run import Run
from thaw.search.batchable import OF_THE_HEAD
from thaw.search.probe_batch import Batch

MOST = 256  # heads at once

Job = tuple[Any, Sequence[str]]  # configuration, overrides


class Probes:
    """Workers of a sweep that train the heads of all jobs they are given together.

    Jobs that differ in more than `OF_THE_HEAD`, e.g. in the seed, train one group after another.

    Args:
        compose: overrides → the configuration of a job.
    """

    def __init__(self, compose: Callable[[Sequence[str]], Any]) -> None:
        self.compose, self.progress = compose, ""
        self.waiting: dict[str, Sequence[str]] = {}
        self._work: Iterator[dict[str, int]] | None = None
        self._ended: dict[str, int] = {}
        self._latest: tuple[str, Batch] | None = None  # what it is of, for the test split to be read by the same

    @property
    def free(self) -> int:
        return 0 if self._work else MOST - len(self.waiting)

    def start(self, name: str, overrides: Sequence[str], log: Path) -> None:
        self.waiting[name] = overrides

    def wait(self, seconds: float) -> None:
        """Train as long, or until a head has ended."""
        until = time.monotonic() + seconds
        while (self._work or self.waiting) and not self._ended and time.monotonic() < until:
            if self._work is None:
                jobs, self.waiting = self.waiting, {}
                self._work = self._train(jobs)
            try:
                self._ended |= next(self._work)
            except StopIteration:
                self._work, self.progress = None, ""

    def ended(self) -> dict[str, int]:
        ended, self._ended = self._ended, {}
        return ended

    def stop(self, name: str) -> None:
        pass  # without one of them the others take as long

    def close(self) -> dict[str, int]:
        if self._work:
            with contextlib.suppress(KeyboardInterrupt, StopIteration):
                self._work.throw(KeyboardInterrupt())
        self._work, self.progress = None, ""
        self.waiting.clear()
        return self.ended()

    def _train(self, jobs: Mapping[str, Sequence[str]]) -> Iterator[dict[str, int]]:
        groups: dict[str, dict[str, Job]] = defaultdict(dict)
        for name, overrides in jobs.items():
            cfg = self.compose(overrides)
            groups[str(_shared(config.plain(cfg)))][name] = cfg, overrides
        for key, group in groups.items():
            runs: dict[str, Run] = {}
            try:
                yield from self._together(key, group, runs)
            except Exception as error:  # it costs these jobs, as in processes of their own
                yield {name: 1 for name in group if name not in runs} | _end(runs, dict.fromkeys(runs, error))
            except BaseException as error:
                _end(runs, dict.fromkeys(runs, error))
                raise

    def _together(self, key: str, group: Mapping[str, Job], runs: dict[str, Run]) -> Iterator[dict[str, int]]:
        """One group; the runs are those that are open."""
        self.progress = "the body runs over the data"
        yield {}
        chosen = False
        for name, (cfg, overrides) in group.items():
            run = Run.open(cfg.run.dir, name, list(overrides), cfg.resume)
            chosen = chosen or run.finished  # on validation, and is to read the test split
            run.at_once = len(group)
            run.record["command"] = shlex.join(["python", "train.py", *overrides])
            runs[name] = run.__enter__()
        if chosen and self._latest and self._latest[0] == key:
            batch = self._latest[1]
            batch.runs.update(runs)
        else:
            batch = Batch({name: cfg for name, (cfg, _) in group.items()}, dict(runs))
            self._latest = key, batch
        if chosen:
            for name in list(runs):
                batch.read_test(name)
                yield _end(runs, {name: None})
            return
        batch.features.rows("train"), batch.features.rows("val")
        for epoch, ended in batch.train():
            self.progress = f"epoch {epoch + 1} of {batch.epochs}"
            yield _end(runs, ended)


def _end(runs: dict[str, Run], ended: Mapping[str, BaseException | None]) -> dict[str, int]:
    """Close runs; their exit codes by name."""
    for name, error in ended.items():
        runs.pop(name).__exit__(error and type(error), error, error and error.__traceback__)
    return {name: int(error is not None) for name, error in ended.items()}


def _shared(settings: dict[str, Any]) -> dict[str, Any]:
    """What is the same in all runs whose heads train together."""
    shared = copy.deepcopy(settings)
    for section, names in OF_THE_HEAD.items():
        for name in names:
            shared[section].pop(name, None)
    del shared["resume"], shared["test"]
    return shared
