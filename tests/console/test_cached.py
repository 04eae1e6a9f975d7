"""What is remembered of slow answers: nobody waits for a newer one, and none is asked for more than it is worth."""

from __future__ import annotations

import threading

import pytest

from blocks.errors import NetworkError, OnblockError, UnknownError
from deployments.console import cached
from deployments.console.cached import Cached
from tests.deployments.conftest import until


class Source:
    """Answers with 1, 2, 3, when it may."""

    def __init__(self) -> None:
        self.asked, self.may, self.error = 0, threading.Event(), None
        self.may.set()

    def ask(self) -> int:
        self.asked += 1
        n = self.asked
        assert self.may.wait(180)
        if self.error is not None:
            raise self.error
        return n


@pytest.fixture
def source() -> Source:
    return Source()


def test_who_comes_while_it_is_asked_gets_what_is_known(source: Source) -> None:
    known: Cached[int] = Cached(source.ask, 0.0)
    assert known.get(180) == 1
    source.may.clear()
    assert [known.get(0.01) for _ in range(5)] == [1] * 5  # nobody waits until it may answer
    until("the second question", lambda: source.asked == 2)
    source.may.set()
    until("the second answer", lambda: known.get(0.0) >= 2)


def test_after_a_failure_it_is_asked_again_as_soon_as_ever(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the failure took: it was waited for, and cost nothing."""
    now = 1000.0
    monkeypatch.setattr(cached.time, "monotonic", lambda: now)

    def ask() -> int:
        nonlocal now
        now += 10.0  # as a server that does not answer
        source.asked += 1
        if source.asked == 1:
            raise NetworkError("does not answer")
        return source.asked

    known: Cached[int] = Cached(ask, 5.0, share=30)
    with pytest.raises(NetworkError, match="does not answer"):
        known.get(180)
    assert known.stale() == "does not answer"
    now += 5.0
    assert known.get(180) == 2
    assert known.stale() is None
    now += 29.0  # it took 10 s: that is 300 s by its share, of which 30 are kept
    assert known.get(180) == 2
    now += 1.0
    assert known.get(180) == 3


def test_any_failure_is_kept_beside_what_was_known(source: Source, caplog: pytest.LogCaptureFixture) -> None:
    known: Cached[int] = Cached(source.ask, 0.0)
    assert known.get(180) == 1
    source.error = KeyError("flow_id")  # pyright: ignore[reportAttributeAccessIssue]
    until("a failure", lambda: known.get() == 1 and known.stale())
    assert "defect" in str(known.stale())
    until("more of them", lambda: known.get() == 1 and source.asked > 4)
    assert len([r for r in caplog.records if r.exc_info]) == 1  # told once
    source.error = None
    until("an answer", lambda: known.get() > 1)
    assert known.stale() is None


def test_where_nothing_was_ever_known_the_failure_is_told(source: Source) -> None:
    source.error = ValueError("no JSON")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UnknownError) as caught:
        Cached(source.ask, 3.0).get(180)
    assert isinstance(caught.value, OnblockError)


def test_what_hangs_from_the_beginning_is_not_waited_for_for_ever(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "FIRST_S", 0.05)
    monkeypatch.setattr(cached, "HANGS_S", 0.0)
    source.may.clear()
    known: Cached[int] = Cached(source.ask, 3.0)
    with pytest.raises(NetworkError, match="no answer yet"):
        known.get(0.0)
    assert "no answer" in str(known.stale())
    source.may.set()
    assert known.get(180) == 1


def test_a_change_while_it_is_asked_is_asked_about_again(source: Source) -> None:
    known: Cached[int] = Cached(source.ask, 3600.0)
    assert known.get(180) == 1
    known.forget()
    source.may.clear()
    assert known.get(0.01) == 1
    known.forget()  # what is being asked may not have seen it
    source.may.set()
    until("an answer from after the change", lambda: known.get(1) == 3)
