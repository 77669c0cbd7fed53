"""What becomes of a sound: a wave at the network's own rate, or a log-mel spectrogram as an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from thaw.data.sound_files import resampled
from thaw.mel import LogMel

MEL_RATE = 16_000  # samples a second of what becomes an image
Sound = tuple[np.ndarray, int]  # one channel (samples,), and its samples a second
Vary = Callable[[np.ndarray, int], np.ndarray]  # of a training sample's wave, at this rate


@dataclass(frozen=True)
class Waveform:
    """A sound as the network reads it, and its real length.

    Args:
        rate: the network's samples a second.
        extract: what it makes of a wave (samples,); None leaves it as it is.
        max_seconds: what is longer is cut.
    """

    rate: int
    extract: Callable[[np.ndarray], tuple[Tensor, int]] | None
    max_seconds: float
    vary: Vary | None = None

    def __call__(self, sound: Sound) -> tuple[Tensor, int]:
        wave = resampled(*sound, self.rate)[: round(self.max_seconds * self.rate)]
        wave = self.vary(wave, self.rate) if self.vary else wave
        return self.extract(wave) if self.extract else (torch.from_numpy(wave), len(wave))


@dataclass(frozen=True)
class MelImage:
    """A sound as an image (channels, size, size).

    Args:
        window: seconds that it shows.
        mean, std: of each channel.
        mask: of a training sample's bands (n_mels, frames).
    """

    spectrogram: LogMel
    window: float
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    vary: Vary | None = None
    mask: Callable[[Tensor], Tensor] | None = None

    def __call__(self, sound: Sound) -> Tensor:
        wave = resampled(*sound, MEL_RATE)
        wave = self.vary(wave, MEL_RATE) if self.vary else wave
        count = round(self.window * MEL_RATE)
        wave = np.pad(wave[:count], (0, max(0, count - len(wave))))
        bands = self.spectrogram(torch.from_numpy(wave))
        bands = (bands - bands.mean()) / (bands.std() + 1e-5)
        bands = self.mask(bands) if self.mask else bands
        # Low frequencies at the bottom, as people draw it; two standard deviations either way fill the grey scale.
        grey = (bands.flip(0) / 4 + 0.5).clamp(0, 1)[None, None]
        image = F.interpolate(grey, (self.size, self.size), mode="bilinear", antialias=True)[0]
        mean, std = (torch.tensor(level).view(-1, 1, 1) for level in (self.mean, self.std))
        return (image.expand(len(mean), -1, -1) - mean) / std


def padded_waves(samples: Sequence[tuple[Tensor, int]]) -> dict[str, Any]:
    """One batch (samples, steps, …), as long as its longest sample, with the real length of each."""
    values = pad_sequence([value for value, _ in samples], batch_first=True)
    return {"input_values": values, "lengths": torch.tensor([length for _, length in samples])}
