"""Attributions add up, say where, and leave the network as it was."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_transformers import rows
from tiny_networks import inputs_of, tiny
from torch import Tensor, nn

from thaw.model.lora import add_lora
from thaw.model.network import Head, Network
from thaw.report import colored_tokens, explanation, overlays
from thaw.report.answers import Verdict
from thaw.report.attribution import LIMIT, TooExpensiveError, attribute, undisturbed
from thaw.report.layers import last_map
from thaw.report.similarity import cka, group_outputs
from thaw.report.soundscape import BANDS, SLOTS, audible
from thaw.report.sparsity import zeros

METHODS = {
    "resnet_glyphs": "integrated_gradients",
    "mobilenetv3_small_050": "integrated_gradients",
    "test_vit": "integrated_gradients",
    "bert": "integrated_gradients",
    "gpt2": "integrated_gradients",
    "deepspeech": "silence",
    "wav2vec2": "silence",
    "whisper": "silence",
}


def batch_of(network: Network) -> Any:
    inputs = inputs_of(network)
    return rows(inputs, 0) if network.preprocessing["kind"] == "waveform" else inputs


def attributed(network: Network, inputs: Any, limit: float = LIMIT) -> Any:
    with undisturbed(network) as quiet:
        chosen = explanation._chosen(quiet, inputs, "class")
        return attribute(quiet, inputs, explanation.SCORES["class"], chosen, limit)


def linear(pixels: int = 16) -> Network:
    body = nn.Sequential(nn.Flatten(), nn.Linear(pixels * pixels, 8))
    torch.manual_seed(0)
    preprocessing = {"kind": "image", "mean": [0.5], "std": [0.25], "size": pixels, "channels": 1}
    return Network(body, Head.new(8, 3), {"stem": ["1.weight", "1.bias"]}, preprocessing)


@contextmanager
def bit_equal(network: Network) -> Iterator[None]:
    """Everything of the network and of torch is afterwards what it was before."""

    def state() -> Any:
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        modes = [module.training for module in network.modules()]
        gradients = [(p.requires_grad, p.grad) for p in network.parameters()]
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
        return weights, modes, gradients, hooks, torch.get_rng_state(), torch.is_grad_enabled()

    before = state()
    yield
    after = state()
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert after[1:4] == before[1:4]
    assert torch.equal(after[4], before[4])
    assert after[5] == before[5]


@pytest.mark.parametrize("name", METHODS)
def test_attribution_leaves_everything_as_it_was(name: str) -> None:
    network = tiny(name)
    network.train()
    network.train_groups(["head"])
    inputs = batch_of(network)
    with bit_equal(network):
        found = attributed(network, inputs)
    assert found.method == METHODS[name]
    assert all(np.isfinite(values).all() and values.any() for values in found.values)


def test_what_a_method_draws_changes_no_draw_that_comes_after() -> None:
    network = tiny("test_vit")
    with bit_equal(network), undisturbed(network):
        torch.rand(3)


def test_attribution_goes_through_frozen_layers_adapters_and_inference_mode() -> None:
    network = tiny("bert")
    add_lora(network, {"r": 2})
    network.train_groups([])
    inputs = inputs_of(network)
    with bit_equal(network), torch.inference_mode():
        assert attributed(network, inputs).values[0].any()


@pytest.mark.medium
def test_attribution_of_a_compiled_network_is_that_of_the_plain_one() -> None:
    network = tiny("test_vit")
    inputs = inputs_of(network)
    plain = attributed(network, inputs)
    network.compile(backend="eager")
    np.testing.assert_allclose(attributed(network, inputs).values, plain.values)


def test_a_network_in_half_precision_is_attributed_by_a_copy() -> None:
    network = tiny("test_vit").bfloat16()
    inputs = inputs_of(network)
    with bit_equal(network):
        assert np.isfinite(attributed(network, inputs).values).all()


def test_integrated_gradients_of_a_linear_network_add_up_exactly() -> None:
    network = linear()
    inputs = torch.randn(3, 1, 16, 16)
    with undisturbed(network) as quiet:
        chosen = torch.tensor([0, 1, 2])
        found = attribute(quiet, inputs, explanation.SCORES["number"], chosen)
        black = torch.full_like(inputs, -0.5 / 0.25)
        gained = (quiet(inputs) - quiet(black)).gather(1, chosen[:, None])[:, 0]
        weights = (network.head.linear.weight @ network.body[1].weight)[chosen].reshape(3, 16, 16)
    np.testing.assert_allclose(found.explained, gained.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.missed, 0, atol=1e-5)
    expected = weights * (inputs - black)[:, 0]
    np.testing.assert_allclose(np.stack(found.values), expected.detach(), rtol=1e-3, atol=1e-5)


def test_tokens_of_a_text_add_up_to_what_it_gains_over_padding() -> None:
    network = tiny("bert")
    inputs = inputs_of(network)
    found = attributed(network, inputs)
    assert [len(values) for values in found.values] == inputs["attention_mask"].sum(dim=1).tolist()
    assert (np.abs(found.missed) < 0.05 * np.abs(found.explained) + 1e-3).all()


def test_grad_cam_looks_at_the_last_map_that_tells_where() -> None:
    network = tiny("resnet_glyphs")
    large = torch.randn(2, 1, 96, 96)
    layer = last_map(network, large)
    found = attributed(network, large)
    assert found.method == "grad_cam"
    assert found.explained is None
    assert all(values.min() >= 0 and min(values.shape) >= 5 for values in found.values)
    group = {id(p): name for name, ps in network.groups.items() for p in ps.values()}
    assert {group[id(p)] for p in layer.parameters()} <= set(list(network.groups)[2:])
    assert last_map(tiny("test_vit"), inputs_of(tiny("test_vit"))) is None


class Loudness(nn.Module):
    """The power of a wave, in one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.scale * inputs["input_values"].square().sum(dim=1, keepdim=True)


def test_silence_is_missed_where_there_was_sound() -> None:
    network = Network(Loudness(), Head.new(1, 3), {"stem": ["scale"]}, {"kind": "waveform", "sampling_rate": 8000})
    wave = torch.zeros(1, 8000)
    wave[0, :2000] = torch.sin(torch.arange(2000) * 2 * np.pi * 440 / 8000)
    found = attributed(network, {"input_values": wave, "lengths": torch.tensor([8000])})
    cells = np.abs(found.values[0])
    assert cells.shape == (BANDS, SLOTS)
    assert cells[:, : SLOTS // 4 + 1].sum() > 0.99 * cells.sum()
    assert cells[:2].sum() > 0.95 * cells.sum()  # 440 Hz


@pytest.mark.parametrize("bands", [1, BANDS])
def test_gains_of_one_leave_a_sound_alone_and_of_zero_nothing(bands: int) -> None:
    wave = torch.randn(2, 4001)
    whole, nothing = (audible(wave, torch.full((2, bands, SLOTS), gain), 8000) for gain in (1.0, 0.0))
    assert whole.shape == nothing.shape == wave.shape
    torch.testing.assert_close(whole, wave, atol=1e-4, rtol=1e-4)
    assert not nothing.any()


def test_what_would_take_too_long_is_refused() -> None:
    for name in ("test_vit", "bert", "deepspeech"):
        network = tiny(name)
        with pytest.raises(TooExpensiveError):
            attributed(network, batch_of(network), limit=1.0)


def test_wrong_and_right_answers_of_several_classes_are_chosen() -> None:
    judged = [Verdict(n, n % 5 != 0, str(n % 3), "?", n / 100, "") for n in range(40)]
    chosen = explanation.choose(judged)
    assert [each.row for each in chosen if not each.right] == [35, 30, 25, 20]
    assert len(chosen) == 8
    assert len({each.truth for each in chosen if each.right}) == 3
    assert all(each.right for each in explanation.choose([each for each in judged if each.right]))
    assert len(explanation.choose(judged[:3])) == 3


def test_pieces_of_a_text_give_the_text_again() -> None:
    tokenizer = tiny("bert").preprocessing["tokenizer"]
    ids = tokenizer.encode(["Grüße, world!"])["input_ids"][0]
    assert "".join(colored_tokens.pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_long_texts_are_wrapped_and_drawn() -> None:
    words = [f" word{number}" for number in range(60)]
    figure = colored_tokens.draw([words, words[:2]], [np.linspace(-1, 1, 60), np.zeros(2)], ["a → b", "b"])
    figure.canvas.draw()
    ends = [text.get_window_extent().x1 / figure.dpi for text in figure.axes[0].texts]
    assert max(ends) <= figure.get_size_inches()[0] + 0.05


def test_tints_tell_for_from_against_and_leave_nothing_clear() -> None:
    tints = overlays.tinted(np.array([[1.0, -1.0, 0.0]]))
    assert tints.shape == (1, 3, 4)
    assert tints[0, 0, 0] > tints[0, 0, 2]
    assert tints[0, 1, 0] < tints[0, 1, 2]
    assert tints[0, 2, 3] == 0


def test_cka_is_one_of_equals_also_turned_and_less_of_strangers() -> None:
    torch.manual_seed(0)
    one = torch.randn(60, 10) * torch.arange(1, 11)
    turned = 3 * one @ torch.linalg.qr(torch.randn(10, 10))[0] + 5
    assert cka(one, one) == pytest.approx(1)
    assert cka(one, turned) == pytest.approx(1)
    assert abs(cka(one, torch.randn(60, 10))) < 0.2
    wide = torch.randn(60, 500)  # where the biased estimate would say 0.9
    assert abs(cka(wide, torch.randn(60, 500))) < 0.2


@pytest.mark.parametrize("name", ["resnet_glyphs", "test_vit", "bert", "gpt2", "deepspeech", "wav2vec2"])
def test_every_group_of_the_body_has_an_output_a_sample(name: str) -> None:
    network = tiny(name)
    with torch.no_grad():
        found = group_outputs(network, inputs_of(network))
    assert list(found) == [group for group in network.groups if group != "head"]
    assert {(values.shape[0], values.ndim) for values in found.values()} == {(3, 2)}


def test_padding_is_no_part_of_what_a_group_tells() -> None:
    network = tiny("bert")
    inputs = inputs_of(network)
    longer = {name: nn.functional.pad(values, (0, 5)) for name, values in inputs.items()}
    with torch.no_grad():
        for short, long in zip(
            group_outputs(network, inputs).values(), group_outputs(network, longer).values(), strict=True
        ):
            torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-4)


def test_the_sparsity_map_counts_exact_zeros_of_matrices() -> None:
    network = linear()
    with torch.no_grad():
        network.body[1].weight[:2] = 0
        network.body[1].bias.zero_()
        network.head.linear.weight[0, 0] = 1e-30
    found = zeros(network)
    assert [(each.group, each.zeros, each.weights) for each in found] == [("stem", 512, 2048), ("head", 0, 24)]
    assert found[0].share == 0.25


def test_sparsity_is_shown_of_l1_and_similarity_when_asked_for() -> None:
    from thaw.report.similarity import similarity
    from thaw.report.sparsity import sparsity

    network = linear()
    settings = {"regularization": {"_target_": "thaw.regularization.L1"}}
    evidence = SimpleNamespace(settings=settings, module=SimpleNamespace(network=network), depth="standard")
    none = sparsity(evidence)
    assert "0 of 2,072 weights (0.0%) are exactly zero. A larger" in none.text[0]
    assert not [*none.pictures, *none.tables]
    network.head.linear.weight.data.zero_()
    shown = sparsity(evidence)
    assert shown.text == ["24 of 2,072 weights (1.2%) are exactly zero."]
    assert len(shown.pictures) == len(shown.tables) == 1
    evidence.settings = {"regularization": {"_target_": "thaw.regularization.Regularization"}}
    assert sparsity(evidence) is None
    assert similarity(evidence) is None


def test_a_network_that_cannot_be_built_again_is_told_of() -> None:
    from thaw.report.similarity import similarity

    class Gone:
        depth, split, data = "full", "test", SimpleNamespace(splits={"test": range(20)})

        @property
        def start(self) -> Network:
            raise OSError("no such file")

    assert "cannot be built again (no such file)" in similarity(Gone()).text[0]
