"""The ladder: every rung holds on a sound run, and falls for the fault it is there for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from scipy import optimize
from test_config import composed
from test_train_speech import SMALL, folders
from test_train_text import BERT, GPT, QUICK, sentences, write

from scripts import check as script
from thaw.freezing.by_group import NoFreezing
from thaw.ladder import controls, first_steps, learning_curve
from thaw.ladder.bench import Bench
from thaw.ladder.ladder import EARLY, climb
from thaw.ladder.rung import fails, passes, skips
from thaw.ladder.small_run import small_run

DIGITS = ("trainer=cpu", "data.train_size=300", "data.num_workers=0", "logger=none")


def bench_of(*words: str) -> Bench:
    return Bench.of(composed("trainer.max_epochs=5", *words))


def outcomes(bench: Bench) -> dict[str, str]:
    return {name: rung(bench).status for name, rung in EARLY.items()}


# Sound runs


def test_every_rung_holds_on_digits_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    bench = bench_of(*DIGITS)
    before = {name: value.clone() for name, value in bench.module.state_dict().items()}
    assert outcomes(bench) == dict.fromkeys(EARLY, "pass")
    assert "near 2.303 = ln(10)" in first_steps.initial_loss(bench).reason
    assert "each of 4 stages" in first_steps.gradients(bench).reason  # of six, in five epochs
    curve = learning_curve.learning_curve(bench, tmp_path / "plans" / "curve.png", "digits")
    assert curve.status == "pass", curve
    assert "twice the labels: +" in curve.reason
    assert (tmp_path / "plans" / "curve.png").stat().st_size > 10_000
    after = bench.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_augmentation_dropout_and_weights_of_classes_disturb_no_rung() -> None:
    bench = bench_of(
        *DIGITS, "data.augment=strong", "data.mixup=0.5", "model.dropout=0.5", "task.class_weights=balanced",
        "task.label_smoothing=0.2", "freezing=lora",
    )  # fmt: skip
    assert outcomes(bench) == dict.fromkeys(EARLY, "pass")


def test_rungs_that_make_no_sense_are_skipped_in_words(tmp_path: Path) -> None:
    numbers = bench_of(*DIGITS, "task=regression", "optimizer.lr=1e-3")
    found = {name: rung(numbers) for name, rung in EARLY.items()}
    skipped = [name for name, outcome in found.items() if outcome.status == "skip"]
    assert skipped == ["shuffled labels", "baselines"]
    assert found["baselines"].reason == "the task asks for more than one class a sample"
    assert {outcome.status for outcome in found.values()} == {"pass", "skip"}
    assert learning_curve.learning_curve(numbers, tmp_path / "no.png", "").status == "skip"
    assert not (tmp_path / "no.png").exists()


def test_text_and_sound_climb_it_too(tmp_path: Path) -> None:
    root = write(tmp_path / "text", sentences(120))
    text = bench_of("data=text_csv", root, *BERT, *QUICK, "data.token_dropout=0.3")
    assert outcomes(text) == dict.fromkeys(EARLY, "pass")
    folders(tmp_path / "sound")
    sound = bench_of("data=speech_folder", f"data.root={tmp_path / 'sound'}", *SMALL, *QUICK[:3], "freezing=none")
    assert outcomes(sound) == dict.fromkeys(EARLY, "pass")


def test_a_language_model_has_the_rungs_without_classes(tmp_path: Path) -> None:
    root = write(tmp_path / "text", sentences(120))
    bench = bench_of("data=text_csv", root, "task=language_modeling", *GPT, *QUICK)
    found = outcomes(bench)
    assert [name for name, status in found.items() if status == "skip"] == ["shuffled labels", "baselines"]
    assert [name for name, status in found.items() if status == "FAIL"] == []


# Faults


def test_a_head_that_begins_with_large_weights_shows_in_the_initial_loss() -> None:
    bench = bench_of(*DIGITS)
    bench.module.network.head.linear.weight.data.mul_(100)
    outcome = first_steps.initial_loss(bench)
    assert outcome.status == "FAIL"
    assert "far from 2.303 = ln(10)" in outcome.reason


def test_a_pretrained_head_that_knows_nothing_shows_in_the_initial_loss(tmp_path: Path) -> None:
    root = write(tmp_path / "text", sentences(120))
    bench = bench_of("data=text_csv", root, "task=language_modeling", *GPT, *QUICK)
    bench.module.network.pretrained = True
    with torch.no_grad():
        for parameter in bench.module.network.parameters():
            parameter.mul_(20)
    assert first_steps.initial_loss(bench).status == "FAIL"


@pytest.mark.parametrize("rate", ["1e-9", "1e4"])
def test_a_rate_that_is_no_good_learns_no_batch_by_heart(rate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_steps, "STEPS", 30)
    outcome = first_steps.one_batch(bench_of(*DIGITS, f"optimizer.lr={rate}"))
    assert outcome.status == "FAIL"
    assert "optimizer.lr" in outcome.advice
    assert ("or a smaller one" in outcome.advice) == (rate == "1e4")


@pytest.mark.parametrize("freezing", ["none", "gradual", "bias_only"])
def test_a_detached_group_gets_no_gradient_and_is_named(freezing: str) -> None:
    bench = bench_of(*DIGITS, f"freezing={freezing}")
    assert first_steps.gradients(bench).status == "pass"
    block = bench.module.network.body.layer3
    block.forward = _Detached(block.forward)
    outcome = first_steps.gradients(bench)
    assert outcome.status == "FAIL"
    assert "no gradient reaches" in outcome.reason
    assert "block02" in outcome.reason or "stem" in outcome.reason


class _Detached:
    """What a deep copy takes along."""

    def __init__(self, forward) -> None:
        self.forward = forward

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.forward(inputs).detach()


def test_a_gradient_that_reaches_what_is_frozen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    enter = first_steps.enter

    def thaws_too_much(network, freezing, stage) -> None:
        enter(network, freezing, stage)
        network.body.conv1.requires_grad_(True)

    monkeypatch.setattr(first_steps, "enter", thaws_too_much)
    outcome = first_steps.gradients(bench_of(*DIGITS, "freezing=linear_probe"))
    assert outcome.status == "FAIL"
    assert outcome.reason == "a gradient reaches stem, which is frozen in epochs 1–5"


def test_a_gradient_that_is_not_finite_is_named() -> None:
    bench = bench_of(*DIGITS, "freezing=none")
    bench.module.network.head.linear.weight.data[0, 0] = torch.nan
    assert "not finite" in first_steps.gradients(bench).reason


def test_a_strategy_that_breaks_the_contract_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(*DIGITS, "freezing=none")
    monkeypatch.setattr(NoFreezing, "trains", lambda *_: ["head"])
    monkeypatch.setattr(type(bench.module.network), "train_groups", lambda *_: True)
    outcome = first_steps.gradients(bench)
    assert outcome.status == "FAIL"
    assert "must not require a gradient" in outcome.reason


def test_labels_that_reach_the_training_unshuffled_stay_above_chance() -> None:
    bench = bench_of(*DIGITS)
    assert controls.shuffled_labels(bench).status == "pass"
    truth = bench.plain
    truth.batch_targets = truth.batch_targets  # bound to the true labels, whatever a copy holds
    outcome = controls.shuffled_labels(bench)
    assert outcome.status == "FAIL"
    assert "another way" in outcome.reason


@pytest.mark.medium
def test_the_control_suspects_sound_data_about_as_often_as_it_says() -> None:
    bench = bench_of(*DIGITS, "data.train_size=100")
    found = []
    for seed in range(12):
        bench.plain.seed = bench.data.seed = seed
        found.append(controls.shuffled_labels(bench).status)
    assert found.count("FAIL") <= 1


def test_duplicates_across_splits_are_leaks() -> None:
    bench = bench_of(*DIGITS)
    train = bench.data.sources["train"]
    bench.data.sources["test"] = train.take(np.arange(3))
    bench.data.__dict__.pop("known_hashes", None)
    outcome = controls.leakage(bench)
    assert outcome.status == "FAIL"
    assert outcome.reason.startswith("3 of test also in train")


def test_a_twin_in_validation_is_told_of() -> None:
    bench = bench_of(*DIGITS)
    train, val = bench.features("train"), bench.features("val")
    bench._features["val"] = replace(val, values=torch.cat([train.values[:2] * 1.000001, val.values[2:]]))
    outcome = controls.leakage(bench)
    assert outcome.status == "pass"
    assert "2 of val have all but the same features" in outcome.reason


def test_labels_that_belong_to_other_samples_are_no_better_than_the_majority() -> None:
    bench = bench_of(*DIGITS)
    train = bench.features("train")
    mixed = torch.as_tensor(np.random.default_rng(0).permutation(train.classes.numpy()))
    bench._features["train"] = replace(train, classes=mixed)
    outcome = controls.baselines(bench)
    assert outcome.status == "FAIL"
    assert "no better" in outcome.reason
    bench.module.network.pretrained = False
    assert "random" in controls.baselines(bench).reason


@pytest.mark.medium
def test_the_small_run_tells_why_it_has_ended() -> None:
    outcome = small_run(bench_of(*DIGITS), [*DIGITS, "optimizer.lrr=1"])
    assert outcome.status == "FAIL"
    assert "exit code 2: optimizer.lrr=1: there is no setting" in outcome.reason


# The curve


def test_a_power_law_is_found_again_and_carried_on() -> None:
    sizes = np.array([50, 100, 250, 500, 1000])
    for exponent, floor in ((0.5, 0.05), (1.0, 0.0), (0.3, 0.02)):
        truth = np.array([[2.0 / 50**-exponent * 0.2, exponent, floor]])
        laws = learning_curve.power_law(sizes, learning_curve.error_at(truth, sizes))
        ahead = np.array([2000.0, 4000.0])
        assert learning_curve.error_at(laws, ahead) == pytest.approx(learning_curve.error_at(truth, ahead), rel=0.03)


def test_no_law_has_a_negative_scale_or_floor_and_none_that_has_none_fits_better() -> None:
    sizes = np.array([50, 100, 250, 500, 1000])
    errors = np.random.default_rng(0).uniform(0, 0.3, (40, 5))
    errors[:10] = np.sort(errors[:10])[:, ::-1] * np.linspace(1, 0.01, 5)  # as if to fall below zero
    laws = learning_curve.power_law(sizes, errors)
    assert laws.min() >= 0
    for law, own in zip(laws, errors, strict=True):
        shapes = [np.stack([sizes**-exponent, np.ones(5)], axis=1) for exponent in learning_curve.EXPONENTS]
        least = min(optimize.nnls(shape, own)[1] for shape in shapes)
        assert np.linalg.norm(learning_curve.error_at(law[None], sizes)[0] - own) == pytest.approx(least)


def curve_of(errors: list[float], samples: int = 400) -> learning_curve.Curve:
    draw = np.random.default_rng(1)
    return learning_curve.Curve([100, 200, 500, 1000, 2000], [draw.random((5, samples)) > error for error in errors])


def test_what_twice_the_labels_bring_lies_in_its_interval() -> None:
    errors = [2.0 * size**-0.5 + 0.02 for size in (100, 200, 500, 1000, 2000)]
    truth = 100 * 2.0 * (2000**-0.5 - 4000**-0.5)
    points, width = learning_curve.gain(curve_of(errors, 2000))
    assert abs(points - truth) < 1.5 * width
    assert 0 < width < truth


def test_a_curve_that_falls_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_curve, "measure", lambda bench: curve_of([0.1, 0.15, 0.2, 0.25, 0.3]))
    outcome = learning_curve.learning_curve(bench_of(*DIGITS), tmp_path / "curve.png", "digits")
    assert outcome.status == "FAIL"


# The command


@pytest.fixture
def run_check(run_task):
    return lambda *words: run_task(script.check, "check.py", *words)


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.medium
def test_the_script_climbs_the_whole_ladder_and_leaves_a_picture_alone(run_check, tmp_path: Path) -> None:
    outcome: Outcome = run_check(*DIGITS)
    assert outcome.code == 0, outcome.printed + outcome.errors
    told = [line.split("  ")[1].partition(":")[0] for line in outcome.printed.splitlines() if line.startswith("pass")]
    assert told == [*EARLY, "1 % run", "learning curve"]
    assert "1 % run: 10 samples, 5 epochs" in outcome.printed
    assert below(tmp_path) == {"plans/digits-resnet-gradual-curve.png"}


def test_a_rung_that_fails_is_exit_code_1_and_the_rest_is_tried(run_check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_steps, "STEPS", 3)
    monkeypatch.setattr("thaw.ladder.small_run.small_run", lambda bench, **_: skips("not now"))
    outcome = run_check(*DIGITS, "optimizer.lr=1e-9")
    assert outcome.code == 1
    assert "FAIL  one batch: 8 samples" in outcome.printed
    assert "→ Write a larger optimizer.lr" in outcome.printed
    assert "pass  learning curve" in outcome.printed
    assert outcome.printed.splitlines()[-1] == "1 of 8 rungs do not hold: one batch"


def test_a_mistake_is_told_as_by_a_run(run_check, tmp_path: Path) -> None:
    outcome = run_check("optimizer.lrr=1")
    assert outcome.code == 2
    assert "Did you mean 'optimizer.lr'?" in outcome.errors
    assert not below(tmp_path)


def test_each_rung_is_told_before_the_next_begins(capsys: pytest.CaptureFixture) -> None:
    said = []
    rungs = {
        "first": lambda bench: passes("good [x]"),
        "second": lambda bench: said.append(capsys.readouterr().out) or fails("bad", "mend it"),
    }
    assert climb(bench_of(*DIGITS), rungs) == ["second"]
    assert "pass  first: good [x]" in said[0]
