"""Runs that find their checkpoints damaged, moved or of another network: the same end, or a refusal before training."""

import csv
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint

QUICK = (
    "logger=none", "data.train_size=64", "trainer.max_epochs=4", "trainer=cpu", "model.dropout=0.3",
    "trainer.log_every_n_steps=1",
)  # fmt: skip
# Best in its first epoch, so that `best` is older than `last` by more than one thaw.
ACCURACIES = [0.9, 0.5, 0.6, 0.7, 0.6, 0.6, 0.6, 0.6]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """While training, the validation accuracy of an epoch is what stands in ACCURACIES."""
    from thaw.module import FineTuner

    log = FineTuner.log_dict

    def told(self: FineTuner, metrics: dict[str, torch.Tensor], *arguments: Any, **options: Any) -> None:
        if "val/accuracy" in metrics and self.trainer.state.fn == "fit":
            metrics = metrics | {"val/accuracy": torch.tensor(ACCURACIES[self.current_epoch])}
        log(self, metrics, *arguments, **options)

    monkeypatch.setattr(FineTuner, "log_dict", told)


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def checkpoint(folder: str | Path, role: str = "last") -> Path:
    return Path(folder) / "checkpoints" / f"{role}.ckpt"


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(one: Path, other: Path) -> None:
    first, second = (load_checkpoint(checkpoint(folder)) for folder in (one, other))
    for name, held in first["state_dict"].items():
        assert torch.equal(held, second["state_dict"][name]), name
    assert str(first["optimizer_states"]) == str(second["optimizer_states"])
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert load_checkpoint(checkpoint(one, "best"))["epoch"] == load_checkpoint(checkpoint(other, "best"))["epoch"]
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    for key in ("metrics", "best_epoch", "timeline", "contract", "freezing", "steps", "epochs", "status"):
        assert records[0][key] == records[1][key], key
    assert rows(one) == rows(other)


@pytest.fixture
def stopped(run_train, scripted) -> Callable[..., Path]:
    """`stopped(2)` is the folder of a run that was stopped after its third epoch, in the first step of the fourth."""
    from thaw.module import FineTuner

    begin = FineTuner.on_train_batch_start

    def stop(epoch: int, *options: str) -> Path:
        def interrupt(self: FineTuner, batch: Any, batch_idx: int) -> None:
            if self.current_epoch == epoch + 1:
                raise KeyboardInterrupt
            begin(self, batch, batch_idx)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FineTuner, "on_train_batch_start", interrupt)
            outcome = run_train(*QUICK, *options, "run.dir=runs/mine")
        assert outcome.code == 130
        return outcome.folders[-1]

    return stop


@pytest.mark.medium
@pytest.mark.parametrize(
    ("damaged", "spoil", "goes_on"),
    [
        pytest.param(["last"], alter, "best", marks=pytest.mark.fault("B6")),
        pytest.param(["last"], cut, "best", marks=pytest.mark.fault("B5")),
        pytest.param(["last", "best"], empty, None, marks=pytest.mark.fault("B5")),
    ],
)
def test_a_run_goes_on_from_what_is_whole_to_the_same_end(run_train, stopped, damaged, spoil, goes_on) -> None:
    """What came after the checkpoint, in weights, metrics.csv and run.json, is computed again, and only that."""
    folder = stopped(2)
    (checkpoint(folder).parent / ".last.ckpt.0123.tmp").touch()
    for role in damaged:
        spoil(checkpoint(folder, role))
    again = run_train(*QUICK, "run.dir=runs/mine", "resume=auto")
    assert again.code == 0, again.errors
    assert len(again.folders) == 1
    for role in damaged:
        assert f"Left out: {checkpoint('runs/mine', role)} " in again.printed
    if goes_on:
        assert f"going on from {checkpoint('runs/mine', goes_on)}" in again.printed
        assert "epoch 1/4" not in again.printed
        assert "epoch 2/4" in again.printed
    else:
        assert "afresh: there is no checkpoint to go on from" in again.printed
        assert "epoch 1/4" in again.printed
    assert not list(folder.rglob("*.tmp"))
    straight = run_train(*QUICK, "run.dir=runs/straight").folders[-1]
    assert_same_run(folder, straight)


@pytest.mark.medium
@pytest.mark.fault("B5", "B15")
def test_must_refuses_where_nothing_is_whole_and_auto_says_that_it_starts_afresh(run_train, stopped) -> None:
    folder = stopped(0)
    for role in ("last", "best"):
        # A crash is evidence of what went wrong: whole, and never gone on from.
        shutil.copy(checkpoint(folder, role), checkpoint(folder, "crash"))
        cut(checkpoint(folder, role))
    before = json.loads((folder / "run.json").read_text())
    refused = run_train(*QUICK, "run.dir=runs/mine", "resume=must")
    assert refused.code == 2
    assert "resume=must needs a whole checkpoint in 'runs/mine/checkpoints'" in refused.errors
    assert "last.ckpt does not fit its checksum" in refused.errors
    assert "Write resume=auto" in refused.errors
    assert len(refused.errors.splitlines()) <= 6
    assert "Traceback" not in refused.errors
    assert json.loads((folder / "run.json").read_text()) == before
    assert not list(folder.glob("*.lock"))

    for role in ("last", "best"):
        AtomicCheckpointIO().remove_checkpoint(checkpoint(folder, role))
    assert "there is none" in run_train(*QUICK, "run.dir=runs/mine", "resume=must").errors
    again = run_train(*QUICK, "trainer.max_epochs=1", "run.dir=runs/other", "resume=auto")
    assert "afresh: there is no checkpoint to go on from" in again.printed
    assert again.code == 0


@pytest.mark.medium
def test_a_damaged_best_is_told_and_the_best_of_the_epochs_to_come_kept(run_train, stopped) -> None:
    folder = stopped(2)
    alter(checkpoint(folder, "best"))
    again = run_train(*QUICK, "run.dir=runs/mine", "resume=must")
    assert again.code == 0, again.errors
    assert "Left out: runs/mine/checkpoints/best.ckpt" in again.printed
    assert "The best epoch is chosen among those still to come." in again.printed
    assert "going on from runs/mine/checkpoints/last.ckpt" in again.printed
    assert again.record["best_epoch"] == 3
    assert load_checkpoint(checkpoint(folder, "best"))["epoch"] == 3


@pytest.mark.medium
@pytest.mark.fault("A14")
def test_best_stays_best_when_a_moved_run_goes_on(run_train, stopped) -> None:
    folder = stopped(2)
    moved = folder.parent.parent / "elsewhere" / "moved"
    moved.parent.mkdir()
    folder.rename(moved)
    again = run_train(*QUICK, f"run.dir={moved}", "resume=must")
    assert again.code == 0, again.errors
    assert not folder.exists()
    straight = run_train(*QUICK, "run.dir=runs/straight").folders[-1]
    assert load_checkpoint(checkpoint(moved, "best"))["epoch"] == 0
    assert_same_run(moved, straight)


PATIENT = ("freezing=none", "trainer.max_epochs=8", "callbacks.early_stopping.patience=4")


@pytest.mark.medium
@pytest.mark.fault("A15")
def test_early_stopping_goes_on_counting(run_train, stopped) -> None:
    folder = stopped(3, *PATIENT)  # three epochs no better than the first
    assert run_train(*QUICK, *PATIENT, "run.dir=runs/mine", "resume=must").code == 0
    straight = run_train(*QUICK, *PATIENT, "run.dir=runs/straight")
    assert straight.record["epochs"] == 5
    assert_same_run(folder, straight.folders[-1])


@pytest.mark.medium
@pytest.mark.fault("A15")
@pytest.mark.parametrize("moment", ["on_train_end", "on_test_start"])
def test_a_run_that_has_stopped_early_trains_no_further(run_train, scripted, monkeypatch, moment: str) -> None:
    """Also where it is killed before its training is on record, or while the test split is measured."""
    from thaw.module import FineTuner

    def interrupt(self: FineTuner) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, moment, interrupt)
        assert run_train(*QUICK, *PATIENT, "run.dir=runs/mine").code == 130
    again = run_train(*QUICK, *PATIENT, "run.dir=runs/mine", "resume=must")
    assert again.code == 0, again.errors
    assert "epoch 6" not in again.printed
    straight = run_train(*QUICK, *PATIENT, "run.dir=runs/straight")
    assert straight.record["epochs"] == 5
    assert_same_run(again.folders[-1], straight.folders[-1])


# Of another network


@pytest.mark.medium
@pytest.mark.fault("B9", "B10")
def test_a_checkpoint_of_another_network_is_refused_before_training(run_train, stopped) -> None:
    folder = stopped(0)
    saved = load_checkpoint(checkpoint(folder))
    saved["state_dict"] = {
        name: held[:7].clone() if "head" in name else held for name, held in saved["state_dict"].items()
    }
    AtomicCheckpointIO().save_checkpoint(saved, checkpoint(folder))
    AtomicCheckpointIO().remove_checkpoint(checkpoint(folder, "best"))
    again = run_train(*QUICK, "run.dir=runs/mine", "resume=auto")
    assert again.code == 2
    assert "'runs/mine/checkpoints/last.ckpt' must be of this network; 2 of its tensors are of another" in again.errors
    assert "(7,) there, (10,) here" in again.errors
    assert "epoch" not in again.printed
    assert again.record["status"] == "interrupted"
    assert not list(folder.glob("*.lock"))


@pytest.mark.medium
@pytest.mark.fault("B10")
def test_another_model_family_is_refused_before_training(run_train, stopped) -> None:
    stopped(0)
    again = run_train(*QUICK, "run.dir=runs/mine", "resume=auto", "model=resnet18", "model.weights=none")
    assert again.code == 2
    assert "model.name was resnet_glyphs, is now resnet18" in again.errors
    assert "epoch" not in again.printed


@pytest.mark.medium
@pytest.mark.fault("B13")
def test_other_code_is_told(run_train, stopped, monkeypatch) -> None:
    monkeypatch.setattr("thaw.run.run.git", lambda: {"commit": "a" * 40, "dirty": True, "changes": "1"})
    stopped(1)
    monkeypatch.setattr("thaw.run.run.git", lambda: {"commit": "b" * 40, "dirty": True, "changes": "2"})
    monkeypatch.setattr("thaw.run.provenance.version", lambda package: "9.9" if package == "torch" else "0")
    said = " ".join(run_train(*QUICK, "run.dir=runs/mine", "resume=must").printed.split())
    assert f"torch was {version('torch')}, is now 9.9" in said
    assert "Thaw was aaaaaaa, is now bbbbbbb; Thaw has other changes that are in no commit." in said


@pytest.mark.medium
@pytest.mark.fault("B13")
def test_the_same_code_is_not_told(run_train, stopped) -> None:
    stopped(1)
    assert "other code" not in run_train(*QUICK, "run.dir=runs/mine", "resume=must").printed


@pytest.mark.fault("B13")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("scheduler=constant", "scheduler._target_ was thaw.scheduler.cosine, is now thaw.scheduler.constant"),
        ("trainer.max_epochs=6", "trainer.max_epochs was 4, is now 6"),
    ],
)
def test_another_schedule_or_a_longer_one_is_refused_before_training(run_train, stopped, change, told) -> None:
    """A rate depends on the length of the run: what was trained would have been trained otherwise."""
    stopped(0)
    again = run_train(*QUICK, "run.dir=runs/mine", "resume=auto", change)
    assert again.code == 2
    assert told in again.errors
    assert "epoch" not in again.printed


@pytest.mark.fault("B9")
def test_another_list_of_classes_is_refused_with_both(run_train, stopped_after_epoch, tmp_path: Path) -> None:
    from PIL import Image

    for name, grey in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (40, 36), (grey + number,) * 3).save(tmp_path / "images" / name / f"{number}.png")
    images = ("data=image_folder", "data.root=images", "data.val_size=0.25", "data.num_workers=0", "run.dir=runs/mine")
    command = [*images, *(text for text in QUICK if "train_size" not in text)]
    with stopped_after_epoch(0):
        assert run_train(*command).code == 130
    (tmp_path / "images" / "dark").rename(tmp_path / "images" / "dim")
    again = run_train(*command, "resume=auto")
    assert again.code == 2
    assert "the classes were 'dark', 'light', are now 'dim', 'light'" in again.errors
    assert "epoch" not in again.printed
