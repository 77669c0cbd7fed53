"""What a checkpoint claims to hold, against what its file can hold: a small file must not fill the memory."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

MEMORY = Path("/proc/meminfo")


def assert_plausible(path: Path) -> None:
    """Check a file before anything in it is read.

    Raises:
        ValueError: it is no archive, its entries claim more than the file, or the file more than the memory.
    """
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive as torch.save writes it")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    # torch.save compresses nothing, and puts no byte into two entries.
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its entries claim more than the file holds")
    free = free_memory()
    if free is not None and size > free:
        raise ValueError(f"it needs {size / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free")


def assert_within(value: Any, path: Path) -> None:
    """Check that no tensor in nested containers is larger than the whole file.

    Raises:
        ValueError: one is.
    """
    size = path.stat().st_size
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor) and (item.is_meta or item.numel() * item.element_size() > size):
            raise ValueError(f"a tensor of shape {tuple(item.shape)} is larger than the file")
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += item


def free_memory() -> int | None:
    """Bytes that can be had without swapping, where the system tells."""
    if MEMORY.is_file():
        fields = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
        if "MemAvailable" in fields:
            return int(fields["MemAvailable"].split()[0]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
