"""Schedules as functions of the share of a run, and the rates that GroupSchedule makes of them."""

import io
import json
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import nn
from torch.optim import SGD, Optimizer

from thaw import config
from thaw.scheduler import (
    GroupSchedule,
    Schedule,
    constant,
    cosine,
    linear,
    one_cycle,
    plateau,
    polynomial,
    step,
    warmup_stable_decay,
)

WARMED: list[Callable[..., Schedule]] = [
    cosine,
    linear,
    constant,
    polynomial,
    step,
    warmup_stable_decay,
    plateau,
]
SCHEDULES = [*WARMED, one_cycle]
GRID = [index / 1000 for index in range(1001)]
BASE = {"stem/decay": 0.1, "stem/no_decay": 0.1, "block00/decay": 0.2, "head/decay": 1.0}
ALL = {"stem": 0, "block00": 0, "head": 0}


def optimizer() -> Optimizer:
    groups = [{"name": name, "params": [nn.Parameter(torch.ones(2))], "lr": rate} for name, rate in BASE.items()]
    return SGD(groups, lr=1.0)


def rates(schedule: GroupSchedule) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in schedule.optimizer.param_groups}


def advance(schedule: GroupSchedule, steps: int = 1) -> None:
    for _ in range(steps):
        schedule.optimizer.step()
        schedule.step()


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """The state after a way through a checkpoint file that takes plain containers alone."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Schedules


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("end", [False, True])
def test_factor_is_a_real_number_from_zero_to_one(make, end):
    options = {"end": 0.3} if end and make in (cosine, linear, polynomial, one_cycle) else {}
    schedule = make(**options)
    for share in GRID:
        factor = schedule(share)
        assert isinstance(factor, float)
        assert 0 <= factor <= 1, share


@pytest.mark.parametrize("power", [0.5, 1.7])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.3, 0.7])
def test_polynomial_of_any_power_stays_real_to_the_end(power, warmup):
    assert all(isinstance(polynomial(warmup=warmup, power=power)(share), float) for share in GRID)


@pytest.mark.parametrize("make", WARMED)
@pytest.mark.parametrize("warmup", [0.05, 0.3])
def test_warm_up_is_a_straight_line_from_zero_to_one(make, warmup):
    schedule = make(warmup=warmup)
    assert [schedule(warmup * part / 10) for part in range(10)] == pytest.approx([part / 10 for part in range(10)])
    assert schedule(warmup) == pytest.approx(1.0)


@pytest.mark.parametrize("make", WARMED)
def test_without_warm_up_the_run_begins_at_the_full_rate(make):
    assert make(warmup=0.0)(0.0) == 1.0


@pytest.mark.parametrize("make", [cosine, linear, constant, polynomial, step, warmup_stable_decay])
def test_factor_never_rises_after_the_warm_up(make):
    factors = [make(warmup=0.1)(share) for share in GRID if share >= 0.1]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(factors))


@pytest.mark.parametrize(
    ("schedule", "share", "factor"),
    [
        (cosine(0.0), 1.0, 0.0),
        (cosine(0.0), 0.5, 0.5),
        (cosine(0.0), 0.25, (2 + math.sqrt(2)) / 4),
        (cosine(0.0, end=0.2), 1.0, 0.2),
        (cosine(0.2), 0.6, 0.5),
        (linear(0.0), 0.25, 0.75),
        (linear(0.0, end=0.2), 0.5, 0.6),
        (linear(end=0.2), 1.0, 0.2),
        (constant(), 1.0, 1.0),
        (constant(), 0.5, 1.0),
        (polynomial(0.0), 0.5, 0.25),
        (polynomial(0.0, power=3, end=0.2), 0.5, 0.3),
        (polynomial(end=0.2), 1.0, 0.2),
        (step(0.0), 0.33, 1.0),
        (step(0.0), 0.34, 0.1),
        (step(0.0), 0.67, 0.01),
        (step(0.0), 1.0, 0.01),
        (step(0.0, steps=2, factor=0.5), 0.5, 0.5),
        (step(0.0, steps=1), 1.0, 1.0),
        (one_cycle(), 0.0, 0.04),
        (one_cycle(), 0.15, 0.52),
        (one_cycle(), 0.3, 1.0),
        (one_cycle(), 0.65, (1 + 4e-6) / 2),
        (one_cycle(), 1.0, 4e-6),
        (one_cycle(peak=0.5, start=0.2, end=0.1), 0.25, 0.6),
        (one_cycle(peak=0.5, start=0.2, end=0.1), 1.0, 0.1),
        (warmup_stable_decay(0.0), 0.79, 1.0),
        (warmup_stable_decay(0.0), 0.9, 0.5),
        (warmup_stable_decay(), 1.0, 0.0),
        (warmup_stable_decay(0.0, decay=1.0), 0.25, 0.75),
    ],
)
def test_schedules_have_their_documented_values(schedule, share, factor):
    assert schedule(share) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("name", sorted(path.stem for path in (config.CONF / "scheduler").glob("*.yaml")))
def test_every_configured_schedule_builds_and_is_valid(name):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config.CONF)):
        cfg = compose("config", overrides=[f"scheduler={name}"])
    assert config.validate(cfg) == []
    schedule = config.build(cfg.scheduler)
    assert 0.9 < max(schedule(share) for share in GRID) <= 1.0


# Plateau


def factors(schedule: plateau, values: list[float], mode: str = "max") -> list[float]:
    found = []
    for value in values:
        schedule.observe(value, mode)
        found.append(schedule(0.5))
    return found


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_falls_only_after_patience_is_exhausted(patience, mode):
    """`patience` epochs without improvement are allowed; the next one lowers the rate, again and again."""
    schedule = plateau(factor=0.5, patience=patience)
    stall = patience + 1
    found = factors(schedule, [0.7] * (1 + 2 * stall), mode)
    assert found == pytest.approx([1.0] * stall + [0.5] * stall + [0.25])


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_plateau_waits_anew_after_each_improvement(mode, sign):
    values = [sign * value for value in (0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3)]
    assert factors(plateau(patience=2), values, mode) == [1.0] * 7
    assert factors(plateau(patience=2), [-value for value in values], mode)[-1] < 1


def test_plateau_goes_on_from_its_state_as_if_uninterrupted():
    values = [0.5, 0.6, 0.6, 0.6, 0.6, 0.7, 0.7, 0.6, 0.7, 0.7, 0.7]
    expected = factors(plateau(patience=1), values)
    assert len(set(expected)) > 2
    for cut in range(1, len(values)):
        first, second = plateau(patience=1), plateau(patience=1)
        before = factors(first, values[:cut])
        second.load_state_dict(saved(first.state_dict()))
        assert second(0.5) == first(0.5)
        assert before + factors(second, values[cut:]) == expected


def test_plateau_keeps_its_warm_up():
    schedule = plateau(warmup=0.2, factor=0.1, patience=0)
    factors(schedule, [1.0, 1.0])
    assert schedule(0.1) == 0.5
    assert schedule(0.2) == pytest.approx(0.1)


@pytest.mark.parametrize("make", [make for make in SCHEDULES if make is not plateau])
def test_other_schedules_do_not_heed_the_metric(make):
    schedule = make()
    before = [schedule(share) for share in GRID[::50]]
    for _ in range(20):
        schedule.observe(0.0, "max")
    assert [schedule(share) for share in GRID[::50]] == before
    assert schedule.state_dict() == {}


# GroupSchedule


def test_each_group_has_its_own_rate_times_the_factor():
    schedule = GroupSchedule(optimizer(), linear(0.0), steps=9)
    schedule.set_thawed(ALL, rewarm=0.0)
    for index in range(9):
        assert rates(schedule) == pytest.approx({name: rate * (1 - (index + 1) / 10) for name, rate in BASE.items()})
        advance(schedule)


def test_frozen_groups_stand_at_zero_and_the_others_do_not():
    schedule = GroupSchedule(optimizer(), constant(0.0), steps=10)
    schedule.set_thawed({"head": 0}, rewarm=0.1)
    for _ in range(5):
        assert rates(schedule) == {"stem/decay": 0, "stem/no_decay": 0, "block00/decay": 0, "head/decay": 1.0}
        advance(schedule)


def test_thaw_takes_effect_without_a_step_and_so_does_a_new_freeze():
    schedule = GroupSchedule(optimizer(), constant(0.0), steps=10)
    schedule.set_thawed({"head": 0}, rewarm=0.0)
    advance(schedule, 4)
    schedule.set_thawed({"head": 0, "block00": 4}, rewarm=0.0)
    assert rates(schedule) == {"stem/decay": 0, "stem/no_decay": 0, "block00/decay": 0.2, "head/decay": 1.0}
    schedule.set_thawed({"block00": 4}, rewarm=0.0)
    assert rates(schedule) == {"stem/decay": 0, "stem/no_decay": 0, "block00/decay": 0.2, "head/decay": 0}


@pytest.mark.parametrize("make", [constant, cosine, linear])
def test_thawed_group_ramps_up_to_the_factor_of_the_others(make):
    schedule = GroupSchedule(optimizer(), make(), steps=100)
    schedule.set_thawed({"head": 0}, rewarm=0.1)
    advance(schedule, 20)
    schedule.set_thawed({"head": 0, "stem": 20}, rewarm=0.1)
    shares = []
    for _ in range(40):
        now = rates(schedule)
        assert now["stem/decay"] == now["stem/no_decay"]
        assert now["block00/decay"] == 0
        shares.append((now["stem/decay"] / BASE["stem/decay"]) / (now["head/decay"] / BASE["head/decay"]))
        advance(schedule)
    assert shares == pytest.approx([(index + 1) / 10 for index in range(10)] + [1.0] * 30)


@pytest.mark.parametrize("rewarm", [0.0, 0.005])
def test_re_warm_of_less_than_a_step_is_none(rewarm):
    schedule = GroupSchedule(optimizer(), constant(0.0), steps=100)
    advance(schedule, 20)
    schedule.set_thawed({"head": 0, "stem": 20}, rewarm=rewarm)
    assert rates(schedule)["stem/decay"] == BASE["stem/decay"]


def test_group_that_trains_from_the_start_shares_the_warm_up_alone():
    schedule = GroupSchedule(optimizer(), linear(0.5), steps=99)
    schedule.set_thawed(ALL, rewarm=0.5)
    advance(schedule, 24)
    assert rates(schedule) == pytest.approx({name: rate * 0.5 for name, rate in BASE.items()})


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_no_step_of_a_run_is_lost_to_a_rate_of_zero(make, steps):
    schedule = GroupSchedule(optimizer(), make(), steps)
    schedule.set_thawed(ALL, rewarm=0.02)
    for _ in range(steps):
        assert all(0 < rate <= BASE[name] for name, rate in rates(schedule).items())
        advance(schedule)


def test_length_of_the_run_may_be_told_later():
    late, early = GroupSchedule(optimizer(), linear(0.0)), GroupSchedule(optimizer(), linear(0.0), steps=40)
    late.set_steps(40)
    for _ in range(3):
        assert rates(late) == rates(early)
        advance(late)
        advance(early)


@pytest.mark.parametrize("make", SCHEDULES)
def test_steps_beyond_the_run_stay_at_its_end(make):
    schedule = GroupSchedule(optimizer(), make(), steps=4)
    advance(schedule, 4)
    end = rates(schedule)
    advance(schedule, 3)
    assert rates(schedule) == end
    assert end == pytest.approx({name: rate * make()(1.0) for name, rate in BASE.items()})


@pytest.mark.parametrize("make", SCHEDULES)
def test_state_restores_the_same_rates(make):
    thawed = {"head": 0, "block00": 6}
    whole = GroupSchedule(optimizer(), make(), steps=20)
    whole.set_thawed(thawed, rewarm=0.2)
    advance(whole, 8)
    for _ in range(6):
        whole.schedule.observe(0.5, "max")
    advance(whole)
    resumed = GroupSchedule(optimizer(), make(), steps=20)
    resumed.load_state_dict(saved(whole.state_dict()))
    resumed.set_thawed(thawed, rewarm=0.2)
    for _ in range(11):
        assert rates(resumed) == rates(whole)
        advance(resumed)
        advance(whole)


@pytest.mark.parametrize("make", SCHEDULES)
def test_state_is_of_plain_containers(make):
    schedule = GroupSchedule(optimizer(), make(), steps=20)
    schedule.set_thawed(ALL, rewarm=0.2)
    schedule.schedule.observe(0.5, "max")
    state = schedule.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert saved(state) == state


def test_last_rate_told_is_the_rate_set():
    """What torch reports as the last rate must be what the optimizer has, also after a thaw and a resume."""
    schedule = GroupSchedule(optimizer(), linear(0.0), steps=10)
    schedule.set_thawed({"head": 0}, rewarm=0.0)
    assert schedule.get_last_lr() == list(rates(schedule).values())
    advance(schedule, 3)
    assert schedule.get_last_lr() == list(rates(schedule).values())
    resumed = GroupSchedule(optimizer(), linear(0.0), steps=10)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.get_last_lr() == list(rates(resumed).values())
