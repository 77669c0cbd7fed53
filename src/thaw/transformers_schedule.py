"""The schedules of transformers by name: its functions of the step, as factors of the share of the run."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch.optim import SGD

from thaw.errors import UserError, did_you_mean, first_line
from thaw.scheduler import Schedule, Share

WARMUP = 0.05
# The library's functions are of steps; with so many to a run, its own default time scale is the run.
STEPS = 10_000
# Options that the library counts in steps.
IN_STEPS = ("num_decay_steps", "num_stable_steps", "timescale")
GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
# These follow the metric or the loss.
NO_FUNCTION = ("reduce_lr_on_plateau", "greedy")


def _known_schedule(name: str) -> str:
    from transformers import SchedulerType  # takes a second, which no other schedule should cost

    known = [kind.value for kind in SchedulerType]
    if name in NO_FUNCTION:
        raise ValueError("must be a function of the step, which this one is not", "Write scheduler=plateau.")
    if name not in known:
        known = [one for one in known if one not in NO_FUNCTION]
        raise ValueError("must be a schedule of transformers", did_you_mean(name, known, shown=len(known)))
    return name


def library_schedule(
    name: Annotated[str, AfterValidator(_known_schedule)] = "inverse_sqrt",
    warmup: Share | None = None,
    options: Mapping[str, Any] | None = None,
) -> Schedule:
    """A schedule of transformers, exactly; `cosine_warmup_with_min_lr` to within a step, for it counts from one.

    Args:
        warmup: share of the run over which the factor rises; None is 0.05 where the schedule has a warm-up.
        options: its other arguments: `num_decay_steps`, `num_stable_steps` and `timescale` as shares of the run,
            `lr_end` and `min_lr` as factors of each group's rate.

    Raises:
        UserError: the schedule has no such option or no warm-up, lacks one, or leaves the range from 0 to 1.
    """
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    make = TYPE_TO_SCHEDULER_FUNCTION[name]
    parameters = inspect.signature(make).parameters
    if warmup and "num_warmup_steps" not in parameters:
        raise UserError(
            f"scheduler.warmup must be null for '{name}', which has none; got {warmup}. "
            "Write scheduler.name=constant_with_warmup."
        )
    known = [option for option in parameters if option not in GIVEN]
    given = dict(options or {})
    if problems := [problem for option, value in given.items() if (problem := _problem(name, option, value, known))]:
        raise UserError(*problems)
    lacking = [o for o in known if parameters[o].default is inspect.Parameter.empty and o not in given]
    if lacking:
        raise UserError(
            f"scheduler.options must give {lacking[0]} for '{name}', as a share of the run. "
            f"Write scheduler.options={{{lacking[0]}:0.2}}."
        )
    arguments = {option: value * STEPS if option in IN_STEPS else value for option, value in given.items()}
    arguments |= {"num_warmup_steps": STEPS * (WARMUP if warmup is None else warmup), "num_training_steps": STEPS}
    if "num_stable_steps" in given:
        del arguments["num_training_steps"]  # the library warns of both
    try:
        fitting = {option: value for option, value in arguments.items() if option in parameters}
        factor = make(SGD([torch.zeros(1)], lr=1.0), **fitting).lr_lambdas[0]
        if outside := [value for share in range(0, 101) if not 0 <= (value := factor(share * STEPS / 100)) <= 1 + 1e-9]:
            raise ValueError(f"the factor of the rate must stay between 0 and 1, and reaches {outside[0]:g}")
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"scheduler.options must fit '{name}': {first_line(error)}; got {given}.") from None
    return Schedule(lambda share: float(factor(share * STEPS)))


def _problem(name: str, option: str, value: Any, known: list[str]) -> str | None:
    if option not in known:
        advice = did_you_mean(option, known) if known else "It has none: leave it out."
        return f"scheduler.options.{option} is no option of '{name}'. {advice}"
    if option in IN_STEPS and not (isinstance(value, int | float) and 0 < value <= 1):
        return f"scheduler.options.{option} must be a share of the run, above 0 and at most 1; got {value!r}."
    return None
