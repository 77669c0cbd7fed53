"""Heads trained together end as each would alone."""

import functools
import itertools
import math

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

from thaw.model.network import Head, Network
from thaw.optimizer import create_optimizer
from thaw.scheduler import Schedule
from thaw.search.heads import DECOUPLED, EachAtItsRate, Heads
from thaw.search.probe_rules import Probe
from thaw.task.classification import Classification, Multilabel
from thaw.task.regression import Regression

GRID = list(itertools.product([0.0, 0.3, 0.5], [1e-3, 1e-1], [0.0, 0.2]))  # dropout, lr, weight_decay


def alone(linear: nn.Linear, dropout: float, lr: float, weight_decay: float, name: str, options, clip, batches):
    """The weights after a plain loop over one head."""
    head = Head(nn.Linear(linear.in_features, linear.out_features), dropout)
    head.linear.load_state_dict(linear.state_dict())
    network = Network(nn.Identity(), head, {})
    optimizer = create_optimizer(network, name, lr, weight_decay, head_lr_scale=10.0, options=options)
    rates = [group["lr"] for group in optimizer.param_groups]
    for number, (features, targets) in enumerate(batches):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - number / len(batches))
        torch.manual_seed(number)
        optimizer.zero_grad()
        F.cross_entropy(network(features), targets).backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
    return head.linear.weight.detach(), head.linear.bias.detach()


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(
    ("name", "options"),
    [("adamw", None), ("adamw", {"amsgrad": True}), ("adam", None), ("sgd", None), ("rmsprop", None)],
)
def test_each_head_goes_where_it_would_alone(name: str, options, clip: float | None) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 4)
    batches = [(torch.randn(16, 12), torch.randint(4, (16,))) for _ in range(12)]
    heads = Heads(linear, [dropout for dropout, _, _ in GRID])
    lr = torch.tensor([10 * lr for _, lr, _ in GRID])
    create = functools.partial(create_optimizer, name=name, lr=7.0, weight_decay=9.0, options=options)
    decay = torch.tensor([decay for _, _, decay in GRID])
    each = EachAtItsRate(heads, create, lr, decay, DECOUPLED[name], clip)
    for number, (features, targets) in enumerate(batches):
        vmap(F.cross_entropy, (0, None))(heads(features, seed=number), targets).sum().backward()
        each.step(torch.full((len(GRID),), 1 - number / len(batches)))
    for number, (dropout, lr, weight_decay) in enumerate(GRID):
        weight, bias = alone(linear, dropout, lr, weight_decay, name, options, clip, batches)
        torch.testing.assert_close(heads.weight[number].detach(), weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads.bias[number].detach(), bias, rtol=1e-4, atol=1e-5)


def test_a_head_that_runs_away_takes_no_other_with_it() -> None:
    torch.manual_seed(0)
    heads = Heads(nn.Linear(6, 3), [0.0, 0.0])
    each = EachAtItsRate(heads, create_optimizer, torch.tensor([torch.inf, 1e-3]), torch.zeros(2), True, 1.0)
    for number in range(3):
        losses = vmap(F.cross_entropy, (0, None))(heads(torch.randn(8, 6), seed=number), torch.randint(3, (8,)))
        losses.sum().backward()
        norms = each.step(torch.ones(2))
    assert not norms[0].isfinite()
    assert not heads.weight[0].isfinite().all()
    assert norms[1].isfinite()
    assert heads.weight[1].isfinite().all()


TASKS = [
    (Classification(list("abc"), label_smoothing=0.1, class_weights=[1.0, 2.0, 3.0]), torch.arange(8) % 3),
    (Classification(list("abc"), focal_gamma=2.0, class_weights=[1.0, 2.0, 3.0]), torch.arange(8) % 3),
    (Multilabel(list("abc"), class_counts=[1, 2, 3], samples=8, class_weights="balanced", focal_gamma=1.0), None),
    (Regression(list("abc"), mean=[0.0, 1.0, 2.0], std=[1.0, 2.0, 3.0]), None),
]


@pytest.mark.parametrize(("task", "targets"), TASKS, ids=lambda value: type(value).__name__)
def test_the_loss_of_every_task_is_that_of_each_head(task, targets) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(5, 8, 3)
    targets = torch.randint(2, (8, 3)).float() if targets is None else targets
    task.train()
    together = vmap(task.loss, (0, None))(outputs, targets)
    torch.testing.assert_close(together, torch.stack([task.loss(each, targets) for each in outputs]))


def test_the_best_epoch_of_a_head_is_the_last_of_equal_ones_and_never_without_a_number() -> None:
    rule = EarlyStopping("val/accuracy", patience=2, mode="max", check_finite=False)
    probe = Probe("a", 0.0, {"lr": 1.0, "weight_decay": 0.0}, Schedule(lambda share: 1.0), [rule], "max")
    told = [(probe.observe(value, 0.0), probe.best_epoch, probe.stops()) for value in (math.nan, 0.5, 0.6, 0.6, 0.4)]
    assert told == [(False, None, False), (True, 1, False), (True, 2, False), (True, 3, False), (False, 3, True)]
