"""Run directories: one for each process, one lock, and one record that always says how the run ended."""

import json
import math
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from thaw.errors import UserError
from thaw.run import lock as lock_module
from thaw.run.checkpoint import AtomicCheckpointIO
from thaw.run.folder import assert_writable
from thaw.run.lock import LOCK
from thaw.run.run import Run, read_record

OVERRIDES = ["data=digits", "seed=1"]

RACER = """
import sys, time
from pathlib import Path
from thaw.run.run import Run
ready, go = Path(sys.argv[1]), Path(sys.argv[2])
ready.touch()
while not go.exists():
    time.sleep(0.001)
run = Run.open(sys.argv[3], "name", [])
run.update(pid=sys.argv[4])
time.sleep(0.2)
print(run.folder, "torch" in sys.modules)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(name: str = "digits", overrides: list[str] | None = None, resume: Any = "never", folder: Any = None) -> Run:
    return Run.open(folder, name, OVERRIDES if overrides is None else overrides, resume)


def finished(**options: Any) -> Run:
    run = made(**options)
    with run:
        pass
    return run


def save(run: Run, name: str = "last", **content: Any) -> None:
    state = {"epoch": 0, "global_step": 1, "state_dict": {}, "optimizer_states": [], "loops": {}} | content
    AtomicCheckpointIO().save_checkpoint(state, run.folder / "checkpoints" / f"{name}.ckpt")


def hold(folder: Path, **holder: Any) -> None:
    (folder / LOCK).write_text(json.dumps(holder))


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".tmp" in path.name]


# Directories


def test_runs_of_one_name_never_share_a_directory(here):
    folders = [made().folder for _ in range(4)]
    assert folders == [Path("runs") / name for name in ("digits", "digits-2", "digits-3", "digits-4")]
    assert all(folder.is_dir() for folder in folders)


def test_folder_with_anything_in_it_is_not_taken(here):
    wanted = here / "mine"
    wanted.mkdir()
    (wanted / "notes.txt").write_text("precious")
    assert made(folder=str(wanted)).folder == here / "mine-2"
    assert [path.name for path in wanted.iterdir()] == ["notes.txt"]


def test_empty_folder_is_taken(here):
    (here / "mine").mkdir()
    assert made(folder="mine").folder == Path("mine")


@pytest.mark.fault("H1")
def test_eight_processes_that_start_at_once_get_eight_directories(tmp_path):
    go, wanted = tmp_path / "go", tmp_path / "runs" / "same"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path / f"ready{index}"), str(go), str(wanted), str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(8)
    ]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready*"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    go.touch()
    ended = [child.communicate(timeout=60) for child in children]
    assert [errors for _, errors in ended] == [""] * 8
    printed = [line.split() for line, _ in ended]
    assert len({folder for folder, _ in printed}) == 8
    for index, (folder, _) in enumerate(printed):
        assert json.loads((Path(folder) / "run.json").read_text())["pid"] == str(index)
    assert {torch for _, torch in printed} == {"False"}


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below"])
def test_place_below_a_file_is_refused(here, place):
    (here / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.dir must be") as caught:
        assert_writable(place)
    assert f"'{place}'" in str(caught.value)
    assert "run.dir=runs/mine" in str(caught.value)
    with pytest.raises(UserError, match=r"run\.dir must be writable") as caught:
        made(folder=place)
    assert f"'{place}'" in str(caught.value)
    assert (here / "file").is_file()


@pytest.mark.parametrize("place", [None, "new", "new/below", "old", "."])
def test_writable_place_is_accepted_and_left_as_it_was(here, place):
    (here / "old").mkdir()
    assert_writable(place)
    assert [path.name for path in here.rglob("*")] == ["old"]


def test_file_system_that_refuses_is_refused(here, monkeypatch):
    """The root user passes every check of rights, so that only a try tells."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UserError, match=r"run\.dir must be a folder that can be written; got 'some'"):
        assert_writable("some")


@pytest.mark.skipif(os.geteuid() == 0, reason="the root user may write anywhere")
def test_folder_without_write_permission_is_refused(here):
    (here / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"run\.dir must be"):
        assert_writable("locked/below")


# Record


def test_record_tells_the_command_and_what_it_ran_on(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", "data=digits", "name=two words"])
    run = finished()
    record = read_record(run.folder)
    assert record["command"] == "python train.py data=digits 'name=two words'"
    assert record["overrides"] == OVERRIDES
    assert datetime.fromisoformat(record["started"]).tzinfo is not None
    assert record["versions"]["python"] == sys.version.split()[0]
    assert {"torch", "lightning", "timm"} <= record["versions"].keys()
    assert set(record["git"]) == {"commit", "dirty", "changes"}
    assert record == run.record


def test_record_says_running_until_the_end(here):
    run = made()
    with run:
        assert read_record(run.folder)["status"] == "running"
        assert not run.finished
        assert (run.folder / LOCK).is_file()
    assert read_record(run.folder)["status"] == "finished"
    assert run.finished
    assert not (run.folder / LOCK).exists()


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("rate of 7"), "failed", "ValueError: rate of 7"),
        (UserError("data.root must exist."), "failed", "UserError: data.root must exist."),
        (KeyboardInterrupt("Ctrl-C"), "interrupted", "Ctrl-C"),
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (SystemExit(143), "interrupted", "exit 143"),
    ],
)
def test_record_says_how_a_run_ended_and_why(here, error, status, reason):
    run = made()
    with pytest.raises(type(error)) as caught, run:
        raise error
    assert caught.value is error
    record = read_record(run.folder)
    assert (record["status"], record["reason"]) == (status, reason)
    assert not run.finished
    assert not (run.folder / LOCK).exists()


def test_finished_run_has_no_reason_and_no_error_log(here):
    run = finished()
    assert read_record(run.folder)["reason"] is None
    assert sorted(path.name for path in run.folder.iterdir()) == ["run.json"]


def test_failure_leaves_its_traceback_in_error_log(here):
    def explode() -> None:
        raise ValueError("rate of 7")

    run = made()
    with pytest.raises(ValueError, match="rate of 7"), run:
        explode()
    log = (run.folder / "error.log").read_text()
    assert "in explode" in log
    assert log.endswith("ValueError: rate of 7\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_interruption_is_no_error(here, error):
    run = made()
    with pytest.raises(type(error)), run:
        raise error
    assert not (run.folder / "error.log").exists()


def test_resumed_run_forgets_the_reason_and_adds_up_its_time(here):
    run = made()
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    run.update(seconds=100.0)
    again = made(resume="auto")
    with again:
        assert read_record(again.folder)["reason"] is None
        time.sleep(0.02)
    record = read_record(run.folder)
    assert (record["status"], record["reason"]) == ("finished", None)
    assert 100 < record["seconds"] < 110


def test_update_keeps_earlier_fields_and_replaces_given_ones(here):
    run = made()
    run.update(metrics={"val/loss": 2.0}, epochs=3)
    run.update(epochs=4)
    record = read_record(run.folder)
    assert (record["metrics"], record["epochs"], record["overrides"]) == ({"val/loss": 2.0}, 4, OVERRIDES)


def test_reader_never_sees_half_a_record(here):
    run = made()
    run.update(fields=[])
    stop, seen, broken = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append(len(json.loads((run.folder / "run.json").read_text())["fields"]))
            except (OSError, ValueError) as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for size in range(0, 4000, 40):
        run.update(fields=["word"] * size)
    stop.set()
    reader.join()
    assert not broken
    assert len(set(seen)) > 1
    assert left_behind(run.folder) == []


def test_failed_update_leaves_the_record_whole(here, monkeypatch):
    run = made()
    run.update(epochs=1)

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        run.update(epochs=2)
    assert read_record(run.folder)["epochs"] == 1


def test_field_that_is_no_json_fails_the_run_and_not_its_record(here):
    run = made()
    with pytest.raises(TypeError), run:
        run.update(metrics=object())
    assert read_record(run.folder)["status"] == "failed"
    assert not (run.folder / LOCK).exists()


def test_record_is_strict_json_also_where_a_metric_is_not_a_number(here):
    """`NaN` is no JSON: a browser, jq and most other languages refuse the whole file."""
    run = made()
    run.update(metrics={"val/loss": math.nan, "val/f1": math.inf})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((run.folder / "run.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("content", [None, "", "{", "\x00\x00"])
def test_folder_without_a_readable_record_has_none(here, content):
    if content is not None:
        (here / "run.json").write_text(content)
    assert read_record(here) is None


def test_checkpoint_to_go_on_from_is_the_one_that_was_there_at_the_start(here):
    run = made()
    assert run.last is None
    save(run)
    assert run.last is None
    run.update()
    run.release()
    assert made(resume="auto").last == run.folder / "checkpoints" / "last.ckpt"


# Resume


def test_without_resume_the_same_command_starts_afresh(here):
    finished()
    assert made(resume="never").folder == Path("runs/digits-2")


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_same_command_resumes_its_own_run(here, resume):
    finished(overrides=["seed=1"])
    first = finished(overrides=["seed=2", "resume=never"])
    finished(overrides=["seed=3"])
    again = made(overrides=["seed=2", f"resume={resume}"], resume=resume)
    assert again.folder == first.folder == Path("runs/digits-2")
    assert again.record == first.record
    assert again.finished


def test_newest_run_of_the_same_command_is_resumed(here):
    folders = [finished().folder for _ in range(3)]
    os.utime(folders[1] / "run.json", (time.time() + 60,) * 2)
    assert made(resume="auto").folder == folders[1]


def test_resume_auto_starts_afresh_where_nothing_is_to_be_resumed(here):
    assert made(resume="auto").folder == Path("runs/digits")
    finished(overrides=["seed=5"])
    assert made(overrides=["seed=6"], resume="auto").folder == Path("runs/digits-3")


@pytest.mark.parametrize("overrides", [["seed=2"], [], ["seed=1", "data=digits"]])
def test_resume_must_refuses_other_overrides(here, overrides):
    finished()
    with pytest.raises(UserError, match="resume=must needs an earlier run of the same command") as caught:
        made(overrides=overrides, resume="must")
    assert "'runs/digits'" in str(caught.value)
    assert not Path("runs/digits-2").exists()


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_folder_given_by_name_is_resumed_whatever_the_overrides(here, resume):
    first = finished(folder="mine/one")
    again = made(folder="mine/one", overrides=["seed=9"], resume=resume)
    assert again.folder == first.folder


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_folder_given_by_name_goes_before_a_newer_one_with_a_number(here, resume):
    """The advice printed after Ctrl-C names the folder to go on in; a later run beside it is another run."""
    first = finished(folder="mine/one")
    second = finished(folder="mine/one", overrides=["seed=9"])
    os.utime(second.folder / "run.json", (time.time() + 60,) * 2)
    assert second.folder == Path("mine/one-2")
    assert made(folder="mine/one", resume=resume).folder == first.folder


def test_advice_after_an_interruption_leads_back_to_the_same_run(here):
    run = made(overrides=["seed=2", "name='two words'", "run.dir=mine/one"], folder="mine/one")
    run.update()
    run.release()
    words = shlex.split(run.resume_command)
    assert words == ["python", "train.py", "seed=2", "name='two words'", "run.dir=mine/one", "resume=auto"]
    assert made(overrides=words[2:], folder="mine/one", resume="auto").folder == run.folder


def test_run_of_a_longer_name_is_not_taken_for_an_earlier_one(here):
    finished(name="digits-resnet")
    finished(name="digits-2b")
    with pytest.raises(UserError, match="found none at 'runs/digits'"):
        made(resume="must")


# Locks


@pytest.mark.fault("H2")
def test_run_in_use_is_not_resumed_and_its_process_is_named(here):
    run = finished()
    hold(run.folder, pid=os.getppid(), host=socket.gethostname())
    with pytest.raises(UserError, match=f"held by process {os.getppid()} on {socket.gethostname()}") as caught:
        made(resume="auto")
    assert "'runs/digits'" in str(caught.value)
    assert "Wait for it, or choose another run.dir" in str(caught.value)
    assert json.loads((run.folder / LOCK).read_text())["pid"] == os.getppid()


def test_run_in_use_by_this_process_is_not_resumed(here):
    run = made()
    run.update()
    with pytest.raises(UserError, match=f"held by process {os.getpid()} "):
        made(resume="must")


def test_lock_of_another_computer_is_respected(here):
    run = finished()
    hold(run.folder, pid=dead_process(), host="elsewhere")
    with pytest.raises(UserError, match=r"held by process \d+ on elsewhere"):
        made(resume="auto")


@pytest.mark.fault("H2")
@pytest.mark.parametrize(("minutes", "told"), [(1, "for a moment."), (30, "for 30 minutes."), (300, "for 5 hours.")])
def test_age_of_a_lock_is_told(here, minutes, told):
    run = finished()
    hold(run.folder, pid=os.getppid(), host=socket.gethostname())
    os.utime(run.folder / LOCK, (time.time() - 60 * minutes,) * 2)
    with pytest.raises(UserError, match=told):
        made(resume="auto")


@pytest.mark.fault("H2")
def test_lock_of_a_dead_process_is_taken_over(here):
    run = finished()
    hold(run.folder, pid=dead_process(), host=socket.gethostname())
    again = made(resume="must")
    assert again.folder == run.folder
    assert json.loads((run.folder / LOCK).read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}


def test_released_run_can_be_resumed(here):
    run = made()
    run.update()
    save(run)
    run.release()
    assert made(resume="must").folder == run.folder
    run.release()
    run.release()


def test_stale_lock_has_one_heir(here, monkeypatch):
    """Two processes see the same stale lock; the slower one must not throw away the lock that the faster one made."""
    run = finished()
    hold(run.folder, pid=dead_process(), host=socket.gethostname())
    alive = lock_module.alive

    def overtaken(pid: int) -> bool:
        found = alive(pid)
        monkeypatch.setattr(lock_module, "alive", alive)
        (run.folder / LOCK).unlink()
        hold(run.folder, pid=os.getppid(), host=socket.gethostname())
        return found

    monkeypatch.setattr(lock_module, "alive", overtaken)
    with pytest.raises(UserError, match=f"held by process {os.getppid()} "):
        made(resume="must")
    assert json.loads((run.folder / LOCK).read_text())["pid"] == os.getppid()


@pytest.mark.parametrize("content", ["", "{"])
def test_unreadable_lock_is_refused_by_the_name_of_its_file(here, content):
    """A power cut can leave the lock empty: waiting for "process None" helps nobody, removing the file does."""
    run = finished()
    (run.folder / LOCK).write_text(content)
    with pytest.raises(UserError, match=LOCK) as caught:
        made(resume="must")
    assert "None" not in str(caught.value)
