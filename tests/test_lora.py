"""LoRA: adapters beside the layers of any network, which alone train, and which merge into the plain weights."""

import copy
import re

import pytest
import torch
from conftest import assert_groups_run_in_forward_order
from test_freezing import fit
from tiny_networks import NETWORKS, inputs_of, tiny
from torch import Tensor, nn

from thaw.errors import UserError
from thaw.freezing.lora import Lora
from thaw.model.lora import merge_lora
from thaw.model.network import Network
from thaw.optimizer import create_optimizer
from thaw.run.checkpoint import load_checkpoint
from thaw.run.restore import restore

READ_FROM_OUTSIDE = {"beit_base_patch16_224": "proj|fc1|fc2"}  # the layers that it calls
QUICK = ("logger=none", "data.train_size=64", "trainer=cpu", "optimizer.lr=1e-3", "freezing=lora", "freezing.rank=2")


def adapted(name: str, **options: object) -> tuple[Network, Lora]:
    network = tiny(name)
    strategy = Lora(**{"rank": 2, "layers": READ_FROM_OUTSIDE.get(name)} | options)
    strategy.prepare(network)
    return network, strategy


def outputs(network: Network, inputs: object) -> Tensor:
    network.eval()
    with torch.no_grad():
        return network(inputs)


def step(network: Network, inputs: object, lr: float = 0.01) -> None:
    network.train()
    network(inputs).square().mean().backward()
    # By the sign alone: the gradients of a network of random weights may be as small as they like.
    torch.optim.Adam([p for p in network.parameters() if p.grad is not None], lr=lr, eps=1e-30).step()
    network.zero_grad()


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_groups_stay_a_partition_in_forward_order_with_each_adapter_beside_its_layer(name: str) -> None:
    plain, (network, strategy) = tiny(name), adapted(name)
    assert list(network.groups) == list(plain.groups)
    grouped = [n for parameters in network.groups.values() for n in parameters]
    assert sorted(grouped) == sorted(n for n, _ in network.named_parameters())
    assert_groups_run_in_forward_order(network, inputs_of(network))
    for group, parameters in network.groups.items():
        own = {re.sub(r"\.base_layer", "", n) for n in parameters if n not in strategy.added}
        assert own == set(plain.groups[group])
        layers = {n.partition(".lora_")[0] for n in parameters if n in strategy.added}
        assert all(f"{layer}.weight" in plain.groups[group] for layer in layers)
        assert group.startswith("block") or not layers
    kept = {re.sub(r"\.base_layer", "", n) for n in network.no_decay}
    assert kept == plain.no_decay & {n for n, _ in plain.named_parameters()}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_only_adapters_and_head_train_and_each_adapter_does(name: str, dora: bool) -> None:
    network, strategy = adapted(name, dora=dora)
    inputs = inputs_of(network)
    assert torch.equal(outputs(network, inputs), outputs(tiny(name), inputs)), "the adapters start at zero"
    before = copy.deepcopy(dict(network.named_parameters()))
    for lr in (0.01, 0.007):  # in the first step A's gradient is zero, because B is
        step(network, inputs, lr)
    moved = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(strategy.added) | {n for n in before if n.startswith("head.")}
    assert all(p.requires_grad == (n in moved) for n, p in network.named_parameters())
    optimizer = create_optimizer(network)
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in network.parameters())


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_merged_it_is_the_plain_network_with_the_same_outputs(name: str, dora: bool) -> None:
    plain = tiny(name)
    network, _ = adapted(name, dora=dora)
    inputs = inputs_of(network)
    first = outputs(network, inputs)
    step(network, inputs)
    step(network, inputs)
    trained = outputs(network, inputs)
    assert (trained - first).abs().max() > 1e-4
    merge_lora(network)
    torch.testing.assert_close(outputs(network, inputs), trained, atol=1e-5, rtol=1e-5)
    assert [n for n, _ in network.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert {g: list(ps) for g, ps in network.groups.items()} == {g: list(ps) for g, ps in plain.groups.items()}
    assert network.no_decay == plain.no_decay & {n for n, _ in plain.named_parameters()}
    assert [type(m).__name__ for m in network.modules()] == [type(m).__name__ for m in plain.modules()]
    assert all(p.requires_grad for p in network.parameters())  # nothing is fixed any more
    assert not network.fixed


def test_rank_alpha_and_rslora_set_size_and_scale() -> None:
    sizes, changes = {}, {}
    for options in ({}, {"rank": 4}, {"alpha": 32.0}, {"rank": 4, "rslora": True}):
        network, strategy = adapted("bert", **options)
        parameters = dict(network.named_parameters())
        rank = options.get("rank", 2)
        a, b = (next(n for n in strategy.added if f"lora_{side}" in n) for side in "AB")
        assert parameters[a].shape[0] == parameters[b].shape[1] == rank
        sizes[str(options)] = sum(parameters[n].numel() for n in strategy.added)
        layer = network.get_submodule(a.partition(".lora_A")[0])
        nn.init.ones_(parameters[a])
        nn.init.ones_(parameters[b])
        x = torch.ones(1, layer.in_features)
        changes[str(options)] = (layer(x) - layer.base_layer(x)).flatten()[0].item() / (rank * layer.in_features)
    assert sizes["{'rank': 4}"] == 2 * sizes["{}"]
    assert list(changes.values()) == pytest.approx([16 / 2, 16 / 4, 32 / 2, 16 / 4**0.5])


def test_dropout_of_the_adapters_is_active_in_training_alone() -> None:
    network, _ = adapted("resnet_glyphs", dropout=0.5)
    inputs = inputs_of(network)
    step(network, inputs)
    assert torch.equal(outputs(network, inputs), outputs(network, inputs))
    network.train()
    assert not torch.equal(network(inputs), network(inputs))


def test_layers_are_chosen_by_a_regular_expression() -> None:
    _, strategy = adapted("bert", layers="query|value")
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in strategy.added} == {"query", "value"}
    assert len(strategy.added) == 3 * 2 * 2
    assert not any(n.startswith("body.model.embeddings") for n in strategy.added)


def test_a_layer_whose_name_merely_ends_like_a_chosen_one_gets_no_adapter() -> None:
    body = nn.ModuleDict({"stem": nn.ModuleDict({"fc": nn.Linear(4, 4)}), "fc": nn.Linear(4, 4)})
    body.forward = lambda x: body["fc"](body["stem"]["fc"](x))
    groups = {"stem": ["stem.fc.weight", "stem.fc.bias"], "block00": ["fc.weight", "fc.bias"]}
    network = Network(body, nn.Linear(4, 2), groups)
    strategy = Lora(rank=2)
    strategy.prepare(network)
    assert all(n.startswith("body.fc.lora_") for n in strategy.added)


def test_a_wrong_pattern_is_refused_and_a_real_layer_named() -> None:
    with pytest.raises(UserError, match=r"e\.g\. 'model\.encoder\.layer\.0\.\S+'; got 'qeury'.*freezing\.layers=null"):
        adapted("bert", layers="qeury")


def test_a_network_without_such_layers_is_refused() -> None:
    network = Network(nn.Sequential(nn.LayerNorm(4)), nn.Linear(4, 2), {"block00": ["0.weight", "0.bias"]})
    with pytest.raises(UserError, match="must find linear or convolution layers"):
        Lora().prepare(network)


def test_a_layer_that_the_network_reads_from_outside_is_refused_with_the_pattern_of_the_others() -> None:
    network, strategy = adapted("beit_base_patch16_224", layers=None)
    network.train()
    network(inputs_of(network)).square().mean().backward()

    class Module:
        pass

    module = Module()
    module.network = network
    with pytest.raises(
        UserError, match=r"'blocks\.0\.attn\.qkv' in another way\. Write freezing\.layers='proj\|fc1\|fc2'"
    ):
        strategy.on_after_backward(None, module)


def test_a_broken_pattern_is_a_mistake_of_the_settings(run_train, tmp_path) -> None:
    outcome = run_train(*QUICK, "freezing.layers='('")
    assert outcome.code == 2
    assert "freezing.layers must be a regular expression" in outcome.errors
    assert not (tmp_path / "runs").exists()


def test_a_wrong_pattern_ends_before_anything_is_written(run_train, tmp_path) -> None:
    outcome = run_train(*QUICK, "freezing.layers=qeury|vlaue")
    assert outcome.code == 2
    assert "e.g. 'layer1.0.conv1'" in outcome.errors
    assert not (tmp_path / "runs").exists()


def test_what_is_frozen_beside_the_adapters_does_not_move_in_a_fit() -> None:
    """Weights and statistics, bit for bit; and it has no state in the optimizer."""
    strategy = Lora(rank=2)
    module, snapshots, trainer = fit(strategy, epochs=2)
    added = [n for n, p in module.network.named_parameters() if "lora_" in n]
    assert added
    for before, after in zip(snapshots.states, snapshots.states[1:], strict=False):
        moved = {n for n in before if not torch.equal(before[n], after[n])}
        assert moved == {*added, "head.linear.weight", "head.linear.bias"}
    frozen = {id(p) for p in module.network.parameters() if not p.requires_grad}
    assert not frozen & {id(p) for p in trainer.optimizers[0].state}
    state = next(state for state in strategy.states if state.group == "block00")
    assert state.trainable == sum(p.numel() for n, p in module.network.groups["block00"].items() if "lora_" in n)
    assert (state.mode, strategy.states[0].mode, strategy.states[-1].mode) == ("mixed", "eval", "train")


@pytest.mark.medium
@pytest.mark.parametrize(
    "options",
    [(), pytest.param(("freezing.dora=true", "freezing.dropout=0.2"), marks=pytest.mark.slow)],
    ids=["lora", "dora"],
)
def test_a_run_with_adapters_resumes_bit_for_bit_and_is_restored(run_train, stopped_after_epoch, options) -> None:
    command = (*QUICK, "trainer.max_epochs=3", *options)
    whole = run_train(*command, "run.dir=runs/whole")
    with stopped_after_epoch(0):
        assert run_train(*command, "run.dir=runs/parts").code == 130
    parts = run_train(*command, "run.dir=runs/parts", "resume=must")
    assert (whole.code, parts.code) == (0, 0), parts.errors
    first, second = (
        load_checkpoint(outcome.folders[-1] / "checkpoints" / "last.ckpt")["state_dict"] for outcome in (whole, parts)
    )
    assert any("lora_B" in n for n in first)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert whole.record["metrics"] == parts.record["metrics"]
    run = restore(parts.folders[-1])
    found = run.measure(run.checkpoint()["state_dict"], "test") | run.measure(run.checkpoint()["state_dict"], "val")
    assert found == {n: value for n, value in parts.record["metrics"].items() if not n.startswith("train/")}
