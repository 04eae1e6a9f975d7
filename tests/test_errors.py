"""The taxonomy is closed, complete, and says what to do."""

from __future__ import annotations

import pickle

import pytest

from blocks import errors
from blocks.errors import BY_KIND, Kind, NotFound, OnblockError, UnknownError, as_onblock
from blocks.names import BadName

ALL = sorted(BY_KIND.values(), key=lambda c: c.__name__)


def test_every_kind_has_one_class_and_every_class_a_kind() -> None:
    assert set(BY_KIND) == set(Kind)
    defined = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, OnblockError)}
    assert defined == {OnblockError, *BY_KIND.values()}
    assert all(c.__mro__[1] is OnblockError for c in ALL)  # the tree is flat: catching one catches only it
    assert all(c.kind == kind for kind, c in BY_KIND.items())
    assert all(kind.value == kind.name for kind in Kind)


@pytest.mark.parametrize("kind", Kind)
def test_the_tree_at_the_top_is_the_truth(kind: Kind) -> None:
    line = next(line for line in (errors.__doc__ or "").splitlines() if f" {BY_KIND[kind].__name__} " in line)
    assert f" {kind.value} " in line


@pytest.mark.parametrize("cls", ALL)
def test_a_failure_says_what_to_what_and_what_to_do(cls: type[OnblockError]) -> None:
    error = cls("it broke", path="d/file")
    assert str(error) == "d/file: it broke" + (f" ({cls.remedy})" if cls.remedy else "")
    assert (error.what, error.path, error.todo) == ("it broke", "d/file", cls.remedy)
    assert str(cls("it broke", remedy="mend it")) == "it broke (mend it)"
    assert str(cls("it broke", remedy="")) == "it broke"
    if cls.kind not in (Kind.CONFIG, Kind.CANCELLED, Kind.PAUSED):  # those say it in `what`, or nothing is to be done
        assert cls.remedy


@pytest.mark.parametrize("cls", [*ALL, BadName])
def test_a_failure_survives_the_way_between_processes(cls: type[OnblockError]) -> None:
    error = pickle.loads(pickle.dumps(cls("it broke", path="d/ü\udcff", remedy="mend it")))
    assert type(error) is cls
    assert (error.what, error.path, error.todo, error.kind) == ("it broke", "d/ü\udcff", "mend it", cls.kind)


def test_what_is_not_understood_keeps_its_cause() -> None:
    cause = ZeroDivisionError("by zero")
    error = as_onblock(cause, "d/file")
    assert type(error) is UnknownError
    assert error.__cause__ is cause
    assert str(error).startswith("d/file: ZeroDivisionError: by zero")


def test_what_is_understood_passes() -> None:
    known = NotFound("it is not there")
    assert as_onblock(known, "d/file") is known
    assert known.path == "d/file"
    assert as_onblock(known, "other") is known
    assert known.path == "d/file"
