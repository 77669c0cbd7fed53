"""Sentences from the docstrings of installed packages: clean, distinct, the same every time, and nothing imported."""

import sys
import time
from pathlib import Path

import pytest

from thaw.data.docstrings import PACKAGES, PER_MODULE, Docstrings, prose, sentences
from thaw.errors import UserError


@pytest.fixture
def two_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    files = {
        "wheat_x/__init__.py": '"""Wheat is a grass that is grown for its seed."""\nraise SystemExit("was imported")\n',
        "wheat_x/field.py": '''
def sow():
    """Put the seed of wheat into the ground. Wait for rain to come along.

    Parameters
    ----------
    """


class Field:
    """A field is a piece of open land."""

    async def plough(self):
        """Turn the earth of the whole field over. Use \\\\d of it."""
''',
        "wheat_x/tests/test_field.py": '"""Tests of the field should never be found."""\n""""""\n',
        "wheat_x/broken.py": '"""This file is no Python at all."""\n""""""\n{% if %}\n',
        "barley_x/__init__.py": "",
        "barley_x/beer.py": '"""Barley is what beer has been made of. A Field is a piece of open land."""\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return "wheat_x", "barley_x"


def test_docstrings_are_read_and_no_code_runs(two_packages: tuple[str, str]) -> None:
    found = sentences(two_packages)
    assert set(found) == {
        ("Wheat is a grass that is grown for its seed.", "wheat_x", "wheat_x"),
        ("Put the seed of wheat into the ground.", "wheat_x", "wheat_x.field"),
        ("Wait for rain to come along.", "wheat_x", "wheat_x.field"),
        ("Turn the earth of the whole field over.", "wheat_x", "wheat_x.field"),
        ("Barley is what beer has been made of.", "barley_x", "barley_x.beer"),
    }
    assert not {"wheat_x", "barley_x"} & set(sys.modules)


def test_there_are_no_more_than_asked_for(two_packages: tuple[str, str]) -> None:
    assert [sentence.package for sentence in sentences(two_packages, per_package=1)] == list(two_packages)


@pytest.mark.parametrize("packages", [("numpy",), ("numpy", "no_such_package_x"), ("numpy", "torch.nn"), ()])
def test_fewer_than_two_installed_packages_are_an_error(packages: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="at least two installed packages"):
        sentences(packages)


@pytest.mark.medium
def test_what_is_installed_gives_thousands_in_seconds() -> None:
    start = time.process_time()
    found = sentences()
    assert time.process_time() - start < 6  # 2 s on an idle core
    present = {sentence.package for sentence in found}
    assert present <= set(PACKAGES)
    assert {"numpy", "torch", "sklearn"} <= present
    assert len({sentence.text.lower() for sentence in found}) == len(found)
    for package in present:
        own = [sentence for sentence in found if sentence.package == package]
        modules = [sentence.module for sentence in own]
        assert 400 <= len(own) <= 600
        assert len(set(modules)) >= 50
        assert max(modules.count(module) for module in modules) <= PER_MODULE
        assert not any(".test" in module or "._test" in module for module in modules)
    for text, _, _ in found:
        assert 5 <= len(text.split()) <= 40
        assert text.endswith((".", "!", "?"))
        assert not any(mark in text for mark in ("`", ">>>", "::", "\n", "|", "  "))


def test_sentences_are_the_same_every_time() -> None:
    packages = ("numpy", "sklearn")
    assert sentences(packages, per_package=50) == sentences(packages, per_package=50)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the mean of all. It is never below it.", ["Return the mean of all.", "It is never below it."]),
        ("Wraps :class:`~a.b.Thing`, `.Line` and ``x`` in one.", ["Wraps a.b.Thing, Line and x in one."]),
        ("See `the guide <https://x.org>`_ for all of it.", ["See the guide for all of it."]),
        ("Use any norm, e.g. Frobenius, to scale\n    the rows.", ["Use any norm, e.g. Frobenius, to scale the rows."]),
        ("Too short.", []),
        ("mean(x, axis) -> float", []),
        (">>> mean of all values in the list.", []),
        ("The sum over all of $x^2$ is taken.", []),
        ("Parameters\n----------\nvalues : array of all the numbers.", []),
        (".. deprecated:: 1.0\n   Use the other function for this.", []),
        ("", []),
    ],
)  # fmt: skip
def test_only_plain_prose_is_kept(docstring: str, expected: list[str]) -> None:
    assert prose(docstring) == expected


# The data set


def held(**options: object) -> dict[str, list[tuple[str, str]]]:
    """Split → (sentence, package), where each sentence is in the split that its data set puts it in."""
    data = Docstrings(**{"packages": ("numpy", "sklearn", "torch"), "per_package": 100, "num_workers": 0} | options)
    return {
        split: [(name, data.classes[target]) for name, target in zip(data.names(own), own.targets, strict=True)]
        for split, own in data.splits.items()
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_share_no_module_and_no_sentence(seed: int) -> None:
    found = sentences(("numpy", "sklearn", "torch"), 100)
    module_of = {sentence.text: sentence.module for sentence in found}
    splits = held(seed=seed)
    modules = {split: {module_of[text] for text, _ in own} for split, own in splits.items()}
    texts = {split: {text.lower() for text, _ in own} for split, own in splits.items()}
    assert list(splits) == ["train", "val", "test"]
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not modules[one] & modules[other]
        assert not texts[one] & texts[other]
    assert sum(map(len, splits.values())) == len(found)
    assert {text: package for own in splits.values() for text, package in own} == {s.text: s.package for s in found}


def test_splits_have_their_share_of_every_package() -> None:
    splits = held(per_package=300, val_size=0.1, test_size=0.2)
    for package in ("numpy", "sklearn", "torch"):
        counts = {split: sum(of == package for _, of in own) for split, own in splits.items()}
        share = {split: count / sum(counts.values()) for split, count in counts.items()}
        assert share == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.03)


@pytest.mark.parametrize("per_package", [10, 20, 40])
def test_no_split_is_empty_however_few_sentences_there_are(per_package: int) -> None:
    for seed in range(5):
        assert all(held(per_package=per_package, seed=seed).values())


def test_splits_depend_on_the_seed_alone() -> None:
    assert held(seed=3) == held(seed=3)
    assert held(seed=3)["test"] != held(seed=4)["test"]


def test_the_embedded_text_has_no_leaks_and_no_duplicates() -> None:
    data = Docstrings(packages=("numpy", "sklearn"), per_package=100, num_workers=0)
    quality = data.quality()
    assert quality.leaks == []
    assert set(quality.duplicates.values()) == {0}
    assert quality.lacking == {}
