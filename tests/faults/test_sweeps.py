"""Sweeps that meet what ends others: jobs that crash, a sweep that is killed, a study that cannot be written."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from sweeping import AT_EPOCH, TINY, ledger, script, sweep

__all__ = ["sweep"]  # a fixture


def by_seed(folder: Path) -> dict[str, dict[str, str]]:
    return {row["seed"]: row for row in ledger(folder)}


@pytest.mark.medium
@pytest.mark.fault("G1")
@pytest.mark.fault("G2")
@pytest.mark.fault("G3")
@pytest.mark.fault("G4")
def test_whatever_ends_a_job_costs_that_job_alone(sweep, tmp_path: Path) -> None:
    ways = """
    from thaw.run.run import Run
    update = Run.update

    def without_result(value):
        def changed(run, **fields):
            update(run, **fields | ({"metrics": {"val/accuracy": value}} if "metrics" in fields else {}))
        Run.update = changed

    if has("seed=1"): raise ValueError("of a library")
    if has("seed=2"): sys.exit(1)
    if has("seed=3"): raise SystemExit()
    if has("seed=4"): os._exit(7)
    if has("seed=5"): ctypes.string_at(0)
    if has("seed=6"): os.kill(os.getpid(), signal.SIGKILL)
    if has("seed=7"): without_result(float("nan"))
    if has("seed=8"): without_result("high")
    if has("seed=9"): without_result(None)
    """
    outcome = sweep("seed=" + ",".join(map(str, range(11))), change=ways)
    assert outcome.code == 3
    rows = by_seed(tmp_path)
    assert {seed for seed, row in rows.items() if row["status"] == "finished"} == {"0", "10"}
    reasons = {seed: rows[seed]["reason"] for seed in map(str, range(1, 10))}
    assert reasons["1"] == "exit code 1"
    assert reasons["4"] == "exit code 7"
    assert reasons["5"] == "killed by SIGSEGV"
    assert reasons["6"] == "killed by SIGKILL"
    for seed in "379":
        assert reasons[seed] == "it ended without a result that is a number"
    assert reasons["8"].startswith("ValueError")
    assert "of a library" in "".join(path.read_text() for path in (tmp_path / "sweep" / "logs").iterdir())
    assert "FAIL" in outcome.printed
    assert "2 finished, 9 failed" in outcome.printed


@pytest.mark.fault("G5")
def test_a_sweep_in_which_all_fail_says_so_and_leaves_its_ledger(sweep, tmp_path: Path) -> None:
    outcome = sweep("seed=0,1", change="os._exit(9)")
    assert outcome.code == 1
    assert [row["reason"] for row in ledger(tmp_path)] == ["exit code 9"] * 2
    assert "Traceback" not in outcome.printed + outcome.errors


def begun(folder: Path) -> Counter[str]:
    """How often each job was begun, by what it printed."""
    logs = (folder / "sweep" / "logs").glob("*.txt")
    return Counter({path.stem: path.read_text().count("job begins") for path in logs})


@pytest.mark.medium
@pytest.mark.fault("G6")
@pytest.mark.fault("G7")
def test_a_killed_sweep_goes_on_with_what_is_missing(sweep, tmp_path: Path) -> None:
    """SIGKILL after the second of six jobs, in the middle of the next ones."""
    change = "print('job begins', flush=True)"
    slow = AT_EPOCH + "\ndef at_epoch(trainer): time.sleep(0.7)\n" + change
    path = script(tmp_path, slow)
    words = [sys.executable, str(path), "-m", *TINY, "search.dir=sweep", "seed=0,1,2,3,4,5"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 200
    while finished(tmp_path) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.8)
    process.kill()
    process.communicate()
    before = finished(tmp_path)
    assert 2 <= before < 6
    records = {path: path.read_bytes() for path in (tmp_path / "sweep").glob("*/run.json") if done(path)}
    time.sleep(1.5)  # what ran saves its state when the sweep is gone
    outcome = sweep("seed=0,1,2,3,4,5", change=change)
    assert outcome.code == 0, [(row["status"], row.get("reason")) for row in ledger(tmp_path)]
    assert len(list((tmp_path / "sweep").glob("*/run.json"))) == 6
    assert {row["status"] for row in ledger(tmp_path)} == {"finished"}
    assert len(ledger(tmp_path)) == 6
    assert all(path.read_bytes() == content for path, content in records.items() if "test/loss" not in path.read_text())
    twice = [name for name, count in begun(tmp_path).items() if count > 1]
    chosen = [path.parent.name for path in (tmp_path / "sweep").glob("*/run.json") if "test/loss" in path.read_text()]
    assert len(chosen) == 6  # the seeds alone differ: one configuration, whose test split is read once each
    assert len(twice) == 6


@pytest.mark.slow
@pytest.mark.fault("G6")
@pytest.mark.fault("G7")
def test_a_sweep_killed_at_three_random_moments_ends_as_if_left_alone(sweep, tmp_path: Path) -> None:
    swept = ("optimizer.lr=1e-3,3e-3", "seed=0,1,2", "model.dropout=0.2", "trainer.max_epochs=4")
    path = script(tmp_path, AT_EPOCH + "\ndef at_epoch(trainer): time.sleep(0.5)\nprint('job begins', flush=True)")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    draw, left_alone = random.Random(0), {}
    for jobs in (0, 1, 3):  # at least, so that some have ended and some have not on any machine
        words = [sys.executable, str(path), "-m", *TINY, "search.dir=sweep", *swept]
        process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        before, deadline = begun(tmp_path).total(), time.monotonic() + 200
        while (begun(tmp_path).total() == before or finished(tmp_path) < jobs) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 2))
        process.kill()
        process.wait()
        assert all(begun(tmp_path)[name] == count for name, count in left_alone.items())
        left_alone = {
            p.parent.name: begun(tmp_path)[p.parent.name] for p in (tmp_path / "sweep").glob("*/run.json") if done(p)
        }
    assert 0 < len(left_alone) < 6
    assert sweep(*swept).code == 0
    killed, runs = ledger(tmp_path), sorted(path.parent.name for path in (tmp_path / "sweep").glob("*/run.json"))
    shutil.move(tmp_path / "sweep", tmp_path / "killed")
    assert sweep(*swept).code == 0
    assert runs == sorted(path.parent.name for path in (tmp_path / "sweep").glob("*/run.json"))
    for row in [*killed, *(straight := ledger(tmp_path))]:
        del row["seconds"], row["share"]
    assert killed == straight


def done(path: Path) -> bool:
    return json.loads(path.read_text()).get("status") == "finished"


def finished(folder: Path) -> int:
    return sum(done(path) for path in (folder / "sweep").glob("*/run.json"))


@pytest.mark.medium
@pytest.mark.fault("G9")
def test_another_space_in_the_same_folder_is_refused_with_the_difference(sweep, tmp_path: Path) -> None:
    assert sweep("seed=0,1").code == 0
    outcome = sweep("seed=0,1,2", "optimizer.lr=1e-3")
    assert outcome.code == 2
    assert "seed=0,1 before, 0,1,2 now" in outcome.errors
    assert "optimizer.lr=1e-3 now alone" in outcome.errors
    assert len(ledger(tmp_path)) == 2


@pytest.mark.medium
@pytest.mark.fault("G10")
@pytest.mark.parametrize(
    ("swept", "message"),
    [
        ("task=classification,regression", "monitor must be one metric for all jobs"),
        ("optimizer.lr=1e-3,2e-3,-1", "optimizer.lr must be greater than 0"),
        ("freezing=none,gradual,graduall", "Did you mean 'gradual'?"),
        ("data.val_size=0.1,0.2,1.5", "data.val_size"),
    ],
)
def test_what_cannot_be_is_found_before_the_first_job(sweep, tmp_path: Path, swept: str, message: str) -> None:
    outcome = sweep(swept, "seed=0,1")
    assert outcome.code == 2
    assert outcome.errors.startswith("error: ")
    assert message in outcome.errors
    assert "Traceback" not in outcome.errors
    assert not (tmp_path / "sweep").exists()


@pytest.mark.medium
@pytest.mark.fault("G11")
def test_ctrl_c_saves_what_runs_prints_the_table_and_the_same_command_goes_on(sweep, tmp_path: Path) -> None:
    from thaw.search.sweep import Sweep

    slow = AT_EPOCH + "\ndef at_epoch(trainer): time.sleep(0.5)\n"
    step, seen = Sweep._step, []

    def interrupted(self: Sweep) -> bool:
        if len(self.trials.ended()) >= 1 and self.running and not seen:
            seen.append(True)
            raise KeyboardInterrupt
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sweep, "_step", interrupted)
        outcome = sweep("optimizer.lr=1e-3,2e-3,3e-3,4e-3", change=slow)
    assert outcome.code == 130
    assert "finished" in outcome.printed
    assert "val/accuracy" in outcome.printed
    assert "Go on with the same command" in outcome.printed
    left = [path for path in (tmp_path / "sweep").glob("*/run.json") if not done(path)]
    assert {json.loads(path.read_text())["status"] for path in left} <= {"interrupted"}
    assert sweep("optimizer.lr=1e-3,2e-3,3e-3,4e-3").code == 0
    assert [row["status"] for row in ledger(tmp_path)] == ["finished"] * 4


@pytest.mark.medium
@pytest.mark.fault("G12")
def test_a_study_that_cannot_be_written_is_told_and_what_has_finished_stays(sweep, tmp_path: Path) -> None:
    assert sweep("seed=0").code == 0
    database = tmp_path / "sweep" / "study.db"
    database.write_bytes(b"no database at all")
    outcome = sweep("seed=0")
    assert outcome.code == 2
    assert "search.storage must be a database" in outcome.errors
    assert finished(tmp_path) == 1
    database.unlink()
    assert sweep("seed=0").code == 0
    assert json.loads(next((tmp_path / "sweep").glob("*/run.json")).read_text())["status"] == "finished"


@pytest.mark.slow
@pytest.mark.fault("G8")
def test_two_sweeps_share_one_study_and_no_trial_is_lost_or_doubled(tmp_path: Path) -> None:
    path = script(tmp_path, "")
    words = [sys.executable, str(path), "-m", *TINY, "search.dir=sweep", "optimizer.lr=1e-3,2e-3,3e-3,4e-3,5e-3,6e-3"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    two = [subprocess.Popen([*words], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(280) for process in two] == [0, 0]
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/sweep/study.db")
    ended = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert Counter(trial.params["optimizer.lr"] for trial in ended).most_common(1)[0][1] == 1
    assert len(ended) == 6
    assert len(ledger(tmp_path)) == 6


@pytest.mark.medium
def test_a_job_ends_with_its_sweep(tmp_path: Path) -> None:
    slow = AT_EPOCH + "\ndef at_epoch(trainer): print('pid', os.getpid(), flush=True); time.sleep(1)\n"
    words = [sys.executable, str(script(tmp_path, slow)), "-m", *TINY, "search.dir=sweep", "trainer.max_epochs=100"]
    process = subprocess.Popen(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    deadline, pid = time.monotonic() + 200, 0
    while not pid and time.monotonic() < deadline:
        time.sleep(0.1)
        for log in (tmp_path / "sweep" / "logs").glob("*.txt"):
            pid = next((int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("pid")), 0)
    assert pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    pytest.fail("the job outlived its sweep")


@pytest.mark.medium
@pytest.mark.fault("S16")
def test_no_secret_of_the_command_is_in_any_file_of_a_sweep(sweep, tmp_path: Path) -> None:
    """Also where a job ends before it has a record of its own."""
    secret = "paths.data='https://me:SECRET-ADDRESS@host/x'"
    outcome = sweep(secret, "seed=0,1", "trainer.max_epochs=1", change="if has('seed=1'): os._exit(9)")
    assert outcome.code == 3
    files = [path for path in (tmp_path / "sweep").rglob("*") if path.is_file()]
    assert len(ledger(tmp_path)) == 2
    assert [path for path in files if b"SECRET-ADDRESS" in path.read_bytes()] == []
    assert "SECRET-ADDRESS" not in outcome.printed + outcome.errors


@pytest.mark.medium
def test_a_launcher_of_hydras_own_runs_the_same_jobs_into_the_same_ledger(sweep, tmp_path: Path) -> None:
    tiny = tuple(word for word in TINY if not word.startswith("hydra"))
    outcome = sweep("seed=0,1", "hydra/launcher=basic", tiny=tiny)
    assert outcome.code == 0, outcome.errors
    assert [row["status"] for row in ledger(tmp_path)] == ["finished"] * 2
