"""`onblock import-fileflow`: the jobs of a FileFlow workspace as jobs of onblock. What a job becomes is in `fileflow.py`."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import available_timezones

import typer

from blocks import names
from blocks.errors import ConfigError, OnblockError
from deployments.told import print_json

if TYPE_CHECKING:
    from deployments.imports.fileflow import Translated
    from deployments.imports.history import History


def import_fileflow(
    jobs_file: Annotated[
        Path, typer.Argument(metavar="jobs.yaml", help="FileFlow's jobs: `configs/jobs.yaml` of its workspace, or the workspace.")
    ],
    env: Annotated[
        Path | None, typer.Option(help="FileFlow's environment; `.env` of the workspace if not given.")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write a NAME.yaml for each job into it.")] = None,
    deploy: Annotated[bool, typer.Option("--deploy", help="Make blocks and deployments of them at PREFECT_API_URL.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a NAME.yaml that says something else.")] = False,
    timezone: Annotated[
        str | None, typer.Option(help="Where FileFlow's schedules are at home, such as Europe/Berlin; this machine's zone.")
    ] = None,
    transfers_db: Annotated[
        Path | None, typer.Option(help="FileFlow's records, `data/tracking.db` of the workspace: say what it has delivered.")
    ] = None,
    skip_delivered: Annotated[
        bool, typer.Option("--skip-delivered", help="Do not send, and do not look at, what these records say is there.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")
    ] = False,
) -> None:  # fmt: skip
    """Carry FileFlow's jobs over, and say what becomes of each part. Without --to or --deploy, only say it."""
    from deployments.imports.fileflow import ALWAYS, translate
    from deployments.imports.findings import Around
    from deployments.imports.history import History
    from deployments.imports.workspace import check_variables, folder_of, read_environment, read_jobs

    if skip_delivered and (transfers_db is None or not (to or deploy)):
        raise ConfigError("--skip-delivered goes with --transfers-db, and with --to or --deploy")
    if timezone is not None and timezone not in available_timezones():
        raise ConfigError(f"{timezone!r} is no IANA time zone, such as Europe/Berlin or UTC")
    if jobs_file.is_dir():
        jobs_file = jobs_file / "configs" / "jobs.yaml"
    jobs, folder = read_jobs(jobs_file), folder_of(jobs_file)
    environment = read_environment(env, folder)
    check_variables(jobs, environment, jobs_file)
    around = Around(folder, getpass.getuser(), timezone or local_zone(), environment)
    taken: dict[str, str] = {}
    made = [translate(job, around, taken) for job in jobs]
    if len({one.name for one in made}) < len(made):
        raise ConfigError("two jobs would have the same name", path=str(jobs_file), remedy="rename one")
    carried = [one for one in made if one.document is not None]
    history = None if transfers_db is None else History(transfers_db)
    try:
        told = {one.job_id: history.told(one.job_id)._asdict() for one in made} if history else {}
        trouble = False
        if to or deploy:
            files = _checked(carried, to, deploy=deploy, replace=replace)
            if history and skip_delivered:  # before a run of theirs can begin
                trouble = _skip(carried, history, told)
            _carry(carried, to, files, deploy=deploy)
    finally:
        if history:
            history.close()
    if as_json:
        from deployments.imports.writing import as_json as job_as_json
        from deployments.imports.writing import file_of

        print_json({
            "workspace": str(folder), "timezone": around.timezone, "differences": list(ALWAYS),
            "jobs": [
                job_as_json(one, to and file_of(to, one), deploy) | {"fileflow": told.get(one.job_id)} for one in made
            ],
        })  # fmt: skip
    else:
        _print(made, told, to, deploy)
    raise typer.Exit(1 if trouble or len(carried) < len(made) else 0)


def local_zone() -> str:
    """The time zone of this machine: TZ, or what /etc/localtime leads to; UTC if neither says."""
    for name in (os.environ.get("TZ", "").lstrip(":"), os.path.realpath("/etc/localtime").rpartition("/zoneinfo/")[2]):
        if name in available_timezones():
            return name
    return "UTC"


def _checked(
    carried: list[Translated], to: Path | None, *, deploy: bool, replace: bool
) -> list[tuple[Path, str]]:  # fmt: skip
    """The files to write. What can be refused is refused here, before anything is written, deployed or entered."""
    from deployments.imports.writing import check_folder, file_of, text_of

    files = [(file_of(to, one), text_of(one, deployed=deploy)) for one in carried] if to else []
    if to:
        check_folder(to, files, replace=replace)
    if deploy:
        from deployments.bootstrap import connect

        with connect():  # it is there, and is one
            pass
    return files


def _carry(carried: list[Translated], to: Path | None, files: list[tuple[Path, str]], *, deploy: bool) -> None:
    """Deploy and write."""
    if deploy:
        from deployments.bootstrap import bootstrap

        bootstrap([one.job for one in carried if one.job is not None])
    if to:
        from deployments.imports.writing import write_all

        write_all(to, files)


def _skip(carried: list[Translated], history: History, told: dict[str, dict[str, Any]]) -> bool:
    """Enter into the ledger what FileFlow says it has delivered; whether a source could not be listed."""
    from deployments.imports.findings import Finding, How
    from deployments.imports.history import skip_delivered
    from flows.ledger import Ledger

    trouble = False
    with Ledger.open() as ledger:
        for one in carried:
            if one.job is None or not told[one.job_id]["delivered"]:
                continue
            try:
                told[one.job_id]["skipped"] = vars(skip_delivered(one.job, one.job_id, history, ledger))
            except OnblockError as error:
                trouble = True
                one.findings.append(Finding("transfers-db", How.NOT, f"its source cannot be listed: {error}"))
    return trouble


def _print(made: list[Translated], told: dict[str, dict[str, Any]], to: Path | None, deploy: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from deployments.imports.fileflow import ALWAYS
    from deployments.imports.writing import file_of

    console = Console(highlight=False)
    for one in made:
        table = Table("what", "", "how", title=Text(names.display(one.job_id)), title_justify="left")
        for finding in one.findings:
            table.add_row(Text(finding.about), Text(finding.how.value), Text(names.display(finding.text)))
        console.print(table)
        if one.document is None:
            console.print("  no job is made of it", markup=False)
        elif to:
            console.print(f"  written: {names.display(str(file_of(to, one)))}", markup=False, soft_wrap=True)
        if one.document and deploy:
            console.print(f"  deployed: transfer/{one.name}", markup=False)
        if said := told.get(one.job_id):
            console.print(f"  {_said(said)}", markup=False, soft_wrap=True)
    console.print("In every job:")
    for line in ALWAYS:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if not (to or deploy):
        console.print(
            "Nothing is written: --to FOLDER writes the jobs, --deploy brings them to a Prefect server", soft_wrap=True
        )


def _said(said: dict[str, Any]) -> str:
    """What FileFlow's records say of a job, and what was made of it."""
    text = f"FileFlow says that it delivered {said['delivered']} files, {said['unconfirmed']} of which it could not confirm"
    if (skipped := said.get("skipped")) is None:
        return f"{text}; a run sends what is at the source once more, and adopts what is there with the same content"
    rest = [f"{skipped[k]} {what}" for k, what in (
        ("known", "were known"), ("changed", "have changed since"), ("unconfirmed", "are not confirmed"),
        ("unknown", "it does not know"),
    ) if skipped[k]]  # fmt: skip
    return f"{text}; {skipped['entered']} at the source are skipped" + "".join(f", {r}" for r in rest)
