"""Loading that goes on in mid-epoch, that knows how long it was waited for, and that notices when a process is gone."""

import signal
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import (
    _BaseDataLoaderIter,
    _MultiProcessingDataLoaderIter,
    _SingleProcessDataLoaderIter,
)

# Seconds between two looks; and until a process that broke off in the midst of a batch has ended.
PERIOD = 5


class Clock:
    """Seconds in which nothing was done but wait for a batch."""

    seconds = 0.0


class ResumableLoader(DataLoader):
    """Goes on after the batches that a run resumed within an epoch has trained on."""

    done: Callable[[], int] = staticmethod(lambda: 0)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.clock = Clock()

    @property
    def waited(self) -> float:
        """Seconds that its user has waited for batches so far."""
        return self.clock.seconds

    def _get_iterator(self) -> _BaseDataLoaderIter:
        if self.num_workers == 0:
            return _InProcess(self)
        self.check_worker_number_rationality()
        return _Watchful(self)

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.done()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        order = self.batch_sampler or self.dataset  # a stream makes its batches itself
        order.skip = state["batches"] % len(self)


class _Clocked(_BaseDataLoaderIter):
    def __init__(self, loader: ResumableLoader) -> None:
        self._clock = loader.clock  # and not the loader, which holds its iterator
        super().__init__(loader)

    def __next__(self) -> Any:
        began = time.perf_counter()
        try:
            return super().__next__()
        finally:
            self._clock.seconds += time.perf_counter() - began


class _InProcess(_Clocked, _SingleProcessDataLoaderIter):
    """Loads in this process."""


class _Watchful(_Clocked, _MultiProcessingDataLoaderIter):
    """Looks every few seconds whether its processes live, however long a batch may take.

    With a timeout torch waits for it in one piece and trusts in the signal that tells of a child's end. Lightning takes
    that away after a fit, and where another loader starts its processes at that moment, Python itself clears the child
    away unseen.
    """

    def _get_data(self) -> Any:
        until = time.monotonic() + (self._timeout or float("inf"))
        while (left := until - time.monotonic()) > 0:
            try:
                found, batch = self._try_get_data(min(left, PERIOD))
            except (EOFError, OSError) as error:  # the memory it shared went with it
                if not wait([worker.sentinel for worker in self._workers], PERIOD):
                    raise
                gone = ", ".join(str(worker.pid) for worker in self._workers if not worker.is_alive())
                raise RuntimeError(f"DataLoader worker (pid(s) {gone}) exited unexpectedly") from error
            if found:
                return batch
            if self._pin_memory and not self._pin_memory_thread.is_alive():
                raise RuntimeError("Pin memory thread exited unexpectedly")
        raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds")


def leave_ctrl_c_to_the_run(worker: int) -> None:
    """A terminal sends it to the loader's processes too, and the run needs their batches to end between two steps."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
