"""A run that is killed anywhere and started again with the same command ends as one that was left alone."""

import csv
import json
import random
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Signal, exit_code_of, train_here
from test_train_text import BERT, sentences
from test_train_text import QUICK as TEXT
from test_train_text import write as write_splits

from thaw.run.checkpoint import load_checkpoint

# Four epochs of four steps of 16; the stages of `gradual` begin with the second and third epoch.
QUICK = (
    "logger=none", "trainer=cpu", "data.train_size=64", "data.batch_size=16", "trainer.max_epochs=4", "callbacks=none",
    "optimizer.lr=1e-3", "model.dropout=0.3", "data.num_workers=0", "checkpoint.every_n_steps=3",
)  # fmt: skip


def run(folder: Path, command: tuple[str, ...], change: Callable[[], Any] | None = None) -> int:
    return exit_code_of(_run, folder, command, change)


def _run(folder: Path, command: tuple[str, ...], change: Callable[[], Any] | None) -> None:
    code, _ = train_here(folder, command, change)
    sys.exit(code)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """`killed(command, kill, …)`: a run that was left alone, and one that was killed each time, made at one place.

    What is left alone is run once for each command.
    """
    here, wholes = tmp_path_factory.mktemp("here"), {}
    made, printed = here / "runs" / "mine", here / "printed.txt"

    def compared(command: tuple[str, ...], *kills: Callable[[], Any]) -> tuple[Path, Path]:
        command = (*command, "resume=auto", "run.dir=runs/mine")
        shutil.rmtree(made, ignore_errors=True)
        if command not in wholes:
            assert run(here, command) == 0, printed.read_text()
            wholes[command] = shutil.move(made, here / f"whole{len(wholes)}")
        for kill in kills:
            assert run(here, command, kill) == getattr(kill, "code", -signal.SIGKILL), printed.read_text()
        assert run(here, command) == 0, printed.read_text()
        return wholes[command], made

    return compared


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Where two nested containers differ, with no tolerance."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() != second.keys():
            return [f"{name}: {sorted(map(str, first.keys() ^ second.keys()))}"]
        return [found for key in first for found in differences(first[key], second[key], f"{name}.{key}")]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [found for index, pair in pairs for found in differences(*pair, f"{name}[{index}]")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
    else:
        same = first == second or (first != first and second != second)
    return [] if same else [f"{name}: {first} and {second}"]


def assert_same_run(whole: Path, again: Path) -> None:
    for role in ("last", "best"):
        pair = [load_checkpoint(folder / "checkpoints" / f"{role}.ckpt") for folder in (whole, again)]
        assert not differences(*pair), role
    records = [json.loads((folder / "run.json").read_text()) for folder in (whole, again)]
    assert records[1]["status"] == "finished"
    for key in ("metrics", "timeline", "contract", "best_epoch", "epochs", "steps", "freezing"):
        assert not differences(records[0][key], records[1][key], key)
    tables = [table(folder / "metrics.csv") for folder in (whole, again)]
    assert not differences(*tables, "metrics.csv")
    assert (whole / "predictions.csv").read_text() == (again / "predictions.csv").read_text()


def table(path: Path) -> list[dict[str, float]]:
    """Rows by step; what is told of one step may stand in one row or in several."""
    rows: dict[str, dict[str, float]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["step"], {}).update({name: float(value) for name, value in row.items() if value})
    return list(rows.values())


@pytest.mark.medium
@pytest.mark.fault("A2")
@pytest.mark.parametrize(
    "kill",
    [
        pytest.param(Signal("on_train_batch_end", 2), marks=pytest.mark.slow),  # before anything is saved
        pytest.param(Signal("on_train_batch_end", 6), marks=pytest.mark.fault("A2", "A7", "C5")),
        pytest.param(Signal("on_train_batch_end", 8), marks=[pytest.mark.fault("A3"), pytest.mark.slow]),
        pytest.param(Signal("on_train_batch_end", 9), marks=[pytest.mark.fault("A9"), pytest.mark.slow]),
        pytest.param(Signal("on_validation_batch_end", 2), marks=[pytest.mark.fault("A4"), pytest.mark.slow]),
        pytest.param(Signal("on_train_epoch_end", 2), marks=[pytest.mark.fault("A8", "A11"), pytest.mark.slow]),
        pytest.param(Signal("on_train_epoch_start", 3), marks=[pytest.mark.fault("A9"), pytest.mark.slow]),
        pytest.param(Signal("save", 3), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_a_run_killed_anywhere_ends_as_if_left_alone(killed, kill: Signal) -> None:
    assert_same_run(*killed(QUICK, kill))


@pytest.mark.slow
@pytest.mark.fault("A2")
@pytest.mark.parametrize(
    ("options", "number"),
    [
        pytest.param(("data.num_workers=2", "data.augment=strong"), 6, marks=pytest.mark.fault("A5")),
        pytest.param(("trainer.accumulate_grad_batches=2",), 11, marks=pytest.mark.fault("A6")),
        (("data.mixup=0.4", "data.cutmix=1.0", "model.drop_path=0.2"), 6),
        *(
            pytest.param(options, number, marks=pytest.mark.fault("A12"))
            for options, number in (
                (("trainer.precision=bf16-mixed",), 6),
                (("callbacks=ema",), 6),
                (("callbacks=swa",), 14),
                (("freezing=lora",), 6),
            )
        ),
        (("freezing.on=plateau", "freezing.patience=1", "freezing.roll_back=true", "trainer.max_epochs=6"), 18),
        (("scheduler=plateau", "scheduler.patience=0", "freezing=probe_then_tune"), 14),
        (("freezing=surgical", "scheduler=one_cycle"), 6),
        (("regularization=l2", "data.sampler=balanced"), 6),
        (("freezing=linear_probe", "data.augment=none", "checkpoint.every_n_steps=null"), 14),  # from the cache
    ],
)  # fmt: skip
def test_whatever_is_chosen(killed, options: tuple[str, ...], number: int) -> None:
    assert_same_run(*killed((*QUICK, *options), Signal("on_train_batch_end", number)))


@pytest.mark.slow
@pytest.mark.fault("A2")
@pytest.mark.parametrize("options", [("data.max_tokens=96",), ("data.streaming=true", "data.train_size=40")])
def test_text_by_length_and_as_a_stream(killed, tmp_path: Path, options: tuple[str, ...]) -> None:
    root = write_splits(tmp_path / "data", sentences(80))
    command = ("data=text_csv", root, *BERT, *TEXT, "trainer.max_epochs=3", "model.dropout=0.3", "data.batch_size=8")
    command = (*command, "checkpoint.every_n_steps=2", "data.num_workers=0", *options)
    assert_same_run(*killed(command, Signal("on_train_batch_end", 9)))


@pytest.mark.slow
@pytest.mark.fault("A13")
def test_a_hundred_kills(killed) -> None:
    """At random hooks, of one run of 100 epochs; each life goes on where the one before was saved."""
    draw = random.Random(0)
    hooks = {"on_train_batch_end": 5, "on_validation_batch_end": 1, "on_train_epoch_end": 1, "save": 3}
    chosen = draw.choices(list(hooks), weights=[4, 1, 1, 2], k=100)
    kills = [Signal(hook, draw.randint(1, hooks[hook])) for hook in chosen]
    command = (*QUICK, "trainer.max_epochs=100", "checkpoint.every_n_steps=2", "freezing.over=0.9")
    assert_same_run(*killed(command, *kills))
