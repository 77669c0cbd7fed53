"""Whole runs: what is printed, what lies on disk, what a second run does."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHARED
from omegaconf import OmegaConf

from thaw.run.checkpoint import load_checkpoint

QUICK = ("logger=none", "data.train_size=64", "trainer.max_epochs=3", "trainer=cpu")


def weights(folder: Path, role: str = "last") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"{role}.ckpt")["state_dict"]


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.medium
def test_a_run_tells_its_plan_its_thaws_and_its_results(run_train) -> None:
    outcome = run_train(*QUICK)
    assert outcome.code == 0, outcome.errors
    said = outcome.printed
    rows = [line.split() for line in said.splitlines()]
    for split, count, rarest, most in (("train", 64, 6, 7), ("val", 144, 14, 15), ("test", 360, 35, 37)):
        assert [split, str(count), "10", f"({rarest}", "–", str(most), "each)"] in rows
    for text in (
        "under 10 training samples: ",
        "layer group",
        "block03",
        "frozen",
        "thaws",
        "epoch 3/3",
        "test",
        "auroc",
    ):
        assert text in said
    assert "Run directory: runs/digits-resnet-gradual" in said


@pytest.mark.medium
def test_run_json_is_whole(run_train) -> None:
    outcome = run_train(*QUICK, "seed=3")
    record, folder = outcome.record, outcome.folders[-1]
    assert record["status"] == "finished"
    assert record["seed"] == 3
    assert record["overrides"] == [*QUICK, "seed=3"]
    assert record["command"].startswith("python train.py logger=none")
    assert record["data"]["sizes"] == {"train": 64, "val": 144, "test": 360}
    assert record["parameters"] == {"total": 318394, "trainable_at_end": 318394}
    assert [stage["epoch"] for stage in record["timeline"]] == [0, 1, 2]
    assert record["epochs"] == 3
    assert record["seconds"] > 0
    assert record["peak_memory_bytes"] > 1e8
    names = ("loss", "accuracy", "f1", "auroc", "mcc", "top5")
    expected = {f"{split}/{name}" for split in ("train", "val", "test") for name in names} - {"train/auroc"}
    assert set(record["metrics"]) == expected
    assert all(math.isfinite(value) for value in record["metrics"].values())
    for name in ("config.yaml", "metrics.csv", "predictions.csv", "per_class.csv"):
        assert (folder / name).is_file()
    assert not list(folder.glob("*.lock"))
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.medium
def test_the_figures_of_the_record_are_those_of_the_files(run_train) -> None:
    outcome = run_train(*QUICK)
    folder, record = outcome.folders[-1], outcome.record
    rows = table(folder / "metrics.csv")
    best = max(float(row["val/accuracy"]) for row in rows if row["val/accuracy"])
    assert record["metrics"]["val/accuracy"] == pytest.approx(best)
    assert load_checkpoint(folder / "checkpoints" / "best.ckpt")["epoch"] == record["best_epoch"]
    predictions = table(folder / "predictions.csv")
    assert len(predictions) == 360
    right = sum(row["target"] == row["prediction"] for row in predictions) / 360
    assert record["metrics"]["test/accuracy"] == pytest.approx(right)
    assert {"lr/head/decay", "lr/block03/no_decay"} <= set(rows[0])


@pytest.mark.medium
@pytest.mark.fault("B11")
def test_checkpoints_hold_plain_containers_and_the_last_is_the_last(run_train) -> None:
    outcome = run_train(*QUICK, "monitor=val/loss")
    last = outcome.folders[-1] / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    assert state["epoch"] == 2
    assert state["hyper_parameters"]["optimizer"]["name"] == "adamw"
    assert torch.serialization.get_unsafe_globals_in_checkpoint(last) == []


@pytest.mark.medium
def test_the_same_seed_gives_the_same_run_and_another_seed_another(run_train) -> None:
    first = run_train(*QUICK, "model.dropout=0.3").folders[-1]
    second = run_train(*QUICK, "model.dropout=0.3").folders[-1]
    other = run_train(*QUICK, "model.dropout=0.3", "seed=1").folders[-1]
    assert first != second
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(other))


@pytest.mark.medium
@pytest.mark.fault("A1")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("freezing", ["gradual", "probe_then_tune"])
@pytest.mark.parametrize("scheduler", ["cosine", "plateau"])
def test_a_run_stopped_at_an_epoch_and_resumed_is_the_same_run(
    run_train, monkeypatch: pytest.MonkeyPatch, workers: int, freezing: str, scheduler: str
) -> None:
    """Bit for bit, with dropout, shuffling and augmentation, before and after the thaw."""
    from thaw.run.record import Recorder

    command = (
        *QUICK, "trainer.max_epochs=4", f"freezing={freezing}", f"scheduler={scheduler}",
        "model.dropout=0.3", f"data.num_workers={workers}",
    )  # fmt: skip
    straight = run_train(*command, "run.dir=runs/straight").folders[-1]

    record_epoch = Recorder.on_train_epoch_end

    def stop_after(epoch: int):
        def stop(self, trainer, module) -> None:
            record_epoch(self, trainer, module)
            if trainer.current_epoch == epoch:
                raise KeyboardInterrupt

        return stop

    for epoch in (0, 2):
        monkeypatch.setattr(Recorder, "on_train_epoch_end", stop_after(epoch))
        stopped = run_train(*command, "run.dir=runs/stopped", "resume=auto")
        assert stopped.code == 130
        assert stopped.record["status"] == "interrupted"
        assert "resume=auto" in stopped.printed
    monkeypatch.setattr(Recorder, "on_train_epoch_end", record_epoch)
    outcome = run_train(*command, "run.dir=runs/stopped", "resume=auto")
    resumed = outcome.folders[-1]
    assert resumed.name == "stopped"
    first, second = (load_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (straight, resumed))
    assert same(first["state_dict"], second["state_dict"])
    assert str(first["optimizer_states"]) == str(second["optimizer_states"])
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert first["metrics"] == second["metrics"]
    records = [json.loads((folder / "run.json").read_text()) for folder in (straight, resumed)]
    for key in ("metrics", "timeline", "best_epoch", "epochs", "steps"):
        assert records[0][key] == records[1][key]
    rows = [table(folder / "metrics.csv") for folder in (straight, resumed)]
    val = [[row["val/loss"] for row in part if row["val/loss"]] for part in rows]
    assert val[0] == val[1]
    assert len(val[0]) == 4


@pytest.mark.medium
@pytest.mark.fault("B14")
def test_a_finished_run_is_not_run_again(run_train) -> None:
    run_train(*QUICK)
    again = run_train(*QUICK, "resume=auto")
    assert again.code == 0
    assert len(again.folders) == 1
    assert "Already finished" in again.printed


@pytest.mark.medium
@pytest.mark.fault("B12")
def test_changed_settings_are_refused_on_resume_with_the_difference(run_train) -> None:
    run_train(*QUICK, "run.dir=runs/mine")
    again = run_train(*QUICK, "run.dir=runs/mine", "resume=auto", "optimizer.lr=77", "logger=wandb")
    assert again.code == 2
    assert "optimizer.lr was None, is now 77" in again.errors
    assert again.record["status"] == "finished"
    assert run_train(*QUICK, "run.dir=runs/mine", "resume=auto", "data.num_workers=1").code == 0


def test_a_run_that_diverges_is_no_finished_run(run_train) -> None:
    outcome = run_train(*QUICK, "optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "freezing=none")
    assert outcome.code == 1
    assert outcome.record["status"] == "failed"
    assert "optimizer.lr" in outcome.record["reason"]


@pytest.mark.medium
@pytest.mark.parametrize("monitor", ["train/loss", "val/loss"])
def test_plateau_follows_the_monitor_of_either_split(run_train, monitor: str) -> None:
    """A rate too small to improve anything must fall after the patience."""
    plateau = ("scheduler=plateau", "scheduler.patience=0", "scheduler.warmup=0", "optimizer.lr=1e-12")
    outcome = run_train(
        *QUICK, *plateau, f"monitor={monitor}", "data.augment=none", "freezing=none", "trainer.max_epochs=5"
    )
    rates = [
        float(row["lr/block03/decay"]) for row in table(outcome.folders[-1] / "metrics.csv") if row["lr/block03/decay"]
    ]
    assert min(rates) < 0.5 * max(rates)


@pytest.mark.medium
@pytest.mark.fault("B15")
def test_resume_without_an_earlier_run(run_train) -> None:
    assert run_train(*QUICK, "resume=must").code == 2
    afresh = run_train(*QUICK, "resume=auto")
    assert afresh.record["status"] == "finished"
    assert "afresh: there is no checkpoint to go on from" in afresh.printed


def test_a_failure_is_recorded_with_its_reason(run_train, monkeypatch: pytest.MonkeyPatch) -> None:
    from thaw.task.classification import Classification

    def broken(*_: object) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(Classification, "loss", broken)
    outcome = run_train(*QUICK)
    assert outcome.code == 1
    assert outcome.record["status"] == "failed"
    assert outcome.record["reason"] == "RuntimeError: the disk is on fire"
    assert "the disk is on fire" in (outcome.folders[-1] / "error.log").read_text()


@pytest.mark.medium
def test_a_multirun_makes_a_directory_for_each_job(run_train, tmp_path: Path) -> None:
    outcome = run_train("-m", *QUICK, "trainer.max_epochs=1", "freezing=none,linear_probe", "seed=0,1")
    assert outcome.code == 0, outcome.errors
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/sweeps/*/*/run.json")]
    assert len(records) == 4
    assert {(r["seed"], r["parameters"]["trainable_at_end"]) for r in records} == {
        (seed, count) for seed in (0, 1) for count in (318394, 1290)
    }


@pytest.mark.medium
@pytest.mark.parametrize(
    "override",
    [
        *(f"optimizer={name}" for name in ("adam", "sgd", "rmsprop", "lion")),
        *(f"scheduler={name}" for name in ("linear", "constant", "one_cycle", "polynomial", "step")),
        "scheduler=warmup_stable_decay",
        "scheduler=plateau",
        *(f"freezing={name}" for name in ("none", "linear_probe", "last_n")),
        "freezing.batch_norm=adapt",
        "freezing.batch_norm=train",
        "optimizer.name=lamb",
        "data.augment=strong",
        "data.mixup=0.2 data.cutmix=1.0 task.label_smoothing=0.1",
        "model.drop_path=0.1 optimizer.layer_decay=0.8",
        "callbacks=none report=none",
        "logger=tensorboard",
        "checkpoint.every_n_steps=2 trainer.accumulate_grad_batches=2",
    ],
)
def test_every_word_of_the_readme_trains(run_train, override: str) -> None:
    outcome = run_train(*QUICK, "trainer.max_epochs=2", *override.split())
    assert outcome.code == 0, outcome.errors
    assert math.isfinite(outcome.record["metrics"]["test/loss"])


def test_an_image_folder_without_test_reports_validation_and_says_so(run_train, tmp_path: Path) -> None:
    from PIL import Image

    for name, grey in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (40, 36), (grey + number,) * 3).save(tmp_path / "images" / name / f"{number}.png")
    outcome = run_train(
        "data=image_folder", "data.root=images", "data.val_size=0.25", "data.num_workers=0", *QUICK[:1], *QUICK[2:]
    )
    assert outcome.code == 0, outcome.errors
    assert "no test split" in outcome.printed
    assert outcome.record["data"]["classes"] == ["dark", "light"]
    assert not [name for name in outcome.record["metrics"] if name.startswith("test/")]
    assert outcome.record["data"]["sizes"] == {"train": 18, "val": 6}


def test_weights_that_cannot_be_had_stop_the_run_in_words(run_train) -> None:
    outcome = run_train("model=resnet18")
    assert outcome.code == 2
    assert "model.weights=none" in outcome.errors
    assert len(outcome.errors.strip().splitlines()) <= 6
    assert not outcome.folders


@pytest.mark.medium
@pytest.mark.fault("F4")
def test_wandb_offline_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The one run with the real logger: no key, no prompt, one line that says how to sync."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "data.train_size=64",
        "trainer.max_epochs=2",
        "optimizer.lr=3e-5",
    ]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
    )
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("W&B"))
    assert "no API key" in line
    folder = tmp_path / line.partition("wandb sync ")[2]
    log = next(folder.glob("*.wandb")).read_bytes()
    for text in (b"head_lr_scale", b"lr/head/decay", b"test/accuracy"):
        assert text in log
    written = OmegaConf.load(next(tmp_path.glob("runs/*/config.yaml")))
    assert written.optimizer.lr == 3e-5


@pytest.mark.parametrize(
    ("number", "code", "status"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "interrupted")]
)
@pytest.mark.fault("C1", "C3")
@pytest.mark.slow
def test_a_signal_ends_the_run_with_its_own_code(tmp_path: Path, number: int, code: int, status: str) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "logger=none", "trainer.max_epochs=100", "callbacks=none"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("epoch 1/"):
            break
    began = time.monotonic()
    process.send_signal(number)
    said += process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == code, "".join(said)
    assert time.monotonic() - began < 10
    record = json.loads(next(tmp_path.glob("runs/*/run.json")).read_text())
    assert record["status"] == "interrupted"
    assert any("resume=auto" in line for line in said)


@pytest.mark.skipif(not (SHARED / "data/hymenoptera").is_dir(), reason="needs the shared data (THAW_SHARED)")
def test_real_photographs_through_real_weights(run_train) -> None:
    outcome = run_train(
        "experiment=hymenoptera", f"data.root={SHARED}/data/hymenoptera",
        f"model.weights={SHARED}/weights/mobilenetv2_100.safetensors", "logger=none", "data.image_size=96",
        "data.train_size=0.5", "freezing=linear_probe", "trainer.max_epochs=5",
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    assert outcome.record["metrics"]["val/accuracy"] > 0.75
