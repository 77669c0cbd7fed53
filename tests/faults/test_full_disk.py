"""Disks that are full, read-only or another user's: told in one line, with the earlier checkpoint whole."""

import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from thaw import config
from thaw.errors import RunError, UserError
from thaw.run import disk
from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint
from thaw.run.record import Recorder
from thaw.run.resume import find
from thaw.run.run import Run, read_record

QUICK = ("logger=none", "data.train_size=64", "trainer.max_epochs=2", "trainer=cpu", "freezing=none")


def mounted(folder: Path, *options: str) -> str | None:
    """Why a file system in memory cannot be mounted here; None where it has been."""
    if not shutil.which("mount"):
        return "needs mount"
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    return f"needs to mount a file system: {result.stderr.strip()}" if result.returncode else None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk("24m")` is the folder of a real file system of that size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        if reason := mounted(folder, f"size={size}"):
            pytest.skip(reason)
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.fixture
def after_first_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """`after_first_epoch(harm)` calls it once, when the first epoch is saved and recorded."""

    def arrange(harm: Callable[[], None]) -> None:
        record_epoch = Recorder.on_train_epoch_end

        def record_and_harm(self: Any, trainer: Any, module: Any) -> None:
            record_epoch(self, trainer, module)
            if trainer.current_epoch == 0:
                harm()

        monkeypatch.setattr(Recorder, "on_train_epoch_end", record_and_harm)

    return arrange


def fill(folder: Path, left: int) -> None:
    with open(folder / "filler", "wb") as file:
        while (room := disk.free_bytes(folder) - left) > 0:
            file.write(bytes(min(room, 1 << 20)))
            file.flush()


def assert_one_line(errors: str, *words: str) -> None:
    assert len(errors.strip().splitlines()) == 1, errors
    for word in words:
        assert word in errors


def assert_whole_after_epoch(folder: Path, epoch: int) -> None:
    for role in ("last", "best"):
        assert load_checkpoint(folder / "checkpoints" / f"{role}.ckpt")["epoch"] == epoch
    assert find(folder / "checkpoints").left_out == []
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.medium
@pytest.mark.fault("B2")
def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_room_lets_it_go_on(
    run_train, small_disk, after_first_epoch
) -> None:
    place = small_disk("24m")
    after_first_epoch(lambda: fill(place, left=1_000_000))
    run_dir = f"run.dir={place}/run"
    outcome = run_train(*QUICK, run_dir)
    assert outcome.code == 1
    size = (place / "run" / "checkpoints" / "last.ckpt").stat().st_size
    assert size > 3_000_000
    assert_one_line(
        outcome.errors, f"'{place}/run/checkpoints'", "No space left on device", "1.0 MB are free", "3.8 MB"
    )
    assert_whole_after_epoch(place / "run", 0)
    record = read_record(place / "run")
    assert record["status"] == "failed"
    assert "No space left on device" in record["reason"]
    assert "inline_container" in (place / "run" / "error.log").read_text()  # what torch itself has to say
    assert not list(place.glob("run/*.lock"))

    (place / "filler").unlink()
    again = run_train(*QUICK, run_dir, "resume=must")
    assert again.code == 0, again.errors
    assert read_record(place / "run")["status"] == "finished"


@pytest.mark.fault("B2")
def test_a_disk_without_a_byte_left_does_not_hide_why_the_run_ended(run_train, small_disk, after_first_epoch) -> None:
    """Not even run.json can be written."""
    place = small_disk("24m")
    after_first_epoch(lambda: fill(place, left=0))
    outcome = run_train(*QUICK, f"run.dir={place}/run")
    assert outcome.code == 1
    assert_one_line(outcome.errors, f"'{place}/run", "No space left on device")
    assert_whole_after_epoch(place / "run", 0)
    assert read_record(place / "run")["status"] == "running"
    assert not list(place.glob("run/*.lock"))


@pytest.mark.medium
@pytest.mark.fault("B2")
def test_too_little_room_is_told_before_training_with_the_figures(run_train, small_disk) -> None:
    place = small_disk("6m")
    outcome = run_train(*QUICK, f"run.dir={place}/run")
    assert outcome.code == 2
    # 318,394 weights of 4 bytes and twice as much for AdamW: 3.8 MB, and that for best, last and the one in writing
    assert_one_line(outcome.errors, "about 11.5 MB", f"'{place}/run/checkpoints'", "6.3 MB free", "run.dir=")
    assert "epoch" not in outcome.printed
    assert list(place.iterdir()) == []
    # What does not train needs no room for its optimizer.
    assert run_train(*QUICK[:-1], "freezing=linear_probe", f"run.dir={place}/run").code == 0
    # What is there already counts.
    fill(place, left=2_000_000)
    assert run_train(*QUICK[:-1], "freezing=linear_probe", f"run.dir={place}/other").code == 2
    record = read_record(place / "run")
    (place / "run" / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    again = run_train(*QUICK[:-1], "freezing=linear_probe", f"run.dir={place}/run", "resume=must")
    assert again.code == 0, again.errors


@pytest.mark.fault("B2")
def test_a_limit_on_files_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """As a full disk, and needs no rights to inject."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(1000)}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(RunError) as caught:
            AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_line(str(caught.value), f"'{tmp_path}' must take a file of 4.0 MB", "File too large")
    assert path.read_bytes() == before
    assert load_checkpoint(path)["weight"].shape == (1000,)
    assert sorted(left.name for left in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


@pytest.mark.fault("B4")
def test_a_disk_that_becomes_read_only_leaves_the_earlier_checkpoints(run_train, small_disk, after_first_epoch) -> None:
    place = small_disk("24m")
    after_first_epoch(lambda: protect(place))
    outcome = run_train(*QUICK, f"run.dir={place}/run")
    assert outcome.code == 1
    assert_one_line(outcome.errors, f"'{place}/run", "Read-only file system")
    assert_whole_after_epoch(place / "run", 0)


@pytest.mark.fault("B3")
def test_checkpoints_that_have_become_read_only_are_no_place_to_go_on_in(
    run_train, small_disk, stopped_after_epoch, tmp_path: Path
) -> None:
    place = small_disk("24m")
    with stopped_after_epoch(0):
        folder = run_train(*QUICK, "run.dir=runs/mine").folders[-1]
    for path in (folder / "checkpoints").iterdir():
        shutil.move(path, place)
    (place / ".last.ckpt.0123.tmp").touch()
    (folder / "checkpoints").rmdir()
    (folder / "checkpoints").symlink_to(place)
    protect(place)
    again = run_train(*QUICK, "run.dir=runs/mine", "resume=must")
    assert again.code == 2
    assert_one_line(again.errors, "must be a folder that can be written; got 'runs/mine/checkpoints'")
    assert "epoch" not in again.printed


def protect(place: Path) -> None:
    result = subprocess.run(["mount", "-o", "remount,ro", str(place)], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"needs to remount: {result.stderr.strip()}")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody can reach, and the check of the run directory made as a user without rights to it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    check = config.assert_writable

    def check_as_nobody(run_dir: str | None) -> None:
        os.seteuid(65534)
        try:
            check(run_dir)
        finally:
            os.seteuid(0)

    if os.geteuid() == 0:
        monkeypatch.setattr(config, "assert_writable", check_as_nobody)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.fault("B3")
def test_a_folder_of_another_user_is_refused_before_training(run_train, nobody: Path) -> None:
    outcome = run_train(*QUICK, f"run.dir={nobody}/run")
    assert outcome.code == 2
    assert_one_line(outcome.errors, f"run.dir must be a folder that can be written; got '{nobody}/run'")
    assert "epoch" not in outcome.printed
    assert list(nobody.iterdir()) == []


# The record


def test_a_full_disk_at_the_last_record_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    with pytest.raises(RunError, match="No space left on device"), run:
        monkeypatch.setattr("thaw.run.unfinished.publish", full)
    assert not list(tmp_path.glob("*.lock"))


def test_what_ended_the_run_is_told_and_not_that_its_record_was_not_written(tmp_path: Path, monkeypatch) -> None:
    def fail() -> None:
        monkeypatch.setattr("thaw.run.unfinished.publish", full)
        raise UserError("data.root must exist.")

    with pytest.raises(UserError, match=r"data\.root"), Run(tmp_path):
        fail()


def test_any_file_of_the_run_that_finds_the_disk_full_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught, Run(tmp_path):
        full()
    assert_one_line(str(caught.value), f"'{tmp_path}' must take a file", "No space left on device")
    assert read_record(tmp_path)["reason"].startswith("RunError: ")


def full(*_: Any, **__: Any) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as file:
        file.write("x")
