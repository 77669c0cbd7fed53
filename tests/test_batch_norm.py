"""What norms of frozen groups do: BatchNorm by its policy, all others nothing at all."""

from typing import Any

import pytest
import torch
from test_freezing import fit
from torch import Tensor, nn

from thaw.freezing.by_group import Gradual, LastN
from thaw.model.network import Network
from thaw.model.timm import timm_network


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {n for n in before if not torch.equal(before[n], after[n])}


@pytest.mark.parametrize(
    ("policy", "statistics", "weights"), [("frozen", False, False), ("adapt", True, False), ("train", True, True)]
)
@pytest.mark.parametrize("strategy", [LastN, Gradual])
def test_batch_norm_of_frozen_groups_in_a_fit(policy: Any, statistics: bool, weights: bool, strategy) -> None:
    options = {"n": 1} if strategy is LastN else {"every": 1}
    freezing = strategy(batch_norm=policy, **options)
    module, snapshots, trainer = fit(freezing, epochs=2)
    network = module.network
    norms = {f"body.{path}": m for path, m in network.body.named_modules() if isinstance(m, nn.BatchNorm2d)}
    owner = {name: group for group, names in network.groups.items() for name in names}
    for epoch in range(2):
        changed = moved(snapshots.states[epoch], snapshots.states[epoch + 1])
        trains = freezing.trains(list(network.groups), epoch, 2)
        frozen = {path for path in norms if owner[f"{path}.weight"] not in trains}
        assert len(frozen) > 4
        assert {path for path in frozen if f"{path}.running_mean" in changed} == (frozen if statistics else set())
        assert {path for path in frozen if f"{path}.running_var" in changed} == (frozen if statistics else set())
        for kind in ("weight", "bias"):
            assert {path for path in frozen if f"{path}.{kind}" in changed} == (frozen if weights else set())
        filters = {n for n, group in owner.items() if group not in trains and n.rpartition(".")[0] not in norms}
        assert not filters & changed
    row = freezing.states[1]
    own = sum(p.numel() for n, p in network.groups["block00"].items() if n.rpartition(".")[0] in norms)
    assert row.trainable == (own if weights else 0)
    assert row.trains == weights
    assert row.mode == ("mixed" if statistics else "eval")
    assert (row.lr > 0, row.weight_decay) == (weights, row.weight_decay if weights else 0)
    state = {id(p) for p in trainer.optimizers[0].state}
    assert {n for n, p in network.named_parameters() if id(p) in state} >= {n for n in owner if owner[n] == "head"}
    assert {id(m.weight) in state for path, m in norms.items() if owner[f"{path}.weight"] == "block00"} == {weights}


class Norms(nn.Module):
    """(batch, 1, 32, 32) → (batch, 8) through one norm of each kind without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 8, stride=8)
        self.group = nn.GroupNorm(2, 8)
        self.layer = nn.LayerNorm(8)
        self.rms = nn.RMSNorm(8)
        self.last = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.stem(x)).flatten(2).transpose(1, 2)
        return self.last(self.rms(self.layer(x)).mean(1))


@pytest.mark.parametrize("policy", ["frozen", "adapt", "train"])
def test_norms_without_statistics_stay_as_they_are_whatever_the_policy(policy: Any) -> None:
    body = Norms()
    groups: dict[str, list[str]] = {"stem": [], "block00": []}
    for name, _ in body.named_parameters():
        groups["block00" if name.startswith("last") else "stem"].append(name)
    image = timm_network("resnet_glyphs", 10, weights="none").preprocessing
    freezing = LastN(n=1, batch_norm=policy)
    module, snapshots, _ = fit(freezing, epochs=2, network=Network(body, nn.Linear(8, 10), groups, image))
    changed = moved(snapshots.states[0], snapshots.states[-1])
    assert changed == {"body.last.weight", "body.last.bias", "head.weight", "head.bias"}
    assert [state.trainable for state in freezing.states] == [0, 16, 90]
    assert not module.network.body.layer.training
