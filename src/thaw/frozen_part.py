"""What the frozen part of a network makes of each sample of a split: computed once, and kept."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thaw.activations import VALUES, Activations, Rows
from thaw.cache import Cache
from thaw.data.datamodule import DataModule
from thaw.data.loaders import Split
from thaw.freezing.digest import digests
from thaw.model.cut import Cut, Inputs, NoCutError, equal
from thaw.model.network import Cached, Network, Steps

# Targets that have one answer for each sample; the others need its tokens or frames.
WHOLE = ("class", "labels", "number")


class FrozenPart:
    """The first layer groups of a network over one split of the data.

    Args:
        groups: names of the frozen layer groups, from the stem on.
        on_device: puts a loaded batch where the network is, as the training does.
        context: of each forward pass, for its precision.

    Raises:
        NoCutError: the activations after these groups are not known to be the same whatever else happens.
    """

    def __init__(
        self,
        network: Network,
        groups: Sequence[str],
        data: DataModule,
        split: Split,
        on_device: Callable[[Any], Any],
        context: Callable[[], AbstractContextManager],
    ) -> None:
        self.network, self.groups, self.data, self.split = network, groups, data, split
        self.on_device, self.context = on_device, context
        variants = data.variants if split == "train" else 1
        if variants is None:
            advice = f"; not so with {data.steady_with}" if data.steady_with else ""
            raise NoCutError(f"train is drawn anew in each of them{advice}")
        if data.targets.kind not in WHOLE:
            raise NoCutError("the task asks for more than one answer a sample")
        self.variants, self.size = variants, len(data.splits[split])
        self.whole = len(groups) == len(network.groups) - 1  # all of the body
        self.masked = data.by_length and not self.whole  # the rest of the network must know what is padding
        if next(network.parameters()).device.type == "cpu":
            data.keep(split)  # its threads open the samples at first, and then are free for the body
        order = data.in_order(split)
        self.first = order[0]
        inputs = self._inputs(self.first)
        tried = [inputs]
        if data.by_length:  # the first is of the shortest; and the last may be a rest
            tried = [
                self._inputs(next((indices for indices in reversed(order) if len(indices) > 2), self.first)),
                inputs,
            ]
        self.inputs = _hash(*(content for each in tried for content in _bytes(each)))
        self.cut = None if self.whole else self._cut(tried[0])
        began = time.perf_counter()
        self.example = self._activations(inputs)
        self.busy = time.perf_counter() - began if self.example.device.type == "cpu" else 0.0
        if data.by_length and self.whole:
            self._assert_blind_to_padding(inputs)

    def _cut(self, inputs: Inputs) -> Cut:
        if self.network._compiled_call_impl is not None:
            raise NoCutError("a compiled network is cut before its head alone")
        with self.context():
            return Cut(self.network, self.groups, inputs)

    def _inputs(self, indices: Rows) -> Inputs:
        return self.on_device(self.data.batch(self.split, [(0, index) for index in indices]))[0]

    def _activations(self, inputs: Inputs) -> Tensor:
        with torch.no_grad(), self.context():
            found = self.network.features(inputs) if self.whole else self.cut.before(inputs)
        if isinstance(found, Steps):
            raise NoCutError("its features are steps")
        return found

    def _assert_blind_to_padding(self, inputs: Mapping[str, Tensor]) -> None:
        """Batches differ from epoch to epoch, and with them what a sample is padded to."""
        shorter, added = inputs, 8
        if "attention_mask" in inputs:  # of text, for which a network may have no position more than there are
            steps = inputs["attention_mask"].shape[1]
            kept = max(1, steps - added)
            shorter, added = {name: v[:, :kept] for name, v in inputs.items()}, max(1, steps - kept)
        longer = {name: torch.nn.functional.pad(v, (0, added)) if v.ndim == 2 else v for name, v in shorter.items()}
        one = self.example if shorter is inputs else self._activations(shorter)
        other = self._activations(longer)
        if (one - other).abs().max() > 1e-3 * one.abs().max():
            raise NoCutError("they read padding")

    @property
    def lengths(self) -> np.ndarray | None:
        """Steps of each row, where the activations have as many as the sample has tokens."""
        steps = self.masked and self.example.ndim == 3
        return np.tile(self.data.lengths(self.split), self.variants).astype(int) if steps else None

    @property
    def shape(self) -> list[int]:
        """Of the array that holds all rows."""
        if self.lengths is not None:
            return [int(self.lengths.sum()), self.example.shape[-1]]
        return [self.size * self.variants, *self.example.shape[1:]]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.example.element_size()

    def parts(self) -> Iterator[tuple[Rows, Tensor]]:
        """(rows, activations) of every batch of every variant; random states stay as they are."""
        order = self.data.in_order(self.split)
        yield self.first, self.example
        with torch.random.fork_rng(devices=[]):
            for variant in range(self.variants):
                loader = self.data.loader_in_order(self.split, variant, skip=not variant, busy=self.busy)
                for indices, batch in zip(order[not variant :], loader, strict=True):
                    activations = self._activations(self.on_device(batch)[0])
                    yield [variant * self.size + index for index in indices], activations

    @property
    def steps(self) -> int:
        """How many parts there are."""
        return self.variants * len(self.data.in_order(self.split))

    @property
    def key(self) -> dict[str, Any]:
        """All that the activations depend on."""
        modules = [self.network.body] if self.whole else self.cut.modules
        weights = [digest for module in modules for digest in digests(module).values()]
        lengths = self.data.lengths(self.split)
        device = self.example.device
        with self.context():
            autocast = torch.is_autocast_enabled(device.type) and str(torch.get_autocast_dtype(device.type))
        chip = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        return {
            "weights": _hash(*weights),
            "body": _hash(repr(self.network.body).encode()),
            "channels_last": self.network.channels_last,
            "after": self.groups[-1],
            "data": [self.data.fingerprint, _hash(*self.data.stamps(self.split))],
            "split": self.split,
            "inputs": self.inputs,
            "lengths": None if lengths is None else _hash(np.ascontiguousarray(lengths).tobytes()),
            "shape": self.shape,
            "dtype": str(self.example.dtype),
            "autocast": autocast,
            "batch_size": self.data.batch_size,
            "machine": [torch.__version__, device.type, chip, torch.get_num_threads()],
        }

    def kept(
        self, cache: Cache, track: Callable[..., Iterable[Any]], again: bool = False
    ) -> tuple[Activations | None, bool]:
        """The activations from the cache, and whether they lay there already; None where there is no room for them.

        What lies there is used only if the first batch, computed anew, equals it.

        Args:
            track: shows the progress of an iterable: `track(items, total, description)`.
            again: whether a later stage reads the samples for activations after other groups.
        """
        key = self.key

        def opened(folder: Path) -> Activations:
            return Activations(folder / VALUES, self.example.dtype, self.lengths)

        def fill(folder: Path) -> None:
            parts = track(self.parts(), self.steps, f"features of {self.split}")
            Activations.write(folder / VALUES, self.shape, self.lengths, parts)

        if folder := cache.find(key):
            found = opened(folder)
            if self._fits(found[self.first].to(self.example.device)):
                return found, True
            cache.discard(key)
        if again or self.variants > 1:
            self.data.keep(self.split)
        try:
            folder = cache.entry(key, self.bytes, fill)
        except OSError:  # another has filled the disk meanwhile
            folder = None
        return (opened(folder), False) if folder else (None, False)

    def _fits(self, stored: Tensor) -> bool:
        if self.lengths is None:
            return equal(stored, self.example)
        pairs = zip(stored, self.example, self.lengths[self.first], strict=True)
        return all(equal(one[:steps], other[:steps]) for one, other, steps in pairs)

    def ready(self, activations: Activations) -> Callable[[Sequence[Any]], tuple[Cached, Tensor]]:
        """What makes a batch from (epoch, index) keys: (Cached, targets)."""

        def make(keys: Sequence[Any]) -> tuple[Cached, Tensor]:
            rows = activations[[epoch % self.variants * self.size + index for epoch, index, *_ in keys]]
            if not self.masked:
                return Cached(rows), self.data.batch_targets(self.split, keys)
            inputs, targets = self.data.batch(self.split, keys)
            return Cached(rows, inputs), targets

        return make


def _hash(*contents: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def _bytes(inputs: Inputs) -> list[bytes]:
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return [value.cpu().contiguous().view(torch.uint8).numpy().tobytes() for value in values]  # also of bfloat16
