"""How a plan looks: tables and curves on the screen, and a picture."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from thaw.plan.drawing import DECADES, Bar, draw_rates, draw_timeline, duration, largest, ranges, spread
from thaw.plan.plan import Plan
from thaw.tables import parameter_counts, plan_table

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 50  # characters of a curve on the screen


def on_screen(plan: Plan) -> RenderableType:
    """The phases, what each layer group does in each of them, and the rate of each group over the run."""
    tables = [plan_table(phase.states, phase.epochs.capitalize()) for phase in plan.phases]
    return Group(*tables, "", _curves(plan), "", _phases(plan))


def _curves(plan: Plan) -> Table:
    table = Table(title=f"Learning rates over {plan.epochs} epochs, {plan.steps:,} steps", title_justify="left")
    table.add_column("layer group")
    table.add_column(
        "blank: frozen; height: log of the rate" if spread(plan.rates) else "blank: frozen; height: the rate"
    )
    table.add_column("largest", justify="right")
    for group, rates in plan.rates.items():
        table.add_row(
            group, _line(rates, largest(plan.rates), spread(plan.rates)), f"{max(rates):.2g}" if max(rates) else "–"
        )
    return table


def _line(rates: Sequence[float], top: float, log: bool) -> str:
    """Of each stretch of the run the largest rate, so that nothing that trains looks frozen."""
    width = min(WIDTH, len(rates))
    cuts = [round(number * len(rates) / width) for number in range(width + 1)]
    heights = [max(rates[start:end]) / top for start, end in itertools.pairwise(cuts)]
    levels = [1 + math.log10(max(height, 1e-9)) / DECADES if log else height for height in heights]
    marks = [BLOCKS[min(max(int(level * len(BLOCKS)), 0), len(BLOCKS) - 1)] for level in levels]
    return "".join(mark if height else " " for mark, height in zip(marks, heights, strict=True))


def _phases(plan: Plan) -> Table:
    table = Table("epochs", "trains", title="Phases", title_justify="left")
    for column in ("parameters", "s an epoch", "time", "memory"):
        table.add_column(column, justify="right")
    order = list(plan.rates)
    costs = plan.costs or [None] * len(plan.phases)
    for phase, cost in zip(plan.phases, costs, strict=True):
        told = ["", "", ""]
        if cost:
            seconds = plan.epoch_seconds(cost)
            whole = seconds * (phase.end - phase.stage.epoch)
            told = [f"{seconds:.1f}", duration(whole), f"{cost.memory / 2**30:.2f} GiB"]
        training = parameter_counts(phase.states)[1]
        table.add_row(phase.epochs.partition(" ")[2], ranges(phase.stage.groups, order), f"{training:,}", *told)
    if plan.costs:
        table.add_section()
        table.add_row("all", "", "", "", duration(plan.seconds), f"{max(c.memory for c in plan.costs) / 2**30:.2f} GiB")
    return table


def draw(plan: Plan, title: str, path: Path) -> None:
    """Draw which layer groups train in which epoch, and below it their rates, into a PNG."""
    from matplotlib.figure import Figure  # takes a second

    groups = list(plan.rates)
    rows = max(0.24 * len(groups), 0.8)
    figure = Figure(figsize=(7.2, rows + 3.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[rows, 2.4])
    epochs = [(step + 0.5) * plan.epochs / plan.steps for step in plan.at]
    bars: dict[str, list[Bar]] = {group: [] for group in groups}
    for phase in plan.phases:
        for state in phase.states:
            if state.trains:
                bars[state.group].append((phase.stage.epoch, phase.end, state.trainable == state.parameters))
    parameters = {state.group: state.parameters for state in plan.phases[0].states}
    draw_timeline(above, bars, parameters, plan.epochs, ink="0.35")
    partly = any(not whole for group in bars.values() for _, _, whole in group)
    above.set_title(f"{title}; pale: a part of the group" if partly else title, fontsize=10, loc="left")
    draw_rates(below, dict.fromkeys(groups, epochs), plan.rates)
    below.set_xlim(0, plan.epochs)
    for phase in plan.phases[1:]:
        for axes in (above, below):
            axes.axvline(phase.stage.epoch, color="0.25", linewidth=0.8, linestyle=(0, (2, 2)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
