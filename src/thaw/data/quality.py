"""What is wrong with a data set, counted before training: leaks, duplicates, rare classes, lengths."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from thaw.data.datamodule import DataModule

Key = str | bytes
PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))
RARE = 10  # training samples below which a class is named


@dataclass(frozen=True)
class Leak:
    """Samples of a later split that also stand in an earlier one.

    Args:
        samples: how many of the later split.
        examples: the first few, as (index in earlier, index in later).
        texts: what is shown of each example.
    """

    earlier: str
    later: str
    samples: int
    examples: list[tuple[int, int]]
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Quality:
    """All that is counted about a data set, by split.

    Args:
        sizes: samples.
        class_counts: samples of each class; without entries where there are no classes.
        numbers: `summary` of the targets, where they are numbers.
        lengths: `summary` of the inputs' lengths in `unit`, e.g. tokens or seconds.
        duplicates: samples whose key a sample before them in the same split has.
        leaks: what stands in two splits.
        skipped: why samples were left out → how many.
        truncated: samples that are cut to the most that the network reads.
    """

    sizes: Mapping[str, int]
    class_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lengths: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unit: str = ""
    duplicates: Mapping[str, int] = field(default_factory=dict)
    leaks: Sequence[Leak] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    truncated: Mapping[str, int] = field(default_factory=dict)

    @property
    def rare_classes(self) -> dict[str, int]:
        """Classes with under ten training samples, rarest first."""
        counts = self.class_counts.get("train", {})
        return dict(sorted(((name, n) for name, n in counts.items() if n < RARE), key=lambda entry: entry[1]))

    @property
    def lacking(self) -> dict[str, list[str]]:
        """Split → the labels of other splits that it has no sample of; none for a split without labels."""
        labelled = {split: counts for split, counts in self.class_counts.items() if any(counts.values())}
        known = dict.fromkeys(name for counts in labelled.values() for name, count in counts.items() if count)
        lacks = {split: [name for name in known if not counts.get(name)] for split, counts in labelled.items()}
        return {split: names for split, names in lacks.items() if names}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"rare_classes": self.rare_classes, "lacking": self.lacking}


def text_key(text: str) -> str:
    """What makes two texts the same: all but case and the white space around."""
    return text.lower().strip()


def hash_of(contents: bytes) -> bytes:
    """What makes two files the same, whatever their names are."""
    return hashlib.blake2b(contents, digest_size=16).digest()


def summary(values: Sequence[float]) -> dict[str, float]:
    """`min`, `median`, `p95` (95 % are no larger) and `max`; empty without values."""
    if not len(values):
        return {}
    points = np.percentile(np.asarray(values, dtype=float), [0, 50, 95, 100])
    return {name: float(point) for name, point in zip(("min", "median", "p95", "max"), points, strict=True)}


def duplicates(
    keys: Mapping[str, Sequence[Key]], texts: Mapping[str, Sequence[str]] | None = None, shown: int = 3
) -> tuple[dict[str, int], list[Leak]]:
    """Samples that stand twice: count within each split, and the leaks from train to val, train to test, val to test.

    Args:
        keys: of each sample, by split; equal keys mean the same sample (`text_key`, `hash_of`).
        texts: what to show of each sample, by split, e.g. the text or the path; None is the key, where it is a text.
        shown: examples of each leak.
    """
    texts = keys if texts is None else texts
    first = {split: _first_index(own) for split, own in keys.items()}
    within = {split: len(own) - len(first[split]) for split, own in keys.items()}
    leaks = []
    for earlier, later in PAIRS:
        if earlier not in keys or later not in keys:
            continue
        index_of = first[earlier]
        found = [(index_of[key], index) for index, key in enumerate(keys[later]) if key in index_of]
        if found:
            said = [texts[later][index] for _, index in found[:shown]]
            leaks.append(
                Leak(earlier, later, len(found), found[:shown], [text for text in said if isinstance(text, str)])
            )
    return within, leaks


def _first_index(keys: Sequence[Key]) -> dict[Key, int]:
    index_of: dict[Key, int] = {}
    for index, key in enumerate(keys):
        index_of.setdefault(key, index)
    return index_of


@dataclass(frozen=True)
class _Names(Sequence[str]):
    """What stands for each sample: a few are shown of what may be a million."""

    name: Callable[[int], str]
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> str:
        return self.name(index)


def examine(data: "DataModule") -> Quality:
    """What there is to know of the data before training: counts, lengths, duplicates, leaks."""
    known = {split: data.known_hashes[split] or data.keys(held) for split, held in data.sources.items()}
    keys = {split: found for split, found in known.items() if found is not None}
    texts = {split: _Names(data.sources[split].name, len(keys[split])) for split in keys}
    within, leaks = duplicates(keys, texts)
    numbers = data.targets.kind == "number"
    counts = {split: data.targets.counts(held.targets) for split, held in data.sources.items()}
    lengths = {split: found for split in data.splits if (found := data.lengths(split)) is not None}
    return Quality(
        sizes=data.sizes,
        class_counts={s: dict(zip(data.classes, held, strict=True)) for s, held in counts.items() if held},
        numbers={s: summary(np.ravel(held.targets)) for s, held in data.splits.items()} if numbers else {},
        lengths={split: summary(found) for split, found in lengths.items()},
        unit=data.unit,
        duplicates=within,
        leaks=leaks,
        skipped=dict(Counter(reason for _, _, reason in data.skipped)),  # asdict cannot copy a Counter
        truncated=data.truncated,
    )
