"""Checkpoint files: killed at any moment, cut short, altered, or not what they seem."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from thaw.errors import UserError
from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint
from thaw.run.checksum import damage
from thaw.run.resume import Found, find


def state(step: int, size: int = 1000) -> dict[str, Any]:
    weights = {"weight": torch.full((size,), float(step))}
    return {"epoch": step, "global_step": step, "state_dict": weights, "optimizer_states": [], "loops": {}}


def save(folder: Path, step: int, role: str = "last") -> Path:
    path = folder / f"{role}.ckpt"
    AtomicCheckpointIO().save_checkpoint(state(step), path)
    return path


# Killed while saving

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint
from thaw.run.checksum import damage
from thaw.run.resume import Found, find

folder, times, point = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
path = folder / "last.ckpt"

def state(step):
    weights = {"weight": torch.full((500_000,), float(step))}
    return {"epoch": step, "global_step": step, "state_dict": weights, "optimizer_states": [], "loops": {}}

def killed_at(number):
    # Dies as by a power cut at the number-th call that changes the disk.
    calls = []
    def counted(real):
        def call(*arguments, **options):
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(1)
            return real(*arguments, **options)
        return call
    os.fsync, os.replace, Path.unlink = counted(os.fsync), counted(os.replace), counted(Path.unlink)

AtomicCheckpointIO().save_checkpoint(state(0), path)
draw, seen, before = random.Random(0), set(), 0
for trial in range(times):
    child = os.fork()
    if not child:
        if point == "calls":
            killed_at(trial)
        for step in range(before + 1, before + (2 if point == "calls" else 10_000)):
            AtomicCheckpointIO().save_checkpoint(state(step), path)
        os._exit(0)
    if point == "moments":
        time.sleep(draw.uniform(0.005, 0.08))
        os.kill(child, signal.SIGKILL)
    _, ended = os.waitpid(child, 0)
    assert damage(path) is None, damage(path)
    found = find(folder)
    assert found.path == path, found
    step = load_checkpoint(path)["global_step"]
    assert step == found.step >= before
    assert bool((load_checkpoint(path)["state_dict"]["weight"] == step).all())
    seen.add((os.waitstatus_to_exitcode(ended), step > before))
    before = step
print(sorted(seen), len(list(folder.glob(".*.tmp"))) > 0)
"""


@pytest.mark.medium
@pytest.mark.fault("B1")
@pytest.mark.parametrize(
    ("times", "point", "seen"),
    [
        # 12 calls change the disk: syncs, renames and removals; from the 13th on nothing is killed.
        (14, "calls", [(-9, False), (-9, True), (0, True)]),
        pytest.param(50, "moments", [(-9, False), (-9, True)], marks=pytest.mark.slow),
    ],
)
def test_a_save_killed_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path: Path, times, point, seen) -> None:
    """Also with the temporary files of the machine elsewhere, where Lightning's own way leaves an empty file."""
    elsewhere = "/dev/shm" if os.path.isdir("/dev/shm") else str(tmp_path)
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(times), point]
    result = subprocess.run(
        command, env=os.environ | {"TMPDIR": elsewhere}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == f"{seen} True"


# Cut short, altered


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit of the weights: torch loads it without a word."""
    content = bytearray(path.read_bytes())
    place = content.find(np.float32(load_checkpoint(path)["global_step"]).tobytes() * 8)
    assert place > 0
    content[place + 5] ^= 1
    path.write_bytes(content)
    loaded = torch.load(path, weights_only=True)["state_dict"]["weight"]
    assert not bool((loaded == loaded[-1]).all())


def empty(path: Path) -> None:
    path.write_bytes(b"")


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone.ckpt")


DAMAGES = {
    "cut short or altered": cut,
    "it was cut short or altered": flip,
    "is empty": empty,
    "is a link to nothing": dangle,
}
CASES = [pytest.param(*pair, marks=pytest.mark.fault(case), id=pair[1].__name__)
         for pair, case in zip(DAMAGES.items(), ("B5", "B6", "B5", "B7"), strict=True)]  # fmt: skip


@pytest.mark.parametrize(("told", "spoil"), CASES)
def test_a_damaged_last_is_named_and_the_next_newest_taken(tmp_path: Path, told: str, spoil: Any) -> None:
    best, last = save(tmp_path, 3, "best"), save(tmp_path, 5)
    spoil(last)
    found = find(tmp_path)
    assert (found.path, found.step) == (best, 3)
    [wrong] = found.left_out
    assert wrong.startswith(f"{last} ")
    assert told in wrong
    with pytest.raises(UserError, match="resume=never") as caught:
        load_checkpoint(last)
    assert told in str(caught.value)


@pytest.mark.parametrize("spoil", [pytest.param(cut, marks=pytest.mark.fault("B5")),
                                   pytest.param(flip, marks=pytest.mark.fault("B6"))])  # fmt: skip
def test_damage_shows_without_a_sidecar_too(tmp_path: Path, spoil: Any) -> None:
    """A copied file, or one of an earlier Thaw: the zip format has sums of its own, which torch does not look at."""
    path = save(tmp_path, 5)
    (tmp_path / "last.ckpt.sha256").unlink()
    assert find(tmp_path).path == path
    spoil(path)
    assert find(tmp_path).path is None
    with pytest.raises(UserError):
        load_checkpoint(path)


@pytest.mark.fault("B7")
def test_a_folder_in_the_place_of_last_is_named_before_training(tmp_path: Path) -> None:
    save(tmp_path, 3, "best")
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(UserError, match=r"last\.ckpt' must be a file; it is a folder"):
        find(tmp_path)


@pytest.mark.fault("B7")
def test_missing_files_are_no_damage(tmp_path: Path) -> None:
    assert find(tmp_path / "nowhere") == Found(left_out=[])
    best = save(tmp_path, 3, "best")
    assert find(tmp_path) == Found(best, 3, [], {})


def test_the_newest_is_told_by_its_steps_and_not_by_its_date(tmp_path: Path) -> None:
    best, last = save(tmp_path, 3, "best"), save(tmp_path, 5)
    os.utime(last, (0, 0))
    assert find(tmp_path).path == last
    save(tmp_path, 7, "best")  # killed between the two saves of an epoch
    os.utime(best, (0, 0))
    assert find(tmp_path).path == best
    save(tmp_path, 7)
    assert find(tmp_path).path == last


def test_a_crash_or_a_half_written_file_is_never_gone_on_from(tmp_path: Path) -> None:
    crash = save(tmp_path, 9, "crash")
    shutil.copy(crash, tmp_path / ".last.ckpt.0123.tmp")
    assert find(tmp_path) == Found(left_out=[])
    last = save(tmp_path, 2)
    assert find(tmp_path) == Found(last, 2, [], {})


def test_weights_alone_are_no_state_to_go_on_from(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "global_step": 9, "epoch": 1}, tmp_path / "last.ckpt")
    found = find(tmp_path)
    assert found.path is None
    assert "it has no optimizer_states, loops" in found.left_out[0]


# The sidecar


def test_sha256sum_reads_the_sidecar(tmp_path: Path) -> None:
    for step in (1, 2):
        path = save(tmp_path, step)
        told = (tmp_path / "last.ckpt.sha256").read_text()
        assert told == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  last.ckpt\n"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--strict", "last.ckpt.sha256"], cwd=tmp_path, check=True)


def test_the_sidecar_is_of_the_file_and_goes_with_it(tmp_path: Path) -> None:
    last, best = save(tmp_path, 5), save(tmp_path, 3, "best")
    shutil.copy(best, last)  # a whole checkpoint, but not the one that was saved here
    assert damage(last)
    assert damage(best) is None
    AtomicCheckpointIO().remove_checkpoint(last)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "best.ckpt.sha256"]


# Plain containers


@pytest.mark.fault("B11")
@pytest.mark.parametrize(
    "value",
    [OmegaConf.create({"lr": 1}), PosixPath("runs"), np.float64(0.5), functools.partial(int, base=2)],
    ids=["DictConfig", "Path", "numpy", "partial"],
)
def test_what_could_not_be_loaded_again_is_refused_when_it_is_saved(tmp_path: Path, value: Any) -> None:
    """Told at the first save, and not when a run of two days must be resumed."""
    path = save(tmp_path, 1)
    with pytest.raises(TypeError, match=f"it holds .*{type(value).__name__}|it holds numpy|it holds .*scalar"):
        AtomicCheckpointIO().save_checkpoint(state(2) | {"hyper_parameters": {"option": value}}, path)
    assert load_checkpoint(path)["epoch"] == 1
    assert not list(tmp_path.glob(".*"))
