"""Fixtures: a quick stage for unit tests, and whole runs in a directory of their own."""

import atexit
import os
import shutil
import tempfile

# Before anything reads them: no test may wait for a network or a server, or write to the home folder.
CACHE = tempfile.mkdtemp(prefix="thaw-datasets-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks are fastest on one thread
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", HYDRA_FULL_ERROR="1", HF_DATASETS_CACHE=CACHE)

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

import train
from thaw import config

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("THAW_SHARED", ROOT.parent / "shared"))


class Outcome:
    """How a run in this process ended: exit code, what it printed, and the record of the newest run."""

    def __init__(self, code: int, printed: str, errors: str, folder: Path) -> None:
        self.code, self.printed, self.errors, self._folder = code, printed, errors, folder

    @property
    def folders(self) -> list[Path]:
        return sorted((path.parent for path in self._folder.glob("runs/*/run.json")), key=lambda p: p.stat().st_mtime)

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folders[-1] / "run.json").read_text())


@pytest.fixture
def run_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """`run_train("freezing=none")` does what `python train.py freezing=none` does, in `tmp_path`."""

    def run(*overrides: str) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
        GlobalHydra.instance().clear()
        code = 0
        try:
            config.main(train.train)
        except SystemExit as end:
            code = end.code
        printed = capfd.readouterr()
        return Outcome(code, printed.out, printed.err, tmp_path)

    return run
