"""Waiting for one's turn before a task asks Prefect for its slots. Who is next is decided in `flows/ledger/turns.py`."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from blocks.errors import OnblockError
from flows.ledger import Ledger

log = logging.getLogger("onblock.transfer")

LOOK_S = 0.25
"""Whoever waits asks so often."""
LIMITS_S = 30.0
"""Limits that somebody changes are known so late."""


class Turns:
    """The turns of one run. `limits` are asked for again by `ask_limits`, which may fail; `stop` ends all waiting."""

    def __init__(
        self, ledger: Ledger, run_id: str, stop: threading.Event, limits: Mapping[str, int],
        ask_limits: Callable[[], Mapping[str, int]],
    ):  # fmt: skip
        self._ledger, self._run_id, self._stop = ledger, run_id, stop
        self._limits, self._ask_limits, self._asked = limits, ask_limits, time.monotonic()
        self._lock = threading.Lock()
        self._waiting: defaultdict[tuple[str, ...], threading.Lock] = defaultdict(threading.Lock)
        self._holding: Counter[tuple[str, ...]] = Counter()

    @contextmanager
    def turn(self, tags: Sequence[str]) -> Iterator[None]:
        """When it is the run's turn to have a slot of each of these tags, or nobody can tell."""
        mine = tuple(sorted(tags))
        with self._waiting[mine]:  # one in the line for each
            got = self._wait(mine)
        try:
            yield
        finally:
            if got:
                self._let_go(mine)

    def _wait(self, tags: tuple[str, ...]) -> bool:
        while not self._stop.is_set():
            try:
                with self._lock:
                    if self._ledger.ask_turn(self._run_id, tags, self._holding[tags], self._known_limits()):
                        self._holding[tags] += 1
                        return True
            except OnblockError as error:
                log.warning("nobody can be asked whose turn it is: %s", error)
                return False
            self._stop.wait(LOOK_S)
        return False

    def _let_go(self, tags: tuple[str, ...]) -> None:
        with self._lock:
            self._holding[tags] -= 1
            try:
                self._ledger.let_go(self._run_id, tags, self._holding[tags])
            except OnblockError as error:  # the next that this run asks for says it again
                log.warning("a turn has ended, and nobody can be told: %s", error)

    def _known_limits(self) -> Mapping[str, int]:
        if time.monotonic() - self._asked >= LIMITS_S:
            self._asked = time.monotonic()
            self._limits = {**self._limits, **self._ask_limits()}
        return self._limits

    def leave(self) -> None:
        """The run wants nothing any more."""
        try:
            self._ledger.leave_line(self._run_id)
        except OnblockError as error:  # it counts for nothing when it has ended
            log.warning("%s", error)
