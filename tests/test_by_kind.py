"""Biases alone, norms alone: the same over every kind of network."""

import copy

import pytest
import torch
from test_freezing import fit
from tiny_networks import NETWORKS, inputs_of, tiny
from torch import nn

from thaw.errors import UserError
from thaw.freezing.by_kind import BiasOnly, NormOnly
from thaw.freezing.contract import assert_contract
from thaw.freezing.freezing import Freezing
from thaw.model.network import Network
from thaw.optimizer import create_optimizer

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.RMSNorm)
# Written out by hand, so that no rule of ours decides what is expected of it.
OTHER_NORMS = {"T5LayerNorm", "LayerNorm2d", "BatchNormAct2d"}


def biases(network: Network) -> set[str]:
    return {n for n, p in network.named_parameters() if n.rpartition(".")[2] in {"bias", "q_bias", "v_bias"}}


def norms(network: Network) -> set[str]:
    return {
        f"{path}.{n}"
        for path, module in network.named_modules()
        if isinstance(module, NORMS) or type(module).__name__ in OTHER_NORMS
        for n, _ in module.named_parameters(recurse=False)
    }


@pytest.mark.parametrize(("strategy", "expected"), [(BiasOnly(), biases), (NormOnly(), norms)], ids=["bias", "norm"])
@pytest.mark.parametrize("name", NETWORKS)
def test_exactly_this_kind_and_the_head_train(name: str, strategy: Freezing, expected) -> None:
    network = tiny(name)
    kept = {n for n in expected(network) if n.startswith("body.")}
    if not kept:
        with pytest.raises(UserError, match=r"must find (biases|normalisation layers).*freezing=gradual"):
            strategy.prepare(network)
        return
    strategy.prepare(network)
    kept |= {n for n, _ in network.named_parameters() if n.startswith("head.")}
    assert {n for n, p in network.named_parameters() if p.requires_grad} == kept
    before = copy.deepcopy(dict(network.named_parameters()))
    network.train()
    states = assert_contract(network, create_optimizer(network), list(network.groups))
    assert sum(state.trainable for state in states) == sum(before[n].numel() for n in kept)
    network(inputs_of(network)).square().mean().backward()
    assert {n for n, p in network.named_parameters() if p.grad is not None} == kept


@pytest.mark.parametrize("strategy", [BiasOnly(lr_scale=4.0), NormOnly(lr_scale=4.0)], ids=["bias", "norm"])
def test_the_body_trains_at_a_larger_rate_and_the_head_at_its_own(strategy: Freezing) -> None:
    plain, part = tiny("test_vit"), tiny("test_vit")
    strategy.prepare(part)
    rates = [{g["name"]: g["lr"] for g in create_optimizer(n, layer_decay=0.5).param_groups} for n in (plain, part)]
    for name, rate in rates[0].items():
        assert rates[1][name] == pytest.approx(rate * (1 if name.startswith("head") else 4))


def test_a_group_without_such_parameters_is_not_said_to_train() -> None:
    body = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    network = Network(body, nn.Linear(4, 2), {"stem": ["0.weight"], "block00": ["1.weight", "1.bias"]})
    strategy = BiasOnly()
    strategy.prepare(network)
    assert list(strategy.trains(list(network.groups), 0, 1)) == ["block00", "head"]


def test_networks_without_biases_or_norms_are_refused_in_words() -> None:
    groups = {"block00": ["0.weight"]}
    with pytest.raises(UserError, match=r"must find biases in the network; there are none\. Write e\.g\."):
        BiasOnly().prepare(Network(nn.Sequential(nn.Linear(4, 4, bias=False)), nn.Linear(4, 2), groups))
    with pytest.raises(UserError, match=r"must find normalisation layers in the network; there are none"):
        NormOnly().prepare(Network(nn.Sequential(nn.Linear(4, 4, bias=False)), nn.Linear(4, 2), groups))


@pytest.mark.parametrize(("strategy", "expected"), [(BiasOnly(), biases), (NormOnly(), norms)], ids=["bias", "norm"])
def test_in_a_fit_all_else_stays_bit_for_bit(strategy: Freezing, expected) -> None:
    module, snapshots, trainer = fit(strategy, epochs=2)
    network = module.network
    names = dict(network.named_parameters())
    kept = expected(network) | {n for n in names if n.startswith("head.")}
    for before, after in zip(snapshots.states, snapshots.states[1:], strict=False):
        assert {n for n in names if not torch.equal(before[n], after[n])} == kept
        moved = {n.rpartition(".")[0] for n in before.keys() - names if not torch.equal(before[n], after[n])}
        # The norms whose own parameters train follow the data; there is no other.
        assert moved == {n.rpartition(".")[0] for n in before if n.endswith("running_mean")}
    state = {id(p) for p in trainer.optimizers[0].state}
    assert {n for n, p in names.items() if id(p) in state} == kept


@pytest.mark.medium
@pytest.mark.parametrize("freezing", ["bias_only", "norm_only"])
def test_a_run_is_refused_where_there_are_none_before_anything_is_written(run_train, tmp_path, freezing: str) -> None:
    data = ("data=docstrings", "data.train_size=32", "trainer=cpu", "logger=none")
    model = ("model=transformers", "model.name=llama", "model.weights=none")
    small = "model.options={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48}"
    outcome = run_train(*data, *model, small, f"freezing={freezing}", "trainer.max_epochs=1")
    if freezing == "bias_only":  # RMSNorm without a shift, and linear layers without biases
        assert outcome.code == 2
        assert "must find biases in the network; there are none" in outcome.errors
        assert not (tmp_path / "runs").exists()
    else:
        assert outcome.code == 0
        contract = outcome.record["contract"][0]["groups"]
        assert contract[1]["trainable"] == 64  # two RMSNorms of 32
