"""Weights & Biases must never cost a run more than a moment; metrics.csv must survive a resume."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from thaw.logger import closing_wandb, csv_logger
from thaw.run.resume import Found
from thaw.run.run import Run

CODE = """
import time, sys
from thaw.logger import wandb_logger
began = time.monotonic()
wandb_logger("run", "name").log_metrics({"val/loss": 1.0}, step=1)
import wandb
wandb.run.finish()
print("seconds", time.monotonic() - began)
"""


@pytest.fixture(
    params=[
        pytest.param("refused", marks=pytest.mark.fault("F1")),
        pytest.param("silent", marks=pytest.mark.fault("F2")),
    ]
)
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address that refuses connections, and one that takes them and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    if request.param == "refused":
        listener.close()
    yield f"http://127.0.0.1:{port}"
    listener.close()


@pytest.mark.slow
def test_a_server_that_does_not_answer_costs_at_most_twenty_seconds(tmp_path: Path, server: str) -> None:
    (tmp_path / "run").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server, "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "W&B: offline" in result.stdout
    assert "wandb sync run/wandb/offline-run-" in result.stdout
    assert float(result.stdout.split("seconds ")[1]) < 20
    assert list(tmp_path.glob("run/wandb/offline-run-*/*.wandb"))


def test_metrics_of_a_resumed_run_go_on_below_those_before(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first = csv_logger(run)
    for step in (1, 2, 3):
        first.log_metrics({"val/loss": step / 10}, step)
    first.save()
    # What came after the checkpoint is computed again; what the checkpoint knows of its epoch is not lost.
    run.found = Found(step=3, metrics={"val/loss": 0.2, "train/loss": 0.7})
    second = csv_logger(run)
    second.log_metrics({"val/loss": 0.5, "lr/head/decay": 1e-3}, 3)
    second.save()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0].split(",") == ["epoch", "lr/head/decay", "step", "train/loss", "val/loss"]
    rows = [
        ["", "", "1", "", "0.1"],
        ["", "", "2", "", "0.2"],
        ["0", "", "2", "0.7", ""],
        ["", "0.001", "3", "", "0.5"],
    ]
    assert [line.split(",") for line in lines[1:]] == rows


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (RuntimeError(), 1), (KeyboardInterrupt(), 130), (SystemExit(143), 143)]
)
def test_the_wandb_run_of_a_job_is_closed_with_its_exit_code_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, code: int
) -> None:
    finished: list[int] = []
    summary: dict[str, float] = {}
    fake = SimpleNamespace(summary=summary, finish=lambda exit_code: finished.append(exit_code))
    monkeypatch.setattr("wandb.run", fake)
    run = Run(tmp_path, {"metrics": {"test/accuracy": 0.5}})
    with contextlib.suppress(RuntimeError, KeyboardInterrupt, SystemExit), closing_wandb(run):
        if error:
            raise error
    assert finished == [code]
    assert summary == {"test/accuracy": 0.5}
