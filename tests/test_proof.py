"""The table of the README that proves the freeze contract, cell by cell."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import proof


def test_a_difference_is_found_wherever_it_is() -> None:
    same = {"weights": {"a": torch.ones(2)}, "optimizer": [{"state": {0: torch.zeros(2)}, "lr": 0.1}]}
    other = {"weights": {"a": torch.ones(2)}, "optimizer": [{"state": {0: torch.tensor([0.0, 0.5])}, "lr": 0.1}]}
    assert proof.difference(same, same) == 0
    assert proof.difference(same, other) == 0.5
    assert proof.difference(same, {"weights": same["weights"], "optimizer": []}) == torch.inf
    assert proof.difference({"lr": 0.1}, {"lr": 0.2}) == torch.inf
    assert proof.difference({"a": torch.ones(2)}, {"b": torch.ones(2)}) == torch.inf
    assert proof.difference(torch.tensor([torch.nan]), torch.tensor([1.0])) != 0


def test_every_strategy_of_the_configuration_is_proven() -> None:
    chosen = {word for overrides in proof.STRATEGIES.values() for word in overrides if word.startswith("freezing=")}
    assert chosen == {f"freezing={path.stem}" for path in (ROOT / "conf" / "freezing").glob("*.yaml")}


@pytest.mark.slow
def test_nothing_differs_after_a_resume_nor_between_ranks() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(ROOT / "scripts" / "proof.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [line.split("|")[2:-1] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(proof.STRATEGIES)
    assert {cell.strip() for row in rows for cell in row} == {"0.0"}
