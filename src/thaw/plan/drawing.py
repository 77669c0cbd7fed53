"""What trains when, and at which rates: drawn for a plan before a run, and for its report after it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Rates further below the largest one than this lie at the bottom of a log axis.
DECADES = 3
# From frozen to thawed; each reads on white and on black.
WARMING = ("#3b82f6", "#7c6cf0", "#b45ad6", "#e0559b", "#f2685f", "#f59a3c")

# (from epoch, to epoch, whether all of the group trains)
Bar = tuple[float, float, bool]


def group_colors(groups: int) -> list[str]:
    """One color for each layer group, from the cold of the first to the warmth of the head."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    scale = LinearSegmentedColormap.from_list("warming", WARMING)
    return [to_hex(scale(number / max(groups - 1, 1))) for number in range(groups)]


def draw_timeline(
    axes: "Axes", bars: Mapping[str, Sequence[Bar]], parameters: Mapping[str, int], epochs: int, ink: str
) -> None:
    """A row for each layer group: when all of it trains, pale when a part of it does, and its parameters beside it."""
    for number, (group, color) in enumerate(zip(bars, group_colors(len(bars)), strict=True)):
        axes.broken_barh([(0, epochs)], (number - 0.38, 0.76), color=ink, alpha=0.16, linewidth=0)
        for start, end, whole in bars[group]:
            axes.broken_barh(
                [(start, end - start)], (number - 0.38, 0.76), color=color, alpha=1.0 if whole else 0.55, linewidth=0
            )
        label, place = count(parameters[group]), {"xycoords": ("axes fraction", "data"), "color": ink}
        axes.annotate(label, (1.015, number), va="center", fontsize=8, **place)
    axes.annotate("parameters", (1.015, len(bars) - 0.35), fontsize=7, **place)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=9)
    axes.set_ylim(-0.6, len(bars) - 0.2)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_rates(axes: "Axes", at: Mapping[str, Sequence[float]], rates: Mapping[str, Sequence[float]]) -> None:
    """A curve for each layer group; nothing where it is frozen.

    Args:
        at: group → the epochs, with fractions, at which `rates` are its learning rates.
    """
    for number, (group, color) in enumerate(zip(rates, group_colors(len(rates)), strict=True)):
        values = [rate if rate > 0 else math.nan for rate in rates[group]]
        # Earlier groups wider and beneath, so that equal rates show as bands.
        width = 1.4 + 4.0 * (len(rates) - 1 - number) / max(len(rates) - 1, 1)
        axes.plot(at[group], values, color=color, linewidth=width, solid_capstyle="butt")
    top = largest(rates)
    if spread(rates):
        axes.set_yscale("log")
        axes.set_ylim(top * 10**-DECADES, top * 1.6)
    else:
        axes.set_ylim(0, top * 1.05)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def largest(rates: Mapping[str, Sequence[float]]) -> float:
    return max(max(values) for values in rates.values())


def spread(rates: Mapping[str, Sequence[float]]) -> bool:
    """Whether the groups' rates are so far apart that only a log axis shows all of them."""
    highest = [max(values) for values in rates.values() if max(values) > 0]
    return max(highest) > 3 * min(highest)


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


def count(number: int) -> str:
    """`1.29 k`, `22.6 M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
