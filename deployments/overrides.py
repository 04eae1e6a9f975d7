"""`onblock overrides`: who lets files pass in spite of a finding of the gate, and why."""

from __future__ import annotations

import getpass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.told import print_json

if TYPE_CHECKING:
    from flows.ledger.overrides import Override
    from flows.transfer.job import TransferJob

overrides = typer.Typer(help="Let files pass in spite of a finding of the gate; see who did, and take it back.")

Why = Annotated[str, typer.Option("--why", help="The reason, in a line. It is kept.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")]


@overrides.command()
def add(
    job: Annotated[str, typer.Argument(help="The name of the job, or its JOB.yaml.")],
    rule: Annotated[str, typer.Argument(help="The rule, as the finding names it.")],
    pattern: Annotated[str, typer.Argument(help="Which files: a pattern of source paths, as `include` has them.")],
    why: Why = "",
    expires: Annotated[str | None, typer.Option(help="How long it holds (7d, 12h), or until when (2027-01-31).")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Let files of a job pass in spite of what a rule finds. The next run takes those that were blocked."""
    from flows.ledger import Ledger
    from flows.transfer.gate import override

    until = None if expires is None else moment(expires)
    with Ledger.open() as ledger:
        made = override(ledger, _job(job), rule, pattern, who=getpass.getuser()[:100], why=why, expires_at=until)
    if as_json:
        print_json({"override": _as_json(made)})
        return
    ends = "until it is revoked" if made.expires_at is None else f"until {_shown(made.expires_at)}"
    print(f"override {made.id}: files of {made.job} that match {_text(made.path)} pass {made.rule}, {ends}; "
          "the next run takes them")  # fmt: skip


@overrides.command("list")
def overrides_list(
    job: Annotated[str | None, typer.Option("--job", help="Only those of this job.")] = None, as_json: Json = False
) -> None:
    """List overrides, those that no longer hold too."""
    from flows.ledger import Ledger

    with Ledger.open(create=False) as ledger:
        found = ledger.overrides(job)
    if as_json:
        print_json({"overrides": [_as_json(o) for o in found]})
        return
    if not found:
        print("there are no overrides")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("id", "job", "rule", "files", "who", "why", "made", "state")
    for o in found:
        state = _state(o)
        if o.revoked is not None:
            state += f" by {o.revoked.who}: {o.revoked.why}"
        elif o.expires_at is not None:
            state += f", {_shown(o.expires_at)}"
        table.add_row(str(o.id), o.job, o.rule, Text(_text(o.path)), o.who, Text(o.why), _shown(o.made_at), Text(state))
    Console().print(table)


@overrides.command()
def revoke(
    number: Annotated[int, typer.Argument(metavar="ID", help="The number, as `overrides list` shows it.")],
    why: Why = "",
) -> None:
    """Take an override back. What was delivered stays; what waits is blocked again, and nothing of it is cleaned up."""
    from flows.ledger import Ledger

    with Ledger.open() as ledger:
        taken = ledger.revoke(number, who=getpass.getuser()[:100], why=why)
    print(
        f"override {taken.id} is revoked: files of {taken.job} that match {_text(taken.path)} no longer pass {taken.rule}"
    )


def _job(given: str) -> TransferJob | str:
    """A job by its JOB.yaml, or the name of one that has run."""
    if not given.endswith((".yaml", ".yml")) or not Path(given).exists():
        return given
    from flows.transfer.job import load_job

    return load_job(given)


def moment(given: str) -> int:
    """ms since the epoch, from a duration from now on, or a date and time of this machine's zone."""
    from pydantic import TypeAdapter, ValidationError

    from blocks.errors import ConfigError
    from flows.transfer.form import Duration

    now = datetime.now().astimezone()
    try:
        try:
            until = datetime.fromisoformat(given).astimezone()
        except ValueError:
            until = now + TypeAdapter(Duration).validate_python(given)
    except (ValidationError, OverflowError):
        raise ConfigError(f"{given!r} is no time; write such as 7d, 12h or 2027-01-31") from None
    if until > now + timedelta(days=36_500):
        raise ConfigError(f"{given!r} is more than a hundred years away", remedy="leave --expires out")
    return int(until.timestamp() * 1000)


def _state(found: Override) -> str:
    from flows.ledger.store import now_ms

    if found.revoked is not None:
        return "revoked"
    return "active" if found.is_active(now_ms()) else "expired"


def _as_json(found: Override) -> dict[str, Any]:
    revoked = found.revoked and found.revoked._asdict()
    return found._asdict() | {"path": _text(found.path), "state": _state(found), "revoked": revoked}


def _text(pattern: str) -> str:
    from blocks import names

    return pattern if pattern.isprintable() else names.display(pattern)


def _shown(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000).astimezone():%Y-%m-%d %H:%M %Z}"
