"""Where the jobs of a sweep run: each in a process of its own on this machine, or by another launcher of Hydra."""

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from thaw.errors import UserError


class Isolated(Launcher):
    """Each job in a process of its own on this machine.

    Args:
        workers: jobs at once; None takes one for each GPU, or for each core.
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise UserError(f"hydra.launcher.workers must be a number from 1 on; got '{workers}'.")
        self.workers = workers

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        # Each job takes what the command line has, and composes anew.
        file = inspect.getsourcefile(inspect.unwrap(task_function))
        self.script = str(Path(sys.argv[0] if Path(sys.argv[0]).is_file() else file).absolute())

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise UserError("hydra/launcher=isolated must go with hydra/sweeper=thaw. Write hydra/launcher=basic.")

    def processes(self, devices: Any, environment: Mapping[str, str]) -> Any:
        """The workers themselves, for the sweep to hand out jobs one by one; each takes as many devices."""
        from thaw.search.processes import Processes, default_slots

        environment = {**os.environ, **environment}
        each = devices if isinstance(devices, int) and devices > 0 else 1
        return Processes(self.script, _flags(sys.argv[1:]), self.workers or default_slots(each), environment, each)


class Batches:
    """Jobs by another launcher of Hydra, as many at a time as it is given; it returns when all of them have ended."""

    progress = ""

    def __init__(self, launcher: Launcher, size: int) -> None:
        self.launcher, self.size = launcher, size
        self.waiting: dict[str, Sequence[str]] = {}
        self._begun = 0

    @property
    def free(self) -> int:
        return self.size - len(self.waiting)

    def start(self, name: str, overrides: Sequence[str], log: Path) -> None:
        self.waiting[name] = overrides

    def wait(self, seconds: float) -> None:
        pass  # the launcher returns when all have ended

    def ended(self) -> dict[str, int]:
        if not self.waiting:
            return {}
        jobs, self.waiting = self.waiting, {}
        returned = self.launcher.launch(list(jobs.values()), initial_job_idx=self._begun)
        self._begun += len(jobs)
        return {name: int(job.status != JobStatus.COMPLETED) for name, job in zip(jobs, returned, strict=True)}

    def stop(self, name: str) -> None:
        pass  # nobody can reach it there

    def close(self) -> dict[str, int]:
        self.waiting.clear()
        return {}


def _flags(words: Sequence[str]) -> list[str]:
    """Hydra's own arguments that every job must have too, e.g. `--config-dir`."""
    flags, words = [], list(words)
    while words:
        word = words.pop(0)
        if word in ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn") and words:
            flags += [word, words.pop(0)]
        elif word.startswith(("--config-dir=", "--config-path=", "--config-name=")):
            flags.append(word)
    return flags
