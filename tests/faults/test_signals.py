"""Signals: the first saves and ends the run between two steps, the second ends it at once; SLURM starts it again."""

import json
import os
import signal
from pathlib import Path

import pytest
from processes import Signal
from test_exact_resume import QUICK, assert_same_run, killed, run

from thaw.run import interruption
from thaw.run.checkpoint import load_checkpoint

__all__ = ["killed"]  # a fixture
MINE = (*QUICK, "resume=auto", "run.dir=runs/mine")
SEEN = "checkpoint.every_n_steps=null"  # only the signal can save within an epoch


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def last_step(folder: Path) -> int:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("sent", "reason", "step"),
    [
        pytest.param(Signal("on_train_batch_end", 6, signal.SIGTERM), "SIGTERM", 6, marks=pytest.mark.fault("C1")),
        pytest.param(
            Signal("on_train_batch_end", 6, signal.SIGINT),
            "Ctrl-C",
            6,
            marks=[pytest.mark.fault("C3"), pytest.mark.slow],
        ),
        # There is nothing to save in a validation: it is waited for.
        pytest.param(
            Signal("on_validation_batch_end", 1, signal.SIGTERM),
            "SIGTERM",
            4,
            marks=[pytest.mark.fault("C2"), pytest.mark.slow],
        ),
        pytest.param(
            Signal("save", 2, signal.SIGTERM), "SIGTERM", 4, marks=[pytest.mark.fault("C2"), pytest.mark.slow]
        ),
    ],
    ids=str,
)
def test_what_a_signal_ends_is_saved_and_goes_on(tmp_path: Path, sent: Signal, reason: str, step: int) -> None:
    folder = tmp_path / "runs" / "mine"
    assert run(tmp_path, (*MINE, SEEN), sent) == sent.code
    found = record(folder)
    assert (found["status"], found["reason"]) == ("interrupted", reason)
    assert "resume=auto" in found["resume"]
    assert last_step(folder) == step
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "run.lock").exists()
    said = (tmp_path / "printed.txt").read_text()
    assert f"Interrupted. Go on with: {found['resume']}" in said
    assert "Traceback" not in said


@pytest.mark.medium
@pytest.mark.fault("C2", "C3")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_in_the_test_split_it_ends_at_once_and_is_measured_the_next_time(tmp_path: Path, number: int) -> None:
    folder, sent = tmp_path / "runs" / "mine", Signal("on_test_batch_end", 1, number)
    assert run(tmp_path, MINE, sent) == sent.code
    found = record(folder)
    assert (found["status"], "test/accuracy" in found.get("metrics", {})) == ("interrupted", False)
    assert f"Interrupted. Go on with: {found['resume']}" in (tmp_path / "printed.txt").read_text()
    trained = (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert run(tmp_path, MINE) == 0
    assert "test/accuracy" in record(folder)["metrics"]
    assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == trained


class Impatient(Signal):
    """In a validation that takes longer than a run waits for."""

    def __call__(self) -> None:
        interruption.PATIENCE = 0
        super().__call__()


@pytest.mark.fault("C2")
@pytest.mark.slow
def test_a_long_validation_is_not_waited_for(tmp_path: Path) -> None:
    """The tenth batch of validation is the first of the second epoch's nine."""
    assert run(tmp_path, (*MINE, SEEN), Impatient("on_validation_batch_end", 10, signal.SIGTERM)) == 143
    assert last_step(tmp_path / "runs" / "mine") == 4
    assert record(tmp_path / "runs" / "mine")["epochs"] == 1


@pytest.mark.fault("C3")
@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_loader_too_and_the_step_still_ends(tmp_path: Path) -> None:
    sent = Signal("on_train_batch_end", 5, signal.SIGINT)
    command = (*MINE, SEEN, "data.num_workers=2", "trainer.accumulate_grad_batches=2")
    assert run(tmp_path, command, sent) == 130
    assert record(tmp_path / "runs" / "mine")["reason"] == "Ctrl-C"
    assert last_step(tmp_path / "runs" / "mine") == 3  # the sixth batch was still loaded


@pytest.mark.fault("C4")
@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    assert run(tmp_path, (*MINE, SEEN), Signal("on_train_batch_end", 6, signal.SIGINT, signal.SIGINT)) == 130
    assert (record(folder)["status"], record(folder)["reason"]) == ("interrupted", "Ctrl-C, twice")
    assert last_step(folder) == 4  # the end of the epoch before


@pytest.mark.slow
@pytest.mark.fault("C1", "C3")
@pytest.mark.parametrize("options", [(), ("trainer.accumulate_grad_batches=2",), ("callbacks=ema",)])
def test_it_ends_as_if_left_alone(killed, options: tuple[str, ...]) -> None:
    first, second = Signal("on_train_batch_end", 6, signal.SIGTERM), Signal("on_train_batch_end", 3, signal.SIGINT)
    assert_same_run(*killed((*QUICK, SEEN, *options), first, second))


class Grace:
    """SIGTERM, and SIGKILL in the midst of the save that follows."""

    code = -signal.SIGKILL

    def __call__(self) -> None:
        Signal("on_train_batch_end", 6, signal.SIGTERM)()
        Signal("save", 3)()


@pytest.mark.slow
@pytest.mark.fault("C8")
def test_sigkill_in_the_save_after_sigterm_leaves_the_earlier_checkpoint(killed) -> None:
    assert_same_run(*killed((*QUICK, SEEN), Grace()))


class Job:
    """As SLURM starts a job, and starts it again after it was requeued."""

    def __init__(self, number: str, restarts: int, place: Path, sent: Signal | None = None) -> None:
        self.number, self.restarts, self.place, self.sent = number, restarts, place, sent

    def __call__(self) -> None:
        os.environ.update(
            SLURM_JOB_ID=self.number, SLURM_NTASKS="1", SLURM_JOB_NAME="train", SLURM_PROCID="0", SLURM_LOCALID="0",
            SLURM_NODEID="0", SLURM_RESTART_COUNT=str(self.restarts), PATH=f"{self.place}:{os.environ['PATH']}",
        )  # fmt: skip
        if self.sent:
            self.sent()


@pytest.mark.fault("C6", "C7")
@pytest.mark.slow
def test_slurm_starts_each_job_again_in_its_own_directory(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    scontrol, asked = tmp_path / "bin" / "scontrol", tmp_path / "asked"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    command = (*QUICK, SEEN, "trainer.max_epochs=2")
    for number in ("41", "42"):
        job = Job(number, 0, scontrol.parent, Signal("on_train_batch_end", 2, signal.SIGUSR1))
        assert run(tmp_path, command, job) == 143, (tmp_path / "printed.txt").read_text()
    assert asked.read_text() == "requeue 41\nrequeue 42\n"
    folders = sorted((tmp_path / "runs").iterdir())
    assert [record(folder)["slurm_job"] for folder in folders] == ["41", "42"]
    assert [(record(folder)["reason"], last_step(folder)) for folder in folders] == [("SIGUSR1", 2)] * 2
    assert run(tmp_path, command, Job("42", 1, scontrol.parent)) == 0
    assert [record(folder)["status"] for folder in folders] == ["interrupted", "finished"]
    assert sorted((tmp_path / "runs").iterdir()) == folders
