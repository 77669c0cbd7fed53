"""What a command imports before it does its work, and that what was written in place of an import does the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from sklearn.model_selection import train_test_split

from thaw import config
from thaw.data.splits import stratified
from thaw.logger import wandb_logger
from thaw.usage import usage

# All that a run has imported beyond what it cannot do without; Lightning brings torchmetrics, and with it transformers.
RUN = """
import json, runpy, sys
import torch, timm, lightning
before = set(sys.modules)
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path("{root}/train.py", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def run(code: str, folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@pytest.mark.medium
def test_a_run_on_images_imports_what_it_uses(tmp_path: Path) -> None:
    quick = (
        "data.train_size=20",
        "trainer.max_epochs=1",
        "+trainer.limit_train_batches=1",
        "trainer=cpu",
        "report=none",
    )
    imported = json.loads(run(RUN.format(root=ROOT), tmp_path, *quick))
    found = {name.partition(".")[0] for name in imported}
    assert not found & {"datasets", "pandas", "pyarrow", "sklearn", "peft", "optuna", "soundfile", "matplotlib"}
    models = {name for name in imported if name.startswith("thaw.model.")}
    used = ("network", "partition", "modes", "cut", "timm", "glyphs", "hub", "gradient_checkpointing", "files")
    assert models <= {f"thaw.model.{name}" for name in used}
    assert not [name for name in imported if name.startswith("transformers.")]


COLLECTS = """
import gc, runpy, sys
sys.argv = ["train.py", *sys.argv[1:]]
from thaw.run import record
fit = record.fit
seen = []
record.fit = lambda *given: seen.append((gc.isenabled(), gc.get_freeze_count() > 100_000)) or fit(*given)
try:
    runpy.run_path("{root}/train.py", run_name="__main__")
except SystemExit as end:
    pass
print(seen, gc.isenabled(), gc.get_freeze_count())
"""


@pytest.mark.medium
@pytest.mark.parametrize(
    ("more", "seen"), [("report=none", "[(True, True)] True 0"), ("model.weights=no", "[] True 0")]
)
def test_cycles_are_collected_while_it_trains_but_not_sought_in_what_was_imported(tmp_path, more, seen) -> None:
    quick = ("data.train_size=20", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "trainer=cpu", more)
    assert run(COLLECTS.format(root=ROOT), tmp_path, *quick) == seen


@pytest.mark.medium
def test_text_and_its_optimizer_import_no_timm(tmp_path: Path) -> None:
    code = (
        "import sys\nimport thaw.model.transformers, thaw.data.text, thaw.module, thaw.optimizer as o, thaw.build\n"
        "from thaw import schema\n"
        "known = schema.signature(o.create_optimizer)['name'].annotation\n"
        "assert not schema.check_value('optimizer.name', 'adamw', known)\n"
        "print([name for name in ('timm', 'wandb') if name in sys.modules])"
    )
    assert run(code, tmp_path) == "[]"


@pytest.mark.parametrize("classes", [None, 2, 7])
def test_a_split_is_that_of_scikit_learn(classes: int | None) -> None:
    generator = np.random.default_rng(classes)
    for seed in range(40):
        size, share = int(generator.integers(30, 400)), float(generator.uniform(0.25, 0.75))
        odd = generator.uniform(0.5, 1.5, classes or 1)
        strata = None if classes is None else generator.choice(classes, size, p=odd / odd.sum())
        ours = stratified(strata, size, int(np.ceil(share * size)), seed)
        theirs = train_test_split(np.arange(size), test_size=share, stratify=strata, random_state=seed)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, np.sort(other))


def test_help_tells_every_group_and_choice(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").touch()
    said = usage([config.CONF, tmp_path])
    for path in config.CONF.glob("*/*.yaml"):
        line = next(line for line in said.splitlines() if line.startswith(f"{path.parent.name}: "))
        assert path.stem in line.partition(": ")[2].split(", ")
    assert "mine, minilm" in said
    assert "hydra" not in said


def test_wandb_starts_with_the_first_metrics_and_then_knows_all(monkeypatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    started = SimpleNamespace(
        experiment=SimpleNamespace(id="abc"),
        **{name: lambda *given, name=name: calls.append((name, *given)) for name in
           ("log_metrics", "log_hyperparams", "finalize")},
    )  # fmt: skip
    monkeypatch.setattr("thaw.logger.started_wandb", lambda *given: calls.append(given) or started)
    logger = wandb_logger(str(tmp_path), "mine", mode="offline")
    logger.log_hyperparams({"seed": 1})
    experiment = logger.experiment  # as Lightning asks for it before it trains
    logger.finalize("success")
    assert not calls
    logger.log_metrics({"val/loss": 1.0}, 3)
    logger.log_hyperparams({"late": 2})
    logger.finalize("success")
    assert experiment.id == "abc"
    assert calls == [
        (str(tmp_path), "mine", "thaw", None, "offline"),
        ("log_hyperparams", {"seed": 1}),
        ("log_metrics", {"val/loss": 1.0}, 3),
        ("log_hyperparams", {"late": 2}),
        ("finalize", "success"),
    ]
