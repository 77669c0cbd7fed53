"""Log-mel spectrograms against another implementation, and SpecAugment's masks."""

import math

import numpy as np
import pytest
import torch

from thaw.errors import UserError
from thaw.mel import FLOOR, LogMel, mel_filters, spec_augment


def tone(hertz: float, rate: int, seconds: float = 0.5) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize(
    ("n_mels", "n_fft", "rate", "low", "high"), [(40, 256, 8000, 0, 4000), (64, 512, 16000, 50, 7600)]
)
def test_the_filters_are_those_of_htk(n_mels: int, n_fft: int, rate: int, low: float, high: float) -> None:
    audio = pytest.importorskip("transformers.audio_utils")
    theirs = audio.mel_filter_bank(n_fft // 2 + 1, n_mels, low, high, rate, norm=None, mel_scale="htk")
    np.testing.assert_allclose(mel_filters(n_mels, n_fft, rate, low, high).T, theirs, atol=1e-6)


def test_a_tone_stands_in_its_own_band() -> None:
    log_mel = LogMel(8000, n_mels=40)
    centres = (log_mel.filters * torch.linspace(0, 4000, 129)).sum(1) / log_mel.filters.sum(1)
    for hertz in (200, 1000, 3000):
        loudest = log_mel(tone(hertz, 8000))[:, 20].argmax()
        assert abs(centres[loudest] - hertz) == (centres - hertz).abs().min()


def test_frames_are_10_ms_apart_and_centred() -> None:
    log_mel = LogMel(8000, n_mels=40)
    for samples in (1, 79, 80, 400, 4001):
        spectrogram = log_mel(torch.randn(samples))
        assert spectrogram.shape == (40, 1 + samples // 80)
        assert spectrogram.shape[1] == log_mel.frames(torch.tensor(samples))
    click = torch.zeros(1600)
    click[800] = 1.0
    assert log_mel(click).exp().sum(0).argmax() == 10


def test_a_batch_is_its_samples_and_zeros_behind_them_change_nothing() -> None:
    log_mel = LogMel(16000)
    wave = torch.randn(2, 3000)
    wave[1, 1000:] = 0
    spectrograms = log_mel(wave)
    assert spectrograms.shape == (2, 64, 19)
    assert spectrograms.dtype == torch.float32
    assert torch.allclose(spectrograms[0], log_mel(wave[0]), atol=1e-5)
    assert torch.allclose(spectrograms[1, :, :7], log_mel(wave[1, :1000]), atol=1e-5)


def test_silence_is_finite_and_no_weight_is_stored() -> None:
    log_mel = LogMel(8000)
    assert torch.allclose(log_mel(torch.zeros(800)), torch.tensor(FLOOR).log())
    assert not log_mel.state_dict()


def test_too_many_bands_are_an_error() -> None:
    with pytest.raises(UserError, match=r"200 bands of 0 to 4000 Hz leave \d+ without"):
        LogMel(8000, n_mels=200)


def test_masks_are_within_their_shares_and_differ_between_samples() -> None:
    torch.manual_seed(0)
    frames = torch.tensor([100, 40] * 50)
    masked = spec_augment(torch.ones(100, 50, 100), frames, mel_masks=1, mel_share=0.2, time_masks=1, time_share=0.1)
    bands, times = (masked == 0).all(2), (masked == 0).all(1)
    assert bands.sum(1).max() == 10
    assert bands.sum(1).min() == 0
    assert times[0::2].sum(1).max() == 10
    assert times[1::2].sum(1).max() == 4
    assert not times[1::2, 40:].any()
    assert len({tuple(row.tolist()) for row in bands}) > 50
    assert (bands[:, :, None] | times[:, None, :]).eq(masked == 0).all()


def test_masks_come_from_torchs_generator() -> None:
    spectrogram = torch.ones(64, 80)
    torch.manual_seed(1)
    first, second = spec_augment(spectrogram), spec_augment(spectrogram)
    torch.manual_seed(1)
    assert torch.equal(spec_augment(spectrogram), first)
    assert not torch.equal(first, second)
    assert torch.equal(spectrogram, torch.ones(64, 80))
