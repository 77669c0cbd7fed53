"""Sweeps in a folder of their own, by a script that breaks some of its jobs."""

import csv
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import train

TINY = ("trainer.max_epochs=2", "data.train_size=60", "logger=none", "hydra.launcher.workers=2")
# Does what train.py does, and before that what a test wants of some jobs; `has("seed=1")` tells them apart.
SCRIPT = """
import ctypes, os, signal, sys, time
sys.path.insert(0, {root!r})
import train
from thaw import command

def has(override):
    return override in sys.argv

{change}

if __name__ == "__main__":
    command.main(train.train)
"""
# For a change that must wait until training has come to the end of an epoch.
AT_EPOCH = """
from thaw.run.record import Recorder
told = Recorder.on_train_epoch_end

def on_train_epoch_end(self, trainer, module):
    told(self, trainer, module)
    at_epoch(trainer)

Recorder.on_train_epoch_end = on_train_epoch_end
"""


@pytest.fixture
def sweep(run_task: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`sweep("seed=0,1", change="…")` does what `python train.py -m seed=0,1` does, in `tmp_path / "sweep"`."""

    def run(*overrides: str, change: str = "", tiny: tuple[str, ...] = TINY) -> Any:
        return run_task(train.train, str(script(tmp_path, change)), "-m", *tiny, "search.dir=sweep", *overrides)

    return run


def script(folder: Path, change: str) -> Path:
    path = folder / "train.py"
    path.write_text(SCRIPT.format(root=str(ROOT), change=textwrap.dedent(change)))
    return path


def ledger(folder: Path) -> list[dict[str, str]]:
    """The rows of results.csv, by their settings."""
    with open(folder / "sweep" / "results.csv", newline="") as file:
        return list(csv.DictReader(file))
