"""Surgical fine-tuning: the groups that the data asks to change, found without a trace."""

import copy
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from test_freezing import GROUPS, fit
from torch import Tensor, nn

from thaw.data.digits import Digits
from thaw.errors import UserError
from thaw.freezing.surgical import Surgical, relative_gradient_norms
from thaw.model.network import Network
from thaw.model.timm import timm_network
from thaw.run.checkpoint import load_checkpoint

QUICK = ("logger=none", "data.train_size=64", "trainer=cpu", "optimizer.lr=1e-3", "freezing=surgical")


class Scale(nn.Module):
    """Its gradient is `gradient` times that of the outputs, relative to its weight."""

    def __init__(self, gradient: float) -> None:
        super().__init__()
        self.weight, self.gradient = nn.Parameter(torch.ones(1)), gradient

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.gradient * (self.weight - self.weight.detach()))


def scales(*gradients: float) -> Network:
    body = nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), *map(Scale, gradients), nn.Dropout(0.5))
    nn.init.constant_(body[1].weight, 1.0)  # large beside its gradient
    groups = {f"block{index:02d}": [f"{index + 2}.weight"] for index in range(len(gradients))}
    image = {"kind": "image", "channels": 1, "size": 32, "mean": [0.5], "std": [0.5]}
    more = {"interpolation": "bilinear", "crop_pct": 1.0}
    return Network(body, nn.Linear(8, 10), {"stem": ["1.weight", "1.bias"]} | groups, image | more)


@pytest.mark.parametrize(
    ("gradients", "count", "chosen"),
    [((1, 50, 2), 1, ["block01"]), ((7, 3, 5), 2, ["block00", "block02"]), ((1, 2, 3), 9, None)],
)
def test_auto_trains_the_groups_with_the_largest_relative_gradient(gradients, count: int, chosen) -> None:
    strategy, network = Surgical(count=count), scales(*gradients)
    module, snapshots, _ = fit(strategy, epochs=2, network=network)
    expected = [*chosen, "head"] if chosen else list(network.groups)
    assert strategy.timeline == [(0, expected, None)]
    ratio = strategy.relative_norms["block01"] / strategy.relative_norms["block00"]
    assert ratio == pytest.approx(gradients[1] / gradients[0], rel=1e-4)
    before, after = snapshots.states[0], snapshots.states[-1]
    for group, names in module.network.groups.items():
        assert {torch.equal(before[n], after[n]) for n in names} == {group not in expected}


def test_the_measure_is_that_of_a_plain_backward_pass() -> None:
    found: dict[str, Any] = {}

    class Check(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            found["ours"] = relative_gradient_norms(trainer, pl_module, batches=2)
            network = copy.deepcopy(pl_module.network)
            network.train_groups(network.groups)
            network.eval()
            for number, batch in enumerate(trainer.datamodule.train_dataloader()):
                if number == 2:
                    break
                network.zero_grad()
                images, targets = trainer.datamodule.on_after_batch_transfer(batch, 0)
                nn.functional.cross_entropy(network(images), targets).backward()
                for group, ps in network.groups.items():
                    gradient = torch.cat([p.grad.flatten() for p in ps.values()]).norm()
                    weight = torch.cat([p.detach().flatten() for p in ps.values()]).norm()
                    found[group] = found.get(group, 0) + float(gradient / weight) / 2

    fit(Surgical(groups=["block00"]), epochs=1, callbacks=[Check()])
    assert list(found["ours"]) == GROUPS[:-1]
    assert [found["ours"][group] for group in GROUPS[:-1]] == pytest.approx(
        [found[group] for group in GROUPS[:-1]], rel=1e-4
    )


@pytest.mark.medium
@pytest.mark.parametrize("workers", [0, 2])
def test_the_measure_leaves_no_trace(workers: int) -> None:
    """Weights, statistics, gradients and what is drawn next: all as if nothing had been measured."""
    kept: dict[bool, Any] = {}

    class Measure(L.Callback):
        def __init__(self, measured: bool) -> None:
            self.measured = measured

        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            before = copy.deepcopy(pl_module.state_dict())
            generators = torch.get_rng_state(), np.random.get_state()[1].copy()
            if self.measured:
                assert len(relative_gradient_norms(trainer, pl_module, batches=3)) == 5
            assert torch.equal(generators[0], torch.get_rng_state())
            assert np.array_equal(generators[1], np.random.get_state()[1])
            assert all(torch.equal(held, before[n]) for n, held in pl_module.state_dict().items())
            assert all(p.grad is None for p in pl_module.parameters())

    for measured in (False, True):
        data = Digits(train_size=96, batch_size=32, num_workers=workers, mixup=0.2)
        named = Surgical(groups=["block01", "stem"])
        module, _, _ = fit(named, epochs=1, data=data, callbacks=[Measure(measured)])
        kept[measured] = module.state_dict()
    assert all(torch.equal(held, kept[True][n]) for n, held in kept[False].items())


def test_named_groups_and_patterns_train_beside_the_head_from_the_first_step() -> None:
    strategy = Surgical(groups=["stem", "block0[01]"])
    assert list(strategy.trains(GROUPS, 0, 9)) == list(strategy.trains(GROUPS, 8, 9)) == [*GROUPS[:3], "head"]
    network = timm_network("resnet_glyphs", 10, weights="none")
    with pytest.raises(UserError, match=r"freezing\.groups must name layer groups .* got 'blok01'\. Did you mean 'bl"):
        Surgical(groups=["blok01"]).prepare(network)


def test_a_wrong_name_ends_a_run_before_anything_is_written(run_train, tmp_path) -> None:
    outcome = run_train(*QUICK, "freezing.groups=[blok01,stm]")
    assert outcome.code == 2
    assert "'block01'?" in outcome.errors
    assert "'stem'?" in outcome.errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.medium
def test_the_decision_is_kept_in_the_checkpoint_and_not_taken_again(
    run_train, stopped_after_epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*QUICK, "trainer.max_epochs=3", "freezing.count=2")
    whole = run_train(*command, "run.dir=runs/whole")
    with stopped_after_epoch(0):
        assert run_train(*command, "run.dir=runs/parts").code == 130
    monkeypatch.setattr("thaw.freezing.surgical.relative_gradient_norms", lambda *_: pytest.fail("measured again"))
    parts = run_train(*command, "run.dir=runs/parts", "resume=must")
    assert (whole.code, parts.code) == (0, 0), parts.errors
    first, second = (load_checkpoint(o.folders[-1] / "checkpoints" / "last.ckpt") for o in (whole, parts))
    assert first["callbacks"]["Surgical"] == second["callbacks"]["Surgical"]
    assert list(first["callbacks"]["Surgical"]["relative_norms"]) == GROUPS[:-1]
    assert all(torch.equal(held, second["state_dict"][n]) for n, held in first["state_dict"].items())
    assert len(parts.record["timeline"]) == 1
    assert len(parts.record["timeline"][0]["groups"]) == 3
    assert parts.record["contract"] == whole.record["contract"]
    assert parts.record["freezing"] == first["callbacks"]["Surgical"]
