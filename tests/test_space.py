"""What a sweep tries: dimensions from overrides, and a name for each job."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from thaw.errors import UserError
from thaw.search.space import Space, directory, job_name


def space(*overrides: str, grid: bool = False) -> Space:
    return Space.of(OverridesParser.create().parse_overrides(list(overrides)), grid)


@pytest.mark.parametrize(
    ("values", "distribution"),
    [
        ("1e-5,1e-4", CategoricalDistribution(("1e-05", "0.0001"))),
        ("choice(a,b)", CategoricalDistribution(("a", "b"))),
        ("[1,2],[3]", CategoricalDistribution(("[1,2]", "[3]"))),
        ("interval(0.0,0.5)", FloatDistribution(0.0, 0.5)),
        ("tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
        ("int(interval(1,9))", IntDistribution(1, 9)),
        ("range(2,10,2)", IntDistribution(2, 8, step=2)),
        ("range(0.0,0.5,0.1)", FloatDistribution(0.0, 0.4, step=0.1)),
    ],
)
def test_what_is_swept_as_hydra_writes_it_becomes_a_dimension(values: str, distribution) -> None:
    assert space(f"a.b={values}").dimensions["a.b"] == distribution


def test_of_a_grid_every_range_is_its_values_and_the_last_changes_first() -> None:
    found = space("a=1,2", "model=resnet", "b=range(0,6,2)", "seed=0,1", grid=True)
    assert found.fixed == ["model=resnet"]
    points = list(found.combinations())
    assert len(points) == 12
    assert points[:3] == [{"a": "1", "b": b, "seed": s} for b, s in (("0", "0"), ("0", "1"), ("2", "0"))]
    assert len({job_name(found.overrides(point)) for point in points}) == 12


def test_of_a_sampler_the_seeds_are_runs_of_each_trial() -> None:
    found = space("a=1,2", "seed=3,4")
    assert list(found.dimensions) == ["a"]
    assert found.seeds == ("3", "4")
    assert found.overrides({"a": "1"}, "4") == ["a=1", "seed=4"]


def test_each_choice_and_both_ends_are_checked_before_the_first_trial() -> None:
    found = space("a=1,2,3", "b=interval(0.0,1.0)", "c=x,y")
    corners = list(found.corners())
    assert {point["a"] for point in corners} == {"1", "2", "3"}
    assert {point["b"] for point in corners} == {0.0, 1.0}
    assert {point["c"] for point in corners} == {"x", "y"}


@pytest.mark.parametrize(
    ("override", "grid", "message"),
    [
        ("a=interval(0,1)", True, "a grid must have values"),
        ("a=interval(1,0)", False, "from a smaller number to a larger"),
        ("a=tag(log,interval(0,1))", False, "must begin above 0"),
        ("run.dir=here", False, "search.dir"),
    ],
)
def test_a_space_that_cannot_be_is_refused(override: str, grid: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        space(override, grid=grid)


def test_what_says_where_a_job_runs_is_not_part_of_its_name() -> None:
    outside = [
        "run.dir=x",
        "resume=auto",
        "test=false",
        "search=bayes",
        "search.n_trials=3",
        "hydra.verbose=1",
    ]
    assert job_name(["a=1", *outside]) == job_name(["a=1"]) != job_name(["a=2"])
    assert job_name(["+a=1"]) != job_name(["a=1"])


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers()), min_size=1, unique_by=lambda pair: pair[0]))
def test_the_name_of_a_job_depends_on_no_order(pairs: list[tuple[str, int]]) -> None:
    overrides = [f"{key}={value}" for key, value in pairs]
    assert job_name(overrides) == job_name(overrides[::-1])
    assert job_name(overrides) != job_name([*overrides, "g=0"])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_that_was_drawn_is_read_back_as_it_is(number: float) -> None:
    text = Space(dimensions={"a": FloatDistribution(0, 1)}).overrides({"a": number})[0]
    assert OverridesParser.create().parse_override(text).value() == number


@pytest.mark.medium
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r/"), min_size=1))
def test_any_folder_can_be_named_to_hydra(name: str) -> None:
    folder = Path("runs") / f"x{name}"
    assert OverridesParser.create().parse_override(directory(folder)).value() == str(folder)
