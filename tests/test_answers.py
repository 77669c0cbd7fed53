"""What a report shows of a network's answers: counts, calibration, mistakes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from thaw.data.samples import Samples
from thaw.report import calibration, confusion, letters, mistakes, ranking, residuals
from thaw.report.answers import Answers, verdicts
from thaw.report.section import Section
from thaw.task.classification import Classification, Multilabel
from thaw.task.regression import Regression

BUILDERS = (
    calibration.calibration, confusion.classes, letters.letters, mistakes.mistakes, ranking.ranking, residuals.residuals
)  # fmt: skip


def of_classes(classes: int = 4, samples: int = 60, seed: int = 0) -> Answers:
    torch.manual_seed(seed)
    task = Classification([f"class {number}" for number in range(classes)])
    targets = torch.arange(samples) % classes
    outputs = 2 * torch.randn(samples, classes) + 3 * torch.eye(classes)[targets]
    return Answers("class", task.classes, task.rows(outputs, targets))


def of_labels() -> Answers:
    torch.manual_seed(0)
    task = Multilabel(["cloud", "rain", "sun"])
    targets = (torch.rand(40, 3) > 0.6).float()
    return Answers("labels", task.classes, task.rows(torch.randn(40, 3) + 2 * targets, targets))


def of_numbers() -> Answers:
    torch.manual_seed(0)
    task = Regression(["width", "height"], mean=[3.0, 5.0], std=[1.0, 2.0])
    targets = torch.randn(30, 2)
    return Answers("number", task.classes, task.rows(targets + 0.1 * torch.randn(30, 2), targets))


def of_tags() -> Answers:
    rows = [{"target": "N V N", "prediction": "N N N"}, {"target": "V N", "prediction": "V N"}]
    return Answers("tags", ["N", "V"], rows)


def of_letters() -> Answers:
    rows = [{"target": "seven", "prediction": "sevn"}, {"target": "two", "prediction": "too"}]
    return Answers("transcript", list("enostvw"), [*rows, {"target": "one", "prediction": "one"}])


ALL = {"class": of_classes, "labels": of_labels, "number": of_numbers, "tags": of_tags, "transcript": of_letters}


def evidence_of(answers: Answers) -> Any:
    count = len(answers.rows)
    pixels = [np.full((8, 8), number % 256, dtype=np.uint8) for number in range(count)]
    samples = Samples(pixels, np.zeros(count), Image.fromarray)
    data = SimpleNamespace(splits={"test": samples})
    names = [str(number) for number in range(count)]
    return SimpleNamespace(
        answers=answers, rows=dict(enumerate(answers.rows)), split="test", data=data, names=lambda: names
    )


@pytest.mark.parametrize("kind", ALL)
def test_a_section_applies_to_its_kind_of_answers_and_each_picture_says_what_it_shows(kind: str) -> None:
    evidence = evidence_of(ALL[kind]())
    found: dict[str, Section] = {build.__name__: build(evidence) for build in BUILDERS}
    applies = {
        "class": {"classes", "ranking", "calibration", "mistakes"},
        "labels": {"classes", "ranking", "calibration", "mistakes"},
        "number": {"residuals", "mistakes"},
        "tags": {"classes", "mistakes"},
        "transcript": {"letters", "mistakes"},
    }
    assert {name for name, section in found.items() if section} == applies[kind]
    for section in found.values():
        for picture in section.pictures if section else ():
            assert len(picture.alt) > 20
            picture.figure.canvas.draw()
        for table in section.tables if section else ():
            assert all(isinstance(cell, str) for row in table.rows for cell in row)
            assert {len(row) for row in table.rows} <= {len(table.head)}


def test_without_rows_nothing_is_said() -> None:
    for kind in (*ALL, "text"):
        assert not [build for build in BUILDERS if build(evidence_of(Answers(kind, ["a", "b"], [])))]


@pytest.mark.parametrize("classes", [2, 4, 77])
def test_the_confusion_matrix_counts_every_sample_once(classes: int) -> None:
    answers = of_classes(classes, samples=3 * classes)
    counts = confusion.counted(answers)
    assert counts.sum() == 3 * classes
    assert (counts.sum(axis=1) == 3).all()
    wrong = sum(row["target"] != row["prediction"] for row in answers.rows)
    confused = confusion.confusions(counts)
    assert sum(often for *_, often in confused) == wrong == counts.sum() - np.trace(counts)
    assert [often for *_, often in confused] == sorted((often for *_, often in confused), reverse=True)
    section = confusion.classes(evidence_of(answers))
    told = f"{wrong} of {3 * classes} samples " if wrong else f"all {3 * classes} samples are right"
    assert told in section.pictures[0].alt


def test_the_table_of_classes_tells_what_per_class_csv_does() -> None:
    answers = of_classes()
    columns = Classification(answers.classes).per_class(answers.rows)
    table = confusion.classes(evidence_of(answers)).tables[-1]
    for number, row in enumerate(table.rows):
        assert row[1:4] == tuple(f"{columns[name][number]:.3f}" for name in ("precision", "recall", "f1"))
        assert row[4] == str(columns["support"][number])


def test_of_many_classes_the_worst_are_listed() -> None:
    tables = confusion.classes(evidence_of(of_classes(77, samples=154))).tables
    assert len(tables[0].rows) == confusion.CONFUSIONS
    f1 = [float(row[3]) for row in tables[1].rows]
    assert len(f1) == confusion.WORST
    assert f1 == sorted(f1)


def test_a_calibrated_network_has_no_calibration_error_and_an_overconfident_one_has_its_gap() -> None:
    confidence = np.repeat([0.6, 0.8], 500)
    right = np.concatenate([np.arange(500) < 300, np.arange(500) < 400])
    assert calibration.expected_error(confidence, right) == pytest.approx(0, abs=1e-6)
    assert calibration.expected_error(np.full(100, 0.95), np.arange(100) < 50) == pytest.approx(0.45, abs=1e-6)


def test_an_answer_is_as_sure_as_its_class_and_a_label_as_its_own_probability() -> None:
    rows = [
        {"target": "a", "prediction": "a", "probability/a": 0.9, "probability/b": 0.1},
        {"target": "a", "prediction": "b", "probability/a": 0.3, "probability/b": 0.7},
    ]
    confidence, right = calibration.judged(Answers("class", ["a", "b"], rows))
    assert (confidence.tolist(), right.tolist()) == ([0.9, 0.7], [True, False])
    confidence, right = calibration.judged(Answers("labels", ["a", "b"], rows))
    assert (confidence.tolist(), right.tolist()) == ([0.9, 0.1, 0.3, 0.7], [True, False, True, False])


def test_what_chance_makes_of_the_calibration_error_falls_with_the_number_of_samples() -> None:
    few, many = (calibration.by_chance(np.full(count, 0.8)) for count in (50, 5000))
    assert 0.08 < few < 0.16
    assert many < few / 5


def test_auroc_is_one_of_a_perfect_ranking_and_half_of_none() -> None:
    rows = [
        {"target": name, "prediction": "b", "probability/a": 1 - share, "probability/b": share}
        for name, share in [("a", 0.6), ("a", 0.7), ("b", 0.8), ("b", 0.9)]
    ]
    perfect = ranking.ranked(Answers("class", ["a", "b"], rows))
    assert list(perfect) == ["b"]
    assert perfect["b"].auroc == perfect["b"].average_precision == 1
    same = [row | {"probability/a": 0.5, "probability/b": 0.5} for row in rows]
    assert ranking.ranked(Answers("class", ["a", "b"], same))["b"].auroc == 0.5


def test_a_class_that_no_sample_has_is_left_out_of_the_ranking() -> None:
    answers = of_classes(3)
    without = Answers("class", answers.classes, [row for row in answers.rows if row["target"] != "class 1"])
    assert list(ranking.ranked(without)) == ["class 0", "class 2"]


@pytest.mark.parametrize("kind", ["class", "labels"])
def test_mistakes_are_wrong_and_the_surest_come_first(kind: str) -> None:
    answers = ALL[kind]()
    chosen, wrong = mistakes.worst(verdicts(answers))
    assert wrong == sum(row["target"] != row["prediction"] for row in answers.rows)
    assert len(chosen) == min(wrong, mistakes.MOST)
    assert all(answers.rows[each.row]["target"] != answers.rows[each.row]["prediction"] for each in chosen)
    assert [each.confidence for each in chosen] == sorted((each.confidence for each in chosen), reverse=True)
    if kind == "class":
        first = answers.rows[chosen[0].row]
        assert chosen[0].confidence == first[f"probability/{first['prediction']}"]


def test_without_mistakes_the_least_sure_right_answers_are_shown_and_it_is_said() -> None:
    answers = of_classes()
    right = Answers("class", answers.classes, [row for row in answers.rows if row["target"] == row["prediction"]])
    section = mistakes.mistakes(evidence_of(right))
    assert section.title == "Least confident answers"
    assert section.text[0].startswith(f"None of {len(right.rows)} samples is wrong")
    confidence = [each.confidence for each in mistakes.worst(verdicts(right))[0]]
    assert confidence == sorted(confidence)


def test_a_set_of_labels_is_as_wrong_as_the_surest_of_its_wrong_ones() -> None:
    row = {"target": "a", "prediction": "b", "probability/a": 0.3, "probability/b": 0.9}
    [verdict] = verdicts(Answers("labels", ["a", "b"], [row]))
    assert (verdict.right, verdict.confidence) == (False, 0.9)


def test_letters_are_counted_as_mistaken_left_out_or_put_in() -> None:
    assert letters.mistaken("seven", "sevn") == [("e", "")]
    assert letters.mistaken("two", "too") == [("w", "o")]
    assert letters.mistaken("one", "oone") == [("", "o")]
    assert letters.mistaken("", "ab") == [("", "a"), ("", "b")]
    table = letters.letters(evidence_of(of_letters())).tables[0]
    assert ("e", "nothing", "1", "33%") in table.rows


def test_names_are_shown_without_the_folder_that_they_share() -> None:
    assert mistakes.shared_folder(["/data/cats/a.png", "/data/dogs/b.png"]) == "/data/"
    assert mistakes.shared_folder(["What is this ?", "/etc"]) == ""


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    from thaw.report.answers import percent

    assert [percent(share) for share in (0.5, 0.9992, 1.0, 0.004)] == ["50%", "99.92%", "100%", "0.40%"]
