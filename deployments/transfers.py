"""`onblock transfers`: files in the ledger, listed; and what people want of them."""

from __future__ import annotations

import getpass
from typing import Annotated, Any

import typer

from deployments import wanted
from deployments.told import as_json as row_as_json
from deployments.told import noted, print_json

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
        rows = list(ledger.files(job=job, states=wanted.states(state), limit=limit))
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
            str(r["id"]), r["job"], Text(_shown(r)), f"{r['size']:,}", r["state"], r["kind"] or "",
            Text(names.display(r["message"]) if r["message"] else noted(r["findings"])),
        )  # fmt: skip
    Console().print(table)
    if len(rows) == limit:
        print(f"these are the first {limit}; `--limit` shows more")


def _shown(row: dict[str, Any]) -> str:
    """A file by its path at the source; what was made of one by where it goes."""
    from blocks import names
    from flows.ledger.rows import MADE

    if row["etag"] != MADE:
        return names.display(row["path"])
    return f"-> {names.display(row['dest_path'] or row['path'])}"


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
    from flows.ledger import Ledger

    with Ledger.open() as ledger:
        count = wanted.prioritise(ledger, level, _meant(ids, job, flight, device, state))
    print(f"{count} now {level.upper()}")


def _do(what: str, ids: Any, job: Any, flight: Any, device: Any, state: Any) -> None:
    from flows.ledger import Ledger

    with Ledger.open() as ledger:
        print(wanted.want(ledger, what, _meant(ids, job, flight, device, state), who=getpass.getuser()))


def _meant(ids: Any, job: Any, flight: Any, device: Any, state: Any) -> wanted.Meant:
    return wanted.Meant(ids or (), job, flight, device, state or ())
