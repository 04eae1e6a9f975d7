"""What is done with a database that is away: waited for, and asked once more for what was lost in the middle.

A database that is locked, stopped or restarted for a while is no reason to end a run. Where it does not let anybody
begin, `Connections` waits (`Waiting`); where it goes away in the middle of a transaction, what is named in `TWICE` is done
again: each of these either leaves a second time nothing to do, or finds by state and attempt that it is done, where need be
of what it wrote down for itself the first time.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from blocks.errors import NetworkError

T = TypeVar("T")
log = logging.getLogger("onblock.ledger")

PATIENCE_S = 60.0
"""So long a database that does not answer is waited for; as long as a lease, after which others take over anyway."""
HURRY_S = 2.0
"""And so long where the run is to stop."""
FIRST_S, MOST_S = 0.05, 1.0
"""Between two tries."""


class Waiting:
    """How long a thread still waits. `giving_up` says that it is to stop."""

    def __init__(self, patience_s: float, giving_up: threading.Event):
        self._began = time.monotonic()
        self._patience_s, self._giving_up = patience_s, giving_up
        self._delay = FIRST_S
        self._told = False

    def over(self) -> bool:
        """Whether there was enough of it."""
        most = min(self._patience_s, HURRY_S) if self._giving_up.is_set() else self._patience_s
        return time.monotonic() - self._began >= most

    def pause(self, error: NetworkError) -> None:
        """Until the next try. Raises the error instead when it was enough."""
        if self.over():
            raise error
        log.log(logging.DEBUG if self._told else logging.WARNING, "%s; tried again", error.what)
        self._told = True
        if self._giving_up.is_set():
            time.sleep(self._delay)
        else:
            self._giving_up.wait(self._delay)
        self._delay = min(self._delay * 2, MOST_S)


TWICE = (
    "_claim", "_finish", "_requeue", "_settle_origins", "ask_turn", "drop_offers", "leader", "offer", "offer_done", "open_offers", "settled_offers", "take_offer", "withdraw_offers",
    "labels_of", "link", "made_before", "products_of", "same_origin", "unmake", "wanted", "untimed",
    "backup_gone", "begin_run", "claim_manifest", "cleaned", "cleared", "compare", "condemn_cleanup", "crowd",
    "end_run", "enter", "heartbeat", "held", "holds_cleanup", "holds_manifest", "holds_retired", "judged",
    "known_content", "leave_line", "let_go", "manifest", "manifest_written", "mark_damaged", "mark_seen", "moor", "next_attempt", "note",
    "proven", "read_all", "recover_runs", "replaced", "reserve", "reserved", "retired", "route", "settle_rows", "spared",
    "still_queued", "unmoor", "unretire", "wishes",
)  # fmt: skip
"""Methods of the ledger that may be called twice for once."""


def once_more(cls: type[T]) -> type[T]:
    """Of a class of `Connections`: its methods that are named above survive a database that goes away in their middle."""
    for name in TWICE:
        setattr(cls, name, _again(getattr(cls, name)))
    return cls


def _again(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **keys: Any) -> Any:
        waiting = Waiting(self.patience_s, self.giving_up)
        while True:
            try:
                return method(self, *args, **keys)
            except NetworkError as error:
                waiting.pause(error)

    return call
