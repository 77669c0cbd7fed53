"""Functions run in two processes that can talk, and whole runs in them, without the seconds that imports take."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# One fresh process imports all of this once, and each rank is a fork of it: no threads, no state of earlier tests.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["test_distributed"])


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def in_a_process(function: Callable[..., Any], *arguments: Any, seconds: float = 150) -> Any:
    """What `function(*arguments)` returns in a process of its own, which it may limit or change for good."""
    return on_two_ranks(function, *arguments, seconds=seconds, ranks_in_all=1)[0]


def on_two_ranks(
    function: Callable[..., Any], *arguments: Any, seconds: float = 150, ranks_in_all: int = 2
) -> list[Any]:
    """What `function(*arguments)` returns on each rank; an error where one fails or hangs."""
    port, ends, ranks = free_port(), [], []
    for rank in range(ranks_in_all):
        ours, theirs = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=_rank, args=(theirs, rank, port, function, arguments), daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        ranks.append(process)
    deadline, found = time.monotonic() + seconds, []
    try:
        for rank, end in enumerate(ends):
            if not end.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"rank {rank} still runs after {seconds} s")
            found.append(end.recv())
    finally:
        for process in ranks:
            process.join(10 if len(found) == ranks_in_all else 0)
            process.kill()
    if wrong := [text for good, text in found if not good]:
        raise RuntimeError("\n".join(wrong))  # not an assertion: a probe may expect one to fail
    return [result for _, result in found]


def exit_code_of(function: Callable[..., Any], *arguments: Any, seconds: float = 150) -> int:
    """Exit code of a process of its own that calls `function(*arguments)`; minus the signal where one has ended it."""
    process = SERVER.Process(target=function, args=arguments)  # no daemon, which could have no loader processes
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"still runs after {seconds} s")
    return process.exitcode


def _rank(end: Connection, rank: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    place = {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    os.environ.update(place, THAW_RUN="1:/left/by/an/earlier/run")
    try:
        end.send((True, function(*arguments)))
    except BaseException:
        end.send((False, traceback.format_exc()))


def train_here(folder: Path, overrides: tuple[str, ...], change: Callable[[], Any] | None = None) -> tuple[int, str]:
    """Exit code and all that is printed of `python train.py …` as this rank; `change` breaks something before."""
    import train
    from thaw import command

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    sys.argv = ["train.py", *overrides]
    printed = folder / f"printed{os.environ.get('LOCAL_RANK', '')}.txt"
    code = 0
    with open(printed, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        from thaw.console import console

        console.file = file
        if change:
            change()
        try:
            command.main(train.train)
        except SystemExit as end:
            code = end.code or 0
    return code, printed.read_text()


class Signal:
    """A signal to this process when a hook of the run, or `save`, is called for the n-th time: a `change` of a run."""

    def __init__(self, hook: str, count: int, *numbers: int) -> None:
        self.hook, self.count, self.numbers = hook, count, numbers or (signal.SIGKILL,)

    @property
    def code(self) -> int:
        """How the process must end."""
        return {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}.get(self.numbers[0], -self.numbers[0])

    def __repr__(self) -> str:
        return "-".join([self.hook, str(self.count), *(signal.Signals(number).name for number in self.numbers)])

    def __call__(self) -> None:
        from thaw.run import checkpoint
        from thaw.run.record import Recorder

        if self.hook == "save":
            save = checkpoint.torch.save

            def half(state: Any, file: Any) -> None:
                if self._due():
                    if signal.SIGKILL in self.numbers:
                        file.write(b"PK half of a checkpoint")
                        file.flush()
                    self._send()
                save(state, file)

            checkpoint.torch.save = half
            return
        told = getattr(Recorder, self.hook)

        def then(recorder: Recorder, *arguments: Any) -> None:
            told(recorder, *arguments)
            if self._due():
                self._send()

        setattr(Recorder, self.hook, then)

    def _due(self) -> bool:
        self.count -= 1
        return self.count == 0

    def _send(self) -> None:
        for number in self.numbers:
            for process in multiprocessing.active_children() if number == signal.SIGINT else ():
                os.kill(process.pid, number)  # as a terminal does
            os.kill(os.getpid(), number)
