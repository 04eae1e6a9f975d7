"""What people want of files and jobs in the ledger, whether they say it on the command line or in the console: which rows
are meant, and what is done about them. How a wish moves a row is in `flows/ledger/wishes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from flows.ledger import Ledger, State
    from flows.ledger.wishes import Chosen, Wish


class Meant(NamedTuple):
    """Files, by their numbers or by what they have in common."""

    ids: Sequence[int] = ()
    job: str | None = None
    flight: str | None = None
    device: str | None = None
    states: Sequence[str] = ()

    @property
    def whole_job(self) -> bool:
        """Whether a job is meant, and nothing narrower."""
        return self.job is not None and not (self.ids or self.flight or self.device or self.states)


class Done(NamedTuple):
    """How many rows were moved at once, for how many a wish was left for the run that works on them, and what became of
    the job, in words."""

    wish: str
    moved: int
    left: int
    job: str = ""

    def __str__(self) -> str:
        at_once, later = TOLD[self.wish]
        parts = [f"{self.moved} {at_once}"] if self.moved or not self.left else []
        if self.left:
            parts.append(f"{self.left} being delivered {later}")
        return ", ".join(parts) + (f"; {self.job}" if self.job else "")


TOLD = {
    "pause": ("paused", "will pause within a second or two"), "resume": ("queued again", "will not be paused"),
    "cancel": ("cancelled", "will be cancelled within a second or two"),
    "retry": ("queued again; the next run of their job takes them", ""),
}  # fmt: skip


def want(ledger: Ledger, what: str, meant: Meant, *, who: str) -> Done:
    """Grant a wish: pause, resume, cancel or retry. Files that are named must all fit it; of those that are described, the
    ones that fit are taken. Pausing or resuming a whole job holds or releases its runs. Raises ConfigError, and changes
    nothing, if there is nothing it could be granted to."""
    from blocks.errors import ConfigError
    from flows.ledger.wishes import Wish

    wish = Wish(what)
    chosen = fitting(ledger, wish, meant)
    held = _hold(ledger, wish, meant.job, who) if meant.whole_job and meant.job else ""
    if not chosen and not held:
        raise ConfigError(f"there are no such files that could be asked to {wish}")
    granted = ledger.grant(wish, chosen, who=who)
    return Done(what, granted.moved, granted.left, held)


def fitting(ledger: Ledger, wish: Wish, meant: Meant) -> list[Chosen]:
    """The rows that are meant, and, of those that are described and not named, the ones that fit. Raises ConfigError."""
    from flows.ledger.states import State
    from flows.ledger.wishes import refusal

    chosen = choose(ledger, meant)
    if meant.ids:
        return chosen
    # what is delivered is not asked for again unless it is named
    delivered = () if meant.states else (State.VERIFIED, State.CLEANUP_ELIGIBLE, State.DUPLICATE, State.RETIRED)
    return [row for row in chosen if refusal(wish, row) is None and row.state not in delivered]


def prioritise(ledger: Ledger, level: str, meant: Meant) -> int:
    """Give files another priority; how many. Raises ConfigError."""
    from blocks.errors import ConfigError
    from flows.ledger.wishes import Priority

    try:
        wanted = Priority[level.upper()]
    except KeyError:
        raise ConfigError(f"{level!r} is no priority; there are {', '.join(p.name for p in Priority)}") from None
    return ledger.prioritise(choose(ledger, meant), wanted)


def choose(ledger: Ledger, meant: Meant) -> list[Chosen]:
    """The rows that are meant. Raises ConfigError where nothing is said, and for a number, job or state that is none."""
    from blocks.errors import ConfigError

    if not (meant.ids or meant.job or meant.flight or meant.device or meant.states):
        raise ConfigError("say which files: numbers, or --job, --flight, --device and --state")
    if meant.job and meant.job not in ledger.jobs():
        raise ConfigError(
            f"there is no job {meant.job!r} in the ledger", remedy="`onblock transfers` shows those there are"
        )
    return ledger.choose(
        meant.ids, job=meant.job, flight=meant.flight, device=meant.device, states=states(meant.states)
    )


def states(given: Sequence[str] | None) -> list[State]:
    """States by their names. Raises ConfigError."""
    from blocks.errors import ConfigError
    from flows.ledger.states import State

    try:
        return [State(s.upper()) for s in given or []]
    except ValueError as error:
        raise ConfigError(f"{error}; there are {', '.join(State)}") from error


def _hold(ledger: Ledger, wish: Wish, job: str, who: str) -> str:
    """Put a whole job on hold, or release it; what was done."""
    if wish == "pause":
        ledger.hold(job, who=who)
        return f"runs of {job} move nothing until `onblock transfers resume --job {job}`"
    if wish == "resume" and ledger.release(job):
        return f"runs of {job} move files again"
    return ""
