"""NaN and Inf: injected into the loss, a gradient, a metric or the rate of a whole run."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Outcome
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from thaw.data.datamodule import DataModule
from thaw.data.digits import Digits
from thaw.module import FineTuner
from thaw.run import finite
from thaw.run.checkpoint import load_checkpoint
from thaw.task.classification import Classification

QUICK = ("logger=none", "data.train_size=64", "trainer.max_epochs=4", "trainer=cpu", "freezing=none")
SHORT = ("trainer.max_epochs=2", "+trainer.limit_test_batches=1", "data.num_workers=0")
STEPS = 4  # an epoch has them, of 16 samples each
WRONG = 6  # the step at which it goes wrong: the second of the second epoch


class Counted:
    """Changes what the n-th training step sees, and remembers which samples it saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
        self.calls, self.labels, self.change = 0, [], change
        step = FineTuner.training_step

        def counted(module: FineTuner, batch: Any, batch_idx: int) -> Tensor:
            self.calls += 1
            self.labels.append(batch[1].tolist())
            return change(module, step(module, batch, batch_idx), self.calls)

        monkeypatch.setattr(FineTuner, "training_step", counted)


def nan_loss(module: FineTuner, loss: Tensor, call: int) -> Tensor:
    return loss * math.nan if call == WRONG else loss


def inf_gradient(module: FineTuner, loss: Tensor, call: int) -> Tensor:
    """The loss is finite, and its gradient by the weights of `block02` is not."""
    if call == WRONG:
        weight = next(p for p in module.network.groups["block02"].values() if p.ndim > 1)
        weight.register_post_accumulate_grad_hook(spoil_gradient)
    return loss


def spoil_gradient(parameter: torch.nn.Parameter) -> None:
    parameter.grad[(0,) * parameter.ndim] = math.inf


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: nothing is looked at for eight steps, unless it is to be saved."""
    monkeypatch.setattr(finite, "looks_each_step", lambda *_: False)


@pytest.fixture(params=["at once", "deferred"])
def either_way(request: pytest.FixtureRequest) -> None:
    if request.param == "deferred":
        request.getfixturevalue("deferred")


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "checkpoints").glob("*.ckpt")}


def assert_finite(folder: Path, *roles: str) -> None:
    for role in roles:
        checkpoint = load_checkpoint(folder / "checkpoints" / f"{role}.ckpt")
        tensors = [*checkpoint["state_dict"].values()]
        tensors += [v for s in checkpoint["optimizer_states"][0]["state"].values() for v in s.values()]
        assert all(torch.as_tensor(tensor).isfinite().all() for tensor in tensors), role


def assert_stopped(outcome: Outcome, what: str) -> dict[str, Any]:
    """Exit code 1, at most six lines on the screen without a traceback, and all of it in run.json and error.log."""
    assert outcome.code == 1, outcome.errors
    told = outcome.errors.strip().splitlines()
    assert len(told) <= 6
    assert told[0].startswith("error: Training must stay finite; at step ")
    assert what in told[0]
    assert "Traceback" not in outcome.errors
    assert outcome.record["status"] == "failed"
    assert outcome.record["reason"].startswith("NonFiniteError: Training must stay finite; ")
    assert "Traceback" in (outcome.folders[-1] / "error.log").read_text()
    return outcome.record["failure"]


def names(outcome: Outcome, labels: list[int]) -> bool:
    """Whether the samples of run.json are those of the batch, told by their labels."""
    targets = Digits(train_size=64).splits["train"].targets
    return [int(targets[int(name)]) for name in outcome.record["failure"]["samples"]] == labels


@pytest.mark.fault("D1")
def test_on_one_cpu_not_even_the_weights_in_memory_are_touched(run_train, monkeypatch) -> None:
    counted, stop, seen = Counted(monkeypatch, nan_loss), finite.Finite._stop, []

    def stopping(callback: finite.Finite, trainer: L.Trainer, fact: Any) -> None:
        seen.append((counted.calls, all(bool(p.isfinite().all()) for p in trainer.lightning_module.parameters())))
        stop(callback, trainer, fact)

    monkeypatch.setattr(finite.Finite, "_stop", stopping)
    run_train(*QUICK, *SHORT)
    assert seen == [(WRONG, True)]


@pytest.mark.fault("D1", "D4")
@pytest.mark.usefixtures("either_way")
def test_a_loss_that_is_no_number_stops_the_run_and_reaches_no_checkpoint(run_train, monkeypatch) -> None:
    counted = Counted(monkeypatch, nan_loss)
    kept: dict[str, str] = {}
    train_epoch_end = finite.Finite.on_train_epoch_start

    def remember(self: Any, trainer: L.Trainer, *_: object) -> None:
        train_epoch_end(self, trainer, *_)
        kept.update(digests(Path(trainer.default_root_dir)))

    monkeypatch.setattr(finite.Finite, "on_train_epoch_start", remember)
    outcome = run_train(*QUICK, "data.batch_size=16")
    fact = assert_stopped(outcome, f"at step {WRONG} (epoch 2, batch 2) the loss is nan")
    folder = outcome.folders[-1]
    after = digests(folder)
    assert counted.calls <= 2 * STEPS  # it never begins another epoch
    assert after.keys() == {"best.ckpt", "last.ckpt", "crash.ckpt"}
    assert {name: after[name] for name in kept} == kept
    assert_finite(folder, "best", "last")
    assert len(fact["samples"]) == 16
    assert fact["lr"] > 0
    assert fact["group"] == "head"  # where the backward pass begins
    assert "crash.ckpt" in outcome.errors
    assert outcome.record["epochs"] == 1
    assert names(outcome, counted.labels[WRONG - 1])


@pytest.mark.fault("D2")
@pytest.mark.usefixtures("either_way")
def test_an_infinite_gradient_of_a_finite_loss_stops_the_run(run_train, monkeypatch) -> None:
    counted = Counted(monkeypatch, inf_gradient)
    outcome = run_train(*QUICK, "data.batch_size=16")
    fact = assert_stopped(outcome, f"at step {WRONG} (epoch 2, batch 2) the gradient is inf, the loss ")
    assert fact["group"] == "block02"
    assert "Largest gradient: block02 (inf)" in outcome.errors
    assert math.isfinite(fact["loss"])
    assert names(outcome, counted.labels[WRONG - 1])
    assert_finite(outcome.folders[-1], "best", "last")


@pytest.mark.medium
@pytest.mark.fault("D1", "D2")
@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.accumulate_grad_batches=2",),
        ("trainer.gradient_clip_val=null",),
        ("trainer.precision=bf16-mixed",),
        ("callbacks=ema",),
        ("optimizer=sgd", "data.sampler=balanced"),
    ],
)
def test_it_is_seen_under_accumulation_clipping_and_mixed_precision(run_train, monkeypatch, overrides) -> None:
    counted = Counted(monkeypatch, nan_loss)
    outcome = run_train(*QUICK, "data.batch_size=16", *overrides)
    step = WRONG // 2 if "accumulate" in overrides[0] else WRONG
    assert_stopped(outcome, f"at step {step} (epoch 2, batch 2) the loss is nan")
    assert names(outcome, counted.labels[WRONG - 1])  # of two batches that make one step, the one
    assert_finite(outcome.folders[-1], "best", "last")


@pytest.mark.fault("D7")
@pytest.mark.parametrize(("optimizer", "freezing"), [("adamw", "none"), ("adam", "linear_probe"), ("sgd", "none")])
def test_a_rate_of_1e10_is_no_silent_success(run_train, optimizer: str, freezing: str) -> None:
    """Also where the loss stays finite, as it does under Adam on a frozen body: it is 1e12."""
    words = (f"optimizer={optimizer}", f"freezing={freezing}", "optimizer.weight_decay=0")
    outcome = run_train(*QUICK, *words, "optimizer.lr=1e10")
    assert_stopped(outcome, "the loss is")
    assert outcome.record["failure"]["step"] <= 8
    assert "optimizer.lr" in outcome.errors


@pytest.mark.parametrize(
    ("held", "words", "told"),
    [
        ("conv1.weight", (), "block01"),
        ("bn1.running_var", (), "body.layer2.0.bn1"),
        ("bn1.running_var", ("freezing=linear_probe", "freezing.batch_norm=adapt"), "body.layer2.0.bn1"),
    ],
)
def test_what_the_last_step_of_an_epoch_has_spoilt_is_not_saved(run_train, monkeypatch, held, words, told) -> None:
    """Weights that train, and the statistics that follow the data, also those of frozen groups."""
    begin = FineTuner.on_train_batch_start

    def spoil(module: FineTuner, batch: Any, batch_idx: int) -> None:
        begin(module, batch, batch_idx)
        if module.current_epoch == 1 and batch_idx == STEPS - 1:
            module.trainer.optimizers[0].register_step_post_hook(lambda *_: spoilt(module))

    def spoilt(module: FineTuner) -> None:
        module.network.body.state_dict()[f"layer2.0.{held}"][0] = math.nan

    monkeypatch.setattr(FineTuner, "on_train_batch_start", spoil)
    outcome = run_train(*QUICK, "data.batch_size=16", *words)
    fact = assert_stopped(outcome, f"at step {2 * STEPS} (epoch 2) the weights of '{told}' are not")
    assert fact["group"] == told
    assert_finite(outcome.folders[-1], "best", "last")


def spoilt_metric(monkeypatch: pytest.MonkeyPatch, epochs: set[int], value: float) -> None:
    """val/accuracy, and it alone, is `value` in these epochs."""
    compute, calls = Classification.compute, {"val": -1}

    def wrong(self: Classification, split: str) -> dict[str, Tensor]:
        metrics = compute(self, split)
        if split == "val":
            calls["val"] += 1
            if calls["val"] in epochs:
                metrics["val/accuracy"] = torch.tensor(value)
        return metrics

    monkeypatch.setattr(Classification, "compute", wrong)


@pytest.mark.medium
@pytest.mark.fault("D3")
@pytest.mark.parametrize(("value", "epochs"), [(math.nan, {0}), (math.nan, {1}), (math.inf, {1})])
def test_an_epoch_whose_metric_is_no_number_is_never_the_best(run_train, monkeypatch, value, epochs) -> None:
    """Also the first, when there is no other to compare with, and also in the eyes of early stopping."""
    spoilt_metric(monkeypatch, epochs, value)
    outcome = run_train(*QUICK, *SHORT)
    assert outcome.code == 0, outcome.errors
    assert outcome.record["epochs"] == 2  # training has gone on
    assert outcome.record["best_epoch"] not in epochs
    assert outcome.record["not_finite"] == {"val/accuracy": [epoch + 1 for epoch in epochs]}
    assert f"val/accuracy is {value}, and never best" in outcome.printed


@pytest.mark.fault("D3")
def test_a_metric_that_is_never_a_number_ends_in_words(run_train, monkeypatch) -> None:
    spoilt_metric(monkeypatch, set(range(9)), math.nan)
    outcome = run_train(*QUICK, *SHORT)
    assert outcome.code == 1
    assert "val/accuracy was NaN or Inf in all" in outcome.errors
    assert "Traceback" not in outcome.errors
    assert not (outcome.folders[-1] / "checkpoints" / "best.ckpt").exists()
    assert_finite(outcome.folders[-1], "last")


@pytest.mark.fault("D3")
def test_a_plateau_is_not_fooled_by_a_metric_that_is_no_number(run_train, monkeypatch) -> None:
    """As the first value NaN would never be improved on, and so every epoch would thaw."""
    spoilt_metric(monkeypatch, {0}, math.nan)
    words = ("freezing=gradual", "freezing.on=plateau", "freezing.patience=2", "optimizer.lr=1e-3", "data.augment=none")
    outcome = run_train(*QUICK, *SHORT, *words)
    assert outcome.code == 0, outcome.errors
    assert outcome.record["freezing"]["best"] is not None
    assert math.isfinite(outcome.record["freezing"]["best"])


# What a gradient scaler skips


class Scaled(L.LightningModule):
    """One weight, under float16 with a scaler, whose loss is infinite in given steps."""

    def __init__(self, wrong: set[int]) -> None:
        super().__init__()
        self.network = torch.nn.Linear(1, 1, bias=False)
        self.network.groups = {"head": dict(self.network.named_parameters())}
        self.wrong = wrong

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.network(batch[0]).float().square().mean()
        return loss * math.inf if batch_idx in self.wrong else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"name": "head/decay", "params": self.network.parameters()}], lr=0.01)


def fit_scaled(tmp_path: Path, wrong: set[int]) -> Scaled:
    class Held:
        def __init__(self) -> None:
            self.folder, self.record = tmp_path, {}

        def update(self, **fields: Any) -> None:
            (tmp_path / "run.json").write_text(json.dumps(fields, default=str))

    class NoNames(DataModule):
        def __init__(self) -> None:
            pass

        def read(self) -> dict[str, Any]:
            return {}

        def batches(self, split: str) -> None:
            return None

    module = Scaled(wrong)
    samples = torch.utils.data.TensorDataset(torch.ones(60, 1))
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[finite.Finite(Held(), NoNames()), ModelCheckpoint(tmp_path, filename="last")],
        plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**16))],
        num_sanity_val_steps=0,
    ).fit(module, torch.utils.data.DataLoader(samples))  # fmt: skip
    return module


@pytest.mark.fault("D2")
def test_the_few_steps_that_a_gradient_scaler_skips_are_no_failure(tmp_path: Path) -> None:
    module = fit_scaled(tmp_path, {3, 4, 5, 20})
    assert module.network.weight.isfinite().all()
    assert (tmp_path / "last.ckpt").is_file()


@pytest.mark.fault("D2")
def test_a_gradient_scaler_that_skips_for_ever_is_one(tmp_path: Path) -> None:
    with pytest.raises(finite.NonFiniteError, match=r"at step 25 .* the loss is inf"):
        fit_scaled(tmp_path, set(range(4, 60)))
