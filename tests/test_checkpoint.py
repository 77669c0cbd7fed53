"""Checkpoints: whole after a crash, free of code, and the two that a run keeps."""

import contextlib
import errno
import hashlib
import io
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from thaw.data.digits import Digits
from thaw.errors import Interrupted, RunError, UserError
from thaw.run import checksum, kept_checkpoints
from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint
from thaw.run.interruption import Interruption
from thaw.run.kept_checkpoints import checkpoints

STATE = {
    "epoch": 3,
    "state_dict": {"weight": torch.arange(6.0).reshape(2, 3)},
    "config": {"optimizer": {"lr": 1e-3, "options": None}, "names": ["a", "b"]},
    "metrics": {"val/accuracy": 0.5},
}


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def test_the_sum_is_of_what_was_written_though_its_memory_is_used_again() -> None:
    parts = [bytes([number]) * size for number, size in enumerate((10, 3 << 20, 1 << 20, 5))]
    memory, written = bytearray(max(map(len, parts))), io.BytesIO()
    writer = checksum.HashingWriter(written)
    for part in parts:
        memory[: len(part)] = part
        writer.write(memoryview(memory)[: len(part)])
        memory[:] = bytes(len(memory))
    assert written.getvalue() == b"".join(parts)
    assert writer.digest == hashlib.sha256(b"".join(parts)).hexdigest()


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert torch.equal(found["state_dict"]["weight"], expected["state_dict"]["weight"])
    assert {k: v for k, v in found.items() if k != "state_dict"} == {
        k: v for k, v in expected.items() if k != "state_dict"
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert f"'{path}'" in str(caught.value)
    return str(caught.value)


# Writing


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "new" / "folder" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    assert_same(load_checkpoint(path), STATE)
    assert_same(AtomicCheckpointIO().load_checkpoint(str(path)), STATE)
    assert names(path.parent) == ["last.ckpt", "last.ckpt.sha256"]


def test_newer_checkpoint_replaces_the_older(tmp_path):
    for epoch in range(3):
        AtomicCheckpointIO().save_checkpoint(STATE | {"epoch": epoch}, tmp_path / "last.ckpt")
    assert load_checkpoint(tmp_path / "last.ckpt")["epoch"] == 2
    assert names(tmp_path) == ["last.ckpt", "last.ckpt.sha256"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "disk full"), RunError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("half"), RuntimeError),
    ],
)
def test_crash_while_writing_leaves_the_older_file_whole(tmp_path, monkeypatch, error, told):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    before = path.read_bytes()

    def half(checkpoint: Any, file: Any) -> None:
        file.write(before[: len(before) // 2])
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(told):
        AtomicCheckpointIO().save_checkpoint(STATE | {"epoch": 4}, path)
    assert path.read_bytes() == before
    assert load_checkpoint(path)["epoch"] == 3
    assert names(tmp_path) == ["last.ckpt", "last.ckpt.sha256"]


def test_crash_of_the_first_checkpoint_leaves_no_file(tmp_path, monkeypatch):
    def fail(checkpoint: Any, file: Any) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RunError, match="disk full"):
        AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("copied", [False, True])
def test_file_is_on_the_disk_before_it_takes_its_name_and_the_name_after(tmp_path, monkeypatch, copied):
    """Without fsync before the rename, a power cut can leave the new name on an empty file; without one of the folder
    after it, the old name on nothing."""
    order, files = [], AtomicCheckpointIO()
    fsync, replace = os.fsync, os.replace
    if copied:
        files.save_checkpoint(STATE, tmp_path / "best.ckpt")
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(Path(os.readlink(f"/proc/self/fd/{fd}"))) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append((Path(a), Path(b))) or replace(a, b))
    if copied:
        files.copy_checkpoint(tmp_path / "best.ckpt", tmp_path / "last.ckpt")
    else:
        files.save_checkpoint(STATE, tmp_path / "last.ckpt")
    for written, (unfinished, path), folder in (order[:3], order[3:]):
        assert written == unfinished
        assert folder == path.parent == tmp_path
    assert [order[1][1].name, order[4][1].name] == ["last.ckpt", "last.ckpt.sha256"]


def test_removal_of_a_checkpoint_that_is_gone_is_no_error(tmp_path):
    AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "last.ckpt")
    for _ in range(2):
        AtomicCheckpointIO().remove_checkpoint(tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


# Reading


@pytest.mark.fault("S1")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    "load",
    [
        load_checkpoint,
        AtomicCheckpointIO().load_checkpoint,
        lambda path: AtomicCheckpointIO().load_checkpoint(path, weights_only=False),
    ],
    ids=["function", "plugin", "plugin told to trust"],
)
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path, bare, load):
    path, marker = tmp_path / "evil.ckpt", tmp_path / "marker"
    content = {"state_dict": {}, "extra": Intruder(marker)}
    path.write_bytes(pickle.dumps(content)) if bare else torch.save(content, path)
    with pytest.raises(UserError, match="must be a checkpoint of tensors and plain containers"):
        load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Intruder(marker)))  # it would have worked
    assert marker.exists()


def test_missing_checkpoint_is_named_with_a_way_out(tmp_path):
    message = refused(tmp_path / "last.ckpt")
    assert "it is missing" in message
    assert "resume=never" in message


def write_truncated(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-300])


def write_object(path: Path) -> None:
    torch.save({"network": nn.Linear(2, 2)}, path)


WAYS_TO_BREAK = [
    write_truncated,
    write_object,
    lambda path: path.touch(),
    lambda path: path.write_text("<html>404</html>"),
    lambda path: path.mkdir(),
]


@pytest.mark.parametrize("spoil", WAYS_TO_BREAK, ids=["truncated", "object", "empty", "html", "folder"])
def test_broken_checkpoint_is_named(tmp_path, spoil):
    spoil(tmp_path / "last.ckpt")
    message = refused(tmp_path / "last.ckpt")
    assert "must be a checkpoint of tensors and plain containers" in message
    assert len(message.splitlines()) <= 3


@pytest.mark.parametrize("spoil", WAYS_TO_BREAK, ids=["truncated", "object", "empty", "html", "folder"])
def test_broken_checkpoint_is_told_in_plain_words_with_a_way_out(tmp_path, spoil):
    """Torch's own words are cut in mid-sentence, coloured, and about a switch that the user does not have."""
    spoil(tmp_path / "last.ckpt")
    message = refused(tmp_path / "last.ckpt")
    assert "\x1b" not in message
    assert "weights_only" not in message
    assert message.endswith(".")


def test_tensors_come_back_on_the_cpu(tmp_path):
    torch.save(STATE, tmp_path / "last.ckpt")
    assert load_checkpoint(tmp_path / "last.ckpt")["state_dict"]["weight"].device.type == "cpu"


# Keeping


class Counting(L.LightningModule):
    """Its validation accuracy in each epoch is given, and its weight counts the steps."""

    def __init__(self, accuracies: list[float], fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.accuracies, self.fail_at = accuracies, fail_at

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == self.fail_at:
            raise RuntimeError("power cut")
        return -self.weight.sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/accuracy", self.accuracies[self.current_epoch], batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Cached(L.LightningDataModule):
    """Batches of which `ready` tells whether they come from the cache, as `Loaders` does."""

    ready: ClassVar[dict[str, Any]] = {}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(4, 1))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1, 1))


def fit(
    module: Counting,
    folder: Path,
    mode: Any = "max",
    every_n_steps: int | None = None,
    more: Sequence[L.Callback] = (),
    **options: Any,
) -> None:
    trainer = L.Trainer(
        max_epochs=len(module.accuracies),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*checkpoints(folder, "val/accuracy", mode, every_n_steps), *more],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, datamodule=Cached())


@pytest.mark.parametrize(("every_n_steps", "roles"), [(None, ["best", "last"]), (5, ["best", "last", "last"])])
def test_callbacks_are_best_and_last_and_steps(tmp_path, every_n_steps, roles):
    kept = checkpoints(tmp_path, "val/f1", "max", every_n_steps)
    assert [callback.filename for callback in kept] == roles
    assert [callback.monitor for callback in kept] == ["val/f1", None, None][: len(roles)]
    assert {Path(callback.dirpath) for callback in kept} == {tmp_path}
    # Lightning stores each callback's state under its key.
    assert len({callback.state_key for callback in kept}) == len(kept)


@pytest.mark.fault("B8")
@pytest.mark.parametrize(("mode", "best"), [("max", 1), ("min", 2)])
def test_best_follows_the_monitor_and_last_the_run(tmp_path, mode, best):
    fit(Counting([0.5, 0.9, 0.1, 0.6]), tmp_path, mode)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    kept = {name: load_checkpoint(tmp_path / f"{name}.ckpt") for name in ("best", "last")}
    assert {name: checkpoint["epoch"] for name, checkpoint in kept.items()} == {"best": best, "last": 3}
    assert float(kept["best"]["state_dict"]["weight"]) == 4 * (best + 1)
    assert float(kept["last"]["state_dict"]["weight"]) == 16


def test_an_epoch_that_is_the_best_is_written_once_and_copied(tmp_path, monkeypatch):
    saved, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: saved.append(content["epoch"]) or save(content, file))
    fit(Counting([0.5, 0.9, 0.1, 0.6]), tmp_path / "four")
    assert saved == [0, 1, 2, 3]
    fit(Counting([0.5, 0.9]), tmp_path / "two")
    best, last = (tmp_path / "two" / f"{name}.ckpt" for name in ("best", "last"))
    assert_same(load_checkpoint(last), load_checkpoint(best))
    best.write_bytes(b"spoilt")  # no link, so that the other is still there
    assert load_checkpoint(last)["epoch"] == 1
    with pytest.raises(UserError, match="checksum"):
        load_checkpoint(best)


class Leaving(Counting):
    """Stops in an epoch, as early stopping does, or is asked to by a signal."""

    def __init__(self, leave: Callable[[L.Trainer], None], epoch: int = 3) -> None:
        super().__init__([0.9, *[0.1] * 5])
        self.leave, self.epoch = leave, epoch

    def on_validation_epoch_end(self) -> None:
        if self.current_epoch == self.epoch:
            self.leave(self.trainer)


def stop(trainer: L.Trainer) -> None:
    trainer.should_stop = True


def ask(trainer: L.Trainer) -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("times", "cached", "leave", "epochs"),
    [
        (1e9, True, None, [0, 5]),
        (0, True, None, [0, 1, 2, 3, 4, 5]),
        (1e9, False, None, [0, 1, 2, 3, 4, 5]),
        (1e9, True, stop, [0, 3]),
        (1e9, True, ask, [0, 3]),
        (0, True, ask, [0, 1, 2, 3]),
    ],
)
def test_epochs_from_the_cache_do_not_wait_for_a_save_each(tmp_path, monkeypatch, times, cached, leave, epochs):
    """The first is the best, written once for both names; the last is always saved, however the run ends."""
    saved, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: saved.append(content["epoch"]) or save(content, file))
    monkeypatch.setattr(kept_checkpoints, "TIMES", times)
    monkeypatch.setattr(Cached, "ready", {"train": map} if cached else {})
    interruption = Interruption(SimpleNamespace(folder=tmp_path))
    with pytest.raises(Interrupted) if leave is ask else contextlib.nullcontext():
        fit(Leaving(leave or (lambda trainer: None)), tmp_path / "checkpoints", more=[interruption])
    assert saved == epochs
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["epoch"] == epochs[-1]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_last_of_equally_good_epochs_is_the_best(tmp_path, mode):
    better, worse = (0.9, 0.5) if mode == "max" else (0.5, 0.9)
    fit(Counting([worse, better, worse, better, worse]), tmp_path, mode)
    assert load_checkpoint(tmp_path / "best.ckpt")["epoch"] == 3


def test_an_epoch_that_was_not_validated_is_never_the_best(tmp_path):
    """Of equal epochs the last is, and Lightning tells the metrics of an epoch until the next validation."""
    fit(Counting([0.1, 0.9, 0.1, 0.5, 0.1]), tmp_path, check_val_every_n_epoch=2)
    assert {name: load_checkpoint(tmp_path / f"{name}.ckpt")["epoch"] for name in ("best", "last")} == {
        "best": 1,
        "last": 4,
    }


@pytest.mark.parametrize(("every_n_steps", "steps"), [(None, 4), (3, 6), (1, 7)])
def test_crash_within_an_epoch_loses_the_steps_since_the_last_checkpoint(tmp_path, every_n_steps, steps):
    with pytest.raises(RuntimeError, match="power cut"):
        fit(Counting([0.5, 0.9], fail_at=7), tmp_path, every_n_steps=every_n_steps)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    last = load_checkpoint(tmp_path / "last.ckpt")
    assert (last["global_step"], float(last["state_dict"]["weight"])) == (steps, steps)


class Watching(Counting):
    """Notes the samples of each step."""

    def __init__(self, epochs: int, fail_at: int | None = None) -> None:
        super().__init__([0.0] * epochs, fail_at)
        self.seen: list[tuple[int, int, bytes]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.seen.append((self.current_epoch, batch_idx, batch[0].numpy().tobytes()))
        return loss


def watch(folder: Path, fail_at: int | None = None, resume: Path | None = None) -> list[tuple[int, int, bytes]]:
    data = Digits(train_size=16, batch_size=4, num_workers=0)
    data.preprocess(channels=1, size=8, mean=[0.0], std=[1.0], interpolation="bilinear", crop_pct=1.0)
    module = Watching(2, fail_at)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=checkpoints(folder, "val/accuracy", "max", every_n_steps=3)[-1:],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
    )
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except RuntimeError as error:
        assert str(error) == "power cut"  # noqa: PT017
    return module.seen


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_run_resumed_within_an_epoch_sees_the_batches_that_were_left(tmp_path):
    whole = watch(tmp_path / "whole")
    assert len(whole) == 8
    watch(tmp_path / "cut", fail_at=7)
    rest = watch(tmp_path / "cut", resume=tmp_path / "cut" / "last.ckpt")
    assert [(epoch, batch) for epoch, batch, _ in rest] == [(1, 2), (1, 3)]
    assert rest == whole[6:]


def test_what_was_kept_is_known_to_the_last_detail_after_a_resume(tmp_path: Path) -> None:
    before, after = (checkpoints(tmp_path, "val/accuracy", "max")[0] for _ in range(2))
    path = str(tmp_path / "best.ckpt")
    before.best_model_path = before.kth_best_model_path = path
    before.best_k_models = {path: torch.tensor(0.75)}
    before.best_model_score, before.kth_value, before.current_score = torch.tensor([0.75, 0.75, 0.5])
    AtomicCheckpointIO().save_checkpoint({}, path)
    after.load_state_dict(before.state_dict())
    assert after.state_dict() == before.state_dict()
