"""Attributions over what they are of: maps over images, cells over spectrograms."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from thaw.report.ink import BLUE, ORANGE, WIDTH, panels
from thaw.report.thumbnails import COLUMNS, SIDE, spectrogram

COARSE, CELLS = 16, 28  # a side, of maps that are drawn: single pixels cannot be read


def as_seen(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """What the network reads (channels, height, width), as an image (height, width, colours) of numbers from 0 to 1."""
    level, spread = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    seen = (image.cpu() * spread + level).clamp(0, 1)
    if max(seen.shape[1:]) > SIDE:
        seen = F.interpolate(seen[None], scale_factor=SIDE / max(seen.shape[1:]), mode="bilinear", antialias=True)[0]
    return seen.expand(3, -1, -1).permute(1, 2, 0).numpy()


def over_images(images: Sequence[np.ndarray], maps: Sequence[np.ndarray], labels: Sequence[str]) -> Figure:
    """Grey images under maps (height, width): orange for the answer, blue against it."""
    figure, grid = _grid(len(images), 1.28)
    for axes, image, values, label in zip(grid, images, maps, labels, strict=False):
        height, width = image.shape[:2]
        # A map of few cells would else cover all of the image.
        contrast = 1.8 if max(values.shape) < COARSE else 0.8
        axes.imshow(0.12 + 0.6 * image.mean(axis=2, keepdims=True).repeat(3, axis=2), extent=(0, width, height, 0))
        axes.imshow(tinted(_coarse(values), contrast), extent=(0, width, height, 0), interpolation="bilinear")
        axes.set(xlim=(0, width), ylim=(height, 0))
        _entitle(axes, label)
    return figure


def over_sounds(sounds: Sequence[tuple[np.ndarray, int]], cells: Sequence[np.ndarray], labels: Sequence[str]) -> Figure:
    """Spectrograms under cells (bands, slots) of pitch and time."""
    figure, grid = _grid(len(sounds), 1.1)
    for axes, (wave, rate), values, label in zip(grid, sounds, cells, labels, strict=False):
        place = {"origin": "lower", "aspect": "auto", "extent": (0, len(wave) / rate, 0, 1)}
        axes.imshow(spectrogram(wave, rate), cmap="gray", **place)
        axes.imshow(tinted(values), interpolation="nearest", **place)
        _entitle(axes, label)
        axes.set_axis_on()
        axes.set(yticks=[], xticks=[0, round(len(wave) / rate, 2)])
        axes.tick_params(labelsize=9, length=2, pad=1)
    grid[0].set_xlabel("s", fontsize=9, labelpad=-9)
    return figure


def tinted(values: np.ndarray, contrast: float = 0.8) -> np.ndarray:
    """Colours (…, 4): orange what is positive, blue what is negative, transparent what is next to nothing."""
    most = max(float(np.quantile(np.abs(values), 0.995)), 1e-12)
    strength = np.clip(np.abs(values) / most, 0, 1)[..., None]
    colors = np.where(values[..., None] > 0, to_rgb(ORANGE), to_rgb(BLUE))
    return np.concatenate([colors, 0.85 * strength**contrast], axis=-1)


def _coarse(values: np.ndarray) -> np.ndarray:
    # Of small images cells of two pixels: single ones are mostly noise.
    size = [min(CELLS, length if length < COARSE else length // 2) for length in values.shape]
    return F.adaptive_avg_pool2d(torch.from_numpy(values)[None, None], size)[0, 0].numpy()


def _grid(count: int, ratio: float) -> tuple[Figure, Sequence[Axes]]:
    rows = -(-count // COLUMNS)
    figure, grid = panels(WIDTH, rows * WIDTH / COLUMNS * ratio, rows, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, list(grid.flat)


def _entitle(axes: Axes, label: str) -> None:
    axes.set_title(label if len(label) < 20 else label[:19] + "…", fontsize=9)


def place(values: np.ndarray) -> str:
    """Where a map (height, width) is strongest, in words."""
    row, column = (
        int(3 * at / size)
        for at, size in zip(np.unravel_index(values.argmax(), values.shape), values.shape, strict=True)
    )
    spot = ("upper", "middle", "lower")[row], ("left", "middle", "right")[column]
    return (
        "that is strongest in the middle"
        if spot == ("middle", "middle")
        else f"that is strongest at the {' '.join(spot)}"
    )


def moment(wave: np.ndarray, rate: int, values: np.ndarray) -> str:
    """When in a sound the cells (bands, slots) are strongest, in words."""
    slot = int(values.sum(axis=0).argmax())
    return f"that is strongest at {(slot + 0.5) / values.shape[1] * len(wave) / rate:.2f} s of {len(wave) / rate:.2f} s"
