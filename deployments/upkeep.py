"""`onblock clean | retention | scrub`: what is done with files after they are delivered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.told import print_json

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job whose files it is about.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; nothing is touched, the ledger neither.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(clean)
    app.command()(retention)
    app.command()(scrub)
    app.command()(recover)


def clean(job_file: JobFile, dry_run: Dry = False, as_json: Json = False) -> None:
    """Take away from the source what is proven at every destination, as the job's `cleanup` says."""
    from flows.transfer.job import load_job
    from flows.upkeep import told
    from flows.upkeep.clean import clean as clean_here

    summary = clean_here(load_job(job_file), dry=dry_run)
    text, well = told.clean(summary)
    if not as_json:
        print(f"{summary['job']}: {text}")
        for reason, count in sorted(summary["waiting"].items(), key=lambda item: -item[1]):
            print(f"  {count} stay: {reason}")
        for outcome, label in (("damaged", "DAMAGED"), ("unverified", "NOT VERIFIED"), ("kept", "LEFT ALONE")):
            for entry in summary["files"][outcome]:
                print(f"  {label} {entry['path']}: {entry['why']}")
    _end(summary, well, as_json)


def retention(
    job_file: JobFile,
    dry_run: Dry = False,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget-missing", help="Forget backups that somebody has removed. Put in the card that had them."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove backups and delivered files that are beyond the limits of the job's `retention`, after another look at each."""
    from flows.transfer.job import load_job
    from flows.upkeep import told
    from flows.upkeep.retention import retain

    summary = retain(load_job(job_file), dry=dry_run, forget=forget)
    text, well = told.retention(summary)
    if not as_json:
        print(f"{summary['job']}: {text}")
        for one in summary.get("delivered", ()):
            for reason, count in sorted(one["waiting"].items(), key=lambda item: -item[1]):
                print(f"  {count} stay: {reason}")
        for entry in [*summary.get("kept", ()), *(k for one in summary.get("delivered", ()) for k in one["kept"])]:
            print(f"  KEPT {entry['path']}: {entry['why']}")
    _end(summary, well, as_json)


def scrub(
    job_file: JobFile,
    part: Annotated[str | None, typer.Option(help="How much, such as 1/30; 1/1 is everything.")] = None,
    as_json: Json = False,
) -> None:
    """Read back a part of what was delivered, the longest unproven first; what is damaged is queued again."""
    from blocks.errors import ConfigError
    from flows.transfer.aftercare import parse_part
    from flows.transfer.job import load_job
    from flows.upkeep import told
    from flows.upkeep.scrub import scrub as scrub_here

    try:
        parse_part(part or "1/1")
    except ValueError as error:
        raise ConfigError(f"--part: {error}") from None
    summary = scrub_here(load_job(job_file), part=part)
    text, well = told.scrub(summary)
    if not as_json:
        print(f"{summary['job']}: {text}")
        for entry in summary["damaged"]:
            print(f"  DAMAGED {entry['path']}: {entry['problem']}" + ("; queued again" if entry["requeued"] else ""))
        for entry in summary["unverified"]:
            print(f"  NOT VERIFIED {entry['path']}: {entry['problem']}")
    _end(summary, well, as_json)


def recover(as_json: Json = False) -> None:
    """Free the files that dead runs still hold, as each run does when it begins. A live run is never robbed."""
    from flows.ledger import Ledger

    with Ledger.open() as ledger:
        found = ledger.recover_runs()
    if as_json:
        print_json({"runs": [one._asdict() for one in found]})
        return
    for one in found:
        print(f"{one.job}: run {one.run_id} is dead, silent for {one.silent_s:.0f} s; {one.files} files are free again")
    if not found:
        print("no run is dead")


def _end(summary: dict[str, Any], well: bool, as_json: bool) -> None:
    if as_json:
        print_json(summary)
    raise typer.Exit(0 if well else 1)
