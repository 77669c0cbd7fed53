"""Signals while a run trains or is measured: the first ends it with its state saved, the second ends it at once."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from thaw.errors import Interrupted
from thaw.run.kept_checkpoints import LastCheckpoint, between_steps
from thaw.run.run import Run, slurm_job

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
# Seconds that a validation may take to end; in its midst there is nothing to save.
PATIENCE = 6


class Interruption(Checkpoint):
    """Saves `last.ckpt` and ends the run when Ctrl-C, SIGTERM or, under SLURM, SIGUSR1 asks for it.

    A `Checkpoint`, because Lightning calls those last, when an epoch's own checkpoints are written. Of several
    processes all end when one is asked.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.asked: signal.Signals | None = None
        self._since = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen()

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        # In place of Lightning's own handlers; it puts back what was there before when its loop ends.
        for number in (signal.SIGINT, signal.SIGTERM, *[signal.SIGUSR1] * ("SLURM_JOB_ID" in os.environ)):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        # SLURM may send SIGTERM soon after its own signal, and that one in any order.
        if self.asked not in (None, signal.SIGUSR1) and number != signal.SIGUSR1:
            # At once: no more than the record. The lock of a process that is gone is anybody's.
            with contextlib.suppress(Exception):
                self.run.update(status="interrupted", reason=f"{_name(signal.Signals(number))}, twice")
            os._exit(CODES[signal.Signals(number)])
        if self.asked is None:
            self.asked, self._since = signal.Signals(number), time.monotonic()
        # Not by `print`, which this may have interrupted.
        again = ". Ctrl-C again to leave at once" if number == signal.SIGINT else ""
        os.write(2, f"\n{_name(self.asked)}: ending after this step{again}.\n".encode())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        if between_steps(trainer) and self._any_asked(trainer):
            self._save(trainer)
            self._end()

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # Its epoch is worth waiting for, while it trains; afterwards nothing is lost.
        patience = PATIENCE if trainer.state.fn == TrainerFn.FITTING else 0
        if self.asked is not None and time.monotonic() - self._since > patience:
            self._end()

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.asked is not None:
            self._end()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._any_asked(trainer):
            last = [kept for kept in trainer.checkpoint_callbacks if isinstance(kept, LastCheckpoint)]
            if not any(kept.is_of(trainer) for kept in last):
                self._save(trainer)
            self._end()

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.run.folder / "checkpoints" / "last.ckpt")

    def _any_asked(self, trainer: L.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.asked is not None, all=False)

    def _end(self) -> None:
        number = self.asked or signal.SIGTERM  # another process was asked
        raise Interrupted(CODES[number], _name(number))


def requeue() -> bool:
    """Ask SLURM to start this job again, as its own id says; whether it agreed."""
    try:
        return subprocess.run(["scontrol", "requeue", slurm_job()], timeout=30).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _name(number: signal.Signals) -> str:
    return "Ctrl-C" if number == signal.SIGINT else number.name
