"""A network cut in two: both parts give what the whole gives, for every kind of network, or the cut is refused."""

import pytest
import torch
from tiny_networks import NETWORKS, inputs_of, tiny
from torch import nn

from thaw.model.cut import Cut, NoCutError
from thaw.model.network import Cached, Head, Network

# Something passes by the cut (relative positions), draws at random before it, or has steps that are no samples.
REFUSED = ("deberta-v2", "gpt2", "t5", "deepspeech", "wav2vec2", "wav2vec2 masked", "hubert", "whisper")
REFUSED += ("audio-spectrogram-transformer",)


def first_groups(network: Network) -> list[list[str]]:
    body = list(network.groups)[:-1]
    return [body[:number] for number in range(1, len(body))]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in REFUSED])
def test_both_parts_give_what_the_whole_gives_bit_for_bit(name: str) -> None:
    network = tiny(name)
    inputs = inputs_of(network, 3)
    for groups in first_groups(network):
        network.train_groups([group for group in network.groups if group not in groups])
        expected = network(inputs)  # frozen as here: where a bias of positions trains, attention is another kernel
        network.cut = Cut(network, groups, inputs)
        activations = network.cut.before(inputs)
        assert not activations.requires_grad
        found = network(Cached(activations, None if isinstance(inputs, torch.Tensor) else inputs))
        assert torch.equal(found, expected), groups


@pytest.mark.parametrize("name", ["resnet_glyphs", "test_vit", "bert"])
def test_gradients_of_the_rest_are_those_of_the_whole(name: str) -> None:
    network = tiny(name)
    inputs = inputs_of(network, 3)
    groups = first_groups(network)[-1]
    network.train_groups([group for group in network.groups if group not in groups])
    network.cut = Cut(network, groups, inputs)
    network.eval()
    found = []
    for batch in (inputs, Cached(network.cut.before(inputs), None if isinstance(inputs, torch.Tensor) else inputs)):
        network.zero_grad()
        network(batch).square().sum().backward()
        found.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_chain_of_samples_is_refused(name: str) -> None:
    network = tiny(name)
    groups = first_groups(network)[-1]
    network.train()
    network.train_groups([group for group in network.groups if group not in groups])
    with pytest.raises(NoCutError):
        Cut(network, groups, inputs_of(network, 3))


class Skipping(nn.Module):
    """The stem's output reaches the end by another way too."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem, self.block, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.dropout = nn.Dropout(dropout)
        self.skips = not dropout

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        early = self.dropout(self.stem(inputs))
        return self.last(self.block(early)) + (early if self.skips else 0)


def skipping(dropout: float = 0.0) -> Network:
    body = Skipping(dropout)
    names = {name: [f"{name}.weight", f"{name}.bias"] for name in ("stem", "block", "last")}
    return Network(body, Head.new(4, 2), {"stem": names["stem"], "block00": names["block"], "block01": names["last"]})


def test_a_way_around_the_cut_is_found() -> None:
    network = skipping()
    network.train_groups(["block01", "head"])
    Cut(network, ["stem"], torch.randn(4, 4))
    with pytest.raises(NoCutError, match="passes by"):
        Cut(network, ["stem", "block00"], torch.randn(4, 4))


def test_dropout_that_draws_before_the_cut_is_found() -> None:
    network = skipping(dropout=0.5)
    network.train_groups(["block01", "head"])
    with pytest.raises(NoCutError, match="Dropout draws"):
        Cut(network, ["stem", "block00"], torch.randn(4, 4))
    network.eval()
    Cut(network, ["stem", "block00"], torch.randn(4, 4))


def test_nothing_of_the_network_moves_while_a_cut_is_tried() -> None:
    network = tiny("resnet_glyphs").train()
    network.train_groups(["block02", "block03", "head"])
    before = {name: held.clone() for name, held in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    Cut(network, ["stem", "block00", "block01"], inputs_of(network, 3))
    assert all(torch.equal(before[name], held) for name, held in network.state_dict().items())
    assert modes == [module.training for module in network.modules()]


def test_the_modules_are_themselves_again_after_a_forward_pass() -> None:
    network = tiny("resnet_glyphs")
    inputs = inputs_of(network, 3)
    own = {name: module.forward for name, module in network.named_modules()}
    cut = Cut(network, ["stem", "block00"], inputs)
    cut.after(cut.before(inputs), None)
    assert own == {name: module.forward for name, module in network.named_modules()}
    assert not any(module._forward_hooks for module in network.modules())
