"""Advice: what it measures, the rules it goes by, and a line that train.py takes."""

import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from scipy import optimize, stats
from test_config import composed
from test_train_speech import SMALL, folders
from test_train_text import BERT, QUICK, sentences, write

from scripts import advise as script
from thaw import config
from thaw.defaults import default_epochs
from thaw.ladder.bench import Bench
from thaw.model.network import Network
from thaw.probing.features import Features, body_features, unaugmented
from thaw.probing.linear_probe import probe
from thaw.probing.logme import evidence, logme
from thaw.probing.neighbours import nearest
from thaw.recommend import rules
from thaw.recommend.candidates import key_of, merged, untrained, with_model, without
from thaw.recommend.evidence import Evidence, measure
from thaw.recommend.told import data_in_words, remarks

DIGITS = ("trainer=cpu", "data.train_size=200", "data.num_workers=0", "logger=none")


# What is measured


@pytest.mark.parametrize(("samples", "width"), [(30, 5), (12, 20), (25, 25)])
def test_logme_is_the_largest_evidence_of_a_gaussian(samples: int, width: int) -> None:
    """By brute force: the density of the targets as one Gaussian, the largest over both precisions."""
    torch.manual_seed(samples)
    features = torch.randn(samples, width).double()
    targets = (features[:, :2] @ torch.randn(2, 3).double() + 0.7 * torch.randn(samples, 3) > 0).double()
    found = evidence(features, targets)

    def density(logs: np.ndarray, target: np.ndarray) -> float:
        alpha, beta = np.exp(np.clip(logs, -20, 20))
        spread = np.eye(samples) / beta + features.numpy() @ features.numpy().T / alpha
        return stats.multivariate_normal.logpdf(target, cov=spread)

    for column, value in zip(targets.T.numpy(), found.tolist(), strict=True):
        starts = [(a, b) for a in (-3, 0, 3) for b in (-1, 1, 3)]
        fits = (optimize.minimize(lambda x: -density(x, column), s, method="Nelder-Mead") for s in starts)  # noqa: B023
        assert value == pytest.approx(max(-fit.fun for fit in fits), abs=0.02)


def test_logme_prefers_features_that_tell_the_classes_apart() -> None:
    torch.manual_seed(0)
    classes = torch.arange(120) % 4
    noise = torch.randn(120, 16)
    telling = noise.clone()
    telling[:, :4] += 4 * torch.nn.functional.one_hot(classes, 4)
    assert logme(telling, classes) > logme(noise, classes) + 0.3
    assert logme(telling, classes) > logme(telling, classes[torch.randperm(120)]) + 0.3
    assert math.isfinite(logme(torch.cat([telling, torch.zeros(120, 8)], 1), classes))  # columns that say nothing


def test_probe_and_neighbours_find_what_is_there() -> None:
    torch.manual_seed(0)
    classes = torch.arange(200) % 4
    values = 5.0 + torch.randn(200, 8)
    values[:, :4] += 5 * torch.nn.functional.one_hot(classes, 4)
    values[:, 7] = 3.0  # says nothing, and has no spread to divide by
    train, val = Features(values[:100], classes[:100]), Features(values[100:], classes[100:])
    assert (probe(train, val.values) == val.classes).float().mean() > 0.95
    assert (nearest(train, val.values) == val.classes).float().mean() > 0.95
    few = train.take(np.flatnonzero(train.classes.numpy() != 3))
    assert set(probe(few, val.values).tolist()) == {0, 1, 2}
    assert set(probe(train.take(np.flatnonzero(train.classes.numpy() == 2)), val.values).tolist()) == {2}


def test_features_are_those_of_an_evaluation_and_come_from_the_cache_the_second_time() -> None:
    bench = Bench.of(composed(*DIGITS, "data.augment=strong", "data.mixup=0.2"))
    found = bench.features("train")
    ran = []
    again = body_features(
        bench.network, bench.plain, "train", bench.cache, lambda items, *_: ran.append(1) or items,
        bench.on_device, bench.context,
    )  # fmt: skip
    assert torch.equal(found.values, again.values)
    assert not ran
    without_any = Bench.of(composed(*DIGITS, "data.augment=none"))
    inputs, targets = without_any.on_device(without_any.data.batch("train", [(0, 7), (9, 3)]))
    without_any.network.train(False)
    with torch.no_grad():
        direct = without_any.network.features(inputs)
    assert torch.allclose(direct, found.values[[7, 3]], atol=1e-5)
    assert targets.tolist() == found.classes[[7, 3]].tolist()


def test_of_many_samples_a_stratified_part_is_looked_at() -> None:
    bench = Bench.of(composed(*DIGITS))
    few = unaugmented(bench.data, most=50)
    assert few.sizes == bench.data.sizes | {"train": 50}
    assert few.targets.counts(few.splits["train"].targets) == [5] * 10
    assert few.fingerprint != bench.data.fingerprint
    assert unaugmented(bench.data).sizes == bench.data.sizes


def test_of_many_texts_a_part_is_looked_at_by_its_own_lengths(tmp_path: Path) -> None:
    bench = Bench.of(composed("data=text_csv", write(tmp_path / "text", sentences(120)), *BERT, *QUICK))
    whole = bench.features("train")
    bench.plain, bench._features = unaugmented(bench.data, most=40), {}
    part = bench.features("train")
    assert len(part) == 40
    assert all(torch.isclose(whole.values, row, atol=1e-5).all(1).any() for row in part.values)


def test_the_bundled_weights_are_near_to_digits_and_random_ones_are_not() -> None:
    cfg = composed(*DIGITS)
    bench = Bench.of(cfg)
    network = untrained(cfg, bench)
    assert isinstance(network, Network)
    assert not network.pretrained
    found = measure("resnet", bench, network)
    assert found.similarity > 0.5
    assert found.probe > found.untrained > found.majority
    assert sum(found.samples) == 200
    other = Bench.of(composed(*DIGITS, "model.weights=none"))
    assert measure("resnet", other, network).untrained is None
    assert math.isnan(measure("resnet", other, network).similarity)
    assert measure("resnet", other, network).logme < found.logme


# The rules

NEAR = Evidence("resnet", (50,) * 4, 100, 0.25, 10_000_000, 3e-4, True, 0.9, 0.85, 0.4, 0.4)


def chosen(evidence: Evidence) -> dict[str, object]:
    return {choice.setting: choice.value for choice in rules.choose(evidence)}


def test_few_labels_near_the_pretraining_begin_with_a_probe() -> None:
    assert chosen(NEAR)["freezing"] == "probe_then_tune"
    assert chosen(replace(NEAR, samples=(5_000,) * 4))["freezing"] == "none"
    assert chosen(replace(NEAR, untrained=0.89))["freezing"] == "none"
    assert chosen(replace(NEAR, pretrained=False, untrained=None))["freezing"] == "none"
    assert chosen(replace(NEAR, parameters=300_000_000))["freezing"] == "lora"


def test_a_similarity_that_was_not_measured_is_not_taken_for_none() -> None:
    found = {choice.setting: choice for choice in rules.choose(replace(NEAR, untrained=None))}
    assert found["optimizer.lr"].value == NEAR.lr
    assert "not known" in found["optimizer.lr"].reason


def test_far_from_the_pretraining_the_rate_is_larger() -> None:
    assert chosen(NEAR)["optimizer.lr"] == 3e-4
    assert chosen(replace(NEAR, untrained=0.89))["optimizer.lr"] == pytest.approx(9e-4)
    assert chosen(replace(NEAR, pretrained=False, untrained=None))["optimizer.lr"] == 3e-4


def test_the_length_is_counted_in_steps() -> None:
    assert chosen(replace(NEAR, samples=(2_500,) * 4))["trainer.max_epochs"] == rules.FEWEST_EPOCHS
    assert chosen(NEAR)["trainer.max_epochs"] == default_epochs(16) == 20
    assert 5 < chosen(replace(NEAR, samples=(500,) * 4))["trainer.max_epochs"] < 20
    assert chosen(replace(NEAR, samples=(5,) * 4))["trainer.max_epochs"] == 100
    assert chosen(replace(NEAR, samples=(5,) * 4))["data.batch_size"] == 8


def test_many_classes_of_few_samples_give_the_head_a_larger_rate() -> None:
    assert "optimizer.head_lr_scale" not in chosen(NEAR)
    assert chosen(replace(NEAR, samples=(10,) * 77))["optimizer.head_lr_scale"] == 50


def test_every_rule_has_a_reason_and_a_source_that_can_be_told() -> None:
    for evidence_ in (NEAR, replace(NEAR, samples=(10,) * 77), replace(NEAR, pretrained=False, untrained=None)):
        for choice in rules.choose(evidence_):
            assert "{" not in choice.reason
            assert choice.source
    assert [choice.override for choice in rules.choose(NEAR)][:2] == ["freezing=probe_then_tune", "optimizer.lr=0.0003"]


def test_of_models_the_best_probe_is_chosen_and_within_noise_the_smallest() -> None:
    small, weak = replace(NEAR, model="small", parameters=1_000, probe=0.89), replace(NEAR, model="weak", probe=0.6)
    assert rules.best([NEAR, small, weak]) is small
    assert rules.best([NEAR, weak]) is NEAR


def test_what_is_unequal_or_tells_nothing_is_remarked() -> None:
    assert remarks(NEAR) == []
    assert "monitor=val/f1" in remarks(replace(NEAR, samples=(50, 400)))[0]
    assert "no better than random" in remarks(replace(NEAR, untrained=0.9))[0]
    assert data_in_words(NEAR).startswith("200 training samples in 4 classes of 50 to 50;")


# The line


def test_a_setting_that_is_advised_replaces_what_was_written() -> None:
    given = [
        "freezing=lora",
        "freezing.rank=2",
        "optimizer.lr=1",
        "++optimizer.weight_decay=0",
        "data=x",
        "~callbacks.a",
    ]
    assert [key_of(text) for text in given][3:] == ["optimizer.weight_decay", "data", "callbacks.a"]
    assert without(given, ["freezing", "optimizer.lr"]) == given[3:]
    line = merged(
        given, {"freezing": "freezing=none", "data.batch_size": "data.batch_size=8"}, {"data": {}, "freezing": {}}
    )
    assert line == [*given[2:], "freezing=none", "+data.batch_size=8"]


def test_another_model_is_as_it_stands_whatever_the_experiment_makes_of_its_own() -> None:
    line = with_model("resnet", ["experiment=hymenoptera", "model.weights=file", "seed=1"], lambda w: composed(*w))
    assert line[:3] == ["experiment=hymenoptera", "seed=1", "model=resnet"]
    assert config.plain(composed(*line))["model"] == config.plain(composed("model=resnet"))["model"]
    assert composed(*line).data.image_size == 160


def test_models_are_given_as_an_option() -> None:
    assert script.as_override(["advise.py", "--models", "a,b", "seed=1"]) == ["advise.py", "+models=[a,b]", "seed=1"]
    assert script.as_override(["advise.py", "--models=a"]) == ["advise.py", "+models=[a]"]


@pytest.fixture
def run_advise(run_task):
    return lambda *words: run_task(script.advise, "advise.py", *words)


def advised(outcome: Outcome) -> list[str]:
    """The overrides of the line to paste."""
    assert outcome.code == 0, outcome.errors
    words = shlex.split(outcome.printed.splitlines()[-1])
    assert words[:2] == ["python", "train.py"]
    return words[2:]


@pytest.mark.medium
def test_the_script_tells_evidence_reasons_and_cost_and_leaves_nothing(run_advise, run_train, tmp_path: Path) -> None:
    outcome = run_advise(*DIGITS, "freezing=lora", "freezing.rank=2")
    line = advised(outcome)
    assert "freezing=probe_then_tune" in line
    assert not [text for text in line if "rank" in text]
    for word in ("linear probe", "LogME", "similarity to the pretraining", "arXiv:2202.10054", "It costs about"):
        assert word in outcome.printed
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    short = ["trainer.max_epochs=1" if text.startswith("trainer.max") else text for text in line]
    assert run_train(*short).record["status"] == "finished"


@pytest.mark.medium
def test_models_are_compared_and_those_that_cannot_be_had_left_out(run_advise) -> None:
    outcome = run_advise(*DIGITS, "+models=[resnet50,resnet]")
    assert "resnet50 is left out: model.weights=pretrained must be had" in outcome.printed
    assert "model=resnet" in advised(outcome)


def test_text_is_advised_on_and_the_line_builds(run_advise, tmp_path: Path) -> None:
    root = write(tmp_path / "text", sentences(120))
    line = advised(run_advise("data=text_csv", root, *BERT, *QUICK))
    Bench.of(composed(*line))
    assert "freezing=none" in line  # from random weights


@pytest.mark.medium
def test_sound_is_advised_on_and_the_line_builds(run_advise, tmp_path: Path) -> None:
    folders(tmp_path / "sound")
    root = f"data.root={tmp_path / 'sound'}"
    for model in (SMALL, ("model=resnet",)):
        line = advised(
            run_advise("data=speech_folder", root, *model, *QUICK[:3], "freezing=none", "data.num_workers=0")
        )
        assert Bench.of(composed(*line)).data.unit == "seconds"


def test_what_it_cannot_advise_on_is_said(run_advise) -> None:
    outcome = run_advise(*DIGITS, "task=regression")
    assert outcome.code == 2
    assert "the task asks for more than one class a sample" in outcome.errors
    assert "scripts/find_lr.py" in outcome.errors
    mistake = run_advise("optimizer.lrr=1")
    assert mistake.code == 2
    assert "Did you mean 'optimizer.lr'?" in mistake.errors
    assert run_advise(*DIGITS, "+models=[resnet50]").code == 2
