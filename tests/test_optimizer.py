"""Torch groups of a network's layer groups: who is in them, at which rate and with which decay."""

import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from thaw import config
from thaw.errors import UserError
from thaw.model.network import Network
from thaw.optimizer import create_optimizer, param_groups

LAYERS = ["stem", "block00", "block01", "head"]
OPTIMIZERS = sorted(path.stem for path in (config.CONF / "optimizer").glob("*.yaml"))


class Body(nn.Module):
    """A convolution with BatchNorm, two LayerNorms of equal values, and a position embedding of two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.position = nn.Parameter(torch.zeros(1, 4))
        self.norm1, self.fc1 = nn.LayerNorm(4), nn.Linear(4, 4)
        self.norm2, self.fc2 = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.bn(self.conv(images)).mean(dim=(2, 3)) + self.position
        return self.fc2(self.norm2(self.fc1(self.norm1(features))))


def network(no_decay: tuple[str, ...] = ()) -> Network:
    torch.manual_seed(0)
    body = Body()
    groups = {
        "stem": [f"{module}.{kind}" for module in ("conv", "bn") for kind in ("weight", "bias")] + ["position"],
        "block00": [f"{module}.{kind}" for module in ("norm1", "fc1") for kind in ("weight", "bias")],
        "block01": [f"{module}.{kind}" for module in ("norm2", "fc2") for kind in ("weight", "bias")],
    }
    return Network(body, nn.Linear(4, 3), groups, no_decay=no_decay)


def loss_of(net: Network) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 1, 6, 6, generator=generator)
    return nn.functional.cross_entropy(net(images), torch.arange(16) % 3)


def one_step(net: Network, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss_of(net).backward()
    optimizer.step()


def test_every_parameter_stands_in_exactly_one_group():
    net = network()
    members = [id(parameter) for group in param_groups(net, 1e-3, 0.1) for parameter in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(parameter) for parameter in net.parameters()}


def test_frozen_parameters_stay_in_their_groups():
    net = network()
    net.train_groups(["head"])
    assert sum(len(group["params"]) for group in param_groups(net, 1e-3, 0.1)) == len(list(net.parameters()))


def test_tied_weight_stands_in_one_group_once():
    body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    body[1].weight = body[0].weight
    net = Network(body, nn.Linear(4, 2), {"stem": ["0.weight", "0.bias"], "block00": ["1.bias"]})
    groups = param_groups(net, 1e-3, 0.1)
    holders = [g["name"] for g in groups if any(p is body[1].weight for p in g["params"])]
    assert holders == ["stem/decay"]
    assert sum(len(group["params"]) for group in groups) == 5


def test_groups_are_named_by_layer_and_kind_in_forward_order():
    assert [group["name"] for group in param_groups(network(), 1e-3, 0.1)] == [
        f"{layer}/{kind}" for layer in LAYERS for kind in ("decay", "no_decay")
    ]


def test_group_without_vectors_has_no_empty_partner():
    net = Network(nn.Linear(4, 4, bias=False), nn.Linear(4, 2), {"stem": ["weight"]})
    assert [group["name"] for group in param_groups(net, 1e-3, 0.1)] == ["stem/decay", "head/decay", "head/no_decay"]


@pytest.mark.parametrize("lr", [1e-3, 0.2])
@pytest.mark.parametrize("layer_decay", [1.0, 0.75, 0.1])
@pytest.mark.parametrize("head_lr_scale", [1.0, 10.0])
def test_rates_fall_with_depth_below_the_head(lr, layer_decay, head_lr_scale):
    groups = param_groups(network(), lr, 0.1, layer_decay, head_lr_scale)
    expected = {
        "stem": lr * layer_decay * layer_decay * layer_decay,
        "block00": lr * layer_decay * layer_decay,
        "block01": lr * layer_decay,
        "head": lr * head_lr_scale,
    }
    for group in groups:
        assert group["lr"] == pytest.approx(expected[group["name"].split("/")[0]], rel=1e-12)


@pytest.mark.parametrize("no_decay", [(), ("position",), ("position", "fc1.weight")])
def test_matrices_decay_and_vectors_and_exempt_names_do_not(no_decay):
    net = network(no_decay)
    exempt = {id(net.body.get_parameter(name)) for name in no_decay}
    optimizer = create_optimizer(net, weight_decay=0.1)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            decays = parameter.ndim >= 2 and id(parameter) not in exempt
            assert group["weight_decay"] == (0.1 if decays else 0.0)
            assert group["name"].endswith("/decay" if decays else "/no_decay")


def test_decay_without_gradient_shrinks_matrices_alone():
    """Seen on the values themselves: AdamW multiplies a matrix by 1 - lr × weight_decay when its gradient is zero."""
    net = network()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = create_optimizer(net, "adamw", lr=0.1, weight_decay=0.5, head_lr_scale=2.0)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        factor = 1.0 if parameter.ndim <= 1 else 1 - 0.5 * (0.2 if name.startswith("head") else 0.1)
        assert torch.allclose(parameter, before[name] * factor, atol=1e-7), name


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_ratios_between_rates_hold_under_schedulers_of_torch(name):
    net = network()
    optimizer = create_optimizer(net, name, lr=1e-3, layer_decay=0.5, head_lr_scale=10.0)
    expected = [group["lr"] / optimizer.param_groups[0]["lr"] for group in optimizer.param_groups]
    assert len(set(expected)) == 4
    for make in (lambda o: CosineAnnealingLR(o, T_max=10), lambda o: StepLR(o, step_size=2, gamma=0.3)):
        scheduler = make(optimizer)
        first = optimizer.param_groups[0]["lr"]
        for _ in range(8):
            one_step(net, optimizer)
            scheduler.step()
            rates = [group["lr"] for group in optimizer.param_groups]
            assert [rate / rates[0] for rate in rates] == pytest.approx(expected)
        assert rates[0] < first / 2


@pytest.mark.fault("A10")
@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
def test_layer_norms_of_equal_values_both_move(name):
    """Parameters are told apart by identity: equal values must not make one of two stand for both."""
    net = network()
    assert torch.equal(net.body.norm1.weight, net.body.norm2.weight)
    before = {key: parameter.detach().clone() for key, parameter in net.named_parameters()}
    one_step(net, create_optimizer(net, name, lr=0.05))
    for norm in ("norm1", "norm2"):
        assert not torch.equal(net.get_parameter(f"body.{norm}.weight"), before[f"body.{norm}.weight"])


def test_step_moves_each_group_at_its_own_rate():
    net = network()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    plain = {"momentum": 0.0, "nesterov": False}
    optimizer = create_optimizer(net, "sgd", 0.1, weight_decay=0.0, layer_decay=0.5, head_lr_scale=3.0, options=plain)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    expected = {"stem": 0.0125, "block00": 0.025, "block01": 0.05, "head": 0.3}
    for layer, parameters in net.groups.items():
        for name, parameter in parameters.items():
            assert torch.allclose(before[name] - parameter, torch.tensor(expected[layer]), atol=1e-6), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_configured_optimizer_builds_and_learns(name):
    GlobalHydra.instance().clear()
    chosen = ["optimizer.name=lamb"] if name == "timm" else []
    with initialize_config_dir(str(config.CONF)):
        cfg = compose("config", overrides=[f"optimizer={name}", *chosen])
    assert config.validate(cfg) == []
    net = network()
    optimizer = config.builder(cfg.optimizer)(net)
    assert {group["name"].split("/")[0] for group in optimizer.param_groups} == set(LAYERS)
    before = loss_of(net).item()
    for _ in range(20):
        one_step(net, optimizer)
    assert loss_of(net).item() < before


@pytest.mark.parametrize(("name", "kind"), [("adamw", AdamW), ("adam", Adam), ("sgd", SGD)])
def test_names_of_torch_give_torch(name, kind):
    optimizer = create_optimizer(network(), name)
    assert type(optimizer) is kind
    if name == "sgd":
        assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_options_reach_the_optimizer():
    optimizer = create_optimizer(network(), "adamw", options={"betas": [0.5, 0.6], "eps": 1e-4})
    assert all(list(group["betas"]) == [0.5, 0.6] and group["eps"] == 1e-4 for group in optimizer.param_groups)
    assert all(math.isfinite(group["lr"]) for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("adamw", "beta", 0.9),
        ("adamw", "lr", 1.0),
        ("adamw", "momentum", 0.9),
        ("adamw", "layer_decay", 0.5),
        ("sgd", "betas", [0.9, 0.98]),
        ("sgd", "eps", 1e-6),
    ],
)
def test_option_that_the_optimizer_lacks_is_refused_by_name(name, option, value):
    """timm's factory drops some options in silence, and a value that does nothing must not look as if it did."""
    with pytest.raises(UserError, match=rf"optimizer\.options must fit '{name}'") as caught:
        create_optimizer(network(), name, options={option: value})
    assert option in str(caught.value)
    assert "Leave it out" in str(caught.value)


@pytest.mark.parametrize("options", [{"betas": [0.9, 2.0]}, {"eps": -1.0}])
def test_impossible_value_of_an_option_is_refused(options):
    with pytest.raises(UserError, match=r"optimizer\.options must fit 'adamw'"):
        create_optimizer(network(), "adamw", options=options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["fusedadam", "bnbadam"])
def test_optimizer_that_this_machine_cannot_run_is_refused(name):
    with pytest.raises(UserError, match=name):
        create_optimizer(network(), name)
