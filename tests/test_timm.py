"""Weights: loaded whole, or refused with the ways out."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from thaw.errors import UserError
from thaw.model.timm import timm_network

SMALL = "resnet10t"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as timm publishes them: the whole model, with its thousand classes."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model(SMALL).state_dict(), path)
    return path


def changed(weights: Path, folder: Path, **changes: torch.Tensor | None) -> Path:
    state = load_file(weights) | changes
    path = folder / "changed.safetensors"
    save_file({name: value for name, value in state.items() if value is not None}, path)
    return path


def test_weights_of_a_file_are_loaded_but_for_its_classifier(weights: Path) -> None:
    network, state = timm_network(SMALL, 3, weights=str(weights)), load_file(weights)
    loaded = network.body.state_dict()
    assert loaded.keys() == state.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
    assert network.head.linear.weight.shape == (3, 512)


def test_a_file_with_other_classes_or_without_classifier_loads(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    seven = changed(weights, tmp_path, **{name: state[name][:7].clone() for name in ("fc.weight", "fc.bias")})
    first = timm_network(SMALL, 3, weights=str(seven)).body.state_dict()
    headless = changed(weights, tmp_path, **{"fc.weight": None, "fc.bias": None})
    second = timm_network(SMALL, 3, weights=str(headless)).body.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer1.0.conv1.weight": None}, "layer1.0.conv1.weight"),
        ({"layer9.weight": torch.zeros(2)}, "layer9.weight"),
        ({"bn1.weight": torch.zeros(3)}, "bn1.weight"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_a_missing_extra_or_misshapen_key_is_named(weights: Path, tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        timm_network(SMALL, 3, weights=str(changed(weights, tmp_path, **changes)))


@pytest.mark.fault("S9")
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("<html>")
    with pytest.raises(UserError, match="must be a readable safetensors file"):
        timm_network(SMALL, 3, weights=str(path))


@pytest.mark.fault("H10")
def test_weights_that_cannot_be_had_name_the_three_ways_out() -> None:
    with pytest.raises(UserError) as error:
        timm_network("resnet18", 3)
    text = str(error.value)
    assert "connect to the network" in text
    assert "model.weights=/path/to/model.safetensors" in text
    assert "model.weights=none" in text
    assert len(text.splitlines()) <= 6


def test_other_channels_are_adapted_from_the_pretrained_filters(weights: Path) -> None:
    three = timm_network(SMALL, 3, weights=str(weights)).body.conv1[0].weight
    one = timm_network(SMALL, 3, weights=str(weights), in_channels=1)
    assert torch.allclose(one.body.conv1[0].weight, three.sum(dim=1, keepdim=True))
    assert one.preprocessing["channels"] == 1
    assert len(one.preprocessing["mean"]) == len(one.preprocessing["std"]) == 1


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_another_image_size_reaches_the_network_and_the_data(name: str) -> None:
    network = timm_network(name, 3, weights="none", image_size=96)
    assert network.preprocessing["size"] == 96
    assert network(torch.randn(2, 3, 96, 96)).shape == (2, 3)


def test_dropout_and_drop_path_reach_the_network() -> None:
    network = timm_network("test_vit", 3, weights="none", dropout=0.25, drop_path=0.2)
    assert network.head.dropout.p == 0.25
    rates = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)


def test_an_argument_the_model_lacks_is_named() -> None:
    with pytest.raises(UserError, match="no_such_option"):
        timm_network(SMALL, 3, weights="none", options={"no_such_option": 1})


def test_a_model_without_layer_groups_is_refused() -> None:
    with pytest.raises(UserError, match="layer groups"):
        timm_network("pit_ti_224", 3, weights="none")


def test_position_embeddings_get_no_weight_decay() -> None:
    assert {"body.pos_embed", "body.cls_token"} <= timm_network("test_vit", 3, weights="none").no_decay
