"""The processes that Lightning starts end with the first of them, and that one tells why before it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

# Seconds for a process to end by itself and say why, after another has ended.
GRACE = 15


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, which would kill this process within five seconds of another's death, with no word in `run.json`."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=_watch, args=(self.procs,), daemon=True).start()
        try:
            return function(*args, **kwargs)
        except BaseException:
            end(self.procs)
            raise


def end(processes: Sequence[subprocess.Popen], grace: float = 3) -> None:
    """Wait for processes that may be about to say what went wrong, then kill what hangs in a call to the others."""
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(0.05)
    for process in processes:
        process.kill()


def _watch(processes: Sequence[subprocess.Popen]) -> None:
    """Kill this process where another has failed and it does not notice: some calls to others never return."""
    while not any(process.poll() for process in processes):
        if all(process.poll() == 0 for process in processes):
            return
        time.sleep(1)
    time.sleep(GRACE)
    print("error: another process of this run has failed, and this one hangs.", file=sys.stderr, flush=True)
    for process in processes:
        process.kill()
    os.kill(os.getpid(), signal.SIGKILL)
