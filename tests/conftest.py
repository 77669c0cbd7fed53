"""Fixtures: a quick stage for unit tests, and whole runs in a directory of their own."""

import atexit
import os
import shutil
import tempfile

# Before anything reads them: no test may wait for a network or a server, or write to the home folder.
CACHE = tempfile.mkdtemp(prefix="thaw-cache-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks are fastest on one thread
os.environ.update(
    HF_HUB_OFFLINE="1", WANDB_MODE="disabled", HYDRA_FULL_ERROR="1", HF_DATASETS_CACHE=CACHE, XDG_CACHE_HOME=CACHE
)

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import nn

import train
from thaw import command

pytest_plugins = ["faults.matrix"]
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
def reports() -> None:
    """A test that asks for this lets the runs of its process write their reports, which takes seconds."""


@pytest.fixture(autouse=True)
def no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "reports" not in request.fixturenames:
        monkeypatch.setattr("thaw.report.report.write", lambda *_: None)


@pytest.fixture
def run_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """`run_task(task, "train.py", "freezing=none")` does what `python train.py freezing=none` does, in `tmp_path`."""

    def run(task: Callable[[], Any], script: str, *overrides: str) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *overrides])
        GlobalHydra.instance().clear()
        code = 0
        try:
            command.main(task)
        except SystemExit as end:
            code = end.code
        printed = capfd.readouterr()
        return Outcome(code, printed.out, printed.err, tmp_path)

    return run


@pytest.fixture
def run_train(run_task: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """`run_train("freezing=none")` does what `python train.py freezing=none` does, in `tmp_path`."""
    return partial(run_task, train.train, "train.py")


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path):
    """`run_script("soup", …)` does what `python scripts/soup.py …` does, in `tmp_path`: exit code, output, errors."""

    def run(name: str, *arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def assert_groups_run_in_forward_order(network: Any, inputs: Any) -> None:
    """Told by hooks on the modules that own the parameters, not by their names."""
    group_of = {id(p): index for index, ps in enumerate(network.groups.values()) for p in ps.values()}
    called: list[int] = []

    def note(module: nn.Module, _: object) -> None:
        called.extend({group_of[id(p)] for p in module.parameters(recurse=False)})

    leaves = [m for m in network.modules() if not list(m.children()) and list(m.parameters(recurse=False))]
    handles = [module.register_forward_pre_hook(note) for module in leaves]
    with torch.no_grad():
        network(inputs)
    for handle in handles:
        handle.remove()
    assert called == sorted(called)
    assert set(called) == set(range(len(network.groups)))


@pytest.fixture
def stopped_after_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`with stopped_after_epoch(1):` every run ends as by Ctrl-C when its second epoch is recorded."""

    @contextmanager
    def stopped(epoch: int) -> Iterator[None]:
        from thaw.run.record import Recorder

        record_epoch = Recorder.on_train_epoch_end

        def stop(self: Any, trainer: Any, module: Any) -> None:
            record_epoch(self, trainer, module)
            if trainer.current_epoch == epoch:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Recorder, "on_train_epoch_end", stop)
            yield

    return stopped
