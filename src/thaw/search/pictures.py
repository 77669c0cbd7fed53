"""What a sweep shows in pictures: how it went, which settings matter, and which values of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from thaw.plan.drawing import WARMING, group_colors
from thaw.report.ink import INK, WIDTH, panels
from thaw.report.section import Picture
from thaw.search.compare import short
from thaw.search.ledger import Row

SHADES = LinearSegmentedColormap.from_list("warming", WARMING)


class Point(NamedTuple):
    """A trial that has finished: setting → value, and its objective."""

    params: Mapping[str, Any]
    value: float


def learning_curves(rows: Sequence[Row], monitor: str) -> Picture:
    """The monitored metric of every run, epoch by epoch; those that were stopped in grey."""
    figure, axes = panels(WIDTH, 3.3)
    finished = [row for row in rows if row.status == "finished"]
    colors = iter(group_colors(len(finished)))
    for row in sorted(rows, key=lambda row: row.objective or 0.0):
        done = row.status == "finished"
        values = [float("nan") if value is None else value for value in row.history]
        look = {"color": next(colors), "linewidth": 1.5} if done else {"color": INK, "linewidth": 1, "alpha": 0.5}
        marker = "o" if len(values) == 1 else None
        axes.plot(range(1, len(values) + 1), values, **look, zorder=2 + done, marker=marker, markersize=4)
    axes.set(xlabel="epoch", ylabel=monitor)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.22, color=INK)
    stopped = len(rows) - len(finished)
    alt = f"{monitor} of {len(finished)} finished runs over their epochs" + f", {stopped} others in grey" * bool(
        stopped
    )
    caption = f"{monitor} of every run, the best in orange" + "; grey: stopped or failed" * bool(stopped)
    return Picture(figure, f"{alt}.", f"{caption}.", vector=len(rows) <= 200)


def history(points: Sequence[Point], monitor: str, mode: str) -> Picture:
    """Each trial in its order, and the best so far."""
    figure, axes = panels(WIDTH, 3.3)
    values = np.array([point.value for point in points])
    best = (np.maximum if mode == "max" else np.minimum).accumulate(values)
    numbers = np.arange(1, len(values) + 1)
    axes.plot(numbers, values, "o", color=WARMING[0], markersize=5, alpha=0.75, label="trial")
    axes.step(numbers, best, where="post", color=WARMING[-2], linewidth=2, label="best so far")
    axes.set(xlabel="trial", ylabel=monitor)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.22, color=INK)
    axes.legend(frameon=False)
    alt = f"{monitor} of {len(values)} trials in their order; the best so far ends at {best[-1]:.4g}."
    return Picture(figure, alt, "The trials in their order, and the best so far.")


def importances(found: Mapping[str, float], monitor: str) -> Picture:
    """How much of the objective's variance each setting explains (fANOVA: Hutter et al., 2014)."""
    figure, axes = panels(WIDTH, 0.9 + 0.34 * len(found))
    names = list(found)[::-1]
    axes.barh(names, [found[name] for name in names], color=group_colors(len(names)), height=0.62)
    for number, name in enumerate(names):
        axes.annotate(f"{found[name]:.2f}", (found[name], number), (4, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, max(found.values()) * 1.15 or 1)
    axes.set_xlabel(f"share of the variance of {monitor}")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    told = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    return Picture(figure, f"Importance of each setting for {monitor}: {told}.", "Which settings matter (fANOVA).")


def slices(points: Sequence[Point], monitor: str, log: Sequence[str]) -> Picture:
    """The objective against each setting by itself."""
    names = list(points[0].params)
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    figure, grid = panels(WIDTH, 0.5 + 2.1 * rows, rows, columns, squeeze=False, sharey=True)
    order = np.linspace(0, 1, len(points))
    for axes, name in zip(grid.flat, names, strict=False):
        where, ticks = places([point.params.get(name) for point in points])
        axes.scatter(where, [point.value for point in points], c=order, cmap=SHADES, s=22, linewidths=0)
        if ticks:
            axes.set_xticks(range(len(ticks)), [_cut(text) for text in ticks], rotation=30 if len(ticks) > 3 else 0)
            axes.set_xlim(-0.5, len(ticks) - 0.5)
        elif name in log:
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.22, color=INK)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(monitor)
    alt = f"{monitor} of {len(points)} trials against each of {', '.join(names)}."
    return Picture(figure, alt, "Every trial by each setting alone; the later, the warmer.", vector=len(points) <= 300)


def parallel(points: Sequence[Point], monitor: str, log: Sequence[str], mode: str) -> Picture:
    """A line for each trial through its values: what the best have in common."""
    names = list(points[0].params)
    figure, axes = panels(WIDTH, 3.6)
    values = np.array([point.value for point in points])
    heights = [_scaled(values)]
    texts = [(f"{values.min():.4g}", f"{values.max():.4g}")]
    for name in names:
        where, ticks = places([point.params.get(name) for point in points])
        spread = np.log10(where) if name in log and not ticks else np.asarray(where, dtype=float)
        heights.append(_scaled(spread))
        ends = (ticks[0], ticks[-1]) if ticks else (f"{min(where):.3g}", f"{max(where):.3g}")
        texts.append((_cut(ends[0]), _cut(ends[1])))
    lines = np.stack(heights, axis=1)  # (trials, settings and the objective)
    good = heights[0] if mode == "max" else 1 - heights[0]
    for number in np.argsort(good):
        axes.plot(lines[number], color=SHADES(good[number]), alpha=0.3 + 0.6 * good[number], linewidth=1.4)
    for place, (low, high) in enumerate(texts):
        axes.vlines(place, 0, 1, color=INK, linewidth=0.8)
        axes.annotate(low, (place, -0.04), ha="center", va="top", color=INK, fontsize=8)
        axes.annotate(high, (place, 1.04), ha="center", va="bottom", color=INK, fontsize=8)
    axes.set_xticks(range(len(names) + 1), [name.replace(".", ".\n") for name in (monitor, *names)])
    axes.set(ylim=(-0.14, 1.14), xlim=(-0.3, len(names) + 0.3), yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    alt = f"Parallel coordinates of {len(points)} trials: {monitor} and {', '.join(names)}; the best in orange."
    return Picture(figure, alt, "A line for each trial; the better, the warmer.", vector=len(points) <= 300)


def places(values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Where values lie on an axis, and its ticks; none where they are numbers."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], []
    texts = [str(value) for value in values]
    ticks = list(dict.fromkeys(texts))
    try:
        ticks = sorted(ticks, key=float)
    except ValueError:
        ticks = sorted(ticks)
    return [float(ticks.index(text)) for text in texts], ticks


def _scaled(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    extent = values.max() - values.min()
    return (values - values.min()) / extent if extent else np.full(len(values), 0.5)


def _cut(text: str) -> str:
    text = short(text)
    return text if len(text) <= 14 else f"{text[:13]}…"
