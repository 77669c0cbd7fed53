"""Rows of activations on disk, memory-mapped: written once, read in any order."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

VALUES = "activations.npy"
Rows = Sequence[int]


class Activations:
    """One row for each variant of each sample, memory-mapped.

    Args:
        path: an array (rows, …), or with `lengths` the steps of all rows one after the other (steps, width).
        dtype: bfloat16 lies in the file as int16, which numpy knows.
        lengths: steps of each row (rows,).
    """

    def __init__(self, path: Path, dtype: torch.dtype, lengths: np.ndarray | None = None) -> None:
        self.values, self.dtype = np.lib.format.open_memmap(path, mode="r"), dtype
        self.ends = None if lengths is None else np.cumsum(lengths)

    def __getitem__(self, rows: Rows) -> Tensor:
        """The activations of these rows (batch, …), padded with zeros where they have steps."""
        if self.ends is None:
            return torch.from_numpy(self.values[rows]).view(self.dtype)
        starts = [self.ends[row - 1] if row else 0 for row in rows]
        parts = [np.array(self.values[start : self.ends[row]]) for start, row in zip(starts, rows, strict=True)]
        return pad_sequence([torch.from_numpy(part).view(self.dtype) for part in parts], batch_first=True)

    @staticmethod
    def write(
        path: Path, shape: Sequence[int], lengths: np.ndarray | None, parts: Iterable[tuple[Rows, Tensor]]
    ) -> None:
        """Write (rows, activations) pairs into a new array of this shape.

        Raises:
            OSError: the disk has no room for it.
        """
        values, ends = None, None if lengths is None else np.cumsum(lengths)
        for rows, activations in parts:
            held = activations.cpu().contiguous()
            plain = (held.view(torch.int16) if held.dtype == torch.bfloat16 else held).numpy()
            if values is None:
                values = np.lib.format.open_memmap(path, "w+", plain.dtype, tuple(shape))
                if hasattr(os, "posix_fallocate"):  # not so on macOS
                    with open(path, "r+b") as file:  # through a map, a full disk would end the process
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            if ends is None:
                values[rows] = plain
                continue
            for row, steps in zip(rows, plain, strict=True):
                values[ends[row] - lengths[row] : ends[row]] = steps[: lengths[row]]
        values.flush()
