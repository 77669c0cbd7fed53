"""Speech and other sound: files in folders or tables, as waveforms or as log-mel images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from thaw.data.datamodule import DataModule
from thaw.data.files import CHECKED_FILES, Root, contents, labelled_files
from thaw.data.quality import hash_of
from thaw.data.samples import Samples
from thaw.data.sound_files import SHORTEST, duration, fault, load
from thaw.data.sound_transform import MEL_RATE, MelImage, Waveform, padded_waves
from thaw.errors import UserError
from thaw.mel import LogMel, spec_augment

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


class Speech(DataModule):
    """Sound files in class folders or in a table of paths with labels or transcripts.

    A network that reads waveforms gets them at its own sampling rate, padded to the longest of a batch of similar
    length; one that reads images gets a log-mel spectrogram of `window` seconds as an image of its own size.

    Args:
        root: as of ImageFolder, with .wav, .flac, .ogg or .mp3 files.
        path_column, label_column: of a table; the label may be a transcript.
        transcripts: label → what is said, where the labels of a speech recognition task are only names.
        max_seconds: what is longer is cut, and counted.
        window: seconds that an image shows; None takes the longest of 95 % of the training samples.
        n_mels: mel bands of an image.
        image_size: pixels a side of an image; None takes the network's own.
        time_shift: seconds by which a training sample is moved at most, either way.
        noise: least ratio of signal to added noise in training, in dB; None adds none.
        spec_augment: mask bands and stretches of training images (arXiv:1904.08779).
        data: see DataModule.

    Raises:
        UserError: files that cannot be decoded or are shorter than 20 ms; labels as in DataModule.
    """

    unit = "seconds"

    def __init__(
        self,
        root: Root,
        path_column: str = "path",
        label_column: str | list[str] = "label",
        transcripts: dict[str | int, str] | None = None,
        max_seconds: Annotated[float, Field(ge=SHORTEST)] = 20.0,
        window: Annotated[float, Field(ge=SHORTEST)] | None = None,
        n_mels: Annotated[int, Field(ge=8)] = 64,
        image_size: Annotated[int, Field(ge=8)] | None = None,
        time_shift: Annotated[float, Field(ge=0)] = 0.0,
        noise: float | None = None,
        spec_augment: bool = True,
        **data: Any,
    ) -> None:
        self.root, self.path_column, self.label_column = Path(root), path_column, label_column
        # In YAML a label such as 0 is a number.
        self.transcripts = {str(label): said for label, said in (transcripts or {}).items()}
        self.max_seconds, self.window = max_seconds, window
        self.n_mels, self.image_size = n_mels, image_size
        self.time_shift, self.noise, self.spec_augment = time_shift, noise, spec_augment
        super().__init__(**data)
        self.seconds = {split: np.array([duration(p) for p in held.inputs]) for split, held in self.splits.items()}

    def read(self) -> dict[str, Samples]:
        found = labelled_files(self.root, SUFFIXES, self.path_column, self.label_column)
        return {split: Samples(paths, self._said(labels), load) for split, (paths, labels) in found.items()}

    def _count_truncated(self, most: float) -> None:
        self.truncated = {split: int((seconds > most).sum()) for split, seconds in self.seconds.items()}

    def _said(self, labels: Sequence[Any]) -> list[Any]:
        if not self.transcripts:
            return list(labels)
        if unknown := sorted({str(label) for label in labels} - self.transcripts.keys()):
            raise UserError(f"data.transcripts must have an entry for every label; it lacks {unknown[:5]}.")
        return [self.transcripts[str(label)] for label in labels]

    def problems(self, samples: Samples) -> dict[int, str]:
        checked = self.skips or len(samples) <= CHECKED_FILES
        found = {index: fault(path, checked) for index, path in enumerate(samples.inputs)}
        return {index: reason for index, reason in found.items() if reason}

    def hashes(self, samples: Samples) -> list[bytes] | None:
        return [hash_of(contents(path)) for path in samples.inputs] if len(samples) <= CHECKED_FILES else None

    @property
    def network_arguments(self) -> dict[str, Any]:
        return {"image_size": self.image_size}

    @property
    def inputs(self) -> dict[str, Any]:
        names = ("image_size", "max_seconds", "window", "n_mels")
        return {"medium": "sound", "column": self.path_column} | {name: getattr(self, name) for name in names}

    def lengths(self, split: str) -> np.ndarray:
        return np.minimum(self.seconds[split], self.max_seconds)

    def for_waveform(self, sampling_rate: int, extract: Callable[[np.ndarray], tuple[Tensor, int]] | None) -> None:
        self.by_length = True
        self._fix_variants(masks=False)
        self._count_truncated(min(self.max_seconds, getattr(extract, "seconds", None) or self.max_seconds))
        own = sampling_rate, extract, self.max_seconds
        self.transforms = {"train": Waveform(*own, vary=self._varied), "eval": Waveform(*own)}

    def _fix_variants(self, masks: bool) -> None:
        self.variants = None if masks or self.time_shift or self.noise is not None else 1
        self.steady_with = "data.time_shift=0 data.noise=null" + " data.spec_augment=false" * masks

    def for_image(self, size: int, mean: list[float], std: list[float], **_: Any) -> None:
        self._fix_variants(masks=self.spec_augment)
        self.window = self.window or float(np.quantile(self.seconds["train"], 0.95))
        shown = min(self.window, self.max_seconds)
        self._count_truncated(shown)
        own = LogMel(MEL_RATE, self.n_mels), shown, size, mean, std
        mask = spec_augment if self.spec_augment else None
        self.transforms = {"train": MelImage(*own, vary=self._varied, mask=mask), "eval": MelImage(*own)}

    def _varied(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """A training sample moved in time and under noise, drawn from torch's generator."""
        if self.time_shift:
            shift = int((torch.rand(()).item() * 2 - 1) * self.time_shift * rate)
            cut = min(-shift, len(wave) - round(SHORTEST * rate)) if shift < 0 else 0
            wave = np.pad(wave, (shift, 0)) if shift > 0 else wave[max(cut, 0) :]
        if self.noise is not None:
            ratio = self.noise + torch.rand(()).item() * 30
            power = float(np.mean(np.square(wave))) + 1e-10
            spread = (power / 10 ** (ratio / 10)) ** 0.5
            wave = wave + spread * torch.randn(len(wave)).numpy()
        return wave.astype(np.float32)

    def collate(self, inputs: Sequence[Any]) -> Any:
        if not self.by_length:
            return super().collate(inputs)
        return padded_waves(inputs)
