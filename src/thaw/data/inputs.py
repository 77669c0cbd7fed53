"""Inputs without labels, prepared as the data of a run prepares its own for evaluation: what predicting needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NotRequired

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.utils.data import default_collate
from typing_extensions import TypedDict  # pydantic wants this one up to Python 3.11

from thaw.data.image_transform import image_transforms
from thaw.data.images import FORMATS, open_image
from thaw.data.sound_files import SHORTEST, duration, load
from thaw.data.sound_transform import MEL_RATE, MelImage, Waveform, padded_waves
from thaw.data.speech import SUFFIXES
from thaw.data.targets import IGNORED
from thaw.data.tokens import TextEncoder, blank, padded
from thaw.errors import UserError
from thaw.mel import LogMel


class Known(TypedDict):
    """What `DataModule.inputs` tells, as it stands in run.json."""

    medium: str
    preprocessing: str
    column: NotRequired[str]
    columns: NotRequired[list[str]]
    image_size: NotRequired[int | None]
    max_length: NotRequired[int]
    max_seconds: NotRequired[float]
    window: NotRequired[float | None]
    n_mels: NotRequired[int]


def inputs_of(known: Any, target: str) -> "Inputs":
    """Prepares inputs of the kind that a run has recorded.

    Args:
        target: what its task asks for.

    Raises:
        UserError: the record tells no such kind.
    """
    if isinstance(known, dict) and "medium" not in known:
        raise UserError(
            "The run's kind of data must tell how a single sample is prepared, and it does not. Let `inputs` of its "
            "DataModule give what that of data/images.py, text.py or speech.py gives, and run again."
        )
    try:
        known = TypeAdapter(Known).validate_python(known, strict=True)
        return KINDS[known["medium"]](known, target)
    except (ValidationError, KeyError):
        raise UserError(
            "run.json must say under 'inputs' how its inputs are prepared, and this one does not: an earlier version "
            "of Thaw wrote it, or it was changed. Run again."
        ) from None


class Inputs(ABC):
    """Stands where a data module stands when a network is built, and prepares single samples and batches.

    Args:
        known: of the run.
        target: what its task asks for.

    Attributes:
        columns: of a table, that hold a sample.
        suffixes: of the files that hold one.
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, known: Known, target: str) -> None:
        self.known, self.target = known, target
        self.columns = known.get("columns") or [known["column"]]

    @property
    def network_arguments(self) -> dict[str, Any]:
        """As of DataModule."""
        return {"image_size": self.known["image_size"]} if "image_size" in self.known else {}

    @abstractmethod
    def preprocess(self, kind: str, **preprocessing: Any) -> None:
        """As of DataModule."""

    def open_file(self, path: str) -> Any:
        """A sample that is a file, as `prepare` takes it."""
        return path

    @abstractmethod
    def prepare(self, sample: Any) -> Any:
        """What is collated of one sample.

        Raises:
            UserError: it cannot be used.
        """

    @abstractmethod
    def collate(self, prepared: Sequence[Any]) -> Tensor | dict[str, Tensor]:
        """A batch as the network reads it."""

    def steps(self, prepared: Sequence[Any]) -> Tensor:
        """Stands for the targets of a batch, of which only is known what counts: (batch, steps)."""
        return torch.zeros(len(prepared), 1, dtype=torch.int64)


class ImageInputs(Inputs):
    """Image files."""

    suffixes = tuple(FORMATS)

    def preprocess(self, kind: str, **preprocessing: Any) -> None:
        self.transform = image_transforms(**preprocessing)["eval"]

    def prepare(self, sample: str) -> Tensor:
        return self.transform.of_a_sample(open_image(sample))

    def collate(self, prepared: Sequence[Tensor]) -> Tensor:
        return self.transform.batched(default_collate(list(prepared)))


class SoundInputs(Inputs):
    """Sound files, as waves or as log-mel images."""

    suffixes = SUFFIXES

    def preprocess(self, kind: str, **preprocessing: Any) -> None:
        known, self._waves = self.known, kind == "waveform"
        self.transform: Callable[[Any], Any]
        if self._waves:
            rate, extract = preprocessing["sampling_rate"], preprocessing["extract"]
            self.transform = Waveform(rate, extract, known["max_seconds"])
        else:
            size, mean, std = (preprocessing[name] for name in ("size", "mean", "std"))
            shown = min(known["window"], known["max_seconds"])
            self.transform = MelImage(LogMel(MEL_RATE, known["n_mels"]), shown, size, mean, std)

    def prepare(self, sample: str) -> Any:
        if duration(sample) < SHORTEST:
            raise UserError(f"shorter than {SHORTEST} s")
        return self.transform(load(sample))

    def collate(self, prepared: Sequence[Any]) -> Tensor | dict[str, Tensor]:
        return padded_waves(prepared) if self._waves else default_collate(list(prepared))


class TextInputs(Inputs):
    """Texts, pairs of texts or lists of words: samples are mappings of the run's columns, or single texts."""

    suffixes = (".txt",)

    def preprocess(self, kind: str, *, tokenizer: Any, max_length: int | None) -> None:
        self.pad_id = tokenizer.pad_id
        self.encode = TextEncoder(tokenizer, self.columns, self.target, self.known["max_length"])

    def open_file(self, path: str) -> str:
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"'{path}' is no text in UTF-8 ({type(error).__name__})") from None

    def prepare(self, sample: str | Mapping[str, Any]) -> dict[str, Any]:
        parts = dict(sample) if isinstance(sample, Mapping) else {self.columns[0]: sample}
        if lacking := [name for name in self.columns if name not in parts]:
            raise UserError(f"a pair needs a table with the columns {', '.join(self.columns)}; no '{lacking[0]}'")
        if blank([parts[name] for name in self.columns]):
            raise UserError("no text")
        return {name: column[0] for name, column in self.encode({name: [parts[name]] for name in self.columns}).items()}

    def collate(self, prepared: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return padded(prepared, self.pad_id)

    def steps(self, prepared: Sequence[Mapping[str, Any]]) -> Tensor:
        if self.target != "tags":
            return super().steps(prepared)
        counted = [torch.tensor([0 if word >= 0 else IGNORED for word in one["word_ids"]]) for one in prepared]
        return torch.nn.utils.rnn.pad_sequence(counted, batch_first=True, padding_value=IGNORED)


KINDS: dict[str, type[Inputs]] = {"image": ImageInputs, "sound": SoundInputs, "text": TextInputs}
