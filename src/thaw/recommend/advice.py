"""From candidate commands to the one that is recommended, and what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thaw import config
from thaw.console import console
from thaw.errors import UserError, first_line
from thaw.ladder.bench import Bench
from thaw.plan.cost import measure as measure_cost
from thaw.plan.drawing import duration
from thaw.plan.plan import make_plan
from thaw.recommend.candidates import merged, untrained
from thaw.recommend.evidence import Evidence, measure
from thaw.recommend.rules import Choice, best, choose


@dataclass(frozen=True)
class Advice:
    """What is recommended, and on what evidence.

    Args:
        left_out: model → why nothing could be measured of it.
        overrides: the whole command.
    """

    candidates: Sequence[Evidence]
    chosen: Evidence
    choices: Sequence[Choice]
    overrides: Sequence[str]
    left_out: Mapping[str, str]


def advise_on(commands: Mapping[str, tuple[Sequence[str], Any]]) -> Advice:
    """Measure every candidate, choose one, and recommend the rest by the rules.

    Args:
        commands: model → (overrides, the configuration they compose to).

    Raises:
        UserError: a task without one class a sample, or no candidate that can be built.
    """
    found: dict[str, Evidence] = {}
    left_out: dict[str, str] = {}
    for model, (_, cfg) in commands.items():
        try:
            with console.status(model) as status:
                bench = Bench.of(cfg)
                bench.tell = lambda text, model=model, status=status: status.update(f"{model}: {text}")
                if bench.refusal:
                    raise UserError(
                        f"The features of {model} must tell of the task, and they do not: {bench.refusal}. Write e.g. "
                        "scripts/find_lr.py for a rate, and scripts/plan.py for what it costs."
                    )
                found[model] = measure(model, bench, untrained(cfg, bench))
        except UserError as error:
            if len(commands) == 1:
                raise
            left_out[model] = first_line(error)
    if not found:
        raise UserError(*left_out.values())
    chosen = best(list(found.values()))
    overrides, cfg = commands[chosen.model]
    choices = choose(chosen)
    if cfg.data.get("max_tokens"):  # bounds a batch otherwise
        choices = [choice for choice in choices if choice.setting != "data.batch_size"]
    line = merged(overrides, {choice.setting: choice.override for choice in choices}, config.plain(cfg))
    return Advice(list(found.values()), chosen, choices, line, left_out)


def cost(cfg: Any) -> str:
    """What a run of this configuration takes, measured on a few batches of each phase, in words."""
    bench = Bench.of(cfg)
    with console.status("what it costs"):
        plan = make_plan(bench.module, bench.freezing, bench.data, bench.make_trainer)
        measure_cost(plan, bench.module, bench.freezing, bench.data, bench.make_trainer)
    memory = max(cost.memory for cost in plan.costs) / 2**30
    trains = sum(state.trainable for state in plan.phases[-1].states)
    return (
        f"It costs about {duration(plan.seconds)} here for {plan.epochs} epochs of {plan.steps // plan.epochs} steps, "
        f"{memory:.1f} GiB at most, and trains {trains:,} parameters at the end."
    )
