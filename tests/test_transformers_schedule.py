"""Schedules of transformers as factors of the share of a run: the library's own figures."""

import pytest
import torch
from test_config import composed
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler
from transformers import SchedulerType
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from thaw import config
from thaw.errors import UserError
from thaw.transformers_schedule import NO_FUNCTION, STEPS, library_schedule

NAMES = sorted(kind.value for kind in SchedulerType if kind.value not in NO_FUNCTION)
# name → options of ours, with what the library counts in steps as shares of the run
OPTIONS = {
    "cosine": [{}, {"num_cycles": 1.5}],
    "cosine_with_restarts": [{}, {"num_cycles": 3}],
    "polynomial": [{}, {"power": 2.0, "lr_end": 0.1}],
    "inverse_sqrt": [{}, {"timescale": 0.5}],
    "cosine_with_min_lr": [{"min_lr": 0.1}, {"min_lr_rate": 0.2}],
    "cosine_warmup_with_min_lr": [{"min_lr_rate": 0.2}, {"min_lr": 0.1, "warmup_lr_rate": 0.3}],
    "warmup_stable_decay": [
        {"num_decay_steps": 0.2},
        {"num_decay_steps": 0.5, "decay_type": "1-sqrt", "warmup_type": "cosine", "min_lr_ratio": 0.05},
        {"num_decay_steps": 0.25, "num_stable_steps": 0.5},
    ],
}
IN_STEPS = {"num_decay_steps", "num_stable_steps", "timescale"}
CASES = [(name, options) for name in NAMES for options in OPTIONS.get(name, [{}])]


def stepped(name: str, steps: int, warmup: float, options: dict) -> list[float]:
    """The rates of the library's own scheduler over a run, stepped for real."""
    optimizer = SGD([torch.zeros(1)], lr=1.0)
    given = {option: round(value * steps) if option in IN_STEPS else value for option, value in options.items()}
    if "num_stable_steps" not in given:
        given["num_training_steps"] = steps
    given["num_warmup_steps"] = round(warmup * steps)
    make = TYPE_TO_SCHEDULER_FUNCTION[name]
    names = make.__code__.co_varnames[: make.__code__.co_argcount]
    scheduler: LRScheduler = make(optimizer, **{option: value for option, value in given.items() if option in names})
    rates = []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(name: str, steps: int, warmup: float, options: dict) -> list[float]:
    schedule = library_schedule(name, None if name == "constant" else warmup, options)
    return [schedule(step / steps) for step in range(steps + 1)]


@pytest.mark.parametrize("warmup", [0.0, 0.1])
@pytest.mark.parametrize("steps", [40, 300])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_schedule_has_the_factors_of_the_library(name: str, options: dict, steps: int, warmup: float) -> None:
    if name == "inverse_sqrt" and not warmup and not options:
        pytest.skip("its time scale is then 10,000 real steps in the library, and the run here")
    # It counts its steps from one: the shape is shifted by a step, which a share of the run does not know.
    near = 1.0 / (warmup * steps or steps) * 3.5 if name == "cosine_warmup_with_min_lr" else 1e-6
    assert ours(name, steps, warmup, options) == pytest.approx(stepped(name, steps, warmup, options), abs=near)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_over_as_many_steps_as_it_is_built_on_every_schedule_is_the_librarys(name: str, options: dict) -> None:
    # Beyond the last step a function that counts from one turns back; the share of a run stays below 1.
    found, expected = (make(name, STEPS, 0.05, options)[:-1] for make in (ours, stepped))
    assert found == pytest.approx(expected, abs=1e-6)


def test_without_a_warm_up_the_time_scale_of_inverse_sqrt_is_the_run() -> None:
    schedule = library_schedule("inverse_sqrt", 0.0)
    assert [schedule(0.0), schedule(1.0)] == pytest.approx([1.0, 0.5**0.5])


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_can_be_had_by_its_name_alone(name: str) -> None:
    options = OPTIONS.get(name, [{}])[0]
    schedule = library_schedule(name, options=options)
    assert (schedule(0.0) < 0.01) == (name != "constant")
    assert schedule(0.05) == pytest.approx(1.0, abs=1e-6)
    assert all(0 <= schedule(share / 1000) <= 1 + 1e-9 for share in range(1001))
    written = ",".join(f"{option}:{value}" for option, value in options.items())
    cfg = composed("scheduler=transformers", f"scheduler.name={name}", f"scheduler.options={{{written}}}")
    assert config.validate(cfg) == []
    assert config.build(cfg.scheduler)(0.7) == schedule(0.7)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cosine_with_restart", "must be a schedule of transformers; got 'cosine_with_restart'. Did you mean 'cosine"),
        ("reduce_lr_on_plateau", "must be a function of the step, which this one is not; got"),
        ("greedy", "Write scheduler=plateau."),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_what_to_write(name: str, words: str) -> None:
    problems = config.validate(composed("scheduler=transformers", f"scheduler.name={name}"))
    assert len(problems) == 1
    assert problems[0].startswith("scheduler.name must be")
    assert words in problems[0]


@pytest.mark.parametrize(
    ("name", "warmup", "options", "words"),
    [
        ("cosine", None, {"num_cycle": 2}, "no option of 'cosine'. Did you mean 'num_cycles'?"),
        ("constant", 0.1, {}, "Write scheduler.name=constant_with_warmup."),
        ("linear", None, {"last_epoch": 3}, "It has none: leave it out."),
        ("warmup_stable_decay", None, {}, "Write scheduler.options={num_decay_steps:0.2}."),
        ("warmup_stable_decay", None, {"num_decay_steps": 500}, "must be a share of the run, above 0 and at most 1"),
        ("cosine_with_min_lr", None, {}, "must fit 'cosine_with_min_lr': One of min_lr or min_lr_rate"),
        ("cosine_with_min_lr", None, {"min_lr": 2}, "must stay between 0 and 1"),
        ("polynomial", None, {"lr_end": 2}, "must be smaller than initial lr"),
        ("cosine", None, {"num_cycles": "two"}, "must fit 'cosine'"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_words(name: str, warmup: float, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=r"^scheduler") as refused:
        library_schedule(name, warmup, options)
    assert words in str(refused.value)
