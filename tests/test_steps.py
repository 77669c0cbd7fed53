"""What a training step does not do: wait for the device, keep gradients of what is frozen, enter empty hooks."""

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from thaw.build import TRAINER
from thaw.console import Screen
from thaw.freezing.by_group import Gradual
from thaw.lean import PER_STEP, Unprofiled, lean
from thaw.model.network import Head, Network
from thaw.module import FineTuner
from thaw.optimizer import FUSED, create_optimizer
from thaw.run import finite
from thaw.run.finite import LOOK_EVERY, Finite
from thaw.run.kept_checkpoints import checkpoints
from thaw.run.run import Run
from thaw.scheduler import cosine
from thaw.task.classification import Classification
from thaw.task.regression import Regression
from thaw.task.task import BATCHES

STEPS = 3 * LOOK_EVERY
WAITS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "nonzero")


def network() -> Network:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU())
    groups = {"stem": ["0.weight", "0.bias", "1.weight", "1.bias"], "block00": ["2.weight", "2.bias"]}
    return Network(body, Head.new(8, 3), groups)


def batches(count: int = STEPS) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(count, 5, 6, generator=generator), torch.arange(count * 5).reshape(count, 5) % 3)
    return DataLoader(list(zip(inputs, targets, strict=True)), batch_size=None)


def tuner() -> FineTuner:
    task = Classification(["a", "b", "c"])
    return FineTuner(network(), task, lambda net: create_optimizer(net, lr=1e-2), cosine(), "train/accuracy")


def fit(
    folder: Path,
    *callbacks: L.Callback,
    module: FineTuner | None = None,
    freezing: Any = None,
    clip: float = 1.0,
) -> L.Trainer:
    module, freezing = module or tuner(), freezing or Gradual(every=1)
    run = Run(folder)
    callbacks = (freezing, Finite(run, None), Screen(freezing, "train/accuracy"), *callbacks)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=3, callbacks=list(callbacks), logger=False, default_root_dir=folder,
        gradient_clip_val=clip, limit_val_batches=0, **TRAINER,
    )  # fmt: skip
    lean(trainer, module)
    trainer.fit(module, batches(), batches(1))
    return trainer


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_gradients_are_clipped_as_by_torch_and_their_norms_computed_once(tmp_path: Path, monkeypatch, clip) -> None:
    ours, torchs = tuner(), tuner()
    with monkeypatch.context() as once:
        once.setattr("torch.nn.utils.clip_grad._get_total_norm", None)
        fit(tmp_path / "ours", module=ours, clip=clip)
    monkeypatch.setattr(FineTuner, "configure_gradient_clipping", L.LightningModule.configure_gradient_clipping)
    fit(tmp_path / "torchs", module=torchs, clip=clip)
    begun = tuner().state_dict()
    assert any(not torch.equal(value, begun[name]) for name, value in ours.state_dict().items())
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-8)


class Watch(L.Callback):
    """Counts what waits for the device between the second step of an epoch and the last."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.waits, self.on = patch, Counter(), False
        for name in WAITS:
            self._wrap(name, getattr(Tensor, name))

    def _wrap(self, name: str, original: Any) -> None:
        def counting(tensor: Tensor, *given: Any, **named: Any) -> Any:
            if self.on:
                self.waits[name] += 1
            return original(tensor, *given, **named)

        self.patch.setattr(Tensor, name, counting)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.on = not trainer.is_last_batch


def test_a_step_waits_for_the_device_only_every_eighth_time_to_see_that_all_is_finite(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(finite, "looks_each_step", lambda trainer: False)
    with monkeypatch.context() as patch:
        watch = Watch(patch)
        fit(tmp_path, watch)
    assert watch.waits == {"tolist": 3 * STEPS // LOOK_EVERY}


def test_a_frozen_prefix_is_run_without_autograd_and_gradients_are_dropped_between_steps(tmp_path) -> None:
    seen: dict[int, list[bool]] = {}
    module = tuner()

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *batch: Any) -> None:
            self.epoch = trainer.current_epoch

        def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
            assert all(parameter.grad is None for parameter in pl_module.parameters())

    look = Look()
    for part in (module.network.body[1], module.network.body):
        part.register_forward_hook(
            lambda _, inputs, outputs: seen.setdefault(look.epoch, []).append(outputs.grad_fn is not None)
        )
    fit(tmp_path, look, module=module)
    assert {epoch: (any(held[::2]), any(held[1::2])) for epoch, held in seen.items()} == {
        0: (False, False),
        1: (False, True),
        2: (True, True),
    }


def test_empty_hooks_are_left_out_and_those_with_a_body_are_called(tmp_path) -> None:
    class Counting(L.Callback):
        calls = 0

        def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.calls += 1

    counting, module = Counting(), tuner()
    trainer = fit(tmp_path, counting, module=module)
    assert counting.calls == 3 * STEPS
    assert counting.on_train_batch_end is None
    assert module.on_train_batch_start is not None
    assert module.on_after_backward is None
    assert isinstance(trainer.profiler, Unprofiled)
    assert sum(getattr(held, hook) is not None for held in trainer.callbacks for hook in PER_STEP) == 4


def test_a_checkpoint_that_is_saved_between_epochs_alone_is_not_asked_after_each_step(tmp_path) -> None:
    keep = checkpoints(tmp_path / "checkpoints", "train/accuracy", "max", every_n_steps=5, every_minutes=60)
    fit(tmp_path, *keep)
    assert [callback.on_train_batch_end is None for callback in keep] == [True, True, False, False]
    assert all(Path(path).is_file() for path in (keep[0].best_model_path, keep[1].best_model_path))
    assert keep[2]._last_global_step_saved == 70  # of 72, every fifth
    assert keep[3]._last_global_step_saved == 0  # an hour has not gone by

    class Asks(ModelCheckpoint):
        asked = 0

        def on_train_batch_end(self, *given: Any) -> None:
            self.asked += 1

    asks = Asks(dirpath=tmp_path / "mine")
    fit(tmp_path, asks)
    assert asks.asked == 3 * STEPS


@pytest.mark.parametrize(("minutes", "saved"), [(1e-9, 3 * STEPS - 1), (60, 0)])
def test_within_an_epoch_the_last_state_is_saved_when_its_time_has_come(tmp_path, minutes: float, saved: int) -> None:
    keep = checkpoints(tmp_path / "checkpoints", "train/accuracy", "max", every_minutes=minutes)
    fit(tmp_path, *keep)
    assert keep[2]._last_global_step_saved == saved  # the last step of an epoch waits for its validation


def test_a_step_looks_for_nothing_on_the_disk_and_reads_no_signature(tmp_path, monkeypatch) -> None:
    looked: list[str] = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                for place, name in (("ctypes", "CDLL"), ("inspect", "getfullargspec"), ("inspect", "signature")):
                    monkeypatch.setattr(f"{place}.{name}", lambda *_, name=name, **__: looked.append(name))

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *batch: Any) -> None:
            if trainer.is_last_batch:
                monkeypatch.undo()

    fit(tmp_path, Look())
    assert not looked


def test_lean_steps_are_those_of_lightning(tmp_path, monkeypatch) -> None:
    ours = fit(tmp_path / "ours").lightning_module.state_dict()
    monkeypatch.setattr("test_steps.lean", lambda *_: None)
    monkeypatch.delattr(FineTuner, "optimizer_zero_grad")
    theirs = fit(tmp_path / "theirs").lightning_module.state_dict()
    assert all(torch.equal(held, theirs[name]) for name, held in ours.items())


def test_a_profiler_that_was_asked_for_stays(tmp_path) -> None:
    trainer = L.Trainer(accelerator="cpu", profiler="simple", logger=False, enable_checkpointing=False, **TRAINER)
    profiler = trainer.profiler
    lean(trainer, tuner())
    assert trainer.profiler is profiler


def test_seeding_a_step_writes_down_no_traceback_for_devices_that_are_not_there(tmp_path, monkeypatch) -> None:
    module, written = tuner(), []
    monkeypatch.setattr("traceback.format_stack", lambda *_: written.append(1) or [])
    fit(tmp_path, module=module)
    assert not written


@pytest.mark.parametrize("name", sorted(FUSED))
def test_optimizers_of_torch_take_all_weights_in_one_pass(name: str) -> None:
    assert all(group["fused"] for group in create_optimizer(network(), name).param_groups)


def test_others_leave_it_to_torch_which_loops_on_a_cpu_alone() -> None:
    """In one pass a CPU takes twice as long for these; a GPU a fraction."""
    for name in ("lion", "rmsprop"):
        assert all(group["foreach"] is None for group in create_optimizer(network(), name).param_groups)


def test_the_optimizers_of_torch_are_those_of_timm() -> None:
    from timm.optim import create_optimizer_v2

    for name in FUSED:
        own = create_optimizer(network(), name, lr=0.1, weight_decay=0.2)
        theirs = create_optimizer_v2(network(), name, lr=0.1, weight_decay=0.2)
        assert type(own) is type(theirs)
        assert {**own.defaults, "fused": None} == {**theirs.defaults, "fused": None, "weight_decay": 0.2}


def test_batches_measured_together_are_those_measured_one_by_one(monkeypatch) -> None:
    """Also where they are read half-way, for a checkpoint, and where one is of another shape."""
    found = []
    for together, read in [(1, ()), (BATCHES, ()), (BATCHES, (5, 20))]:
        monkeypatch.setattr("thaw.task.task.BATCHES", together)
        task = Classification(["a", "b", "c"])
        generator = torch.Generator().manual_seed(1)
        for number in range(3 * BATCHES + 2):
            outputs = torch.randn(7 if number % 9 else 3, 3, generator=generator)
            targets = torch.randint(3, (len(outputs),), generator=generator)
            soft = torch.nn.functional.one_hot(targets, 3).float() if number == 11 else targets
            task.update("val", task.loss(outputs, soft), outputs, soft)
            if number in read:
                state = task.gathered("val")
                task = Classification(["a", "b", "c"])
                task.load_gathered("val", state)
        found.append({name: float(value) for name, value in task.compute("val").items()})
    assert found[0] == found[1] == found[2]


def test_metrics_that_sum_fractions_are_measured_batch_by_batch_to_the_last_bit(monkeypatch) -> None:
    found = []
    for most in (1, BATCHES):
        monkeypatch.setattr("thaw.task.task.BATCHES", most)
        task, generator = Regression(["height"]), torch.Generator().manual_seed(1)
        for _ in range(3 * BATCHES + 2):
            outputs, targets = torch.randn(2, 7, 1, generator=generator)
            task.update("val", task.loss(outputs, targets), outputs, targets)
        found.append({name: float(value) for name, value in task.compute("val").items()})
    assert found[0] == found[1]


def test_what_waits_to_be_measured_is_bounded() -> None:
    task = Classification(["a", "b", "c"])
    for number in range(100):
        outputs, targets = torch.randn(40_000 if number % 2 else 4, 3), torch.arange(40_000 if number % 2 else 4) % 3
        task.update("train", task.loss(outputs, targets), outputs, targets)
        held = [outputs for _, _, outputs, _ in task._waiting["train"]]
        assert len(held) < BATCHES
        assert sum(outputs.numel() for outputs in held) <= BATCHES * 2**16
