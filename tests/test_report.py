"""What a run leaves to be read: a page and a model card that are true, and that nothing of the run depends on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image
from sweeping import ledger, sweep
from torch import nn

from thaw.model.network import Head, Network
from thaw.report import report
from thaw.report.distance import distances
from thaw.report.history import History
from thaw.report.ink import INK
from thaw.report.intervals import _States, intervals
from thaw.report.page import aligned, render
from thaw.report.section import Picture, Section, Table
from thaw.report.training import curves
from thaw.task.classification import Classification, Multilabel
from thaw.task.regression import Regression
from thaw.task.sequence import SpeechRecognition, TokenClassification
from thaw.task.task import Task

__all__ = ["sweep"]  # a fixture

QUICK = ("trainer.max_epochs=3", "data.train_size=60", "logger=none", "freezing.every=1")


@pytest.fixture
def run_quick(run_train, reports) -> Callable[..., Any]:
    """`run_quick("seed=1")`: a run of seconds that writes a report."""
    return lambda *overrides: run_train(*QUICK, *overrides)


def alts(page: str, *words: str) -> list[str]:
    """What the pictures show, as it is told to those who cannot see them."""
    return [alt for alt in re.findall(r'aria-label="([^"]*)"', page) if all(word in alt for word in words)]


@pytest.mark.medium
def test_a_page_and_a_card_tell_what_was_done_and_what_came_of_it(run_quick, tmp_path: Path) -> None:
    """In every part, without markup of the user's or a secret in it."""
    draw = np.random.default_rng(0)
    for name in ("<b>bold", "<i>thin & co"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(30):
            shade = draw.integers(0, 128, (8, 8)) + 127 * (name == "<b>bold")
            Image.fromarray(shade.astype("uint8")).save(tmp_path / "images" / name / f"{number}.png")
    own = ("data=image_folder", f"data.root={tmp_path / 'images'}", "data.train_size=null", "optimizer.lr=1e-3")
    outcome = run_quick(*own, "data.test_size=0.3", "search.storage=postgresql://me:verysecret@host/db")
    assert outcome.code == 0, outcome.errors + outcome.printed
    assert "left out" not in outcome.printed
    folder, record = outcome.folders[-1], outcome.record
    page, card = ((folder / name).read_text() for name in ("report.html", "README.md"))
    accuracy = f"{record['metrics']['test/accuracy']:.4f}"
    for text in (page, card):
        assert f"accuracy {accuracy} on {record['data']['sizes']['test']} test samples" in text
        assert "verysecret" not in text
        assert "<b>" not in text
        assert "<i>" not in text
        assert "optimizer.lr" in text
        assert "data.root" in text
        assert "data.batch_size" not in text
    assert re.search(r"\| optimizer\.lr \| 0\.001 \| – \|", card)  # the value, and the default beside it
    for told in (record["data"]["fingerprint"], record["git"]["commit"] or "", record["versions"]["torch"]):
        assert told in page
    for command in ("resume=auto", "scripts/evaluate.py", "scripts/predict.py", "scripts/export.py"):
        assert command in page
    assert "block03 after epoch 1; block02 after epoch 2" in page
    assert alts(page, "Timeline", "head trained throughout", "block03 from epoch 2", "stem … block01 stayed frozen")
    assert alts(page, "loss of train and validation over 3 epochs")
    assert alts(page, "Learning rate of each layer group")
    assert alts(page, "Relative distance", "stem", "did not move")
    assert "http" not in page
    assert "<script" not in page

    read = ModelCard.load(folder / "README.md").data
    figures = {figure.metric_name: figure for figure in read.eval_results}
    assert figures["accuracy"].metric_value == pytest.approx(record["metrics"]["test/accuracy"], abs=1e-6)
    assert (figures["accuracy"].dataset_split, figures["accuracy"].dataset_name) == ("test", "images")
    assert (read.pipeline_tag, read.library_name, read.base_model) == ("image-classification", "thaw", None)


@pytest.mark.medium
def test_a_section_that_fails_leaves_the_others_and_the_run_alone(run_quick, monkeypatch) -> None:
    def broken(evidence: Any) -> Section:
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr("thaw.report.sections.BUILDERS", (broken, lambda evidence: Section("What is left")))
    outcome = run_quick("trainer.max_epochs=1")
    assert outcome.code == 0
    assert outcome.record["status"] == "finished"
    assert "Report, broken: left out (ZeroDivisionError: nothing to divide by)" in outcome.printed
    assert "What is left" in (outcome.folders[-1] / "report.html").read_text()


@pytest.mark.medium
@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 0), (SystemExit(143), 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_has_finished_before_its_report_and_however_that_ends(run_quick, monkeypatch, end, code: int) -> None:
    seen = []

    def ended(evidence: Any) -> Section:
        seen.append(json.loads((evidence.folder / "run.json").read_text())["status"])
        raise end

    monkeypatch.setattr("thaw.report.sections.BUILDERS", (ended,))
    outcome = run_quick("trainer.max_epochs=1", "run.dir=runs/mine")
    assert outcome.code == code, outcome.errors
    assert seen == ["finished"]
    assert outcome.record["status"] == "finished"
    assert outcome.record["reason"] is None
    assert not (outcome.folders[-1] / "run.lock").exists()
    assert not (outcome.folders[-1] / "error.log").exists()
    again = run_quick("trainer.max_epochs=1", "run.dir=runs/mine", "resume=auto")
    assert again.code == 0
    assert "Already finished" in again.printed


@pytest.mark.medium
def test_without_a_report_none_is_written(run_quick) -> None:
    outcome = run_quick("trainer.max_epochs=1", "report=none")
    assert outcome.code == 0
    assert not {"report.html", "README.md"} & {path.name for path in outcome.folders[-1].iterdir()}


@pytest.mark.medium
def test_a_resumed_run_has_moved_as_far_as_one_that_was_left_alone(run_quick, stopped_after_epoch) -> None:
    straight = run_quick("run.dir=runs/straight").folders[-1]
    with stopped_after_epoch(0):
        assert run_quick("run.dir=runs/resumed").code == 130
    assert not (straight.parent / "resumed" / "report.html").exists()
    assert run_quick("run.dir=runs/resumed", "resume=must").code == 0
    pages = [(straight.parent / name / "report.html").read_text() for name in ("straight", "resumed")]
    for words in (["Relative distance"], ["Timeline"], ["Learning rate"], ["loss of train"]):
        one, other = (alts(page, *words) for page in pages)
        assert one
        assert one == other


@pytest.mark.medium
def test_of_a_sweep_the_chosen_run_alone_writes_a_report(sweep, tmp_path: Path) -> None:
    outcome = sweep("optimizer.lr=1e-5,3e-3")
    assert outcome.code == 0, outcome.printed + outcome.errors
    found = [path.parent for path in (tmp_path / "sweep").glob("*/report.html")]
    assert len(found) == 1
    assert json.loads((found[0] / "run.json").read_text())["split"] == "test"
    assert not any("report" in row["command"] for row in ledger(tmp_path))
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert alts(page, "finished runs over their epochs")


CLASSES = ["a", "b", "c"]


def answered(task: Task, samples: int = 60) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of random answers, mostly right, and the metrics of all."""
    torch.manual_seed(0)
    if isinstance(task, SpeechRecognition):
        outputs: Any = (torch.randn(samples, 9, 4), torch.full((samples,), 9))
        targets = torch.randint(0, 3, (samples, 4))
    elif isinstance(task, TokenClassification):
        targets = torch.randint(0, 3, (samples, 5))
        outputs = (torch.randn(samples, 5, 3) + 2 * nn.functional.one_hot(targets, 3), torch.full((samples,), 5))
        targets[::2, 3:] = -100
    elif isinstance(task, Regression):
        targets = torch.randn(samples, len(task.classes))
        outputs = targets + torch.randn(samples, len(task.classes))
    elif isinstance(task, Multilabel):
        targets = (torch.rand(samples, 3) > 0.5).float()
        outputs = 3 * targets - 1.5 + torch.randn(samples, 3)
    else:
        targets = torch.randint(0, 3, (samples,))
        outputs = torch.randn(samples, 3) + 1.5 * nn.functional.one_hot(targets, 3)
    task.update("test", torch.tensor(0.0), outputs, targets)
    return task.rows(outputs, targets), {name: float(value) for name, value in task.compute("test").items()}


SINGLE = {"accuracy": {"name": "MulticlassAccuracy", "average": "micro"}, "f1": "MulticlassF1Score"}
SINGLE |= {"mcc": "MulticlassMatthewsCorrCoef", "auroc": "PresentAUROC"}


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (Classification(CLASSES, metrics=SINGLE), {"accuracy", "f1", "mcc", "auroc"}),
        (Multilabel(CLASSES), {"f1", "average_precision"}),
        (Regression(["x"]), {"mae", "rmse"}),
        (Regression(["x", "y"]), {"mae", "rmse"}),
        (TokenClassification(CLASSES), {"accuracy", "f1"}),
        (SpeechRecognition(CLASSES), {"cer", "wer"}),
    ],
    ids=["class", "labels", "number", "numbers", "tags", "transcript"],
)
def test_every_task_has_intervals_around_the_figures_it_printed(task: Task, names: set[str]) -> None:
    rows, metrics = answered(task)
    found = intervals(task, "test", rows, metrics)
    assert {name.partition("/")[2] for name in found} == names
    for name, (low, high) in found.items():
        assert low < metrics[name] < high
    # What the rows do not reproduce has no interval.
    wrong = {name: value + 0.01 for name, value in metrics.items()}
    assert intervals(task, "test", rows, wrong) == {}


def test_a_metric_of_samples_drawn_anew_is_that_of_these_samples() -> None:
    task = Classification(CLASSES, metrics=SINGLE)
    rows, _ = answered(task)
    answers = task.read_back(rows)
    counts = np.random.default_rng(0).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), 5)
    for metric in task.metrics["test_"].values():
        drawn = _States(metric, answers).resampled(counts)
        for row, value in zip(counts, drawn, strict=True):
            alone = metric.clone()
            chosen = np.repeat(np.arange(len(rows)), row)
            alone.update(torch.cat([answers[i][0] for i in chosen]), torch.cat([answers[i][1] for i in chosen]))
            assert value == pytest.approx(float(alone.compute()), abs=1e-6)


@pytest.mark.parametrize("right", [0.6, 0.9])
def test_the_interval_of_accuracy_is_about_the_binomial_one(right: float) -> None:
    task, samples = Classification(CLASSES), 400
    guesses = ["a"] * round(right * samples) + ["b"] * round((1 - right) * samples)
    rows = [
        {"target": "a", "prediction": guess} | {f"probability/{name}": float(name == guess) for name in CLASSES}
        for guess in guesses
    ]
    low, high = intervals(task, "test", rows, {"test/accuracy": right})["test/accuracy"]
    half = 1.96 * (right * (1 - right) / samples) ** 0.5
    assert (low, high) == pytest.approx((right - half, right + half), abs=0.15 * half)


def record(**fields: Any) -> dict[str, Any]:
    groups = [["head"], ["block00", "head"], ["stem", "block00", "head"]]
    states = [
        [{"group": g, "parameters": 10, "trainable": 10 * (g in names)} for g in ("stem", "block00", "head")]
        for names in groups
    ]
    starts = [0, 2, 4]
    return {
        "monitor": "val/accuracy",
        "mode": "max",
        "epochs": 6,
        "steps": 60,
        "best_epoch": 4,
        "metrics": {"val/accuracy": 0.9},
        "timeline": [{"epoch": e, "groups": names} for e, names in zip(starts, groups, strict=True)],
        "contract": [{"epoch": e, "groups": state} for e, state in zip(starts, states, strict=True)],
    } | fields


def write_metrics(folder: Path) -> None:
    lines = ["epoch,step,lr/head/decay,train/loss,val/loss,val/accuracy"]
    for epoch in range(6):
        losses = f"{1 / (epoch + 1)},{2 / (epoch + 1)}"
        lines += [f",{10 * epoch + 4},0.1,,,", f"{epoch},{10 * epoch + 9},,{losses},{epoch / 10}"]
    (folder / "metrics.csv").write_text("\n".join([*lines, ""]))


def test_thaws_and_the_best_epoch_are_marked_where_they_were(tmp_path: Path) -> None:
    write_metrics(tmp_path)
    section = curves(SimpleNamespace(folder=tmp_path, record=record()))
    for picture in section.pictures:
        axes = picture.figure.axes[0]
        dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--" or line.is_dashed()]
        assert dashed == [2, 4]
        rings = [line for line in axes.lines if line.get_marker() == "o"]
        assert [list(ring.get_xdata()) for ring in rings] == [[5]]
    history = History(tmp_path, record())
    assert history.bars == {"stem": [(4, 6, True)], "block00": [(2, 6, True)], "head": [(0, 6, True)]}
    assert history.curve("val/accuracy") == ([1, 2, 3, 4, 5, 6], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert history.rates[0]["head"] == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 5.5])


def small() -> Network:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    groups = {"stem": ["0.weight", "0.bias"], "block00": ["1.weight", "1.bias"]}
    return Network(body, Head.new(4, 2), groups)


def test_a_distance_is_relative_and_zero_where_nothing_moved() -> None:
    start, end = small(), small()
    assert distances(start, end) == {"stem": 0.0, "block00": 0.0, "head": 0.0}
    with torch.no_grad():
        for parameter in end.groups["block00"].values():
            parameter *= 1.5
    assert distances(start, end) == {"stem": 0.0, "block00": pytest.approx(0.5), "head": 0.0}


@pytest.mark.medium
def test_of_adapters_the_update_counts(run_train, reports) -> None:
    outcome = run_train(*QUICK[:3], "freezing=lora")
    assert outcome.code == 0, outcome.errors + outcome.printed
    page = (outcome.folders[-1] / "report.html").read_text()
    assert "updates of the adapters are added" in page
    (told,) = alts(page, "Relative distance")
    assert told.endswith("stem did not move.")


def test_a_page_is_one_file_of_text_whatever_its_sections_hold() -> None:
    figure = Figure()
    figure.subplots().plot([0, 1], color=INK, label="<u>")
    figure.axes[0].set_title('<script>alert("x")</script>')
    bad = '<script>alert("x")</script>'
    section = Section(bad, [bad], [Table([bad], [[bad]], bad)], [Picture(figure, bad, bad)] * 2, [(bad, bad)])
    page = render(bad, [section, section], bad, [(bad, bad)])
    assert "<script" not in page
    assert "<u>" not in page
    assert not re.search(r"https?:|url\((?!#)|<link|<iframe|@import", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)
    assert page.count('role="img"') == page.count("<svg") == 4
    assert INK not in page  # the page has its own, for light and dark


def test_columns_of_figures_stand_to_the_right() -> None:
    rows = [["accuracy", "0.99", "0.98 – 1.00", "12 s", "1,293"], ["loss", "–", "", "3:25 min", "1.2 k"]]
    assert aligned(Table(list("abcde"), rows)) == ["text", "number", "number", "text", "number"]
    assert aligned(Table(["a"], [])) == ["text"]


def test_pictures_go_to_a_logger_that_takes_them_and_its_failure_is_only_said(
    reports, monkeypatch, capsys, tmp_path: Path
) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    drawn, told = Section("Training", pictures=[Picture(figure, "a line")]), []
    monkeypatch.setattr("thaw.report.sections.BUILDERS", (lambda evidence: drawn,))

    class Images:
        takes_images = True

        def log_image(self, key: str, images: list[Any], caption: list[str]) -> None:
            told.append((key, images[0].size, caption))

    class Full(Images):
        def log_image(self, *_: Any, **__: Any) -> None:
            raise OSError("no space left")

    report.write(SimpleNamespace(folder=tmp_path), SimpleNamespace, [Full(), SimpleNamespace(), Images()])
    ((key, size, caption),) = told
    assert (key, caption) == ("report/Training/1", ["a line"])
    assert min(size) > 100
    assert "pictures for the logger: left out (OSError: no space left)" in " ".join(capsys.readouterr().out.split())
