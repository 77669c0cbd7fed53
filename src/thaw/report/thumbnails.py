"""Samples as people see and hear them: images as their files show them, sounds as wave and spectrogram."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from thaw.data.datamodule import DataModule
from thaw.mel import LogMel
from thaw.report.ink import BLUE, WIDTH, panels

COLUMNS = 4
SIDE = 160  # pixels of a thumbnail
BANDS = 48
SECONDS = 10.0  # of a long recording, what is drawn

Kind = Literal["image", "sound", "text"]


def kind_of(data: DataModule) -> Kind:
    """What a sample of this data is, whatever the network reads it as."""
    if hasattr(data, "for_text"):
        return "text"
    return "sound" if hasattr(data, "for_waveform") else "image"


def draw(kind: Kind, samples: Sequence[Any], labels: Sequence[str]) -> Figure:
    """A grid of images, or of (wave (samples,), samples a second), with what is said of each."""
    rows = -(-len(samples) // COLUMNS)
    each = WIDTH / COLUMNS
    height = each + 0.32 if kind == "image" else each * 0.8 + 0.4
    figure, grid = panels(WIDTH, rows * height, rows, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, sample, label in zip(grid.flat, samples, labels, strict=False):
        show_image(axes, sample) if kind == "image" else show_sound(axes, *sample)
        axes.set_title("\n".join(line[:20] for line in label.split("\n")), fontsize=9)
    return figure


def show_image(axes: Axes, image: Image.Image) -> None:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    axes.imshow(small, cmap="gray" if small.mode == "L" else None, vmin=0, vmax=255, interpolation="nearest")
    # In a square, so that a row of them stands on one line.
    half, middle = max(small.size) / 2, [(length - 1) / 2 for length in small.size]
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] + half, middle[1] - half))


def show_sound(axes: Axes, wave: np.ndarray, rate: int) -> None:
    """The log-mel spectrogram, and the wave above it."""
    wave = wave[: round(SECONDS * rate)]
    seconds = len(wave) / rate
    bands = spectrogram(wave, rate)
    axes.imshow(bands, origin="lower", aspect="auto", extent=(0, seconds, 0, 1), cmap="magma", interpolation="nearest")
    loudest = max(float(np.abs(wave).max()), 1e-6)
    at = np.arange(len(wave)) / rate
    pieces = max(1, len(wave) // 400)
    used = len(wave) // pieces * pieces
    folded = wave[:used].reshape(-1, pieces) / loudest
    axes.fill_between(
        at[:used:pieces], 1.25 + 0.2 * folded.min(axis=1), 1.25 + 0.2 * folded.max(axis=1), color=BLUE, linewidth=0.3
    )
    axes.set(xlim=(0, seconds), ylim=(0, 1.47))


def spectrogram(wave: np.ndarray, rate: int) -> np.ndarray:
    """Log-mel power (bands, frames) of a wave (samples,), low frequencies first."""
    wide = np.pad(wave, (0, max(0, round(0.05 * rate) - len(wave))))
    return LogMel(rate, BANDS if rate >= 16000 else BANDS // 2)(torch.from_numpy(wide)).numpy()
