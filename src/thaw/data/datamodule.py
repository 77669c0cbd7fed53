"""The DataModule every kind of data builds on: what its splits hold, and what is known of them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from thaw.data.files import stamp
from thaw.data.loaders import Loaders, Split
from thaw.data.quality import Quality, examine
from thaw.data.samples import Samples, sound, unlabelled
from thaw.data.splits import carve
from thaw.data.targets import KINDS
from thaw.defaults import default_batch_size
from thaw.errors import UserError

Size = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]

# Targets that only one kind of input has.
ONLY = {"tags": "text", "text": "text", "transcript": "waveform"}
FITTING_MODELS = {"image": "model=mobilenet", "text": "model=bert", "waveform": "model=wav2vec2"}


class DataModule(Loaders, ABC):
    """Train, val and test splits of one data set.

    Args:
        seed: seeds the splits, the subset, the order and the augmentation.
        target: what the task asks for: `class`, `labels`, `number`, `tags`, `transcript` or `text`.
        batch_size: samples a step; None takes 32, or less where there are few labels; with `auto` it is found later,
            by trying.
        num_workers: loader processes; `auto` times a few samples and takes what keeps up; no result depends on it.
        worker_timeout: seconds to wait for a batch of theirs before the run ends; 0 waits for ever.
        train_size: a stratified subset of train, as a count of samples (int) or a share (float).
        shots: a subset of train with this many samples of each class.
        val_size, test_size: share carved from train where the data has no such split.
        sampler: `shuffle`, or `balanced`, which draws every class equally often, with replacement.
        on_bad_sample: `raise` names every sample that cannot be used; `skip` leaves them out, at most 1 % of a split.
        classes: names in index order, of a finished run that is to be measured on these samples. Then all of them are
            the test split, or those of it where the data has one. None takes the classes of train.

    Raises:
        UserError: samples that cannot be used, labels that do not fit the task, or a split that cannot be stratified.
    """

    #: What lengths are counted in.
    unit = ""

    def __init__(
        self,
        seed: int = 0,
        target: Literal["class", "labels", "number", "tags", "transcript", "text"] = "class",
        batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None,
        num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto",
        train_size: Size | None = None,
        shots: Annotated[int, Field(ge=1)] | None = None,
        val_size: Share = 0.1,
        test_size: Share | None = None,
        sampler: Literal["shuffle", "balanced"] = "shuffle",
        on_bad_sample: Literal["raise", "skip"] = "raise",
        worker_timeout: Annotated[int, Field(ge=0)] = 600,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__(seed, sampler, num_workers, worker_timeout)
        self.skips = on_bad_sample == "skip"
        raw = self.read()
        if "train" not in raw:
            raise UserError(f"data must have a train split; found {', '.join(raw) or 'none'}.")
        if classes is not None:
            kept = "test" if "test" in raw else "train"
            raw = {kept: raw[kept]}
        problems = {
            split: unlabelled(samples, KINDS[target].fault) | dict(self.problems(samples))
            for split, samples in raw.items()
        }
        splits, self.skipped = sound(raw, problems, skip=self.skips)
        kind = KINDS[target]
        self.targets = kind(splits["train"].targets) if classes is None else kind.of(classes)
        splits = {
            split: replace(samples, targets=self.targets.encode(samples.targets, split))
            for split, samples in splits.items()
        }
        self.whole = splits  # before anything is carved
        if classes is None:
            self.splits = carve(splits, self.targets, seed, train_size, shots, val_size, test_size)
        else:
            self.splits = dict.fromkeys(("train", "test"), splits[kept])
        self.sources = dict(self.splits)  # what was read, also where the samples are cut anew from it
        if empty := [split for split, samples in self.splits.items() if not len(samples)]:
            raise UserError(f"data: every split must hold at least one sample; {' and '.join(empty)} has none.")
        if sampler == "balanced" and self.targets.strata(self.splits["train"].targets) is None:
            raise UserError("data.sampler=balanced must have one class for each sample. Write data.sampler=shuffle.")
        self.auto_batch_size = batch_size == "auto"
        given = None if self.auto_batch_size else batch_size
        self.batch_size = given or default_batch_size(len(self.splits["train"]))
        self.truncated: dict[str, int] = {}  # samples of each split that are cut to what the network reads

    def share(self, rank: int, ranks: int) -> None:
        """Take from now on this process's part of every split.

        Raises:
            UserError: a split has fewer samples than there are processes.
        """
        if few := [f"{split} has {size}" for split, size in self.sizes.items() if size < ranks]:
            raise UserError(
                f"data: every split must hold a sample for each of {ranks} processes; {' and '.join(few)}. "
                f"Write trainer.devices={min(self.sizes.values())} or less."
            )
        self.rank, self.ranks = rank, ranks

    @abstractmethod
    def read(self) -> dict[str, Samples]:
        """The splits the data itself has, with raw labels; `train` at least."""

    def preprocess(self, kind: str = "image", **preprocessing: Any) -> None:
        """Build `self.transforms['train']` and `['eval']` from what the network asks for.

        Raises:
            UserError: the network reads another kind of input.
        """
        ways = {name: getattr(self, f"for_{name}", None) for name in ("image", "text", "waveform")}
        if (only := ONLY.get(self.targets.kind, kind)) != kind:
            raise UserError(f"task must suit the model: it asks for {only} inputs. Write e.g. {FITTING_MODELS[only]}.")
        if ways[kind] is None:
            fitting = [FITTING_MODELS[name] for name, way in ways.items() if way]
            raise UserError(
                f"model must read what data={type(self).__name__} holds, and this one reads {kind} inputs. "
                f"Write e.g. {' or '.join(fitting)}."
            )
        ways[kind](**preprocessing)

    def problems(self, samples: Samples) -> Mapping[int, str]:
        """Index → reason, of the samples that cannot be used."""
        return {}

    def hashes(self, samples: Samples) -> Sequence[bytes] | None:
        """A hash of each sample that lies in a file; None where the name or the array tells all, or cannot be had."""
        return None

    @cached_property
    def known_hashes(self) -> dict[str, Sequence[bytes] | None]:
        """Split → `hashes`, read once."""
        return {split: self.hashes(samples) for split, samples in self.sources.items()}

    def stamps(self, split: Split) -> list[bytes]:
        """What else the contents of a split are known by, where its files are too many for a hash of each."""
        paths = self.sources[split].inputs if self.known_hashes[split] is None else ()
        return [stamp(path) for path in paths if isinstance(path, str)]

    def keys(self, samples: Samples) -> Sequence[str | bytes] | None:
        """What two samples share if they are the same, but for files; None where that cannot be told."""
        return None

    def names(self, samples: Samples) -> Iterable[str]:
        """What stands for each sample in `predictions.csv` and in messages."""
        return (samples.name(index) for index in range(len(samples)))

    @property
    def classes(self) -> list[str]:
        """Names of what is answered, in index order."""
        return self.targets.classes

    @property
    def network_arguments(self) -> dict[str, Any]:
        """What the network must know of the data."""
        return {}

    @property
    def inputs(self) -> dict[str, Any]:
        """What is known of the inputs once they are preprocessed, for `inputs.py` to prepare others as these."""
        return {}

    @property
    def task_arguments(self) -> dict[str, Any]:
        """What the task may need to know of the data."""
        return self.targets.task_arguments(self.splits["train"].targets)

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(samples) for split, samples in self.splits.items()}

    @property
    def fingerprint(self) -> str:
        """A hash of the class names and of which sample stands in which split under which label.

        Of files it takes the contents too, up to as many files as are looked at before training.
        """
        digest = hashlib.sha256(repr(self.classes).encode())
        for split, samples in self.sources.items():
            digest.update(split.encode())
            for name, item, target in zip(self.names(samples), samples.inputs, samples.targets, strict=True):
                digest.update(np.asarray(target).tobytes())
                digest.update(item.tobytes() if isinstance(item, np.ndarray | np.generic) else name.encode())
            digest.update(b"".join(self.known_hashes[split] or ()))
        return digest.hexdigest()[:16]

    @property
    def batching(self) -> str:
        """How large a batch is, in words."""
        bound = f"batches of {self.batch_size}"
        return f"{bound}, {self.max_tokens:,} tokens at most" if self.max_tokens else bound

    def quality(self) -> Quality:
        """What there is to know of the data before training: counts, lengths, duplicates, leaks."""
        return examine(self)
