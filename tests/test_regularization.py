"""Penalties: what they are worth, what they pull at, and that frozen weights do not move by one bit."""

import copy
import csv
import math
from pathlib import Path

import pytest
import torch

from thaw.errors import UserError
from thaw.freezing.by_group import Gradual, LastN
from thaw.model.timm import timm_network
from thaw.module import FineTuner
from thaw.optimizer import create_optimizer
from thaw.regularization import L1, L2, L2SP, Regularization, matrices
from thaw.run.checkpoint import load_checkpoint
from thaw.scheduler import cosine
from thaw.task.classification import Classification

QUICK = ("logger=none", "data.train_size=64", "trainer.max_epochs=3", "trainer=cpu", "model.dropout=0.3")
L1_STRONG = ("regularization=l1", "regularization.strength=0.9", "optimizer.lr=3e-3")


def network(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm_network("resnet_glyphs", 10, **options)


def gradients(penalty: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    penalty.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def trained(folder: Path, role: str = "last") -> dict[str, torch.Tensor]:
    state = load_checkpoint(folder / "checkpoints" / f"{role}.ckpt")["state_dict"]
    return {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}


def test_l2_is_half_the_squared_norm_of_the_matrices_that_train() -> None:
    model = network()
    model.train_groups(["block03", "head"])
    penalty = L2(strength=0.4).penalty(model)
    chosen = {
        name: p
        for group in ("block03", "head")
        for name, p in model.groups[group].items()
        if p.ndim > 1
    }  # fmt: skip
    torch.testing.assert_close(penalty, 0.2 * sum(p.square().sum() for p in chosen.values()))
    found = gradients(penalty, model)
    assert found.keys() == chosen.keys()
    for name, parameter in chosen.items():
        torch.testing.assert_close(found[name], 0.4 * parameter)


def test_the_bodys_own_no_decay_names_are_left_alone() -> None:
    model = network()
    name = next(name for name, p in model.named_parameters() if p.ndim > 1)
    model.no_decay = {name}
    assert not any(p is dict(model.named_parameters())[name] for p in matrices(model))


def test_l2_sp_is_zero_at_the_pretrained_weights_and_pulls_back_to_them() -> None:
    model, penalty = network(), L2SP(alpha=0.3, beta=0.5)
    penalty.start(model)
    before = copy.deepcopy(dict(model.named_parameters()))
    head = before["head.linear.weight"]
    torch.testing.assert_close(penalty.penalty(model), 0.25 * head.square().sum())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    found = gradients(penalty.penalty(model), model)
    for name, parameter in model.named_parameters():
        if name.startswith("body."):
            torch.testing.assert_close(found[name], 0.3 * (parameter - before[name]), msg=name)
    torch.testing.assert_close(found["head.linear.weight"], 0.5 * model.head.linear.weight)
    assert "head.linear.bias" not in found


def test_l2_sp_gradient_is_exactly_zero_where_nothing_has_moved() -> None:
    model, penalty = network(), L2SP(alpha=0.3, beta=0)
    penalty.start(model)
    value = penalty.penalty(model)
    assert value.item() == 0.0
    assert all((g == 0).all() for g in gradients(value, model).values())


def test_a_pretrained_head_is_held_as_the_body_is() -> None:
    model, penalty = network(), L2SP(alpha=0.3, beta=0.5)
    model.new_head = False
    penalty.start(model)
    assert penalty.penalty(model).item() == 0.0


def test_l2_sp_refuses_random_weights_in_words(run_train) -> None:
    with pytest.raises(UserError, match="regularization=l2"):
        L2SP().start(network(weights="none"))
    outcome = run_train(*QUICK, "regularization=l2_sp", "model.weights=none")
    assert outcome.code == 2
    assert "must have pretrained weights" in outcome.errors
    assert not outcome.folders


@pytest.mark.parametrize("kind", [L2, L2SP, L1])
def test_nothing_to_regularize_is_no_penalty(kind: type[Regularization]) -> None:
    model, regularization = network(), kind()
    regularization.start(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert regularization.penalty(model) == 0.0
    assert all(value == 0.0 for value in regularization.measure(model).values())


def test_the_pretrained_values_are_neither_in_a_checkpoint_nor_in_a_copy() -> None:
    model = network()
    held = L2SP()
    tuner = FineTuner(model, Classification([*"0123456789"]), create_optimizer, cosine(), regularization=held)
    assert tuner.state_dict().keys() == FineTuner(
        model, Classification([*"0123456789"]), create_optimizer, cosine()
    ).state_dict().keys()  # fmt: skip
    assert copy.deepcopy(tuner).regularization is held


def test_the_proximal_step_is_soft_thresholding_by_rate_times_strength() -> None:
    model = network()
    optimizer = create_optimizer(model, lr=1e-2, layer_decay=0.5, head_lr_scale=10)
    before = copy.deepcopy(dict(model.named_parameters()))
    L1(strength=0.5).after_step(model, optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.head.linear.weight)] == pytest.approx(0.1)
    for name, parameter in model.named_parameters():
        old = before[name].detach()
        expected = torch.nn.functional.softshrink(old, 0.5 * rates[id(parameter)]) if old.ndim > 1 else old
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-8)
        assert torch.equal(parameter == 0, expected == 0)


def test_the_proximal_step_is_once_an_optimizer_step_and_leaves_frozen_weights_alone() -> None:
    """Whatever the optimizer does with gradients: no gradient at all here."""
    model = network()
    tuner = FineTuner(model, Classification([*"0123456789"]), create_optimizer, cosine(), regularization=L1(0.9))
    optimizer = tuner.configure_optimizers()["optimizer"]
    model.train_groups(["head"])
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.linear.weight"}
    lr = next(group["lr"] for group in optimizer.param_groups if group["name"] == "head/decay")
    expected = torch.nn.functional.softshrink(before["head.linear.weight"], 3 * 0.9 * lr)
    torch.testing.assert_close(model.head.linear.weight.detach(), expected, rtol=0, atol=1e-7)


def fit(regularization: Regularization | None, freezing=None, accumulate: int = 1, batch_size: int = 32, epochs=1):
    import lightning as L

    from thaw.data.digits import Digits

    L.seed_everything(0, verbose=False)
    data = Digits(train_size=64, batch_size=batch_size, num_workers=0, augment="none")
    model = timm_network("resnet_glyphs", 10)
    data.preprocess(**model.preprocessing)
    tuner = FineTuner(
        model, Classification(data.classes),
        lambda net: create_optimizer(net, "sgd", lr=1e-3, weight_decay=0, options={"momentum": 0, "nesterov": False}),
        cosine(warmup=0), regularization=regularization,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, accumulate_grad_batches=accumulate, logger=False,
        callbacks=[freezing or LastN(n=0)], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(tuner, data)
    return tuner, trainer


@pytest.mark.parametrize("regularization", [L2(0.5), L2SP(0.5, 0.5), L1(0.5)])
def test_accumulated_batches_weigh_the_penalty_once(regularization: Regularization) -> None:
    """One step over 64 samples is the same as a step over two batches of 32, with a frozen, still body."""
    whole = fit(regularization, batch_size=64)[0].network.head.linear.weight
    halves = fit(regularization, batch_size=32, accumulate=2)[0].network.head.linear.weight
    without = fit(None, batch_size=64)[0].network.head.linear.weight
    torch.testing.assert_close(whole, halves, rtol=0, atol=1e-6)
    assert (whole - without).abs().max() > 1e-5


def test_train_loss_is_the_tasks_own() -> None:
    """The first epoch is one batch, so that both are measured on the same weights."""
    plain, regularized = (fit(kind, batch_size=64)[1].callback_metrics for kind in (None, L2(100.0)))
    assert plain["train/loss"] == regularized["train/loss"]
    assert "train/penalty" not in plain
    assert regularized["train/penalty"] > 1


def test_a_gradual_thaw_changes_what_counts() -> None:
    found: list[int] = []

    class Counted(L2):
        def measure(self, network):
            found.append(len(matrices(network)))
            return super().measure(network)

    fit(Counted(), Gradual(every=1), epochs=3)
    assert found == sorted(set(found))
    assert found[0] == 1


@pytest.mark.medium
def test_l1_makes_a_sparse_network_and_tells_how_sparse(run_train) -> None:
    outcome = run_train(*QUICK, "freezing=last_n", *L1_STRONG, "regularization.strength=0.9")
    assert outcome.code == 0, outcome.errors
    folder = outcome.folders[-1]
    state, start = trained(folder, "best"), timm_network("resnet_glyphs", 10).state_dict()
    chosen = [n for n, p in network().named_parameters() if p.ndim > 1 and n.startswith(("body.layer4", "head"))]
    zeros = sum((state[name] == 0).sum().item() for name in chosen) / sum(state[name].numel() for name in chosen)
    assert zeros > 0.05
    assert outcome.record["metrics"]["train/sparsity"] == pytest.approx(zeros, rel=1e-5)
    with open(folder / "metrics.csv", newline="") as file:
        told = [float(row["train/sparsity"]) for row in csv.DictReader(file) if row["train/sparsity"]]
    assert len(told) == 3
    assert told == sorted(told)
    for name, value in state.items():
        if not name.startswith(("body.layer4", "head")):
            assert torch.equal(value, start[name]), name


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["l1", "l2", "l2_sp"])
def test_a_stopped_run_goes_on_as_the_same_run(run_train, stopped_after_epoch, kind: str) -> None:
    command = (*QUICK, f"regularization={kind}", "freezing=probe_then_tune")
    straight = run_train(*command, "run.dir=runs/straight").folders[-1]
    with stopped_after_epoch(1):
        assert run_train(*command, "run.dir=runs/stopped").code == 130
    outcome = run_train(*command, "run.dir=runs/stopped", "resume=must")
    first, second = trained(straight), trained(outcome.folders[-1])
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert math.isfinite(outcome.record["metrics"]["train/penalty"])
    metrics = [load_checkpoint(f / "checkpoints/last.ckpt")["metrics"] for f in (straight, outcome.folders[-1])]
    assert metrics[0] == metrics[1]
