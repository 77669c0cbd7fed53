"""Log-mel spectrograms, for networks that read waveforms and for data that shows speech as an image."""

import torch
from torch import Tensor, nn

from thaw.errors import UserError

# What silence adds to a mel band's power; full-scale waves are in [-1, 1].
FLOOR = 1e-6


class LogMel(nn.Module):
    """Natural logarithm of the power in mel bands: waves (samples,) or (batch, samples) → (..., n_mels, frames).

    Frame t is centred at sample `t * hop`, and there is silence before the wave and after it: `1 + samples // hop`
    frames, none of which changes where zeros are appended to the wave.

    Args:
        sampling_rate: samples a second.
        window, hop: length of the Hann window, and what it moves on by, in seconds.
        min_frequency, max_frequency: where the lowest band begins and the highest ends, in Hz; None is half the rate.

    Raises:
        UserError: a band is so narrow that no frequency of the transform lies in it.
    """

    def __init__(
        self,
        sampling_rate: int,
        n_mels: int = 64,
        window: float = 0.025,
        hop: float = 0.010,
        min_frequency: float = 0.0,
        max_frequency: float | None = None,
    ) -> None:
        super().__init__()
        self.window_samples, self.hop_samples = round(sampling_rate * window), round(sampling_rate * hop)
        self.n_fft = 2 ** (self.window_samples - 1).bit_length()
        high = sampling_rate / 2 if max_frequency is None else max_frequency
        filters = mel_filters(n_mels, self.n_fft, sampling_rate, min_frequency, high)
        # Made from the arguments, so no part of the weights.
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("hann", torch.hann_window(self.window_samples), persistent=False)

    def frames(self, samples: Tensor) -> Tensor:
        """Count of frames for a count of samples."""
        return 1 + samples // self.hop_samples

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(
            wave.float(), self.n_fft, self.hop_samples, self.window_samples, self.hann,
            center=True, pad_mode="constant", return_complex=True,
        )  # fmt: skip
        power = spectrum.real.square() + spectrum.imag.square()
        return (self.filters @ power).add(FLOOR).log()


def mel_filters(n_mels: int, n_fft: int, sampling_rate: int, low: float, high: float) -> Tensor:
    """Triangles of height 1, evenly spaced in mel = 2595 log10(1 + Hz / 700) (HTK's formula): (n_mels, n_fft // 2 + 1).

    Raises:
        UserError: no frequency of the transform lies in some triangle.
    """
    mels = 2595 * torch.log10(1 + torch.tensor([low, high], dtype=torch.float64) / 700)
    corners = 700 * (10 ** (torch.linspace(mels[0], mels[1], n_mels + 2, dtype=torch.float64) / 2595) - 1)
    hertz = torch.linspace(0, sampling_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    left, peak, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    filters = torch.minimum((hertz - left) / (peak - left), (right - hertz) / (right - peak)).clamp(min=0)
    if empty := int((filters.sum(1) == 0).sum()):
        raise UserError(
            f"n_mels must leave every mel band a frequency of the transform; {n_mels} bands of {low:g} to {high:g} Hz "
            f"leave {empty} without, at {sampling_rate} Hz with {n_fft} points. Write fewer n_mels, or a longer window."
        )
    return filters.float()


def spec_augment(
    spectrogram: Tensor,
    frames: Tensor | None = None,
    mel_masks: int = 1,
    mel_share: float = 0.15,
    time_masks: int = 1,
    time_share: float = 0.1,
) -> Tensor:
    """SpecAugment's masks (arXiv:1904.08779) without its warping, other ones for each sample, from torch's generator.

    Args:
        spectrogram: (batch, n_mels, frames) or (n_mels, frames), normalised, so that a mask's zeros are the mean.
        frames: real frames of each sample (batch,), within which the time masks lie; None is all.
        mel_masks, time_masks: how many of each kind.
        mel_share, time_share: the longest that one mask may be, as a share of the bands or of a sample's real frames.
    """
    if spectrogram.ndim == 2:
        return spec_augment(spectrogram[None], frames, mel_masks, mel_share, time_masks, time_share)[0]
    batch, n_mels, length = spectrogram.shape
    device = spectrogram.device
    bands = torch.full((batch,), n_mels, device=device)
    frames = torch.full((batch,), length, device=device) if frames is None else frames
    masked = _stretches(bands, n_mels, mel_masks, mel_share)[:, :, None]
    masked = masked | _stretches(frames, length, time_masks, time_share)[:, None, :]
    return spectrogram.masked_fill(masked, 0.0)


def _stretches(sizes: Tensor, length: int, count: int, share: float) -> Tensor:
    """True inside `count` random stretches of each sample: (batch, length)."""
    inside = torch.zeros(len(sizes), length, dtype=torch.bool, device=sizes.device)
    position = torch.arange(length, device=sizes.device)
    for _ in range(count):
        width = (torch.rand(len(sizes), device=sizes.device) * (share * sizes + 1)).floor()
        start = (torch.rand(len(sizes), device=sizes.device) * (sizes - width + 1)).floor()
        inside |= (position >= start[:, None]) & (position < (start + width)[:, None])
    return inside
