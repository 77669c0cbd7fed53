"""Averages of the weights: frozen ones bit for bit, measured as they are kept, and the same after a resume."""

import csv
import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import update_bn

from thaw.data.digits import Digits
from thaw.freezing.by_group import LastN, NoFreezing
from thaw.freezing.freezing import Freezing
from thaw.model.timm import timm_network
from thaw.module import FineTuner
from thaw.optimizer import create_optimizer
from thaw.run.checkpoint import load_checkpoint
from thaw.scheduler import constant
from thaw.task.classification import Classification
from thaw.weight_averaging import EMA, SWA

QUICK = ("logger=none", "data.train_size=64", "trainer.max_epochs=4", "trainer=cpu", "model.dropout=0.3")


class Trail(L.Callback):
    """Keeps the weights after every step and epoch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.epochs: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: FineTuner, *_: object) -> None:
        self.steps.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: FineTuner) -> None:
        self.epochs.append(self.steps[-1])


def fit(
    callback: L.Callback, freezing: Freezing, epochs: int = 4, lr: float | None = None, samples: int = 200
) -> tuple[FineTuner, Trail]:
    L.seed_everything(0, verbose=False)
    data = Digits(train_size=samples, batch_size=32, num_workers=0, augment="none")
    network = timm_network("resnet_glyphs", 10)
    data.preprocess(**network.preprocessing)
    module = FineTuner(network, Classification(data.classes), lambda net: create_optimizer(net, lr=lr), constant())
    trail = Trail()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[freezing, trail, callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return module, trail


def checkpoint(folder: Path, role: str = "last") -> dict:
    return load_checkpoint(folder / "checkpoints" / f"{role}.ckpt")


def floats(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if value.is_floating_point()}


@pytest.mark.medium
def test_swa_is_the_mean_of_the_weights_after_the_last_epochs() -> None:
    module, trail = fit(SWA(share=0.5), NoFreezing())
    last, before = trail.epochs[3], trail.epochs[2]
    for name, value in floats(module.state_dict()).items():
        torch.testing.assert_close(value, (last[name] + before[name]) / 2, msg=name)
    assert not torch.equal(module.state_dict()["network.head.linear.weight"], last["network.head.linear.weight"])


def test_ema_follows_its_recurrence_over_the_steps() -> None:
    module, trail = fit(EMA(decay=0.5), NoFreezing(), epochs=2)
    expected = floats(trail.steps[0])
    for number, state in enumerate(trail.steps[1:], start=1):
        decay = min(0.5, (1 + number) / (10 + number))
        expected = {name: decay * value + (1 - decay) * state[name] for name, value in expected.items()}
    for name, value in floats(module.state_dict()).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_a_short_run_forgets_the_head_it_started_from() -> None:
    """With a decay of 0.999 from the first step on, nearly all of it would be left after 14 steps."""
    module, trail = fit(EMA(), NoFreezing(), epochs=2)
    first, last = trail.steps[0], trail.steps[-1]
    name = "network.head.linear.weight"
    assert (module.state_dict()[name] - last[name]).norm() < 0.5 * (first[name] - last[name]).norm()


@pytest.mark.parametrize("callback", [EMA(), SWA(share=1.0)])
def test_the_average_of_frozen_weights_and_statistics_is_bit_for_bit_what_they_were(callback: L.Callback) -> None:
    module, _ = fit(callback, LastN(n=1), lr=1e-2)
    start, end = timm_network("resnet_glyphs", 10).state_dict(), module.network.state_dict()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert all(name.startswith(("body.layer4", "head.")) for name in moved)
    assert moved


def test_lightnings_own_average_moves_frozen_weights() -> None:
    """Why there is `AveragedWeights`: once this fails, it can go."""
    module, _ = fit(EMAWeightAveraging(decay=0.999), LastN(n=0), lr=1e-2)
    start, end = timm_network("resnet_glyphs", 10).state_dict(), module.network.state_dict()
    assert any(not torch.equal(start[name], end[name]) for name in start if name.startswith("body."))


@pytest.mark.medium
@pytest.mark.parametrize("callback", [EMA(), SWA(share=1.0)])
def test_counters_are_taken_and_not_averaged(callback: L.Callback) -> None:
    module, trail = fit(callback, NoFreezing())
    integers = {name: v for name, v in module.state_dict().items() if not v.is_floating_point()}
    assert integers
    assert all(torch.equal(value, trail.steps[-1][name]) for name, value in integers.items())


@pytest.mark.parametrize("lr", [3e-4, 3e-3])
@pytest.mark.slow
def test_averaged_statistics_serve_as_well_as_recomputed_ones(lr: float) -> None:
    """Within what three images of 144 and the chances of a run make; statistics that fit no weights lose far more."""
    module, _ = fit(SWA(share=0.5), NoFreezing(), epochs=6, lr=lr, samples=800)
    data = Digits(train_size=800, batch_size=200, num_workers=0, augment="none")
    data.preprocess(**module.network.preprocessing)
    inputs, targets = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)

    def measured() -> tuple[float, float]:
        module.network.train_groups(list(module.network.groups))
        module.eval()
        with torch.no_grad():
            outputs = module(inputs)
        loss = torch.nn.functional.cross_entropy(outputs, targets)
        return loss.item(), (outputs.argmax(1) == targets).float().mean().item()

    averaged = measured()
    update_bn((data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()), module)
    recomputed = measured()
    assert averaged[0] < recomputed[0] * 1.3
    assert averaged[1] >= recomputed[1] - 0.021


@pytest.mark.medium
@pytest.mark.parametrize("name", ["ema", "swa"])
@pytest.mark.parametrize("freezing", ["gradual", "none"])
def test_what_is_validated_kept_and_tested_is_the_average(run_train, name: str, freezing: str) -> None:
    from thaw.run.restore import restore

    chosen = (
        f"callbacks={name}",
        f"freezing={freezing}",
        "optimizer.lr=3e-3",
        "scheduler=constant",
        "monitor=val/loss",
    )
    outcome = run_train(*QUICK, *chosen, *(["callbacks.swa.share=0.75"] if name == "swa" else []))
    assert outcome.code == 0, outcome.errors
    folder, metrics = outcome.folders[-1], outcome.record["metrics"]
    best = checkpoint(folder, "best")
    assert any(not torch.equal(value, best["current_model_state"][key]) for key, value in best["state_dict"].items())
    run = restore(folder)
    assert run.measure(best["state_dict"], "val")["val/loss"] == metrics["val/loss"]
    assert run.measure(best["state_dict"], "test")["test/loss"] == metrics["test/loss"]
    assert run.measure(best["current_model_state"], "test")["test/loss"] != metrics["test/loss"]


@pytest.mark.medium
@pytest.mark.parametrize("stop", [0, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 2))])
@pytest.mark.parametrize("name", ["ema", "swa"])
def test_a_stopped_run_goes_on_as_the_same_run_with_the_same_average(
    run_train, stopped_after_epoch, name: str, stop: int
) -> None:
    """Before, at, and after the first averaged epoch of SWA."""
    command = (*QUICK, f"callbacks={name}", "freezing=probe_then_tune")
    command += ("callbacks.swa.share=0.5",) if name == "swa" else ()
    straight = run_train(*command, "run.dir=runs/straight").folders[-1]
    with stopped_after_epoch(stop):
        assert run_train(*command, "run.dir=runs/stopped").code == 130
    resumed = run_train(*command, "run.dir=runs/stopped", "resume=must").folders[-1]
    for role in ("last", "best"):
        first, second = checkpoint(straight, role), checkpoint(resumed, role)
        for part in ("state_dict", "current_model_state", "averaging_state"):
            assert first[part].keys() == second[part].keys()
            assert all(torch.equal(value, second[part][key]) for key, value in first[part].items()), part
        assert str(first["optimizer_states"]) == str(second["optimizer_states"])
        assert first["metrics"] == second["metrics"]
    records = [json.loads((folder / "run.json").read_text()) for folder in (straight, resumed)]
    assert records[0]["metrics"] == records[1]["metrics"]


def test_a_validation_after_the_fit_measures_the_weights_loaded_for_it() -> None:
    """Lightning puts the last average back in; a run without a test split would tell the figures of that one."""
    module, _ = fit(EMA(), NoFreezing(), epochs=1)
    data = Digits(train_size=200, batch_size=32, num_workers=0)
    data.preprocess(**module.network.preprocessing)
    torch.nn.init.zeros_(module.network.head.linear.weight)
    torch.nn.init.zeros_(module.network.head.linear.bias)
    assert module.trainer.validate(module, data, verbose=False)[0]["val/loss"] == pytest.approx(math.log(10))
    assert (module.network.head.linear.weight == 0).all()


@pytest.mark.medium
def test_before_the_average_begins_the_weights_themselves_are_measured_and_kept(run_train, stopped_after_epoch) -> None:
    """Lightning would measure and keep those that the run started from."""
    states, losses = [], []
    for name in ("default", "swa"):
        with stopped_after_epoch(1):
            folder = run_train(*QUICK, f"callbacks={name}", "freezing=none").folders[-1]
        states.append(checkpoint(folder)["state_dict"])
        with open(folder / "metrics.csv", newline="") as file:
            losses.append([row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


@pytest.mark.medium
def test_swa_is_not_stopped_before_it_begins_and_its_best_is_an_average(run_train) -> None:
    """At a rate of zero nothing ever improves: patience counts from the first average on, that after epoch 4."""
    command = ("callbacks=swa", "callbacks.swa.share=0.5", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-12")
    outcome = run_train(*QUICK, "trainer.max_epochs=8", *command, "monitor=val/loss", "freezing=linear_probe")
    assert outcome.code == 0, outcome.errors
    assert outcome.record["epochs"] == 6
    assert outcome.record["best_epoch"] >= 4
    assert "averaging_state" in checkpoint(outcome.folders[-1], "best")


@pytest.mark.medium
def test_the_best_of_swa_is_an_average_also_where_an_earlier_epoch_was_better(run_train) -> None:
    """At a rate of zero only the statistics of BatchNorm move, away from those that validation likes."""
    command = ("callbacks=swa", "optimizer.lr=1e-12", "data.augment=none", "freezing=none", "monitor=val/loss")
    outcome = run_train(*QUICK, "trainer.max_epochs=8", *command)
    with open(outcome.folders[-1] / "metrics.csv", newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert min(losses) < min(losses[6:])
    assert outcome.record["best_epoch"] >= 6


@pytest.mark.medium
def test_an_average_under_accumulation_counts_optimizer_steps(run_train) -> None:
    outcome = run_train(*QUICK, "callbacks=ema", "trainer.accumulate_grad_batches=3")
    assert outcome.code == 0, outcome.errors
    assert int(checkpoint(outcome.folders[-1])["averaging_state"]["n_averaged"]) == outcome.record["steps"]
