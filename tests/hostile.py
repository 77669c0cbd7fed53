"""Files that would run code, if anything unpickled them or believed what they say."""

import os
import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def as_archive(path: Path, marker: Path) -> None:
    """As torch.save writes it, with all that a checkpoint has."""
    torch.save({"state_dict": {}, "epoch": 0, "global_step": 1, "metrics": {}, "extra": Payload(marker)}, path)


def as_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Payload(marker)}, protocol=2))


def as_legacy(path: Path, marker: Path) -> None:
    torch.save({"state_dict": Payload(marker)}, path, _use_new_zipfile_serialization=False)


WAYS: list[Callable[[Path, Path], None]] = [as_archive, as_pickle, as_legacy]


def script(name: str, *arguments: str | Path) -> None:
    """What `python scripts/<name>.py …` does, in this process."""
    sys.argv = [f"{name}.py", *map(str, arguments)]
    runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
