"""Mistakes that a user can mend: their words, and the search for what was meant."""

import copy
import pickle

import pytest
from torch._utils import ExceptionWrapper

from thaw.errors import UserError, did_you_mean

KNOWN = ["adam", "adamw", "lion", "rmsprop", "sgd"]


class Failing:
    """A data set of which no sample can be had."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems

    def sample(self) -> None:
        raise UserError(*self.problems)

    def sample_while_handling(self) -> None:
        try:
            self.sample()
        except UserError:
            raise UserError("data: the second sentence is the one that counts.")  # noqa: B904


def as_worker_tells(fail) -> UserError:
    """The error of `fail` after its way through a DataLoader's worker process."""
    try:
        fail()
    except UserError:
        wrapped = pickle.loads(pickle.dumps(ExceptionWrapper(where="in DataLoader worker process 0")))
    assert "Traceback" in wrapped.exc_msg
    with pytest.raises(UserError) as caught:
        wrapped.reraise()
    return caught.value


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("adamm", "adam"),
        ("adamww", "adamw"),
        ("linn", "lion"),
        ("sdg", "sgd"),
        ("rms", "rmsprop"),
        ("ada", "adam"),
        ("adam", "adam"),
    ],
)
def test_closest_known_name_is_asked_for(given, meant):
    assert did_you_mean(given, KNOWN) == f"Did you mean '{meant}'?"


def test_name_that_was_begun_comes_before_one_that_looks_alike():
    assert did_you_mean("resnet", ["resent", "resnet50"]) == "Did you mean 'resnet50'?"


@pytest.mark.parametrize("given", ["", "xyz", "quadratic"])
def test_known_names_are_listed_where_none_is_close(given):
    assert did_you_mean(given, KNOWN) == "Choose one of: adam, adamw, lion, rmsprop, sgd."


def test_long_list_is_cut():
    names = [f"name{index:03d}" for index in range(50)]
    advice = did_you_mean("?", names)
    assert advice == f"Choose one of: {', '.join(names[:8])}, …."
    assert did_you_mean("?", names[:8]) == f"Choose one of: {', '.join(names[:8])}."
    assert did_you_mean("?", names, shown=2) == "Choose one of: name000, name001, …."


def test_known_names_may_be_given_once():
    assert did_you_mean("adamm", (name for name in KNOWN)) == "Did you mean 'adam'?"


def test_error_holds_several_problems_a_line_each():
    error = UserError("data.root must exist; got 'x'.", "optimizer.lr must be a number; got 'a'.")
    assert error.problems == ("data.root must exist; got 'x'.", "optimizer.lr must be a number; got 'a'.")
    assert str(error).splitlines() == list(error.problems)


@pytest.mark.parametrize("clone", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_error_survives_a_way_to_another_process(clone):
    error = UserError("one: two.", "three\nfour")
    assert (type(clone(error)), clone(error).problems) == (UserError, ("one: two.", "three\nfour"))


@pytest.mark.parametrize("message", ["data: 'a.jpg' is not readable.", "data: broken: 'a'.\nMend or remove it."])
def test_worker_tells_our_sentence_without_its_traceback(message):
    error = as_worker_tells(Failing(message).sample)
    assert error.problems == (message,)
    assert str(error) == message


def test_worker_tells_every_problem():
    assert str(as_worker_tells(Failing("data: one.", "data: two.").sample)) == "data: one.\ndata: two."


def test_worker_tells_the_last_of_two_errors():
    error = as_worker_tells(Failing("data: the first sentence.").sample_while_handling)
    assert str(error) == "data: the second sentence is the one that counts."
