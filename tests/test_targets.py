"""Raw labels turned into numbers: one class, several labels, numbers, tags, transcripts, or the text itself."""

import inspect
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MultiLabelBinarizer, StandardScaler

from thaw.data.datamodule import DataModule
from thaw.data.samples import Samples, unlabelled
from thaw.data.targets import (
    IGNORED,
    KINDS,
    ClassTargets,
    LabelSetTargets,
    NextTokenTargets,
    NumberTargets,
    TagTargets,
    TranscriptTargets,
)
from thaw.errors import UserError


def samples(raw: list) -> Samples:
    return Samples(np.arange(len(raw)), raw, str)


# One class


@pytest.mark.parametrize("raw", [["b", "a", "c", "a"], [1, 0, 2, 0], [True, False, "x", False]])
def test_classes_are_sorted_names_and_targets_their_indices(raw):
    targets = ClassTargets(raw)
    encoded = targets.encode(raw, "train")
    assert targets.classes == sorted({str(name) for name in raw})
    assert [targets.classes[index] for index in encoded] == [str(name) for name in raw]
    assert encoded.dtype == np.int64
    assert targets.strata(encoded).tolist() == encoded.tolist()
    assert targets.counts(encoded) == [sum(str(r) == name for r in raw) for name in targets.classes]
    batch = targets.collate(encoded[:3])
    assert batch.dtype == torch.int64
    assert batch.tolist() == encoded[:3].tolist()


def test_counts_have_an_entry_for_a_class_that_is_absent():
    targets = ClassTargets(["a", "b", "c"])
    assert targets.counts(targets.encode(["b", "b"], "val")) == [0, 2, 0]
    assert targets.task_arguments(np.array([0, 0, 1])) == {"classes": ["a", "b", "c"], "class_counts": [2, 1, 0]}


@pytest.mark.parametrize("raw", [["only"] * 3, []])
def test_fewer_than_two_classes_are_refused(raw):
    with pytest.raises(UserError, match=f"at least two classes.*found {len(set(raw))}"):
        ClassTargets(raw)


@pytest.mark.fault("E7")
@pytest.mark.parametrize(
    ("kind", "train", "other", "what", "advice"),
    [
        ("class", ["ant", "bee"], ["ant", "wasp"], "classes", "Mend the names, or move"),
        ("labels", ["ant;bee", "bee"], ["bee;wasp"], "labels", "Mend the names, or move"),
        ("tags", ["ant bee"], [["wasp", "bee"]], "tags", "Mend the names, or move"),
        ("transcript", ["an tb"], ["want"], "letters", "Write these transcripts in letters of train, or move"),
    ],
)
def test_what_train_lacks_is_refused_by_split_and_name_with_advice(kind, train, other, what, advice):
    targets = KINDS[kind](train)
    with pytest.raises(UserError) as caught:
        targets.encode(other, "test")
    unknown = "w" if kind == "transcript" else "wasp"
    assert f"test has {what} that train lacks: ['{unknown}']" in str(caught.value)
    assert "Train has " in str(caught.value)
    assert advice in str(caught.value)


@pytest.mark.parametrize("wrong", [["ant"], ["ant", "bee"], [], {"ant": 1, "bee": 0}])
@pytest.mark.parametrize("split", ["train", "val"])
def test_several_labels_are_no_name_of_a_class(wrong, split):
    good = ["ant", "bee"]
    with pytest.raises(UserError) as caught:
        ClassTargets([*good, wrong] if split == "train" else good).encode([wrong], split)
    assert f"must hold one class for each sample; got {wrong}." in str(caught.value)
    assert "task=multilabel" in str(caught.value)


def test_a_long_list_of_classes_is_cut_in_messages():
    targets = ClassTargets([f"class{number:03d}" for number in range(500)])
    with pytest.raises(UserError) as caught:
        targets.encode([f"other{number}" for number in range(500)], "val")
    assert "and 490 more" in str(caught.value)
    assert len(str(caught.value)) < 400


# Several labels


@pytest.mark.parametrize(
    "raw",
    [
        ["news;sport", "sport", "", "art; news"],
        [["news", "sport"], ["sport"], [], ["news", "art", "news"]],
        [
            {"art": 0, "news": 1, "sport": "1"},
            {"art": False, "news": "0", "sport": True},
            {"art": 0.0, "news": None, "sport": "no"},
            {"art": 1.0, "news": "true", "sport": 0},
        ],
    ],
)
def test_labels_are_a_row_of_zeros_and_ones_however_they_are_written(raw):
    targets = LabelSetTargets(raw)
    assert targets.classes == ["art", "news", "sport"]
    encoded = targets.encode(raw, "train")
    sets = [{"news", "sport"}, {"sport"}, set(), {"art", "news"}]
    assert np.array_equal(encoded, MultiLabelBinarizer(classes=targets.classes).fit_transform(sets))
    assert targets.counts(encoded) == [1, 2, 2]
    assert targets.strata(encoded) is None
    assert targets.collate([encoded[0], encoded[2]]).tolist() == [[0, 1, 1], [0, 0, 0]]
    assert targets.collate([encoded[0]]).dtype == torch.float32


@pytest.mark.parametrize("raw", [["", " ; "], [[], []], [{"a": 0, "b": "0"}]])
def test_no_label_at_all_is_refused(raw):
    with pytest.raises(UserError, match="at least one label"):
        LabelSetTargets(raw)


def test_a_column_without_a_positive_sample_is_a_label_all_the_same():
    """Of columns, the names are known: validation may have what train has not, without a word of labels that lack."""
    targets = LabelSetTargets([{"a": 1, "b": 0}])
    assert targets.classes == ["a", "b"]
    assert targets.encode([{"a": 0, "b": 1}], "val").tolist() == [[0, 1]]


@pytest.mark.parametrize("written", ["2", "maybe", 0.5, -1])
def test_a_column_of_labels_must_hold_zeros_and_ones(written):
    with pytest.raises(UserError, match=r"must be 0 or 1"):
        LabelSetTargets([{"a": 1, "b": written}]).encode([{"a": 1, "b": written}], "train")


# Numbers


@pytest.mark.parametrize("raw", [[1, 2.5, "3"], [{"value": 1}, {"value": 2.5}, {"value": "3"}]])
def test_a_number_is_a_column_of_one(raw):
    targets = NumberTargets(raw)
    encoded = targets.encode(raw, "train")
    assert targets.classes == ["value"]
    assert encoded.tolist() == [[1.0], [2.5], [3.0]]
    assert targets.collate(encoded[:2]).shape == (2, 1)
    assert targets.collate(encoded[:2]).dtype == torch.float32
    assert targets.strata(encoded) is None


def test_several_numbers_keep_their_columns_and_tell_mean_and_spread():
    raw = [{"height": h, "weight": w} for h, w in [(1.0, 100.0), (2.0, 300.0), (4.0, 500.0)]]
    targets = NumberTargets(raw)
    encoded = targets.encode(raw, "train")
    assert targets.classes == ["height", "weight"]
    assert encoded.tolist() == [[1, 100], [2, 300], [4, 500]]
    told, expected = targets.task_arguments(encoded), StandardScaler().fit(encoded)
    assert told["mean"] == pytest.approx(expected.mean_.tolist())
    assert told["std"] == pytest.approx(expected.scale_.tolist())


def test_a_number_that_never_changes_does_not_divide_by_zero():
    targets = NumberTargets([5, 5])
    assert targets.task_arguments(targets.encode([5, 5], "train"))["std"][0] > 0


@pytest.mark.parametrize("wrong", ["tall", None, [1]])
def test_what_is_no_number_is_refused_by_split(wrong):
    with pytest.raises(UserError, match="every target of val must be a number"):
        NumberTargets([1]).encode([1, wrong], "val")


@pytest.mark.fault("E9")
@pytest.mark.parametrize("wrong", ["inf", float("nan"), "-inf", "nan"])
def test_a_number_must_be_finite(wrong):
    """One infinite target would make mean, spread and every loss infinite."""
    with pytest.raises(UserError, match="every target of train must be a number"):
        NumberTargets([1]).encode([1, wrong], "train")


# Tags


def test_tags_are_lists_or_texts_of_one_for_each_word():
    targets = TagTargets(["O PER O", ["LOC", "O"]])
    assert targets.classes == ["LOC", "O", "PER"]
    encoded = targets.encode(["PER O", ["O", "LOC", "O"]], "val")
    assert [row.tolist() for row in encoded] == [[2, 1], [1, 0, 1]]
    assert targets.counts(encoded) == [1, 3, 1]
    assert targets.collate(encoded).tolist() == [[2, 1, IGNORED], [1, 0, 1]]


# Transcripts


def test_transcripts_are_letters_in_lower_case_with_single_blanks():
    targets = TranscriptTargets(["Hello  World", "öl "])
    assert targets.classes == [" ", "d", "e", "h", "l", "o", "r", "w", "ö"]
    encoded = targets.encode([" OL\n", "h"], "val")
    assert ["".join(targets.classes[letter] for letter in row) for row in encoded] == ["ol", "h"]
    batch = targets.collate(encoded)
    assert batch.tolist() == [[targets.classes.index("o"), targets.classes.index("l")], [3, IGNORED]]
    assert targets.counts(encoded) == []


@pytest.mark.parametrize("wrong", [["hello", "world"], {"first": "hello", "second": "world"}])
def test_a_transcript_is_one_text(wrong):
    with pytest.raises(UserError, match=r"must hold a transcript for each sample; got .* Write it as one text"):
        TranscriptTargets(["hello", wrong])


# The text itself


def test_text_is_its_own_target():
    targets = NextTokenTargets([None, None])
    assert targets.classes == []
    assert len(targets.encode([None] * 3, "train")) == 3


# What is missing


@pytest.mark.parametrize(
    ("raw", "missing"),
    [
        (["a", None, "", float("nan"), 0, "nan"], [1, 2, 3]),
        ([{"a": 1, "b": None}, {"a": 0, "b": 0}, {"a": float("nan"), "b": 1}], [0, 2]),
        (["a b", "  "], [1]),
    ],
)
def test_samples_without_a_label_are_found(raw, missing):
    assert unlabelled(samples(raw), ClassTargets.fault) == dict.fromkeys(missing, "no label")


def test_a_data_module_may_be_asked_for_every_kind_and_no_other():
    assert set(get_args(inspect.signature(DataModule).parameters["target"].annotation)) == set(KINDS)
