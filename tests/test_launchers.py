"""Jobs that run elsewhere: by Hydra's launchers for SLURM and Ray, by Ray Tune, and by an agent of W&B's sweeps."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from sweeping import AT_EPOCH, TINY, ledger, sweep
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb.wandb_agent import Agent

__all__ = ["sweep"]  # a fixture
ELSEWHERE = tuple(word for word in TINY if not word.startswith("hydra"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_a_launcher_of_hydras_runs_the_same_jobs_into_the_same_ledger(sweep, tmp_path: Path, launcher: str) -> None:
    pytest.importorskip({"ray": "ray", "submitit_local": "submitit"}[launcher], reason=f"pip install .[{launcher}]")
    options = [] if launcher == "ray" else ["hydra.launcher.submitit_folder=submitit", "hydra.launcher.timeout_min=10"]
    outcome = sweep("optimizer.lr=1e-3,2e-3", f"hydra/launcher={launcher}", *options, tiny=ELSEWHERE)
    if launcher == "ray":
        sys.modules["ray"].shutdown()
    assert outcome.code == 0, outcome.errors
    assert {float(row["optimizer.lr"]): row["status"] for row in ledger(tmp_path)} == dict.fromkeys(
        [1e-3, 2e-3], "finished"
    )
    assert sum(bool(row["test/accuracy"]) for row in ledger(tmp_path)) == 1


@pytest.mark.slow
def test_ray_tune_ends_by_asha_what_is_worse_and_the_study_knows(sweep, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install .[ray]")
    rates = ",".join(["3e-3", "2e-3", "4e-3", "5e-3", "1e-9", "2e-9"])
    options = ("search.prune_after=1", "search.n_trials=6", "trainer.max_epochs=5")
    change = AT_EPOCH + "\ndef at_epoch(trainer): time.sleep(1)\n"
    outcome = sweep("search=asha", *options, f"optimizer.lr=choice({rates})", change=change)
    assert outcome.code == 0, outcome.printed + outcome.errors
    rows = ledger(tmp_path)
    assert {row["status"] for row in rows} == {"finished", "pruned"}
    assert all(int(row["epochs"]) < 5 for row in rows if row["status"] == "pruned")
    assert sum(bool(row["test/accuracy"]) for row in rows) == 1
    before = ledger(tmp_path)
    again = sweep("search=asha", *options, f"optimizer.lr=choice({rates})", change="os._exit(9)")
    assert again.code == 0
    assert ledger(tmp_path) == before


SWEEP = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text())


def given(lr: float, freezing: str) -> dict[str, Any]:
    """What W&B's server answers an agent that asks what to run."""
    values = {"optimizer.lr": lr, "freezing": freezing, "optimizer.layer_decay": 0.7, "test": False}
    assert values.keys() == SWEEP["parameters"].keys()
    args = {name: {"value": value} for name, value in values.items()}
    return {"run_id": f"run-of-{freezing}", "program": str(ROOT / SWEEP["program"]), "args": args}


def test_whatever_wandb_gives_its_agent_is_an_override(run_train) -> None:
    for freezing in SWEEP["parameters"]["freezing"]["values"]:
        words = create_sweep_command_args(given(3.2e-05, freezing))["args_no_hyphens"]
        assert run_train(*words, "--cfg", "job").code == 0
    assert SWEEP["metric"]["name"] == "val/accuracy"


@pytest.mark.slow
def test_an_agent_of_wandb_runs_jobs_under_the_names_that_its_server_gave_them(tmp_path: Path, monkeypatch) -> None:
    place = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "abc", "WANDB_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_RUN_ID", "is set by the agent")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "as well")
    monkeypatch.chdir(tmp_path)
    agent = Agent(api=None, queue=None, sweep_id="abc")
    agent._sweep_command = [*SWEEP["command"], "data.train_size=60", "trainer.max_epochs=1"]
    agent._sweep_command[0] = sys.executable
    for freezing in ("none", "linear_probe"):
        agent._command_run(given(1e-3, freezing))
    assert [process.wait(300) for process in agent._run_processes.values()] == [0, 0]
    for folder in (path.parent for path in tmp_path.glob("runs/*/run.json")):
        words = json.loads((folder / "run.json").read_text())["overrides"]
        assert {"optimizer.lr=0.001", "optimizer.layer_decay=0.7", "test=False"} <= set(words)
        freezing = next(word for word in words if word.startswith("freezing=")).removeprefix("freezing=")
        assert list(folder.glob(f"wandb/offline-run-*-run-of-{freezing}"))
    assert len(list(tmp_path.glob("runs/*/run.json"))) == 2
