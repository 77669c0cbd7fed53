"""How a plan looks: tables and curves on the screen, and a picture."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from thaw.plan.plan import Plan
from thaw.tables import parameter_counts, plan_table

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 50  # characters of a curve on the screen
# Rates further below the largest one than this lie at the bottom of a log axis.
DECADES = 3


def on_screen(plan: Plan) -> RenderableType:
    """The phases, what each layer group does in each of them, and the rate of each group over the run."""
    tables = [plan_table(phase.states, phase.epochs.capitalize()) for phase in plan.phases]
    return Group(*tables, "", _curves(plan), "", _phases(plan))


def _curves(plan: Plan) -> Table:
    table = Table(title=f"Learning rates over {plan.epochs} epochs, {plan.steps:,} steps", title_justify="left")
    table.add_column("layer group")
    table.add_column("blank: frozen; height: log of the rate" if _spread(plan) else "blank: frozen; height: the rate")
    table.add_column("largest", justify="right")
    for group, rates in plan.rates.items():
        table.add_row(group, _line(rates, _top(plan), _spread(plan)), f"{max(rates):.2g}" if max(rates) else "–")
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


def ranges(groups: Sequence[str], order: Sequence[str]) -> str:
    """Layer groups in few words: what follows one another as `block01 … head`."""
    runs: list[list[str]] = []
    for group in groups:
        if runs and order.index(group) == order.index(runs[-1][-1]) + 1:
            runs[-1].append(group)
        else:
            runs.append([group])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} … {run[-1]}" for run in runs)


def duration(seconds: float) -> str:
    """Seconds as `12 s`, `3:25 min` or `2:05 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


def draw(plan: Plan, title: str, path: Path) -> None:
    """Draw which layer groups train in which epoch, and below it their rates, into a PNG."""
    from matplotlib import colormaps  # takes a second
    from matplotlib.figure import Figure

    groups = list(plan.rates)
    colors = [colormaps["viridis"](0.9 - 0.85 * number / max(len(groups) - 1, 1)) for number in range(len(groups))]
    rows = max(0.24 * len(groups), 0.8)
    figure = Figure(figsize=(7.2, rows + 3.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[rows, 2.4])
    steps_an_epoch = plan.steps / plan.epochs
    epochs = [(step + 0.5) / steps_an_epoch for step in plan.at]

    parameters = {state.group: state.parameters for state in plan.phases[0].states}
    for number, (group, color) in enumerate(zip(groups, colors, strict=True)):
        above.broken_barh([(0, plan.epochs)], (number - 0.38, 0.76), color="0.93")
        for phase in plan.phases:
            state = phase.states[number]
            if state.trains:
                part = 1.0 if state.trainable == state.parameters else 0.6
                start = phase.stage.epoch
                above.broken_barh([(start, phase.end - start)], (number - 0.38, 0.76), color=color, alpha=part)
        label = _count(parameters[group])
        above.annotate(label, (1.01, number), xycoords=("axes fraction", "data"), va="center", fontsize=8, color="0.35")
    above.set_yticks(range(len(groups)), groups, fontsize=9)
    partly = any(0 < state.trainable < state.parameters for phase in plan.phases for state in phase.states)
    above.set_title(f"{title}; pale: a part of the group" if partly else title, fontsize=10, loc="left")
    above.annotate(
        "parameters", (1.01, len(groups) - 0.35), xycoords=("axes fraction", "data"), fontsize=7, color="0.35"
    )
    above.tick_params(length=0)
    above.spines[:].set_visible(False)

    top = _top(plan)
    for number, (group, color) in enumerate(zip(groups, colors, strict=True)):
        rates = [rate if rate > 0 else math.nan for rate in plan.rates[group]]
        # Earlier groups wider and beneath, so that equal rates show as bands.
        width = 1.4 + 4.0 * (len(groups) - 1 - number) / max(len(groups) - 1, 1)
        below.plot(epochs, rates, color=color, linewidth=width, solid_capstyle="butt")
    if _spread(plan):
        below.set_yscale("log")
        below.set_ylim(top * 10**-DECADES, top * 1.6)
    else:
        below.set_ylim(0, top * 1.05)
        below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for phase in plan.phases[1:]:
        for axes in (above, below):
            axes.axvline(phase.stage.epoch, color="0.25", linewidth=0.8, linestyle=(0, (2, 2)))
    below.set(xlabel="epoch", ylabel="learning rate", xlim=(0, plan.epochs))
    below.xaxis.get_major_locator().set_params(integer=True)
    below.grid(alpha=0.25)
    below.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _top(plan: Plan) -> float:
    return max(max(rates) for rates in plan.rates.values())


def _spread(plan: Plan) -> bool:
    """Whether the groups' rates are so far apart that only a log axis shows all of them."""
    largest = [max(rates) for rates in plan.rates.values() if max(rates) > 0]
    return max(largest) > 3 * min(largest)


def _count(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
