"""Several processes of which one fails, dies or hangs: all end, soon, and the first error is told."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from processes import Signal, in_a_process, on_two_ranks, train_here
from test_distributed import QUICK, assert_complete

from thaw.module import FineTuner

WORDS = (*QUICK, "trainer.max_epochs=3", "freezing=none")


class Breaks:
    """On rank 1, in its third step: raises, dies or sleeps for ever."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self) -> None:
        step = FineTuner.training_step

        def broken(module: FineTuner, batch: Any, batch_idx: int) -> Any:
            if module.global_rank == 1 and module.global_step == 2:
                Path(f"broken-at-{time.time()}").touch()
                if self.how == "sleep":
                    time.sleep(1000)
                if self.how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.how == "nan":
                    return step(module, batch, batch_idx) * float("nan")
                raise RuntimeError("the disk of rank 1 is on fire")
            return step(module, batch, batch_idx)

        FineTuner.training_step = broken


def script(folder: Path, how: str) -> list[str]:
    """`python train.py`, broken, as a script that Lightning can start again for the second process."""
    path = folder / "broken.py"
    path.write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}, {str(ROOT / 'tests' / 'faults')!r}]\n"
        f"import train\nfrom test_processes import Breaks\nfrom thaw import command\nBreaks({how!r})()\n"
        "command.main(train.train)\n"
    )
    return [sys.executable, str(path)]


def since_broken(folder: Path) -> float:
    return time.time() - float(next(folder.glob("broken-at-*")).name.removeprefix("broken-at-"))


def of_session(session: int) -> list[int]:
    """Processes that still run of a session, which is all that a command has started."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number = place.read_text().rpartition(") ")[2].split()[:4]
            if int(number) == session and state != "Z":
                found.append(int(place.parent.name))
    return found


@contextlib.contextmanager
def started(folder: Path, command: list[str]) -> Iterator[subprocess.Popen]:
    place = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with open(folder / "said.txt", "w") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=place, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ended(folder: Path, command: list[str], within: float = 60) -> tuple[int, str, dict[str, Any]]:
    """Exit code, all that was said and run.json, of a command of which nothing is left running soon after the fault.

    Within 30 s, and as much again for a busy machine.
    """
    with started(folder, command) as process:
        process.wait(timeout=300)
        while of_session(process.pid) and since_broken(folder) < within:
            time.sleep(0.1)
        assert of_session(process.pid) == []
        assert since_broken(folder) < within
        record = json.loads(next(folder.glob("runs/*/run.json")).read_text())
        return process.returncode, (folder / "said.txt").read_text(), record


@pytest.mark.slow
@pytest.mark.fault("I1")
def test_an_error_of_one_process_ends_all_and_is_told_first(tmp_path: Path) -> None:
    code, said, record = ended(tmp_path, [*script(tmp_path, "raise"), *WORDS])
    assert code == 1, said
    assert record["status"] == "failed"
    errors = re.findall(r"^\w*Error: .*", said, re.MULTILINE)
    assert errors == ["RuntimeError: the disk of rank 1 is on fire"]  # the other process tells no traceback
    assert said.index(errors[0]) < said.index("error: The processes of a run must go on together;")


@pytest.mark.slow
@pytest.mark.fault("I2")
def test_the_death_of_one_process_ends_all(tmp_path: Path) -> None:
    code, said, record = ended(tmp_path, [*script(tmp_path, "kill"), *WORDS])
    assert code == 1, said
    assert record["status"] == "failed"


@pytest.mark.slow
@pytest.mark.fault("I3")
def test_a_process_that_hangs_ends_all_after_the_timeout_of_the_configuration(tmp_path: Path) -> None:
    # It bounds the start as well, where the second process imports for some seconds.
    words = (*WORDS, "trainer.strategy.timeout=90")
    code, said, record = ended(tmp_path, [*script(tmp_path, "sleep"), *words], within=150)
    assert code == 1, said
    assert record["status"] == "failed"


@pytest.mark.slow
@pytest.mark.fault("I5")
def test_a_signal_to_the_first_process_leaves_none_behind(tmp_path: Path) -> None:
    words = (*WORDS[:-2], "trainer.max_epochs=1000", "freezing=none", "callbacks=none")
    with started(tmp_path, [sys.executable, str(ROOT / "train.py"), *words]) as process:
        deadline = time.monotonic() + 240
        while "epoch 1/" not in (tmp_path / "said.txt").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(of_session(process.pid)) >= 2
        process.terminate()
        process.wait(timeout=60)
        until = time.monotonic() + 20
        while of_session(process.pid) and time.monotonic() < until:
            time.sleep(0.1)
        assert of_session(process.pid) == []
        assert process.returncode == 143
        assert json.loads(next(tmp_path.glob("runs/*/run.json")).read_text())["status"] == "interrupted"


@pytest.mark.fault("D1")
@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank_stops_all_with_the_samples_of_that_rank(tmp_path: Path) -> None:
    both = on_two_ranks(train_here, tmp_path, WORDS, Breaks("nan"))
    assert [code for code, _ in both] == [1, 1], both
    for _, said in both:
        assert "error: Training must stay finite; at step 3 " in said
        assert "the loss is nan" in said
    folder = next(tmp_path.glob("runs/*"))
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed"
    assert (folder / "checkpoints" / "crash.ckpt").is_file()
    fact = record["failure"]
    assert 0 < len(fact["samples"]) <= record["settled"]["batch_size"]  # of one rank


@pytest.mark.fault("I4")
@pytest.mark.slow
def test_splits_that_cannot_be_shared_out_evenly_give_the_figures_of_each_sample_once(tmp_path: Path) -> None:
    words = (*WORDS, "trainer.max_epochs=1", "data.test_size=0.195", "data.val_size=0.08", "data.batch_size=30")
    both = on_two_ranks(train_here, tmp_path, words)
    assert [code for code, _ in both] == [0, 0], both
    folder = next(tmp_path.glob("runs/*"))
    sizes = json.loads((folder / "run.json").read_text())["data"]["sizes"]
    assert sizes["test"] % 2 == 1
    assert_complete(folder, sizes["test"])


@pytest.mark.fault("I6")
@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_two_and_is_refused_with_one(tmp_path: Path) -> None:
    words = (*WORDS, "run.dir=runs/mine", "resume=auto")
    both = on_two_ranks(train_here, tmp_path, words, Signal("on_train_batch_end", 3, signal.SIGTERM))
    assert [code for code, _ in both] == [143, 143], both
    before = (tmp_path / "runs" / "mine" / "run.json").read_text()
    code, said = in_a_process(train_here, tmp_path, (*words, "trainer.devices=1"))
    assert code == 2, said
    assert "resume must go on with the same settings: the processes were 2, are now 1. Or write another run.dir" in said
    assert (tmp_path / "runs" / "mine" / "run.json").read_text() == before
    both = on_two_ranks(train_here, tmp_path, words)
    assert [code for code, _ in both] == [0, 0], both
    assert "going on from" in both[0][1]
