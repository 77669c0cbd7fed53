"""The benchmarks that take long, or a GPU: their code runs at tiny sizes, and memory is counted rightly."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

sys.path.insert(0, str(ROOT / "scripts"))
import benchmark
from benchmarks import memory
from benchmarks.networks import BERT, VIT


def test_every_benchmark_is_a_function_in_its_file() -> None:
    for name, (file, _) in benchmark.BENCHMARKS.items():
        assert f"\ndef {name}(" in (ROOT / "scripts" / "benchmarks" / f"{file}.py").read_text()


def test_training_state_is_parameters_gradients_and_what_the_optimizer_keeps() -> None:
    layer, frozen = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False).requires_grad_(False)
    network = nn.Sequential(layer, frozen)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    assert memory.state_bytes(network, optimizer) == 400 + 400 + 400 + 400


@pytest.mark.parametrize("name", [VIT, BERT])
def test_what_is_frozen_costs_no_training_state(name: str) -> None:
    """Under Adam full fine-tuning holds every parameter four times."""
    state = {way: memory.measured(name, way, tiny=True)["state"] for way in memory.WAYS}
    assert state["gradual, last phase"] == state["full"]
    assert state["linear_probe"] == state["gradual, first phase"] < 0.3 * state["full"]
    assert state["bias_only"] < 0.5 * state["full"]


@pytest.mark.medium
def test_without_a_gpu_its_benchmark_says_so_in_a_line() -> None:
    code = "import torch; torch.cuda.is_available = lambda: False; from benchmarks.gpu import gpu; gpu()"
    assert run(code).splitlines() == ["There is no GPU here, and nothing of it is measured."]


@pytest.mark.medium
def test_the_gpu_benchmark_runs_at_tiny_sizes() -> None:
    rows = [
        line.split(" | ") for line in run("from benchmarks.gpu import gpu; gpu(['BERT-base'], tiny=True)").splitlines()
    ]
    rows = [row for row in rows if len(row) == 7][1:]
    assert len(rows) == 4 * 2 + 1
    assert all(float(row[2].replace(",", "")) > 0 for row in rows)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
