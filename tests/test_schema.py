"""Signatures as the schema, and the words for what breaks them."""

import importlib
import inspect
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import AfterValidator, Field

from thaw.config import CONF
from thaw.data.digits import Digits
from thaw.data.images import ImageFolder
from thaw.freezing.by_group import Gradual, NoFreezing
from thaw.scheduler import cosine, plateau
from thaw.schema import check_value, signature

Whole = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Level = Annotated[float, Field(ge=0, le=1)]
Choice = Literal["none", "default", "strong"]


def _fruit(name: str) -> str:
    if name not in ("apple", "pear"):
        raise ValueError("must be a fruit", "Did you mean 'apple'?")
    return name


def _short(name: str) -> str:
    if len(name) > 3:
        raise ValueError("must be short")
    return name


Fruit = Annotated[str, AfterValidator(_fruit)]
Short = Annotated[str, AfterValidator(_short)]


class Parent:
    def __init__(self, colour: str = "red", size: int = 3) -> None: ...


class Child(Parent):
    def __init__(self, size: int = 5, *, depth: int = 1, **parent: Any) -> None:
        super().__init__(size=size, **parent)


class Grandchild(Child):
    pass


class Closed(Child):
    def __init__(self, name: str) -> None:
        super().__init__()


class Mixed(Grandchild):
    def __init__(self, name: str, **child: Any) -> None:
        super().__init__(**child)


def positional(first: int, /, second: int, *rest: int, third: int = 3, **options: Any) -> None: ...


# Signatures


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (Parent, ["colour", "size"]),
        (Child, ["size", "depth", "colour"]),
        (Grandchild, ["size", "depth", "colour"]),
        (Closed, ["name"]),
        (Mixed, ["name", "size", "depth", "colour"]),
        (positional, ["second", "third"]),
        (cosine, ["warmup", "end"]),
        (NoFreezing, ["batch_norm", "rewarm"]),
        (Gradual, ["on", "every", "over", "patience", "roll_back", "batch_norm", "rewarm"]),
        (plateau, ["warmup", "factor", "patience"]),
    ],
)
def test_keywords_of_a_class_are_those_of_its_parents_too(target, names):
    assert list(signature(target)) == names


def test_every_argument_of_the_data_reaches_through_three_classes():
    own = {"root", "path_column", "label_column"}
    of_images = {"image_size", "augment", "flip", "min_crop", "views", "mixup", "cutmix"}
    of_data = {"seed", "target", "batch_size", "num_workers", "train_size", "shots", "val_size", "test_size"}
    of_data |= {"sampler", "on_bad_sample", "worker_timeout", "classes"}
    assert signature(ImageFolder).keys() == own | of_images | of_data
    assert signature(Digits).keys() == of_images | of_data


def test_default_of_the_child_hides_that_of_the_parent():
    assert signature(Child)["size"].default == 5
    assert signature(Digits)["test_size"].default == 0.2
    assert signature(ImageFolder)["test_size"].default is None


@pytest.mark.parametrize("target", [Digits, Gradual, Mixed])
def test_every_name_of_a_signature_is_accepted_and_no_other(target):
    names = signature(target)
    values = {
        name: "x" if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in names.items()
    }
    target(**values)
    with pytest.raises(TypeError):
        target(**values, no_such_setting=1)


# Values that fit


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (3, Whole),
        (3, float),
        (None, Whole | None),
        (0.5, Share),
        (0, Level),
        (1, Level),
        ("strong", Choice),
        ("apple", Fruit),
        (True, bool),
        ("3", str),
        ("3", str | int),
        ([0.1, 0.2], list[float]),
        ({"a": 1}, dict[str, Any]),
        ("anything", inspect.Parameter.empty),
        (object(), Any),
    ],
)
def test_value_that_fits_is_no_problem(value, annotation):
    assert check_value("some.key", value, annotation) == []


def configured_targets() -> set[str]:
    def below(node: Any) -> set[str]:
        if not isinstance(node, dict):
            return set()
        own = {node["_target_"]} if "_target_" in node else set()
        return own.union(*(below(child) for child in node.values()))

    files = [OmegaConf.to_container(OmegaConf.load(path)) for path in sorted(CONF.glob("*/*.yaml"))]
    return set().union(*(below(content) for content in files))


@pytest.mark.parametrize("path", sorted(configured_targets()))
def test_defaults_of_configured_targets_fit_their_own_annotations(path):
    module, _, name = path.rpartition(".")
    for key, parameter in signature(getattr(importlib.import_module(module), name)).items():
        if parameter.default is not inspect.Parameter.empty:
            assert check_value(key, parameter.default, parameter.annotation) == []


# Values that do not


@pytest.mark.parametrize(
    ("value", "annotation", "rule"),
    [
        (0, Whole, "must be greater than or equal to 1"),
        (-4, Whole, "must be greater than or equal to 1"),
        (0, Share, "must be greater than 0"),
        (1, Share, "must be less than 1"),
        (1.5, Level, "must be less than or equal to 1"),
        (-0.1, Level, "must be greater than or equal to 0"),
        (2.5, Whole, "must be a whole number"),
        ("many", Whole, "must be a whole number"),
        ([1], Whole, "must be a whole number"),
        (None, Whole, "must be a whole number"),
        ("much", Share, "must be a number"),
        (None, Share, "must be a number"),
        (3, str, "must be text"),
        ("much", Whole | Share, "must be a whole number or must be a number"),
        ("strong!", Choice, "must be one of none, default, strong"),
        (3, Choice, "must be one of none, default, strong"),
        ("carrot", Fruit, "must be a fruit"),
        ("lengthy", Short, "must be short"),
        ("x", list[float], "must be a valid list"),
    ],
)
def test_problem_names_the_key_the_rule_and_the_value(value, annotation, rule):
    (problem,) = check_value("some.key", value, annotation)
    assert problem.startswith(f"some.key {rule}")
    assert f"; got {value!r}." in problem


def test_each_wrong_entry_of_a_mapping_is_named_alone():
    problems = check_value("some.key", {"a": "pear", "b": "carrot", "c": 3}, dict[str, Fruit] | None)
    assert problems == [
        "some.key.b must be a fruit; got 'carrot'. Did you mean 'apple'?",
        "some.key.c must be text; got 3.",
    ]


@pytest.mark.parametrize("value", ["yes", "0", "maybe", None])
def test_switch_asks_for_true_or_false(value):
    """`data.flip=yes` reaches the target as a text: a text is true, also when it says no."""
    (problem,) = check_value("data.flip", value, bool, True)
    assert "true or false" in problem.lower()
    assert repr(value) in problem


@pytest.mark.parametrize("annotation", [Whole, Whole | None, float])
def test_truth_value_is_no_number(annotation):
    """`batch_size=true` would quietly train in batches of one."""
    (problem,) = check_value("data.batch_size", True, annotation)
    assert "number" in problem


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("12", Whole),
        ("0.5", Share),
        ("12", Whole | None),
        ("1e-3", Whole | Share),
        (["0.5", "0.5"], list[float] | None),
    ],
)
def test_text_is_no_number_even_if_it_reads_like_one(value, annotation):
    (problem,) = check_value("model.mean", value, annotation)
    assert problem.startswith("model.mean must be a")
    assert "number" in problem
    assert f"got {value!r}." in problem


@pytest.mark.parametrize(
    ("value", "annotation", "default", "advice"),
    [
        (0, Whole, 32, "Write e.g. some.key=32."),
        ("x", Share, 0.3, "Write e.g. some.key=0.3."),
        ("x", Choice, "default", "Write e.g. some.key=default."),
        ("strng", Choice, "default", "Did you mean 'strong'?"),
        ("defaults", Choice, "none", "Did you mean 'default'?"),
        ("carrot", Fruit, "pear", "Did you mean 'apple'?"),
        ("lengthy", Short, "ab", "Write e.g. some.key=ab."),
    ],
)
def test_problem_ends_with_what_to_write_instead(value, annotation, default, advice):
    (problem,) = check_value("some.key", value, annotation, default)
    assert problem.endswith(f"got {value!r}. {advice}")


@pytest.mark.parametrize("default", [None, inspect.Parameter.empty, True])
def test_no_advice_is_given_where_no_default_helps(default):
    (problem,) = check_value("some.key", 0, Whole, default)
    assert problem.endswith("; got 0.")
