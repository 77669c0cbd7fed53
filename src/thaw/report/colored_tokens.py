"""Texts whose tokens are coloured by what they say for an answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from thaw.report.ink import INK, WIDTH, panels
from thaw.report.overlays import tinted

UNFINISHED = "\ufffd"  # what is decoded of a letter whose other bytes are in the next token
MOST = 90  # tokens that are shown of a text
SIZE, LINE = 10, 0.235  # points, and inches from line to line


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, with the space before it; special tokens add nothing."""
    texts = [tokenizer.decode(ids[: number + 1]).rstrip(UNFINISHED) for number in range(min(len(ids), MOST))]
    found, before = [], ""
    for text in texts:
        shared = next(
            (n for n, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), min(len(before), len(text))
        )
        found.append(text[shared:])
        before = text
    return found


def draw(texts: Sequence[Sequence[str]], values: Sequence[np.ndarray], labels: Sequence[str]) -> Figure:
    """A paragraph for each text (tokens,), under its label."""
    figure, axes = panels(WIDTH, 1.0)
    FigureCanvasAgg(figure)
    axes.set_axis_off()
    axes.set_position((0, 0, 1, 1))
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()
    style = {"fontsize": SIZE, "va": "baseline"}

    def width(text: str) -> float:
        drawn = axes.text(0, 0, text, **style)
        inches = drawn.get_window_extent(renderer).width / figure.dpi
        drawn.remove()
        return inches

    space = width("a a") - width("aa")
    placed: list[tuple[float, float, str, Any]] = []
    y = 0.0
    for text, scores, label in zip(texts, values, labels, strict=True):
        y += 1.25 * LINE
        placed.append((0.0, y, label, None))
        y, x = y + LINE, 0.0
        for piece, color in zip(text, tinted(scores[: len(text)]), strict=True):
            word = piece.strip()
            if not word:
                continue
            step, long = space if piece[0].isspace() else 0.0, width(word)
            if x and x + step + long > WIDTH - 0.05:
                x, step, y = 0.0, 0.0, y + LINE
            placed.append((x + step, y, word, color))
            x += step + long
        if len(scores) > len(text):
            placed.append((x + space, y, "…", (0, 0, 0, 0)))
    height = y + 0.4 * LINE
    figure.set_size_inches(WIDTH, height)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    for x, y, word, color in placed:
        if color is None:
            axes.text(x, y, word, **style | {"fontsize": 9}, color=INK, fontstyle="italic")
        else:
            box = {"boxstyle": "square,pad=0.12", "facecolor": tuple(color), "edgecolor": "none"}
            axes.text(x, y, word, **style, color=INK, bbox=box)
    return figure


def strongest(text: Sequence[str], scores: np.ndarray) -> str:
    """Which token of a text speaks most for the answer, in words."""
    shown = [number for number, piece in enumerate(text) if piece.strip()]
    best = max(shown, key=lambda number: scores[number], default=None)
    return "no token is shown" if best is None else f"“{text[best].strip()}” speaks most for it"
