"""SIGINT and SIGTERM: the first puts everything down in order, another one does not wait for that.

The first becomes a SystemExit in the main thread, but not in the middle of just any code: in the ledger or its driver
it would leave a transaction open, which every other thread then waits for (SQLite: 30 s), and in a destructor it is
lost. So it waits until the main thread is somewhere else, for a few seconds at most. Whatever happens then, also if it
is swallowed or something hangs, after a grace the process ends at once: what it leaves is cleared up by the next run.

A program that runs until it is asked to end hears them itself (`heard_by`), also one that came before it was ready to.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]

CODES = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a program that was interrupted."""
PATIENCE_S = 5.0
"""How long the main thread may be where it should not be interrupted."""
GRACE_S = 25.0
"""From the signal to the end, whatever happens."""
LOOK_EVERY_S = 0.01

DELICATE = ("flows.ledger", "sqlalchemy", "alembic", "psycopg", "concurrent.futures.thread", "importlib", "logging",
            "weakref", "_weakrefset")  # fmt: skip
"""Modules, and those below them, that do not expect to be broken off anywhere."""
DELICATE_FUNCTIONS = {"__enter__", "__exit__", "__del__"}


class _Asked:
    """What was asked of this process, and since when."""

    number = 0
    since = 0.0
    told = False  # SystemExit was raised
    grace_s = GRACE_S
    handler: Handler | None = None  # who hears them instead


def listen(grace_s: float = GRACE_S) -> None:
    """From now on the signals are heard. In the main thread only."""
    _Asked.grace_s = grace_s
    signal.signal(signal.SIGINT, _first)
    signal.signal(signal.SIGTERM, _first)


@contextmanager
def heard_by(handler: Handler, numbers: Iterable[int] = (signal.SIGINT, signal.SIGTERM)) -> Generator[None]:
    """`handler` hears these signals instead, and at once the one that came before and waits for a place to be raised."""
    _Asked.handler = handler
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        if _Asked.number and not _Asked.told:
            signal.setitimer(signal.ITIMER_REAL, 0)
            handler(_Asked.number, None)
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
        _Asked.handler = None


def leave() -> None:
    """Everything is said and done: from here on a signal ends the process at once."""
    signal.signal(signal.SIGINT, _at_once)
    signal.signal(signal.SIGTERM, _at_once)


def delicate(frame: FrameType | None) -> bool:
    """Whether code that runs in this frame, for itself or for a caller, should not be broken off."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name in DELICATE_FUNCTIONS or any(
            module == name or module.startswith(f"{name}.") for name in DELICATE
        ):
            return True
        frame = frame.f_back
    return False


def _first(number: int, frame: FrameType | None) -> None:
    if _Asked.handler is not None:  # whose turn began this very moment
        _Asked.handler(number, frame)
        return
    _Asked.number, _Asked.since = number, time.monotonic()
    leave()
    signal.signal(signal.SIGALRM, _look)
    _look(number, frame)


def _look(_: int, frame: FrameType | None) -> None:
    """Raise, wait a little more, or end it, as the time and the frame have it."""
    if _Asked.handler is not None:
        return
    waited = time.monotonic() - _Asked.since
    if waited >= _Asked.grace_s:
        _at_once(_Asked.number, frame)
    left = _Asked.grace_s - waited
    if _Asked.told or (waited < PATIENCE_S and delicate(frame)):
        signal.setitimer(signal.ITIMER_REAL, left if _Asked.told else min(left, LOOK_EVERY_S))
        return
    _Asked.told = True
    signal.setitimer(signal.ITIMER_REAL, left)
    raise SystemExit(128 + _Asked.number)


def _at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, b"onblock: stopped at once; run it again to go on\n")
    os._exit(128 + number)
