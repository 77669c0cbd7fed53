"""A sound with some of it silenced: gains for cells of time and pitch, applied to the wave itself."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from thaw.mel import mel_filters

BANDS, SLOTS = 6, 16  # cells: bands of equal width in mel, slots of equal length


def audible(values: Tensor, gains: Tensor, rate: int) -> Tensor:
    """What is left of sounds (batch, samples) or spectral features (batch, …, …) under gains (batch, bands, slots).

    Gains pass into one another, so that no click tells where a cell was cut. Features, whose silence is no zero, are
    drawn to their least value, and along their longer side, which is time.
    """
    if values.ndim > 2:
        return _features(values, gains)
    if gains.shape[1] == 1:
        return values * F.interpolate(gains, values.shape[1], mode="linear")[:, 0]
    points = 2 ** (round(0.032 * rate) - 1).bit_length()
    window = torch.hann_window(points, device=values.device)
    spectrum = torch.stft(
        values, points, points // 4, window=window, return_complex=True, pad_mode="constant"
    )  # (batch, frequencies, frames)
    shares = _shares(gains.shape[1], points, rate).to(values.device)
    along = F.interpolate(gains, spectrum.shape[2], mode="linear")
    return torch.istft(spectrum * (shares.T @ along), points, points // 4, window=window, length=values.shape[1])


def _features(values: Tensor, gains: Tensor) -> Tensor:
    time = 1 if values.shape[1] >= values.shape[2] else 2
    along = F.interpolate(gains.mean(dim=1, keepdim=True), values.shape[time], mode="linear")
    gain = along.transpose(1, 2) if time == 1 else along
    floor = values.amin(dim=(1, 2), keepdim=True)
    return floor + (values - floor) * gain


@cache
def _shares(bands: int, points: int, rate: int) -> Tensor:
    """How much of each frequency belongs to each band (bands, frequencies); of each frequency 1 in all."""
    filters = mel_filters(bands, points, rate, 0.0, rate / 2)
    # Below the centre of the lowest band all is that band's, and above that of the highest.
    lowest, highest = filters[0].argmax(), filters[-1].argmax()
    filters[0, :lowest], filters[-1, highest:] = 1.0, 1.0
    return filters / filters.sum(dim=0).clamp(min=1e-6)
