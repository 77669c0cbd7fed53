"""The rungs one after another, each told as it ends."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from rich.markup import escape

from thaw.console import console, say
from thaw.ladder import controls, first_steps
from thaw.ladder.bench import Bench
from thaw.ladder.rung import Outcome

Rung = Callable[[Bench], Outcome]
# Those before the runs that take longer, in the order in which a fault is cheapest to find.
EARLY: Mapping[str, Rung] = {
    "initial loss": first_steps.initial_loss,
    "one batch": first_steps.one_batch,
    "gradients": first_steps.gradients,
    "shuffled labels": controls.shuffled_labels,
    "leakage": controls.leakage,
    "baselines": controls.baselines,
}
COLORS = {"pass": "green", "FAIL": "bold red", "skip": "dim"}


def climb(bench: Bench, rungs: Mapping[str, Rung]) -> list[str]:
    """Try every rung, and return the names of those that do not hold."""
    failed = []
    for name, rung in rungs.items():
        with _working(bench, name):
            outcome = rung(bench)
        say(f"[{COLORS[outcome.status]}]{outcome.status}[/]  [bold]{name}[/]: {escape(outcome.reason)}")
        if outcome.status == "FAIL":
            failed.append(name)
            say(f"      → {escape(outcome.advice)}")
    return failed


def _working(bench: Bench, name: str) -> AbstractContextManager[Any]:
    status = console.status(name)
    bench.tell = lambda text: status.update(f"{name}: {escape(text)}")
    return status
