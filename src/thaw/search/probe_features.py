"""The body's features that all heads of a grid read: made once, and kept."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from thaw.activations import Activations
from thaw.cache import Cache
from thaw.data.datamodule import DataModule
from thaw.data.loaders import Split
from thaw.features import frozen_groups
from thaw.frozen_part import FrozenPart
from thaw.model.network import Network


class Features:
    """Of each split, when it is first asked for.

    Args:
        on_device, context: see `FrozenPart`.
    """

    def __init__(
        self,
        network: Network,
        data: DataModule,
        cache: Cache,
        on_device: Callable[[Any], Any],
        context: Callable[[], AbstractContextManager],
    ) -> None:
        self.network, self.data, self.cache, self.on_device, self.context = network, data, cache, on_device, context
        self._rows: dict[str, Activations | Tensor] = {}
        self._whole: dict[str, tuple[Tensor, Tensor]] = {}

    def rows(self, split: Split) -> Activations | Tensor:
        """One row for each variant of each sample, as `FrozenPart` has them."""
        if split not in self._rows:
            part = FrozenPart(self.network, frozen_groups(self.network), self.data, split, self.on_device, self.context)
            found, _ = part.kept(self.cache, lambda items, total, description: items)
            if found is None:  # there is no room on the disk
                found = torch.empty(part.shape, dtype=part.example.dtype)
                for rows, values in part.parts():
                    found[rows] = values.cpu()
            self._rows[split] = found
        return self._rows[split]

    def whole(self, split: Split) -> tuple[Tensor, Tensor]:
        """Features (samples, width) and targets of a split, in the order of its samples."""
        if split not in self._whole:
            rows = list(range(self.data.sizes[split]))
            targets = self.data.batch_targets(split, [(0, row) for row in rows])
            self._whole[split] = self.on_device((self.rows(split)[rows], targets))
        return self._whole[split]
