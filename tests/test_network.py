"""The Network contract, over every model in conf/model/."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_groups_run_in_forward_order
from omegaconf import OmegaConf
from torch import Tensor, nn

from thaw.model.network import Network
from thaw.model.timm import timm_network


def target(path: Path) -> str:
    """The `_target_` of a model's YAML, or of the one that it builds upon."""
    cfg = OmegaConf.load(path)
    return cfg.get("_target_") or target(path.with_name(f"{cfg.defaults[0]}.yaml"))


# The others have tests of their own: test_transformers.py, test_deepspeech.py.
MODELS = {
    path.stem: OmegaConf.load(path).name
    for path in sorted((ROOT / "conf" / "model").glob("*.yaml"))
    if target(path) == "thaw.model.timm.timm_network" and not OmegaConf.is_missing(OmegaConf.load(path), "name")
}


@pytest.fixture(scope="module", params=MODELS)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return timm_network(MODELS[request.param], num_outputs=3, weights="none").eval()


def images(network: Network, count: int = 2) -> Tensor:
    size, channels = network.preprocessing["size"], network.preprocessing["channels"]
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_groups_are_a_partition_of_the_parameters(network: Network) -> None:
    grouped = [id(p) for parameters in network.groups.values() for p in parameters.values()]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in network.parameters()}
    blocks = [name for name in network.groups if name.startswith("block")]
    assert list(network.groups) == ["stem", *(f"block{number:02d}" for number in range(len(blocks))), "head"]
    assert len(blocks) >= 4


def test_groups_run_in_forward_order(network: Network) -> None:
    assert_groups_run_in_forward_order(network, images(network))


def test_head_of_features_is_forward(network: Network) -> None:
    with torch.no_grad():
        features = network.features(images(network))
        assert features.shape == (2, network.head.linear.in_features)
        assert torch.equal(network.head(features), network(images(network)))


def test_frozen_groups_are_in_eval_mode_with_all_their_dropout(network: Network) -> None:
    groups = list(network.groups)
    network.train_groups(groups[-2:])
    network.train()
    last = {id(p) for p in network.groups[groups[-2]].values()} | {id(p) for p in network.head.parameters()}
    for name, module in network.named_modules():
        own = {id(p) for p in module.parameters()}
        if own:
            assert module.training == bool(own & last), name
        if own and not own & last:
            assert not any(child.training for child in module.modules()), name
    network.train_groups(groups)
    assert all(module.training for module in network.modules())
    network.eval()


def tiny(stem: nn.Module | None = None) -> Network:
    body = nn.Sequential(stem or nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    return Network(body, nn.Linear(4, 2), {"stem": ["0.weight", "0.bias"], "block00": ["1.weight", "1.bias"]})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"stem": ["0.weight"], "block00": ["1.weight", "1.bias"]}, "'body.0.bias' stands in no layer group"),
        ({"stem": ["0.weight", "0.bias"], "block00": ["0.bias", "1.weight", "1.bias"]}, "'body.0.bias' stands in two"),
        ({"stem": ["0.weight", "0.bias", "x"], "block00": ["1.weight", "1.bias"]}, "names 'body.x'"),
    ],
)
def test_a_wrong_partition_is_refused_by_name(groups: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2), groups)


def test_an_unknown_group_cannot_train() -> None:
    with pytest.raises(ValueError, match="block07"):
        tiny().train_groups(["block07"])


def test_freezing_drops_gradients() -> None:
    network = tiny()
    network(torch.randn(8, 4)).sum().backward()
    network.train_groups(["head"])
    assert all(p.grad is None for p in network.body.parameters())
    assert all(p.grad is not None for p in network.head.parameters())


@pytest.mark.parametrize(
    ("policy", "statistics_move", "weights_train"),
    [("frozen", False, False), ("adapt", True, False), ("train", True, True)],
)
def test_batch_norm_policy_of_frozen_groups(policy: str, statistics_move: bool, weights_train: bool) -> None:
    network = tiny()
    network.train()
    network.train_groups(["head"], policy)
    before = network.body[1].running_mean.clone()
    network(torch.randn(16, 4) + 5)
    assert torch.equal(before, network.body[1].running_mean) != statistics_move
    assert network.body[1].weight.requires_grad == weights_train
    assert not network.body[0].weight.requires_grad


def test_modules_handed_over_in_eval_train_where_they_should() -> None:
    """What `from_pretrained` returns is in eval mode, and Lightning leaves it there: dropout would never be active."""
    network = tiny()
    network.eval()
    network.train_groups(list(network.groups))
    network.train()
    assert all(module.training for module in network.modules())


def test_tied_weights_count_once_in_the_earliest_group() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    body = nn.Sequential(first, second)
    network = Network(body, nn.Linear(4, 2), {"stem": ["0.weight", "0.bias"], "block00": ["1.bias"]})
    assert sum(len(parameters) for parameters in network.groups.values()) == len(list(network.parameters()))


def test_model_yamls_are_short() -> None:
    for path in Path(ROOT / "conf" / "model").glob("*.yaml"):
        if path.stem != "timm":
            assert len(path.read_text().splitlines()) <= 10, path.name


def test_every_model_yaml_is_covered_by_some_test_of_the_contract() -> None:
    known = {
        "thaw.model.timm.timm_network",
        "thaw.model.transformers.transformers_network",
        "thaw.model.deepspeech.deepspeech",
    }
    assert {target(path) for path in (ROOT / "conf" / "model").glob("*.yaml")} == known
