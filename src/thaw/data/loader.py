"""Loading that goes on in mid-epoch, that knows how long it was waited for, and that notices when a process is gone."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

# Seconds between two looks; and until a process that broke off in the midst of a batch has ended.
PERIOD = 5


class ResumableLoader(DataLoader):
    """Goes on after the batches that a run resumed within an epoch has trained on.

    Attributes:
        done: batches of this epoch that have been trained on.
        ready: makes the batches of an epoch from their keys, where what is needed of them has been computed before.
        waited: seconds in which nothing was done but wait for a batch.
    """

    done: Callable[[], int] = staticmethod(lambda: 0)
    ready: Callable[[], Callable[[Sequence[Any]], Any] | None] = staticmethod(lambda: None)
    waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        # A generator, because Lightning asks for an iterator before it is known what trains in the epoch.
        make = self.ready()
        batches = map(make, self.batch_sampler) if make else super().__iter__()
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _get_iterator(self) -> _BaseDataLoaderIter:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return _Watchful(self)

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.done()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        order = self.batch_sampler or self.dataset  # a stream makes its batches itself
        order.skip = state["batches"] % len(self)


class _Watchful(_MultiProcessingDataLoaderIter):
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


def start_worker(worker: int, yields: bool) -> None:
    """Begin a loader's process.

    Args:
        yields: whether it leaves a core to what trains, whose threads all wait where one of them is interrupted.
    """
    # A terminal sends Ctrl-C to it too, and the run needs its batches to end between two steps.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if yields:
        os.nice(10)
