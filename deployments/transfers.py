"""`onblock transfers`: files in the ledger, listed; and what people want of them."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.told import as_json as row_as_json
from deployments.told import noted, print_json

if TYPE_CHECKING:
    from flows.ledger.wishes import Chosen, Wish

transfers = typer.Typer(
    help="Look at files in the ledger; pause, resume, cancel them, or ask for them again.", invoke_without_command=True
)

JobName = Annotated[str | None, typer.Option("--job", help="Only files of this job.")]
Flight = Annotated[str | None, typer.Option("--flight", help="Only files of this flight.")]
Device = Annotated[str | None, typer.Option("--device", help="Only files of this device.")]
States = Annotated[list[str] | None, typer.Option("--state", help="Only files in this state; may be given again.")]
Ids = Annotated[list[int] | None, typer.Argument(help="Numbers as `transfers list` shows them.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")]


@transfers.callback()
def overview(context: typer.Context) -> None:
    """Without a command: how many files of each job are in which state."""
    if context.invoked_subcommand is not None:
        return
    from flows.ledger import Ledger

    with Ledger.open(create=False) as ledger:
        counts = ledger.counts()
    if not counts:
        print("the ledger is empty: nothing has been run yet")
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("job", "destination", "state", "files", "size")
    for job, destination, state, files, size in counts:
        table.add_row(job, destination, state, f"{files:,}", decimal(size))
    Console().print(table)


@transfers.command("list")
def transfers_list(
    job: JobName = None, state: States = None, as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
) -> None:  # fmt: skip
    """List files with their state, and what is wrong with them."""
    from blocks import names
    from flows.ledger import Ledger

    with Ledger.open(create=False) as ledger:
        rows = list(ledger.files(job=job, states=_states(state), limit=limit))
    if as_json:
        print_json({"files": [row_as_json(r) for r in rows]})
        return
    if not rows:
        print("there are no such files; `onblock transfers` shows how many are in which state")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("id", "job", "file", "bytes", "state", "kind", "what happened")
    for r in rows:
        table.add_row(
            str(r["id"]), r["job"], Text(names.display(r["path"])), f"{r['size']:,}", r["state"], r["kind"] or "",
            Text(names.display(r["message"]) if r["message"] else noted(r["findings"])),
        )  # fmt: skip
    Console().print(table)
    if len(rows) == limit:
        print(f"these are the first {limit}; `--limit` shows more")


# -- what people want -----------------------------------------------------------------------------------------------


@transfers.command()
def pause(
    ids: Ids = None, job: JobName = None, flight: Flight = None, device: Device = None, state: States = None
) -> None:
    """Stop files where they are, keeping what has arrived; with --job alone, the whole job until it is resumed."""
    _do("pause", ids, job, flight, device, state)


@transfers.command()
def resume(
    ids: Ids = None, job: JobName = None, flight: Flight = None, device: Device = None, state: States = None
) -> None:
    """Let paused files go on where they were: the next run of their job takes them."""
    _do("resume", ids, job, flight, device, state)


@transfers.command()
def cancel(
    ids: Ids = None, job: JobName = None, flight: Flight = None, device: Device = None, state: States = None
) -> None:
    """Give files up that are not delivered. What has arrived of them is removed by the next run of their job."""
    _do("cancel", ids, job, flight, device, state)


@transfers.command()
def retry(
    ids: Ids = None, job: JobName = None, flight: Flight = None, device: Device = None, state: States = None
) -> None:
    """Queue files once more and at once, delivered and deferred ones too: the next run of their job takes them."""
    _do("retry", ids, job, flight, device, state)


@transfers.command()
def priority(
    level: Annotated[str, typer.Argument(help="LOW, NORMAL, HIGH or URGENT.")],
    ids: Ids = None, job: JobName = None, flight: Flight = None, device: Device = None, state: States = None,
) -> None:  # fmt: skip
    """Say which files go first: HIGH and URGENT before everything else of their job, LOW after it."""
    from blocks.errors import ConfigError
    from flows.ledger import Ledger
    from flows.ledger.wishes import Priority

    try:
        wanted = Priority[level.upper()]
    except KeyError:
        raise ConfigError(f"{level!r} is no priority; there are {', '.join(p.name for p in Priority)}") from None
    with Ledger.open() as ledger:
        count = ledger.prioritise(_chosen(ledger, ids, job, flight, device, state), wanted)
    print(f"{count} now {wanted.name}")


def _chosen(ledger: Any, ids: Any, job: Any, flight: Any, device: Any, state: Any) -> list[Chosen]:
    from blocks.errors import ConfigError

    if not (ids or job or flight or device or state):
        raise ConfigError("say which files: numbers, or --job, --flight, --device and --state")
    if job and job not in ledger.jobs():
        raise ConfigError(f"there is no job {job!r} in the ledger", remedy="`onblock transfers` shows those there are")
    return ledger.choose(ids or (), job=job, flight=flight, device=device, states=_states(state))


def _do(what: str, ids: Any, job: Any, flight: Any, device: Any, state: Any) -> None:
    """Grant a wish. Files that are named must all fit it; of those that are described, the ones that fit are taken."""
    from blocks.errors import ConfigError
    from flows.ledger import Ledger, State
    from flows.ledger.wishes import Wish, refusal

    wish = Wish(what)
    with Ledger.open() as ledger:
        chosen = _chosen(ledger, ids, job, flight, device, state)
        whole = job is not None and not (ids or flight or device or state)
        if not ids:
            delivered = (
                () if state else (State.VERIFIED, State.CLEANUP_ELIGIBLE, State.DUPLICATE)
            )  # not unless they are named
            chosen = [row for row in chosen if refusal(wish, row) is None and row.state not in delivered]
        held = _hold(ledger, wish, job) if whole and job else False
        if not chosen and not held:
            raise ConfigError(f"there are no such files that could be asked to {wish}")
        granted = ledger.grant(wish, chosen, who=getpass.getuser())
    print(_told(wish, granted.moved, granted.left) + (f"; {held}" if held else ""))


def _hold(ledger: Any, wish: Wish, job: str) -> str:
    """Put a whole job on hold, or release it; what was done."""
    if wish == "pause":
        ledger.hold(job, who=getpass.getuser())
        return f"runs of {job} move nothing until `onblock transfers resume --job {job}`"
    if wish == "resume" and ledger.release(job):
        return f"runs of {job} move files again"
    return ""


DONE = {
    "pause": ("paused", "will pause within a second or two"), "resume": ("queued again", "will not be paused"),
    "cancel": ("cancelled", "will be cancelled within a second or two"),
    "retry": ("queued again; the next run of their job takes them", ""),
}  # fmt: skip


def _told(wish: str, moved: int, left: int) -> str:
    at_once, later = DONE[wish]
    parts = [f"{moved} {at_once}"] if moved or not left else []
    if left:
        parts.append(f"{left} being delivered {later}")
    return ", ".join(parts)


def _states(given: list[str] | None) -> list[Any]:
    from blocks.errors import ConfigError
    from flows.ledger import State

    try:
        return [State(s.upper()) for s in given or []]
    except ValueError as error:
        raise ConfigError(f"{error}; there are {', '.join(State)}") from error
