"""Several processes: equal weights, each sample once, one run directory, and gradients of what trains alone."""

import copy
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import ROOT
from processes import on_two_ranks, train_here
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from thaw.build import TRAINER
from thaw.data.digits import Digits
from thaw.distributed import DDP
from thaw.errors import FreezeContractError
from thaw.freezing.by_group import Gradual, LastN
from thaw.freezing.freezing import Freezing
from thaw.freezing.surgical import Surgical
from thaw.model.timm import timm_network
from thaw.module import FineTuner
from thaw.optimizer import create_optimizer
from thaw.run.checkpoint import load_checkpoint
from thaw.run.record import Recorder
from thaw.scheduler import cosine
from thaw.task.classification import Classification

QUICK = ("trainer=ddp", "trainer.accelerator=cpu", "logger=none", "data.train_size=64", "optimizer.lr=1e-3")
VIT = {"weights": "none", "in_channels": 1, "image_size": 32}


class Watch(L.Callback):
    """Keeps the network after each epoch, and the bytes that each step sends."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.trainable: list[int] = []
        self.sent: list[int] = [0]
        self.seeds: list[int] = []

    def hook(self, state, bucket):  # DDP refuses annotations other than its own
        self.sent[-1] += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(state, bucket)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: FineTuner, *_: object) -> None:
        self.seeds.append(torch.initial_seed())
        self.trainable.append(sum(4 * p.numel() for p in pl_module.parameters() if p.requires_grad))
        self.sent.append(0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: FineTuner) -> None:
        self.states.append(copy.deepcopy(pl_module.network.state_dict()))


class Watched(DDP):
    """Lightning registers such a hook on GPUs alone."""

    def __init__(self, hook: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.hook = hook

    def configure_ddp(self) -> None:
        super().configure_ddp()
        self.model.register_comm_hook(None, self.hook)


def fit(
    strategy: Freezing,
    model: str = "test_vit",
    epochs: int = 3,
    ranks: int = 2,
    callbacks: tuple[L.Callback, ...] = (),
    optimizer: str = "sgd",
) -> Watch:
    """Three epochs of two global batches of 32."""
    L.seed_everything(0, verbose=False)
    torch.use_deterministic_algorithms(True)
    data = Digits(train_size=64, batch_size=32 // ranks, num_workers=0)
    network = timm_network(model, 10, **(VIT if model != "resnet_glyphs" else {}))
    data.preprocess(**network.preprocessing)
    strategy.prepare(network)
    watch = Watch()
    data.rank, data.ranks = int(os.environ.get("LOCAL_RANK", 0)), ranks
    module = FineTuner(
        network, Classification(data.classes), lambda n: create_optimizer(n, optimizer, lr=0.01), cosine()
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=Watched(watch.hook) if ranks > 1 else "auto",
        max_epochs=epochs,
        callbacks=[strategy, watch, *callbacks],
        logger=False,
        enable_checkpointing=False,
        **TRAINER,
    )
    trainer.fit(module, data)
    return watch


def watched(
    make: Callable[[], Freezing], model: str, ranks: int
) -> tuple[list[dict[str, Tensor]], list[int], list[int]]:
    watch = fit(make(), model, ranks=ranks)
    states = [{n: held.numpy() for n, held in state.items()} for state in watch.states]
    return states, watch.trainable, watch.sent[:-1]


def every_epoch() -> Freezing:
    return Gradual(every=1)


@pytest.mark.medium
def test_two_ranks_learn_what_one_process_learns_with_the_same_global_batch() -> None:
    """Also after thaws, when DDP must exchange the gradients of what did not train when it wrapped the network."""
    (first, trainable, sent), (second, *_) = on_two_ranks(watched, every_epoch, "test_vit", 2)
    (alone, *_) = watched(every_epoch, "test_vit", 1)
    for epoch in range(3):
        for name, held in alone[epoch].items():
            assert (first[epoch][name] == second[epoch][name]).all(), name
            torch.testing.assert_close(torch.tensor(first[epoch][name]), torch.tensor(held), atol=2e-6, rtol=1e-4)
        assert not epoch or sum((alone[epoch][n] != alone[epoch - 1][n]).any() for n in alone[0]) > 12  # it has thawed
    # Only what trains is sent, and that once: nothing of frozen groups, and nothing by a wrapper that was replaced.
    assert sent == trainable
    assert trainable[0] == trainable[1] < trainable[2] < trainable[4]


@pytest.mark.slow
def test_batch_norm_and_adamw_stay_equal_through_thaws() -> None:
    (first, trainable, sent), (second, *_) = on_two_ranks(watched, every_epoch, "resnet_glyphs", 2)
    assert sent == trainable
    for name in first[-1]:
        if "running" not in name and "num_batches" not in name:  # statistics are shared after the epoch
            assert (first[-1][name] == second[-1][name]).all(), name


def norms_and_seeds() -> tuple[dict[str, float], list[int]]:
    strategy = Surgical(batches=1)
    watch = fit(strategy, "resnet_glyphs", epochs=2)
    return strategy.relative_norms, watch.seeds


@pytest.mark.slow
def test_ranks_share_what_one_has_measured_and_draw_each_their_own() -> None:
    (norms, seeds), (other_norms, other_seeds) = on_two_ranks(norms_and_seeds)
    assert norms == other_norms
    assert len(seeds) == 4
    assert len({*seeds, *other_seeds}) == 8


def drifting(held: str) -> str:
    class Drift(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: FineTuner, *_: object) -> None:
            if trainer.global_rank == 1 and trainer.global_step == 3:
                dict(pl_module.network.named_parameters())[held].data[0] += 1e-6

    with pytest.raises(FreezeContractError) as error:
        fit(LastN(n=1), "resnet_glyphs", epochs=2, callbacks=(Drift(),))
    return str(error.value)


@pytest.mark.slow
def test_ranks_that_differ_are_told_on_both() -> None:
    told = "Rank 1 holds another 'head.linear.weight' than rank 0 (1 such)."
    assert on_two_ranks(drifting, "head.linear.weight") == [told, told]


# Whole runs, as torchrun starts them


def state(folder: Path, role: str = "last") -> dict[str, Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"{role}.ckpt")["state_dict"]


def assert_complete(folder: Path, samples: int = 360) -> dict[str, Any]:
    """One finished record, each sample once, and the figures those of the predictions."""
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert len(rows) == len({row["sample"] for row in rows}) == samples == record["data"]["sizes"]["test"]
    right = sum(row["target"] == row["prediction"] for row in rows) / samples
    assert record["metrics"]["test/accuracy"] == pytest.approx(right)
    assert not (folder / "run.lock").exists()
    return record


@pytest.mark.medium
def test_a_run_of_two_processes_is_one_run(tmp_path: Path) -> None:
    # 143 samples of validation: two batches for one rank, one for the other, who must not wait for it.
    command = (*QUICK, "freezing.every=1", "trainer.max_epochs=3", "data.val_size=0.0993", "data.batch_size=71")
    (code, printed), (other_code, other) = on_two_ranks(train_here, tmp_path, command)
    assert (code, other_code) == (0, 0), printed + other
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-resnet-gradual"]
    record = assert_complete(tmp_path / "runs" / "digits-resnet-gradual")
    assert [stage["epoch"] for stage in record["timeline"]] == [0, 1, 2]
    assert record["data"]["sizes"]["val"] == 143
    assert record["steps"] == 3 * record_steps(record)
    assert "Results at the best epoch" in printed
    assert "epoch" not in other.replace("Trainer.fit", "")


def record_steps(record: dict[str, Any]) -> int:
    """Steps an epoch of 64 samples, on two ranks."""
    return -(-64 // (2 * record["settled"]["batch_size"]))


class StopAfter:
    """Ctrl-C on every rank when an epoch is recorded."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self) -> None:
        record, last = Recorder.on_train_epoch_end, self.epoch

        def stop(self: Recorder, trainer: L.Trainer, module: FineTuner) -> None:
            record(self, trainer, module)
            if trainer.current_epoch == last:
                raise KeyboardInterrupt

        Recorder.on_train_epoch_end = stop


@pytest.mark.slow
def test_sharded_parameters_learn_what_whole_ones_do(tmp_path: Path) -> None:
    command = (*QUICK, "freezing.every=1", "trainer.max_epochs=3")
    for trainer in ("ddp", "fsdp"):
        ended = on_two_ranks(train_here, tmp_path, (*command, f"trainer={trainer}", f"run.dir=runs/{trainer}"))
        assert [code for code, _ in ended] == [0, 0], ended
        assert_complete(tmp_path / "runs" / trainer)
    whole, sharded = (state(tmp_path / "runs" / name) for name in ("ddp", "fsdp"))
    assert whole.keys() == sharded.keys()
    assert max(float((held - sharded[name]).abs().max()) for name, held in whole.items()) < 1e-5


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_bit_for_bit(tmp_path: Path) -> None:
    command = (*QUICK, "freezing.every=1", "trainer.max_epochs=3", "model.dropout=0.2")
    whole = on_two_ranks(train_here, tmp_path, (*command, "run.dir=runs/whole"))
    parts = (*command, "run.dir=runs/parts")
    stopped = on_two_ranks(train_here, tmp_path, parts, StopAfter(0))
    again = on_two_ranks(train_here, tmp_path, (*parts, "resume=must"))
    codes = [code for code, _ in (*whole, *stopped, *again)]
    # The second rank may first see the connection to the one that leaves break.
    assert (codes[2], codes[3] in (1, 130), [*codes[:2], *codes[4:]]) == (130, True, [0] * 4), again
    first, second = (state(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert all(torch.equal(held, second[n]) for n, held in first.items())
    records = [assert_complete(tmp_path / "runs" / name) for name in ("whole", "parts")]
    for key in ("metrics", "timeline", "contract", "best_epoch", "steps"):
        assert records[0][key] == records[1][key], key
    finished = on_two_ranks(train_here, tmp_path, (*parts, "resume=must"))
    assert [code for code, _ in finished] == [0, 0]


@pytest.mark.medium
def test_two_processes_share_what_one_of_them_has_computed(tmp_path: Path) -> None:
    command = (*QUICK, "freezing=last_n", "data.augment=none", "trainer.max_epochs=3", "cache.dir=cache")
    for words in (("run.dir=runs/kept",), ("run.dir=runs/plain", "cache=none")):
        ended = on_two_ranks(train_here, tmp_path, (*command, *words))
        assert [code for code, _ in ended] == [0, 0], ended
    kept, plain = (state(tmp_path / "runs" / name) for name in ("kept", "plain"))
    assert all(torch.equal(held, plain[name]) for name, held in kept.items())
    features = assert_complete(tmp_path / "runs" / "kept")["features"]
    assert [(entry["split"], entry["after"]) for entry in features] == [("train", "block02"), ("val", "block02")]
    assert len(list((tmp_path / "cache").glob("*/entry.json"))) == 2


@pytest.mark.medium
def test_a_mistake_ends_every_process_with_code_2(tmp_path: Path) -> None:
    for command, said in (
        (("resume=must", "run.dir=runs/nothing"), "resume=must needs an earlier run of the same command"),
    ):
        ended = on_two_ranks(train_here, tmp_path, (*QUICK, *command))
        assert [code for code, _ in ended] == [2, 2]
        assert all(said in printed for _, printed in ended)
        assert not (tmp_path / "runs" / "nothing").exists()


# What cannot work


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("trainer.devices=2",), "trainer must have a strategy for 2 processes; it has none. Write trainer=ddp."),
        (("trainer=ddp", "-m", "hydra/launcher=basic"), "A sweep (-m) must run in one process"),
        (
            ("trainer=ddp", "data=text_hub", "data.streaming=true", "data.train_size=8", "data.hub=x", "model=bert"),
            "data.streaming must be false with 2 processes",
        ),
        (("trainer=ddp", "trainer.num_nodes=2"), "trainer.num_nodes above 1 must be started by torchrun or SLURM"),
        (("trainer=fsdp", "freezing=surgical"), "freezing.groups must be named with trainer=fsdp; got auto."),
        (("trainer=fsdp", "callbacks=ema"), "callbacks.ema must go without trainer=fsdp."),
        (("trainer=fsdp", "regularization=l2_sp"), "regularization must be none with trainer=fsdp"),
    ],
)
def test_what_cannot_work_in_several_processes_is_refused(run_train, tmp_path, overrides, said: str) -> None:
    outcome = run_train("logger=none", *overrides, "trainer.accelerator=cpu")
    assert outcome.code == 2
    assert said in outcome.errors
    assert not (tmp_path / "runs").exists()


# As a user starts it


def started(folder: Path, *command: str) -> subprocess.CompletedProcess:
    place = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=place, capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_python_train_py_starts_the_second_process_by_itself(tmp_path: Path) -> None:
    ended = started(tmp_path, str(ROOT / "train.py"), *QUICK, "freezing.every=1", "trainer.max_epochs=2")
    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-resnet-gradual"]
    assert_complete(tmp_path / "runs" / "digits-resnet-gradual")
    assert "UserWarning" not in ended.stderr


@pytest.mark.slow
def test_torchrun_shares_one_run_directory(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "train.py"))
    ended = started(tmp_path, *torchrun, *QUICK, "trainer.max_epochs=2")
    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-resnet-gradual"]
    assert_complete(tmp_path / "runs" / "digits-resnet-gradual")


@pytest.mark.slow
def test_a_mistake_found_while_training_starts_ends_with_code_2_and_no_hang(tmp_path: Path) -> None:
    ended = started(tmp_path, str(ROOT / "train.py"), *QUICK, "freezing.on=plateau", "monitor=train/loss")
    assert ended.returncode == 2, ended.stderr
    assert "monitor must be of validation" in ended.stderr
