"""Figures that read on light and on dark paper: nothing behind them, and inks between black and white."""

from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

INK = "#8a8f98"  # words and axes
BLUE, ORANGE, GREEN, RED, VIOLET, TEAL = "#4c8dd6", "#e0803a", "#3fa66b", "#d9534f", "#9b7fd1", "#3aa6a6"
CYCLE = (BLUE, ORANGE, GREEN, RED, VIOLET, TEAL)
WIDTH = 5.6  # inches of a figure: on a telephone its words must stay readable
STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)
