"""Strategies, and what they promise while they run: frozen groups do not move by one bit."""

import copy
from collections.abc import Sequence

import lightning as L
import pytest
import torch
from test_config import composed
from torch import nn

from thaw import config
from thaw.build import TRAINER
from thaw.data.datamodule import DataModule
from thaw.data.digits import Digits
from thaw.errors import FreezeContractError
from thaw.freezing.by_group import Gradual, LastN, NoFreezing, Phases, ProbeThenTune
from thaw.freezing.contract import assert_contract
from thaw.freezing.freezing import Freezing, thaw_epochs
from thaw.model.network import Network
from thaw.model.timm import timm_network
from thaw.module import FineTuner
from thaw.optimizer import create_optimizer, param_groups
from thaw.scheduler import cosine
from thaw.task.classification import Classification

GROUPS = ["stem", "block00", "block01", "block02", "block03", "head"]
STRATEGIES = [NoFreezing(), LastN(n=0), LastN(n=1), LastN(n=99), Gradual(), Gradual(every=1), ProbeThenTune()]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("epochs", [1, 2, 7, 100])
def test_every_strategy_trains_the_head_and_never_freezes_again(strategy: Freezing, epochs: int) -> None:
    before: set[str] = set()
    for epoch in range(epochs):
        names = list(strategy.trains(GROUPS, epoch, epochs))
        assert "head" in names
        assert before <= set(names) <= set(GROUPS)
        assert names == [name for name in GROUPS if name in names]
        before = set(names)


def test_the_words_mean_what_they_say() -> None:
    assert list(NoFreezing().trains(GROUPS, 0, 10)) == GROUPS
    assert list(LastN(n=0).trains(GROUPS, 9, 10)) == ["head"]
    assert list(LastN(n=2).trains(GROUPS, 0, 10)) == ["block02", "block03", "head"]
    counts = [len(Gradual(every=2).trains(GROUPS, epoch, 20)) for epoch in range(12)]
    assert counts == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    spread = [len(Gradual(over=0.5).trains(GROUPS, epoch, 20)) for epoch in range(20)]
    assert spread[0] == 1
    assert spread[9] == 5
    assert spread[10:] == [6] * 10
    assert [len(ProbeThenTune(probe=0.3).trains(GROUPS, epoch, 10)) for epoch in range(10)] == [1] * 3 + [6] * 7


def test_thaw_epochs_are_those_since_which_a_group_trains_without_a_break() -> None:
    assert thaw_epochs(Gradual(every=2).stages(GROUPS, 5, 20)) == {"head": 0, "block03": 2, "block02": 4}
    assert thaw_epochs(ProbeThenTune(probe=0.3).stages(GROUPS, 9, 10)) == {"head": 0} | dict.fromkeys(GROUPS[:-1], 3)


class Snapshots(L.Callback):
    """Keeps every tensor of the network at each epoch's end, and every rate at each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.rates: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        self.rates.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})

    def on_train_start(self, trainer: L.Trainer, pl_module: FineTuner) -> None:
        self.states.append(copy.deepcopy(pl_module.network.state_dict()))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: FineTuner) -> None:
        self.states.append(copy.deepcopy(pl_module.network.state_dict()))


def fit(
    freezing: Freezing,
    epochs: int = 3,
    accumulate: int = 1,
    network: Network | None = None,
    callbacks: Sequence[L.Callback] = (),
    data: DataModule | None = None,
) -> tuple[FineTuner, Snapshots, L.Trainer]:
    L.seed_everything(0, verbose=False)
    data = data or Digits(train_size=96, batch_size=32, num_workers=0)
    network = network or timm_network("resnet_glyphs", 10, dropout=0.2)
    data.preprocess(**network.preprocessing)
    freezing.prepare(network)
    module = FineTuner(network, Classification(data.classes), create_optimizer, cosine())
    snapshots = Snapshots()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[freezing, snapshots, *callbacks],
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=1,
        **TRAINER,
    )
    trainer.fit(module, data)
    return module, snapshots, trainer


@pytest.mark.parametrize("strategy", [LastN(n=0), LastN(n=1), Gradual(every=1), ProbeThenTune(probe=0.4), NoFreezing()])
def test_frozen_groups_do_not_move_and_trained_ones_do(strategy: Freezing) -> None:
    """Weights and BatchNorm statistics alike, bit for bit, epoch by epoch."""
    epochs = 3
    module, snapshots, _ = fit(strategy, epochs)
    owner = {name: group for group, names in module.network.groups.items() for name in names}
    for epoch in range(epochs):
        before, after = snapshots.states[epoch], snapshots.states[epoch + 1]
        trains = strategy.trains(list(module.network.groups), epoch, epochs)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        # A BatchNorm buffer belongs to the group of its layer's weight.
        groups = {owner.get(name) or owner[f"{name.rpartition('.')[0]}.weight"] for name in moved}
        assert groups == set(trains), f"epoch {epoch}"
        assert {name for name in owner if owner[name] in trains} <= moved


def test_frozen_parameters_have_no_gradient_and_no_optimizer_state() -> None:
    module, _, trainer = fit(LastN(n=0), epochs=1)
    frozen = {id(p) for p in module.network.body.parameters()}
    assert all(p.grad is None for p in module.network.body.parameters())
    assert not frozen & {id(p) for p in trainer.optimizers[0].state}


class Holdings(L.Callback):
    """Which parameters hold a gradient, and which a state in the optimizer, after each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[set[str], set[str], set[str]]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: FineTuner, *_: object) -> None:
        named, state = dict(pl_module.network.named_parameters()), trainer.optimizers[0].state
        kept = {id(p) for p, held in state.items() if any(torch.is_tensor(value) for value in held.values())}
        trained = {name for name, p in named.items() if p.requires_grad}
        graded = {name for name, p in named.items() if p.grad is not None}
        self.steps.append((trained, graded, {name for name, p in named.items() if id(p) in kept}))


@pytest.mark.medium
@pytest.mark.parametrize("name", [*sorted(path.stem for path in (config.CONF / "freezing").glob("*.yaml")), "back"])
def test_only_what_trains_now_holds_a_gradient_and_a_state_of_the_optimizer(name: str) -> None:
    """Also after a thaw, and where a group that has trained freezes again."""
    back = [{"at": 0, "groups": ["*"]}, {"at": 1, "groups": ["head"]}, {"at": 2, "groups": ["block*", "head"]}]
    strategy = Phases(back) if name == "back" else config.build(composed(f"freezing={name}").freezing)
    holdings = Holdings()
    fit(strategy, epochs=3, callbacks=[holdings], network=timm_network("resnet_glyphs", 10))
    assert len(holdings.steps) == 9
    for trained, graded, kept in holdings.steps:
        assert trained == kept
        assert graded <= trained
    if name in ("gradual", "probe_then_tune", "back"):
        assert len({len(trained) for trained, _, _ in holdings.steps}) > 1


def test_a_thawed_group_starts_slowly_and_frozen_ones_have_no_rate() -> None:
    _, snapshots, _ = fit(Gradual(every=1, rewarm=0.5), epochs=2)
    assert len(snapshots.rates) == 6  # three steps an epoch, so the re-warm takes three
    shares = [rates["block03/decay"] / rates["head/decay"] * 10 for rates in snapshots.rates]
    assert shares == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1])
    assert all(rates["stem/decay"] == 0 for rates in snapshots.rates)
    assert all(rates["head/decay"] > 0 for rates in snapshots.rates)


def test_the_timeline_tells_every_stage() -> None:
    strategy = Gradual(every=1)
    fit(strategy, epochs=3)
    assert strategy.timeline == [
        (0, ["head"], None),
        (1, ["block03", "head"], None),
        (2, ["block02", "block03", "head"], None),
    ]


def test_early_stopping_waits_for_the_last_thaw() -> None:
    """A metric that never improves would stop the run in its second epoch."""
    data, network = Digits(train_size=40, batch_size=32, num_workers=0), timm_network("resnet_glyphs", 10)
    data.preprocess(**network.preprocessing)
    module = FineTuner(network, Classification(data.classes), create_optimizer, cosine())
    stopping = L.pytorch.callbacks.EarlyStopping("val/loss", mode="max", min_delta=1e9, patience=1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=8,
        callbacks=[ProbeThenTune(probe=0.5), stopping],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1,
    )
    trainer.fit(module, data)
    assert trainer.current_epoch == 5  # thawed in the fifth epoch, and stopped one patience later


def prepared() -> tuple[Network, torch.optim.Optimizer]:
    network = timm_network("resnet_glyphs", 10, weights="none")
    optimizer = create_optimizer(network)
    network.train_groups(["block03", "head"])
    network.train()
    return network, optimizer


def test_the_contract_holds_and_tells_each_group() -> None:
    network, optimizer = prepared()
    states = assert_contract(network, optimizer, ["block03", "head"])
    assert [state.group for state in states] == list(network.groups)
    assert [state.mode for state in states] == ["eval"] * 4 + ["train"] * 2
    assert sum(state.parameters for state in states) == sum(p.numel() for p in network.parameters())


def test_a_lost_parameter_is_named() -> None:
    network, optimizer = prepared()
    optimizer.param_groups[-1]["params"].pop()
    with pytest.raises(FreezeContractError, match=r"head\.linear\.bias' is not in the optimizer"):
        assert_contract(network, optimizer, ["block03", "head"])


def test_a_doubled_parameter_is_named() -> None:
    network, optimizer = prepared()
    optimizer.param_groups[0]["params"].append(network.head.linear.bias)
    with pytest.raises(FreezeContractError, match=r"head\.linear\.bias"):
        assert_contract(network, optimizer, ["block03", "head"])


def test_a_wrong_requires_grad_is_named() -> None:
    network, optimizer = prepared()
    network.body.layer1[0].conv1.weight.requires_grad_(True)
    with pytest.raises(FreezeContractError, match=r"layer1\.0\.conv1\.weight' must not require a gradient"):
        assert_contract(network, optimizer, ["block03", "head"])


def test_a_wrong_mode_is_named() -> None:
    network, optimizer = prepared()
    network.body.layer2[0].bn1.train()
    with pytest.raises(FreezeContractError, match=r"layer2.* must be in eval mode"):
        assert_contract(network, optimizer, ["block03", "head"])


def test_active_dropout_in_a_frozen_group_is_named() -> None:
    network, optimizer = prepared()
    network.body.layer1.add_module("dropout", nn.Dropout(0.5))
    with pytest.raises(FreezeContractError, match="layer1"):
        assert_contract(network, optimizer, ["block03", "head"])


def test_a_leftover_gradient_is_named() -> None:
    network, optimizer = prepared()
    network.body.layer1[0].conv1.weight.grad = torch.zeros_like(network.body.layer1[0].conv1.weight)
    with pytest.raises(FreezeContractError, match="still holds a gradient"):
        assert_contract(network, optimizer, ["block03", "head"])


def test_a_leftover_state_of_the_optimizer_is_named() -> None:
    network, optimizer = prepared()
    optimizer.state[network.body.layer1[0].conv1.weight] = {"exp_avg": torch.zeros(1)}
    with pytest.raises(FreezeContractError, match="still has a state in the optimizer"):
        assert_contract(network, optimizer, ["block03", "head"])


def test_dropout_in_eval_inside_what_trains_is_named() -> None:
    network, optimizer = prepared()
    network.body.layer4.add_module("dropout", nn.Dropout(0.5).eval())
    with pytest.raises(FreezeContractError, match=r"layer4\.dropout' must be in train mode"):
        assert_contract(network, optimizer, ["block03", "head"])


def test_what_trains_in_eval_mode_is_named() -> None:
    network, optimizer = prepared()
    network.body.layer4[0].bn1.eval()
    with pytest.raises(FreezeContractError, match=r"layer4\.0\.bn1' must be in train mode"):
        assert_contract(network, optimizer, ["block03", "head"])


def test_a_parameter_with_the_rate_of_another_group_is_named() -> None:
    network, optimizer = prepared()
    moved = optimizer.param_groups[0]["params"].pop()
    next(g for g in optimizer.param_groups if g["name"] == "head/decay")["params"].append(moved)
    with pytest.raises(FreezeContractError, match=r"of 'stem' has the rate of 'head/decay'"):
        assert_contract(network, optimizer, ["block03", "head"])


def test_a_parameter_that_the_network_does_not_have_is_told() -> None:
    network, optimizer = prepared()
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.zeros(2)))
    with pytest.raises(FreezeContractError, match="holds 1 parameters that the network does not have"):
        assert_contract(network, optimizer, ["block03", "head"])


@pytest.mark.parametrize("held", ["layer2.0.conv1.weight", "layer2.0.bn1.running_mean"])
@pytest.mark.parametrize("strategy", [LastN(n=1), Gradual(every=1)], ids=["at the end", "at the next thaw"])
def test_a_frozen_weight_or_statistic_that_moves_in_a_fit_is_named(held: str, strategy: Freezing) -> None:
    class Mover(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: FineTuner, *_: object) -> None:
            if trainer.global_step == 2:
                pl_module.network.body.state_dict()[held][0] += 1e-6

    with pytest.raises(FreezeContractError, match=f"'body.{held}' moved although it is frozen \\(1 such\\)"):
        fit(strategy, epochs=3, callbacks=[Mover()])


def test_a_network_that_comes_in_eval_mode_trains_in_train_mode() -> None:
    network = timm_network("resnet_glyphs", 10, dropout=0.2).eval()
    strategy = LastN(n=1)
    fit(strategy, epochs=1, network=network)
    assert {state.group: state.mode for state in strategy.states}["head"] == "train"


def test_the_rows_of_the_contract_are_those_of_the_network() -> None:
    strategy = LastN(n=1)
    module, _, _ = fit(
        strategy,
        epochs=1,
        network=timm_network("test_vit", 10, weights="none", dropout=0.3, drop_path=0.2, in_channels=1, image_size=32),
    )
    rows = {state.group: state for state in strategy.states}
    network, names = module.network, list(module.network.groups)
    assert list(rows) == names
    for group, ps in network.groups.items():
        count = sum(p.numel() for p in ps.values())
        trains = group in names[-2:]
        row = rows[group]
        assert (row.parameters, row.trainable, row.trains) == (count, count if trains else 0, trains)
        assert row.mode == ("train" if trains else "eval")
        assert row.lr == pytest.approx({"head": 10 * network.lr}.get(group, network.lr) if trains else 0)
        assert row.weight_decay == (0.05 if trains else 0)
    assert [rows[group].dropout for group in names] == pytest.approx([0] * (len(names) - 2) + [0.2, 0.3])
    [checked] = strategy.contract
    assert (checked["epoch"], checked["ranks"], len(checked["digest"])) == (0, 1, 16)
    assert checked["groups"] == [state.to_dict() for state in strategy.states]


def test_two_equal_valued_norms_are_both_trained() -> None:
    """Lightning's own finetuning compares tensors by value, and trains one of them."""
    body = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))
    groups = {"stem": ["0.weight", "0.bias"], "block00": ["1.weight", "1.bias"]}
    network = Network(body, nn.Linear(8, 2), groups)
    optimizer = torch.optim.SGD(param_groups(network, lr=0.1, weight_decay=0.0))
    before = copy.deepcopy(body.state_dict())
    network(torch.randn(16, 8)).pow(2).sum().backward()
    optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in body.state_dict().items())
