"""How to bring a module of your own: a small speech network in plain PyTorch, and the Network made of it."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from thaw import mel
from thaw.model.network import Head, Network, Steps

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def deepspeech(
    num_outputs: int,
    per_step: bool = False,
    width: Annotated[int, Field(ge=2, multiple_of=2)] = 128,
    layers: Count = 2,
    dropout: Share = 0.3,
    sampling_rate: Count = 8000,
    n_mels: Count = 40,
    spec_augment: bool = True,
) -> Network:
    """A small network after DeepSpeech 2 (arXiv:1512.02595), from random weights: there is nothing pretrained to load.

    Its own module needs three things to become a Network: features out, groups of its parameters in forward order,
    and what the data must do to its inputs.

    Args:
        num_outputs: width of the new head.
        per_step: an output for every 20 ms (Steps), as CTC needs, rather than one for the whole recording.
        width: of the features, half of them from each direction of the recurrent layers.
        layers: how many recurrent layers.
        dropout: share dropped before each recurrent layer and before the head.
        sampling_rate: samples a second of the waves it reads.
        n_mels: bands of the spectrogram.
        spec_augment: mask stretches of time and of frequency in training (arXiv:1904.08779).
    """
    body = DeepSpeech(per_step, width, layers, dropout, sampling_rate, n_mels, spec_augment)
    blocks = {"stem": body.stem, "block00": body.conv}
    blocks |= {f"block{number:02d}": layer for number, layer in enumerate(body.recurrent, start=1)}
    name_of = {parameter: name for name, parameter in body.named_parameters()}
    groups = {group: [name_of[parameter] for parameter in block.parameters()] for group, block in blocks.items()}
    preprocessing = {"kind": "waveform", "sampling_rate": sampling_rate, "extract": None}
    head = Head.new(width, num_outputs, dropout)
    return Network(body, head, groups, preprocessing, lr=2e-3, new_head=False, pretrained=False)


class DeepSpeech(nn.Module):
    """Waves → log-mel spectrogram → two convolutions → recurrent layers → features (batch, width), or Steps.

    What is padded never changes what is real: each sample of a batch gets what it would get alone.
    """

    def __init__(
        self, per_step: bool, width: int, layers: int, dropout: float, sampling_rate: int, n_mels: int, augment: bool
    ) -> None:
        super().__init__()
        self.per_step = per_step
        self.stem = Stem(mel.LogMel(sampling_rate, n_mels), n_mels, width, augment)
        self.conv = Conv(width, width, stride=1)
        self.recurrent = nn.ModuleList(Recurrent(width, dropout) for _ in range(layers))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor | Steps:
        """`input_values` (batch, samples) and `lengths`, the real samples of each (batch,)."""
        values, lengths = self.stem(inputs["input_values"], inputs["lengths"])
        values, lengths = self.conv(values, lengths)
        for layer in self.recurrent:
            values = layer(values, lengths)
        if self.per_step:
            return Steps(values, lengths)
        return values.sum(dim=1) / lengths[:, None]  # the padding is zero


class Stem(nn.Module):
    """Normalised log-mel spectrogram and the first convolution, which halves the steps to 20 ms each.

    The masks stand here, beside the first weights: in a frozen stem, which is in eval mode, there are none.
    """

    def __init__(self, log_mel: mel.LogMel, n_mels: int, width: int, augment: bool) -> None:
        super().__init__()
        self.log_mel, self.augment = log_mel, augment
        self.conv = Conv(n_mels, width, stride=2)

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        spectrogram, lengths = self.log_mel(wave * real(lengths, wave.shape[1])), self.log_mel.frames(lengths)
        spectrogram = normalised(spectrogram, lengths)  # (batch, n_mels, frames)
        if self.training and self.augment:
            spectrogram = mel.spec_augment(spectrogram, lengths)
        return self.conv(spectrogram.transpose(1, 2), lengths)


class Conv(nn.Module):
    """Convolution over time, BatchNorm over the real steps of the batch, ReLU: (batch, steps, channels or width)."""

    def __init__(self, channels: int, width: int, stride: int, kernel: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.stride = stride

    def forward(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        values = self.conv(values.transpose(1, 2)).transpose(1, 2)
        lengths = (lengths - 1) // self.stride + 1
        mask = real(lengths, values.shape[1])
        steps = self.norm(values[mask]).relu()  # (real steps of the whole batch, width)
        return steps.new_zeros(values.shape).masked_scatter(mask[:, :, None], steps), lengths


class Recurrent(nn.Module):
    """Dropout and a bidirectional GRU, whose backward direction begins at each sample's own end."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.dropout(values), lengths.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=values.shape[1])[0]


def real(lengths: Tensor, size: int) -> Tensor:
    """True where a sample has real values, False where it is padded: (batch, size)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def normalised(spectrogram: Tensor, lengths: Tensor) -> Tensor:
    """Each sample (batch, n_mels, frames) with mean 0 and variance 1 over its real frames; the padding is 0."""
    mask = real(lengths, spectrogram.shape[2])[:, None, :]
    count = lengths[:, None, None] * spectrogram.shape[1]
    centred = (spectrogram - (spectrogram * mask).sum((1, 2), keepdim=True) / count) * mask
    return centred / (centred.square().sum((1, 2), keepdim=True) / count + 1e-5).sqrt()
