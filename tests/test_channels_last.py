"""Channels last: where it is used, and that nothing but the order in memory is another."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, TensorDataset

from thaw.build import TRAINER
from thaw.distributed import FSDP
from thaw.freezing.by_group import NoFreezing
from thaw.model.timm import timm_network
from thaw.module import FineTuner
from thaw.optimizer import create_optimizer, lay_out_like_weights
from thaw.run.checkpoint import load_checkpoint
from thaw.scheduler import constant
from thaw.task.classification import Classification

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def network(size: int = 64, name: str = "mobilenetv2_035") -> Any:
    torch.manual_seed(0)
    return timm_network(name, 3, weights="none", image_size=size)


def filters(held: Any) -> list[Tensor]:
    """The weights that have an order of channels to speak of."""
    return [p for p in held.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]


def is_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def test_image_networks_are_laid_out_so_and_no_others() -> None:
    net = network(32, "resnet_glyphs")
    assert not any(map(is_last, filters(net)))
    net.lay_out(CPU)
    assert filters(net)
    assert all(map(is_last, filters(net)))
    of_sound = network()
    of_sound.preprocessing["kind"] = "waveform"
    of_sound.lay_out(CPU)
    assert not any(map(is_last, filters(of_sound)))


@pytest.mark.parametrize(
    ("name", "size", "cpu"),
    [("resnet18", 32, False), ("resnet18", 64, True), ("mobilenetv2_035", 32, True), ("densenet121", 32, True)],
)
def test_a_cpu_keeps_many_filters_on_few_pixels_as_they_are(name: str, size: int, cpu: bool) -> None:
    for device, last in ((CPU, cpu), (GPU, True)):
        net = network(size, name)
        net.lay_out(device)
        assert net.channels_last is last
        assert all(is_last(weight) is last for weight in filters(net))
        assert is_last(net.laid_out(torch.zeros(2, 3, size, size))) is last


def test_fsdp_which_takes_no_such_filters_gets_them_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[bool] = []
    strategy = object.__new__(FSDP)
    monkeypatch.setattr(FSDP, "shard", lambda _, net: shared.append(any(map(is_last, filters(net)))))
    monkeypatch.setattr(FineTuner, "trainer", SimpleNamespace(strategy=strategy))
    task = Classification(["a", "b", "c"], metrics={"accuracy": "MulticlassAccuracy"})
    module = FineTuner(network(), task, lambda net: create_optimizer(net, lr=1e-3), constant(0.0))
    module.configure_model()
    module.configure_model()  # Lightning asks again for the test
    assert shared == [False]


def test_outputs_and_gradients_are_the_same_but_for_rounding() -> None:
    inputs, found = torch.randn(4, 3, 64, 64).double(), []
    for last in (False, True):
        net = network().double()
        if last:
            net.lay_out(CPU)
        outputs = net(inputs)
        outputs.square().sum().backward()
        found.append((outputs, *(p.grad for p in net.parameters())))
        assert all(is_last(p.grad) is last for p in filters(net))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


class Saving(Checkpoint):
    """Saves after the second epoch of four."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


def fit(folder: Path, checkpoint: Path | None = None) -> FineTuner:
    torch.manual_seed(0)
    images, targets = torch.randn(12, 3, 64, 64), torch.arange(12) % 3
    batches = DataLoader(TensorDataset(images, targets), batch_size=4)
    task = Classification(["a", "b", "c"], metrics={"accuracy": "MulticlassAccuracy"})
    module = FineTuner(network(), task, lambda net: create_optimizer(net, lr=1e-3), constant(0.0))
    seen: list[bool] = []
    module.network.body.conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(is_last(inputs[0])))
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=4, callbacks=[NoFreezing(), Saving(folder / "half.ckpt")], logger=False,
        default_root_dir=folder, limit_val_batches=0, log_every_n_steps=1, **TRAINER,
    )  # fmt: skip
    trainer.fit(module, batches, batches, ckpt_path=checkpoint, weights_only=True)
    assert len(seen) == (6 if checkpoint else 12)
    assert all(seen)
    return module


@pytest.mark.parametrize("other", [False, True])
def test_a_run_resumed_in_it_is_the_same_run_to_the_last_bit(tmp_path: Path, other: bool) -> None:
    """Also from a checkpoint whose tensors lie in the usual order, as another device may have written it."""
    whole, saved = fit(tmp_path), tmp_path / "half.ckpt"
    if other:
        plain = tree_map(lambda held: held.contiguous() if isinstance(held, Tensor) else held, load_checkpoint(saved))
        torch.save(plain, saved)
    again = fit(tmp_path / "again", saved)
    for (name, one), two in zip(whole.network.state_dict().items(), again.network.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert all(is_last(weight) for weight in filters(again.network))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_state_of_another_layout_is_put_into_this_one_before_a_fused_step(name: str) -> None:
    steps = []
    for last in (False, True):
        net = network()
        optimizer = create_optimizer(net, name, lr=1e-2)
        for turn in range(2):
            for number, p in enumerate(net.parameters()):
                values = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
                p.grad = torch.empty_like(p, requires_grad=False).copy_(values)
            optimizer.step()
            if last and turn == 0:
                net.lay_out(CPU)
                lay_out_like_weights(optimizer)
        steps.append([p.detach().contiguous() for p in net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*steps, strict=True))
