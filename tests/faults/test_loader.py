"""Processes that load data: killed, hanging, or without shared memory."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome
from PIL import Image
from processes import in_a_process, train_here
from torch.utils.data import get_worker_info

from thaw.data.digits import Digits
from thaw.data.samples import Samples
from thaw.module import FineTuner

CLONE_NEWNS = 0x00020000
QUICK = ("logger=none", "data.train_size=64", "trainer.max_epochs=3", "trainer=cpu", "data.batch_size=16")


def assert_told(outcome: Outcome, *said: str) -> None:
    assert outcome.code == 1, outcome.errors
    # Before it, Python's own thread that shares files may tell of the one that is gone.
    assert "error: " in outcome.errors, outcome.errors
    told = outcome.errors[outcome.errors.index("error: ") :]
    lines = [line for line in told.strip().splitlines() if not line.startswith("Exception ignored")]
    assert len(lines) <= 6, outcome.errors
    assert "Traceback" not in told
    assert ") exited" not in told
    assert all(text in outcome.errors for text in said), outcome.errors
    assert "data.num_workers=0" in outcome.errors
    assert outcome.record["status"] == "failed"
    assert outcome.record["reason"].startswith("LoaderError: ")


def sleeps_in_a_worker(pixels: np.ndarray) -> Image.Image:
    if (worker := get_worker_info()) and worker.id == 1:
        time.sleep(1000)
    return Image.fromarray(pixels)


@pytest.mark.medium
@pytest.mark.fault("E10")
@pytest.mark.parametrize(("epoch", "signalled"), [(0, True), (1, True), (0, False), (1, False)])
def test_a_killed_worker_ends_the_run_with_a_hint(run_train, monkeypatch, epoch: int, signalled: bool) -> None:
    """By SIGKILL, as the system does it for want of memory; in a later epoch the workers are the same ones.

    The signal that a child has ended does not always reach torch: another process begun just then clears it away.
    """
    step, began = FineTuner.on_train_batch_start, []

    def kill(module: FineTuner, batch: Any, batch_idx: int) -> None:
        step(module, batch, batch_idx)
        if module.current_epoch == epoch and batch_idx == 1:
            began.append(time.monotonic())
            workers = module.trainer.train_dataloader._iterator._workers
            if not signalled:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.kill(workers[0].pid, signal.SIGKILL)

    monkeypatch.setattr(FineTuner, "on_train_batch_start", kill)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        outcome = run_train(*QUICK, "data.num_workers=2")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert time.monotonic() - began[0] < 30
    assert_told(outcome, "Digits", "RAM", "/dev/shm", "killed")


@pytest.mark.medium
@pytest.mark.fault("E11")
def test_a_worker_that_sleeps_for_ever_ends_the_run_by_the_name_of_the_data(run_train, monkeypatch) -> None:
    read = Digits.read

    def sleepy(data: Digits) -> dict[str, Samples]:
        return {"train": replace(read(data)["train"], open=sleeps_in_a_worker)}

    monkeypatch.setattr(Digits, "read", sleepy)
    outcome = run_train(*QUICK, "data.num_workers=2", "+data.worker_timeout=3")
    assert outcome.record["seconds"] < 30
    assert_told(outcome, "Every batch of Digits must come within 3 s", "+data.worker_timeout=3600")


def in_a_small_room(folder: Path, overrides: tuple[str, ...]) -> tuple[int, str] | str:
    """A run with a /dev/shm of 1 MB that this process alone sees; or why that cannot be had."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        return f"needs a mount namespace of its own: {os.strerror(ctypes.get_errno())}"
    for command in ("mount --make-rprivate /", "mount -t tmpfs -o size=1m tmpfs /dev/shm"):
        if (done := subprocess.run(command.split(), capture_output=True, text=True)).returncode:
            return f"needs to mount: {done.stderr.strip()}"
    multiprocessing.current_process()._config["daemon"] = False  # else it may not have loader workers
    return train_here(folder, overrides)


@pytest.mark.fault("E12")
@pytest.mark.slow
def test_little_shared_memory_is_told(tmp_path: Path) -> None:
    """As a container has 64 MB; a batch of 64 images of 224 × 224 takes 39."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    words = (*QUICK[:-1], "data.batch_size=64", "data.image_size=224", "data.num_workers=1")
    ended = in_a_process(in_a_small_room, tmp_path, words)
    if isinstance(ended, str):
        pytest.skip(ended)
    code, said = ended
    assert "error: " in said, said
    outcome = Outcome(code, said, said[said.index("error: ") :], tmp_path)
    assert_told(outcome, "/dev/shm", "MiB free", "--shm-size")
    assert outcome.record["seconds"] < 30
