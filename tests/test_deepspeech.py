"""The example of one's own module: groups, lengths that padding cannot change, masks that follow the freezing."""

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from torch import Tensor, nn

from thaw.model.deepspeech import deepspeech
from thaw.model.network import Network, Steps

LENGTHS = torch.tensor([400, 4000, 2777])  # samples; the shortest is 0.05 s


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    network = deepspeech(10, width=32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):  # as after training
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def waves(padding: float = 0.0) -> dict[str, Tensor]:
    values = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    values[torch.arange(4000) >= LENGTHS[:, None]] = padding
    return {"input_values": values, "lengths": LENGTHS}


def alone(inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    length = inputs["lengths"][index]
    return {"input_values": inputs["input_values"][index : index + 1, :length], "lengths": length[None]}


def test_groups_are_in_forward_order_and_named_as_everywhere(network: Network) -> None:
    assert list(network.groups) == ["stem", "block00", "block01", "block02", "head"]
    assert list(deepspeech(3, layers=4).groups)[-2:] == ["block04", "head"]
    called: list[str] = []
    group_of = {id(p): group for group, parameters in network.groups.items() for p in parameters.values()}

    def note(module: nn.Module, _: object) -> None:
        called.extend({group_of[id(parameter)] for parameter in module.parameters(recurse=False)})

    for module in network.modules():
        module.register_forward_pre_hook(note)
    network(waves())
    assert list(dict.fromkeys(called)) == list(network.groups)


def test_the_data_is_told_what_to_prepare(network: Network) -> None:
    assert network.preprocessing == {"kind": "waveform", "sampling_rate": 8000, "extract": None}
    assert deepspeech(3, sampling_rate=16000).preprocessing["sampling_rate"] == 16000
    # Nothing in it is pretrained: every group takes the same rate, a larger one than a pretrained body would.
    assert not network.pretrained
    assert not network.new_head
    assert network.lr >= 1e-3


def test_a_batch_gives_what_its_samples_give_alone(network: Network) -> None:
    inputs = waves()
    with torch.no_grad():
        together = network.features(inputs)
        assert together.shape == (3, 32)
        assert network(inputs).shape == (3, 10)
        for index in range(3):
            torch.testing.assert_close(network.features(alone(inputs, index))[0], together[index], atol=1e-5, rtol=0)


def test_steps_are_20_ms_and_the_same_alone() -> None:
    network = deepspeech(16, per_step=True, width=32).eval()
    inputs = waves()
    with torch.no_grad():
        together = network(inputs)
        assert isinstance(together, Steps)
        assert together.values.shape == (3, 26, 16)
        assert together.lengths.tolist() == [3, 26, 18]
        for index, length in enumerate(together.lengths):
            values = network(alone(inputs, index)).values[0]
            assert len(values) == length
            torch.testing.assert_close(values, together.values[index, :length], atol=1e-5, rtol=0)


def test_what_is_in_the_padding_changes_nothing(network: Network) -> None:
    for mode in (False, True):  # in train mode: not the statistics of the batch either
        network.train(mode)
        torch.manual_seed(0)
        silent = network.features(waves())
        torch.manual_seed(0)
        assert torch.equal(network.features(waves(padding=3.0)), silent)


def test_loudness_changes_next_to_nothing(network: Network) -> None:
    inputs = waves()
    quiet = {**inputs, "input_values": inputs["input_values"] / 3}
    torch.testing.assert_close(network.features(quiet), network.features(inputs), atol=1e-2, rtol=0)


def test_silence_is_no_trouble(network: Network) -> None:
    silence = {"input_values": torch.zeros(2, 1600), "lengths": torch.tensor([1600, 400])}
    assert network.train()(silence).isfinite().all()


def test_masks_are_drawn_in_training_and_not_in_a_frozen_stem() -> None:
    def differs(network: Network) -> bool:
        return not torch.equal(network.features(waves()), network.features(waves()))

    network = deepspeech(10, width=32, dropout=0.0).train()
    assert differs(network)
    network.train_groups(["block01", "block02", "head"])
    assert not differs(network)
    network.train_groups(network.groups)
    assert differs(network)
    assert not differs(network.eval())
    assert not differs(deepspeech(10, width=32, dropout=0.0, spec_augment=False).train())


def test_every_parameter_learns(network: Network) -> None:
    network.train()(waves()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_it_learns_which_of_two_tones_comes_first() -> None:
    torch.manual_seed(0)
    network = deepspeech(2, width=16, dropout=0.0)
    time = torch.arange(1600) / 8000
    low, high = torch.sin(2 * torch.pi * 300 * time), torch.sin(2 * torch.pi * 2500 * time)
    values = torch.stack([torch.cat([low, high]), torch.cat([high, low])])
    inputs = {"input_values": values, "lengths": torch.full((2,), 3200)}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(30):
        loss = nn.functional.cross_entropy(network(inputs), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert network.eval()(inputs).argmax(1).tolist() == [0, 1]


def test_the_config_gives_the_defaults_of_the_function() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / "deepspeech.yaml"))
    assert config.pop("_target_") == "thaw.model.deepspeech.deepspeech"
    torch.manual_seed(0)
    configured = deepspeech(10, **config).state_dict()
    torch.manual_seed(0)
    for name, value in deepspeech(10).state_dict().items():
        assert torch.equal(configured[name], value)
