"""The command line `onblock`. What each command does is in `flows/`; here are words, options and exit codes.

Exit codes: 0 all is where it belongs; 1 some files are not, or could not be verified; 2 the job, the options or the
machine are not fit to run it; 130 and 143 interrupted.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments import interrupt
from deployments.access import access
from deployments.hooks import hook
from deployments.imports.command import import_fileflow
from deployments.notify import notify
from deployments.overrides import overrides
from deployments.parts import register as register_parts
from deployments.recordings import register as register_recordings
from deployments.server import RUNS_AT_ONCE
from deployments.timeline import recording
from deployments.told import as_json as _as_json
from deployments.told import print_json as _print_json
from deployments.transfers import transfers
from deployments.upkeep import register as register_upkeep

if TYPE_CHECKING:
    from flows.transfer.job import TransferJob
    from flows.transfer.progress import Meter, Receipt
    from flows.transfer.shipment import Shipment

app = typer.Typer(
    name="onblock", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Take recordings off devices when a flight ends, and bring them verified to storage.",
)  # fmt: skip
app.add_typer(transfers, name="transfers")
app.add_typer(overrides, name="overrides")
app.add_typer(hook, name="hook")
app.add_typer(access, name="access")
app.add_typer(notify, name="notify")
app.add_typer(recording, name="recording")

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job to run: see the README for its keys.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")]
Flight = Annotated[str | None, typer.Option(help="The flight the files belong to: {flight} in the job's path.")]
Device = Annotated[str | None, typer.Option(help="The device they come from: {device}, and its limit of tasks.")]


# -- run, plan, verify ----------------------------------------------------------------------------------------------


@app.command()
def run(
    job_file: JobFile, flight: Flight = None, device: Device = None, as_json: Json = False,
    files: Annotated[bool, typer.Option("--files", help="With --json: list every file of this run.")] = False,
) -> None:  # fmt: skip
    """Run a job now, in this process. A flow run where PREFECT_API_URL is set, else without Prefect's API."""
    from flows.transfer.job import load_job
    from flows.transfer.story import all_well, run_here

    job = load_job(job_file)
    if _api_url():
        summary = _flow_run(job, flight, device)
    else:
        with _Bar(job.name, quiet=as_json) as bar:
            summary = run_here(job, flight=flight, device=device, watcher=bar)
    if as_json:
        _print_json(summary | ({"files": _files_of(summary["run_id"])} if files else {}))
    else:
        _print_summary(summary)
    raise typer.Exit(0 if all_well(summary) else 1)


def _flow_run(job: TransferJob, flight: str | None, device: str | None) -> dict[str, Any]:
    from blocks.errors import NetworkError
    from deployments import trust
    from flows.transfer.flow import transfer

    _told_by_prefect()
    with trust.client() as client:
        if (trouble := client.api_healthcheck()) is not None:
            raise NetworkError(
                f"no Prefect server answers at {_api_url()}: {trouble}",
                remedy=trust.remedy(trouble, "start it (`onblock up`), or unset PREFECT_API_URL to run without one"),
            )
    state: Any = transfer.with_options()(job, flight=flight, device=device, return_state=True)  # pyright: ignore
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return result


@app.command()
def plan(
    job_file: JobFile, flight: Flight = None, device: Device = None, as_json: Json = False,
    limit: Annotated[int, typer.Option(min=0, help="Show at most so many files.")] = 50,
) -> None:  # fmt: skip
    """Show what a run would do. Nothing is touched, the ledger neither."""
    from blocks import names
    from flows.ledger import Ledger
    from flows.transfer.job import load_job
    from flows.transfer.run import TransferRun
    from flows.transfer.story import shipments

    job = load_job(job_file)
    listed: list[dict[str, Any]] = []
    count = size = number = 0
    with Ledger.open(create=False) as ledger, TransferRun(job, ledger, flight=flight, device=device, dry=True) as dry:
        dry.gate.remember = limit
        for shipment in shipments(dry):
            number += 1
            for item in shipment.items:
                count += len(item.legs)
                size += item.file.size * len(item.legs)
                for leg in item.legs:
                    if len(listed) < limit:
                        place = job.destinations[leg.way].place()
                        listed.append({
                            "path": names.display(item.file.path), "size": item.file.size, "shipment": number,
                            "to": f"{place}/{names.display(leg.dest_path)}",
                        })  # fmt: skip
        total, scanned = dry.meter.total, dry.scanned
        findings = [
            {
                "path": names.display(p.file.path),
                "blocked": p.dest_path is None,
                "findings": [f._asdict() for f in p.findings],
            }
            for p in dry.gate.noted.values()
        ]
    report = {
        "job": job.name, "scanned": scanned.files, "to_deliver": count, "bytes": size, "shipments": number,
        "duplicates": total.duplicates, "deferred": total.deferred, "failed": total.failed, "blocked": total.blocked,
        "settling": scanned.settling, "files": listed, "findings": findings,
    }  # fmt: skip
    if as_json:
        _print_json(report)
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    table = Table("file", "bytes", "shipment", "goes to", title=f"{job.name}: {count} to deliver, {decimal(size)}")
    for row in listed:
        table.add_row(Text(row["path"]), f"{row['size']:,}", str(row["shipment"]), Text(row["to"]))
    if count > len(listed):
        table.add_row(f"... and {count - len(listed)} more", "", "", "")
    console = Console()
    console.print(table)
    if findings:
        table = Table("file", "", "rule", "what", title="found at the gate")
        for row in findings:
            for f in row["findings"]:
                how = "blocked" if row["blocked"] else f"override {f['override']}" if f["override"] else "noted"
                table.add_row(Text(row["path"]), how, f["rule"], Text(f["text"]))
        console.print(table)
    rest = [f"{report[k]} {k}" for k in ("duplicates", "settling", "deferred", "blocked", "failed") if report[k]]
    shipments_made = f"{number} shipment" + "s" * (number != 1)
    console.print(f"{scanned.files} scanned, {shipments_made}" + "".join(f", {r}" for r in rest))
    if job.steps:
        chain = " -> ".join(step.kind for step in job.steps)
        console.print(f"each goes through {chain} first, which may give it other names")


@app.command()
def verify(job_file: JobFile, as_json: Json = False) -> None:
    """Hash every delivered file of a job at its destination, and hold it against the ledger. Writes nothing there."""
    from blocks import names
    from flows.ledger import Ledger
    from flows.transfer.job import load_job
    from flows.transfer.verify import Verified, verify_route

    job = load_job(job_file)
    results: dict[str, Verified] = {}
    apart_ms = int(job.cleanup.passes_apart.total_seconds() * 1000)
    with Ledger.open() as ledger:
        for storage in job.destinations:
            shown = time.monotonic()
            for outcome in verify_route(ledger, job.name, storage, apart_ms=apart_ms):
                results[storage.place()] = outcome
                if sys.stderr.isatty() and not as_json and time.monotonic() - shown > 1:
                    shown = time.monotonic()
                    print(f"\r{outcome.checked} checked", end="", file=sys.stderr)
    bad = any(r.damaged or r.unverified for r in results.values())
    if as_json:
        _print_json({"job": job.name, "destinations": {p: r.as_dict() for p, r in results.items()}})
    else:
        for place, r in results.items():
            print(f"{place}: {r.checked - len(r.damaged)} of {r.checked} files are as they were delivered")
            for path, problem in r.damaged:
                print(f"  DAMAGED {names.display(path)}: {problem}")
            for path, problem in r.unverified:
                print(f"  NOT VERIFIED {names.display(path)}: {problem}")
        if any(r.damaged for r in results.values()):
            print(f"`onblock transfers retry --job {job.name} --state QUARANTINED` has them sent again by the next run")
    raise typer.Exit(1 if bad else 0)


register_recordings(app)
register_upkeep(app)
register_parts(app)
app.command()(import_fileflow)


# -- the machine ----------------------------------------------------------------------------------------------------


@app.command()
def doctor(
    job_file: Annotated[Path | None, typer.Argument(metavar="[JOB.yaml]", help="Also try the storages of this job.")] = None,
    device: Annotated[str | None, typer.Option(help="Also the cameras, battery, panel and clock that its agent uses.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Check what onblock needs on this machine, and say what to do about what is missing."""
    from deployments.doctor import examine

    checks = examine(job_file, device)
    if as_json:
        _print_json({"checks": [c._asdict() for c in checks]})
    else:
        for c in checks:
            print(f"{'ok  ' if c.ok else 'BAD ' if c.ok is False else '--  '} {c.what}: {c.found}")
    raise typer.Exit(1 if any(c.ok is False for c in checks) else 0)


@app.command()
def support(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar.gz", help="Where to write it; never over a file that is there.")],
    job: Annotated[Path | None, typer.Option(help="Also a JOB.yaml: its keys, and whether its storages can be reached.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Collect what somebody who is to help must know, in one file without secrets: see docs/support.md."""
    from deployments.support import support as collect

    packed = collect(file, job)
    if as_json:
        _print_json({"file": str(packed.file), "bytes": packed.bytes, "parts": packed.parts, "notes": packed.notes})
        return
    print(f"{packed.file}: {packed.bytes:,} bytes: {', '.join(packed.parts)}")
    for note in packed.notes:
        print(f"  not in it: {note}")
    print("words that are not known to be harmless are marks in it; look through it before you give it away")


@app.command()
def up(
    jobs: Annotated[list[Path] | None, typer.Argument(metavar="[JOB.yaml ...]", help="Jobs to deploy.")] = None,
    host: Annotated[str, typer.Option(help="Address the server listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port the server listens on.")] = 4200,
    console_port: Annotated[int, typer.Option(help="Port the console listens on, pages and webhooks.")] = 4280,
    console_host: Annotated[str | None, typer.Option(help="Address the console listens on; --host if not given.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate of the console, PEM: it speaks TLS then.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key of that certificate, PEM.")] = None,
    public_url: Annotated[str | None, typer.Option(help="Address of the console in browsers, where a proxy stands before it: https://HOST.")] = None,
    profile: Annotated[str, typer.Option(help="embedded: one server on SQLite; fleet: on PostgreSQL and Redis, see docs/fleet.md.")] = "embedded",
    api_servers: Annotated[int | None, typer.Option(help="Of a fleet: processes that serve the API, on one port; 2 if not given.")] = None,
    workers: Annotated[int | None, typer.Option(help="Of a fleet: workers on this machine; 2 if not given.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Runs that a worker has at a time; the others wait.")] = RUNS_AT_ONCE,
) -> None:  # fmt: skip
    """Start a Prefect server, a worker and the console, register blocks, limits and jobs, and say where they are."""
    from blocks.errors import ConfigError
    from deployments.fleet import named
    from deployments.up import up as start

    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("--tls-cert and --tls-key go together")
    for file in (tls_cert, tls_key):
        if file is not None and not file.is_file():
            raise ConfigError("is no file", path=str(file))
    tls = (tls_cert, tls_key) if tls_cert and tls_key else None
    if public_url is not None:
        from deployments.console.outside import public_origin

        public_origin(public_url)
    what = named(profile, api_servers, workers)
    raise typer.Exit(start(jobs or [], host, port, console_port, console_host, tls, public_url, what, limit))


@app.command()
def agent(
    device: Annotated[str, typer.Option(help="The device that this machine is, such as cam-01.")],
    settings: Annotated[
        Path | None, typer.Option(help="Its settings; agent.yaml in ONBLOCK_HOME if not given.")
    ] = None,
) -> None:
    """Run a device: button and lights, recording, status, and a worker for the pool device-NAME."""
    from deployments.agent.agent import run as run_agent

    raise typer.Exit(run_agent(device, settings))


@app.command()
def demo() -> None:
    """A flight in miniature: recordings are made, delivered, verified; then again, with nothing left to do."""
    from deployments.demo import demo as show

    raise typer.Exit(show())


# -- what people and programs read ------------------------------------------------------------------------------------


def _files_of(run_id: str) -> list[dict[str, Any]]:
    from flows.ledger import Ledger

    with Ledger.open() as ledger:
        return [_as_json(r) for r in ledger.files(run_id=run_id)]


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.filesize import decimal

    from flows.transfer.story import told

    out = Console(highlight=False)
    seconds = summary["seconds"]
    rate = f", {decimal(int(summary['bytes'] / seconds))}/s" if seconds and summary["bytes"] else ""
    out.print(
        f"[bold]{summary['job']}[/]: {told(summary)}; {decimal(summary['bytes'])} in {seconds:.1f} s{rate}",
        markup=True,
        soft_wrap=True,
    )
    for how, n in summary["verified_by"].items():
        what = "already there with the same content" if how == "found" else f"verified by {how}"
        out.print(f"  {n} {what}", markup=False)
    if not (summary["scanned"] or summary["settling"] or summary["problems"]):
        out.print("  the source shows no files that this job takes", markup=False)
    for d in summary["destinations"]:
        out.print(f"  at {d['place']}" + (f"/{d['folder']}" if d["folder"] else ""), markup=False)
        if d["manifest"] and (summary["delivered"] or summary["adopted"]):
            out.print(f"  manifest {d['manifest']}", markup=False)
    if summary["failed"] or summary["blocked"] or summary["deferred"]:
        states = {"failed": ("FAILED", "QUARANTINED"), "blocked": ("BLOCKED",), "deferred": ("QUEUED",)}
        which = " ".join(f"--state {s}" for key, names in states.items() if summary[key] for s in names)
        out.print(f"  see `onblock transfers list --job {summary['job']} {which}`", markup=False, soft_wrap=True)


MOST_WARNINGS = 20
"""So many are printed: a full disk has one for each file."""


def _told_here() -> None:
    """What goes wrong is printed as it happens, by us and not once more by Prefect's handler."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.addFilter(_Few())
    log = logging.getLogger("onblock")
    log.addHandler(handler)
    log.propagate = False


def _told_by_prefect() -> None:
    """In a flow run it is Prefect that prints, and keeps, what is logged."""
    log = logging.getLogger("onblock")
    log.handlers.clear()
    log.propagate = True


class _Few(logging.Filter):
    """Lets the first warnings through. All of them are in the ledger."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print it."""
        self._seen += 1
        if self._seen == MOST_WARNINGS + 1:
            record.msg, record.args = "and more of these; `onblock transfers list` shows them all", ()
        return self._seen <= MOST_WARNINGS + 1


class _Bar:
    """A progress bar on a terminal; nothing where there is none."""

    def __init__(self, job: str, *, quiet: bool):
        self._job, self._quiet = job, quiet or not sys.stderr.isatty()
        self._progress: Any = None
        self._doing = job

    def __enter__(self) -> _Bar:
        if not self._quiet:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[files]}"), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._progress.add_task(self._job, total=None, files="")
            self._progress.start()
        return self

    def tick(self, meter: Meter) -> None:
        """Once a second, from the run."""
        if self._progress is not None:
            self._progress.update(
                self._task, description=self._doing, total=meter.bytes_planned or None, completed=meter.bytes_done,
                files=f"{meter.files_done:,}/{meter.files_planned:,}{'+' if meter.scanning else ''} files",
            )  # fmt: skip

    def shipment(self, event: str, shipment: Shipment, receipt: Receipt | None = None) -> None:
        """Nothing: the bar moves each second."""

    def progress(self, phase: str, path: str, done: float) -> None:
        """Which file the steps are at; shown with the next tick."""
        from blocks import names

        if phase == "process":  # of the others the bar shows the bytes
            self._doing = f"{self._job}: {phase} {names.display(path.rpartition('/')[2])} {done:.0%}"

    def set_aside(self, what: str, row_id: int) -> None:
        """Nothing: the summary tells."""

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def _api_url() -> str | None:
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


def main() -> None:
    """The console script."""
    # importing Prefect makes half a million objects that stay: looking through them again and again, and once more at the
    # end, would take a third of the time of a small job
    gc.set_threshold(50_000)
    interrupt.listen()
    try:
        _main()
    except SystemExit as end:
        if end.code in interrupt.CODES:
            print("onblock: interrupted; run it again to go on", file=sys.stderr)
        raise
    finally:
        interrupt.leave()
        gc.freeze()


def _main() -> None:
    from blocks.errors import OnblockError

    _told_here()
    # the whole of a traceback is for us, not for whoever runs a job
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OnblockError as error:
        print(f"onblock: {error}", file=sys.stderr)
        if os.environ.get("ONBLOCK_DEBUG"):
            raise
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
