"""The range test: a rate that suits, from a copy that nobody keeps."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Outcome
from test_config import composed

from scripts import find_lr as script
from thaw import config
from thaw.build import fine_tuner
from thaw.errors import UserError
from thaw.find_lr import EXPLODED, HIGHEST, LOWEST, Curve, _Rising, find_lr
from thaw.model.network import Network
from thaw.plan.plan import trainer_for

QUICK = ("trainer=cpu", "data.train_size=300", "freezing=none")


def curve_of(*words: str, steps: int = 150) -> tuple[Curve, dict[str, list[float]]]:
    cfg = composed(*QUICK, *words)
    data, task, _ = config.preflight(cfg)
    module, freezing = fine_tuner(cfg, data, task, task.monitor)
    rates: dict[str, list[float]] = {}

    def step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            rates.setdefault(group["name"], []).append(group["lr"])

    make, make_optimizer = trainer_for(config.builder(cfg.trainer), "32-true", 1), module.optimizer

    def hooked(network: Network) -> torch.optim.Optimizer:
        optimizer = make_optimizer(network)
        optimizer.register_step_post_hook(step)
        return optimizer

    module.optimizer = hooked
    return find_lr(module, freezing, data, make, steps), rates


def test_a_curve_with_a_valley_is_read_where_it_is_lowest() -> None:
    curve = Curve()
    for power in range(-60, 0):
        curve.add(10 ** (power / 10), 1.0 if power < -40 else 0.2 if power < -15 else 3.0)
    assert curve.exploded
    assert 10**-1.7 < curve.rates[curve.lowest] < 10**-1.4
    assert curve.suggestion == curve.rates[curve.lowest] / 10


def test_a_loss_that_is_not_finite_ends_it_and_is_never_the_lowest() -> None:
    curve = Curve()
    for number, loss in enumerate([2.0, 1.0, 1.0, float("nan"), 1.0]):
        curve.add(10 ** (number - 6), loss)
        if curve.exploded:
            break
    assert number == 3
    assert curve.lowest == 2


def test_a_loss_that_does_not_fall_suggests_nothing() -> None:
    curve = Curve()
    for power in range(-60, 0):
        curve.add(10 ** (power / 10), 1.0)
    with pytest.raises(UserError, match="The loss must fall"):
        _ = curve.suggestion


@pytest.mark.medium
def test_on_digits_it_comes_near_what_is_known_to_be_good() -> None:
    """The README's rates: 3e-4 by default, and 1e-3 with 100 labels."""
    curve, rates = curve_of("optimizer.layer_decay=0.5")
    assert 1e-4 < curve.suggestion < 3e-3
    assert curve.rates == sorted(curve.rates)
    assert curve.rates[0] == pytest.approx(LOWEST, rel=0.2)
    assert curve.rates[-1] <= HIGHEST
    assert max(curve.smoothed[curve.lowest : -1]) <= EXPLODED * min(curve.smoothed)
    body, stem, head = (rates[f"{group}/decay"] for group in ("block03", "stem", "head"))
    assert body[1] > body[0]
    for one, two, three in zip(body, stem, head, strict=True):
        assert two / one == pytest.approx(0.5**4)
        assert three / one == pytest.approx(20)  # the head's tenfold rate, one layer above


def test_what_thaws_later_is_tried_too_and_accumulated_batches_are_one_step() -> None:
    words = ("freezing=gradual", "trainer.accumulate_grad_batches=2")
    curve, rates = curve_of(*words, steps=20)
    assert len(curve.rates) == 19  # the last step's effect is not seen
    assert len(rates["stem/decay"]) == 20
    assert min(rates["stem/decay"]) > 0
    assert curve.losses[0] == pytest.approx(2.3, abs=0.4)


@pytest.fixture
def run_find_lr(run_task):
    return lambda *words: run_task(script.find_lr, "find_lr.py", *words)


@pytest.mark.medium
def test_the_script_prints_a_line_to_paste_and_leaves_a_picture_alone(run_find_lr, tmp_path: Path) -> None:
    outcome: Outcome = run_find_lr(*QUICK, "freezing=linear_probe")
    assert outcome.code == 0, outcome.errors
    assert "← suggested" in outcome.printed
    assert "write optimizer.lr=" in outcome.printed
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["plans/digits-resnet-linear_probe-lr.png"]


def test_a_mistake_is_told_as_by_a_run(run_find_lr) -> None:
    outcome = run_find_lr("optimizer.lrr=1")
    assert outcome.code == 2
    assert "Did you mean 'optimizer.lr'?" in outcome.errors


def test_ctrl_c_whose_exception_is_dropped_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, before = [], signal.getsignal(signal.SIGINT)
    on_train_batch_end = _Rising.on_train_batch_end

    def dropping(*given: object) -> None:
        on_train_batch_end(*given)
        steps.append(1)
        if len(steps) == 4:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_Rising, "on_train_batch_end", dropping)
    with pytest.raises(KeyboardInterrupt):
        curve_of()
    assert len(steps) == 4
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.medium
def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "find_lr.py"), "trainer=cpu", "data.batch_size=512"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "FORCE_COLOR": "1", "COLUMNS": "100"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        said = ""
        while "loss" not in said and (character := process.stdout.read(1)):  # the bar tells of a step
            said += character
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
