"""The parts of a fleet, each by itself on its host: `onblock worker | console | migrate | deploy`.

Prefect's own parts have commands of Prefect (`prefect server start`); all of it on one machine is `onblock up`. Each
command here becomes the process that it starts, so that whoever supervises it sees that one and no other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from blocks.errors import ConfigError
from deployments import trust
from deployments.fleet import LEDGER
from deployments.server import RUNS_AT_ONCE

API = "PREFECT_API_URL"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (worker, console, migrate, deploy):
        app.command()(command)


def worker(
    pool: Annotated[str, typer.Argument(help="The work pool whose runs it takes.")] = "onblock",
    limit: Annotated[int, typer.Option(min=1, help="So many runs at a time; the others wait in the pool.")] = RUNS_AT_ONCE,
) -> None:  # fmt: skip
    """Work off the runs of a pool, for the Prefect server at PREFECT_API_URL, until a signal ends it."""
    if not os.environ.get(LEDGER):  # nobody else would see what it delivers
        print(f"note: {LEDGER} is not set: the ledger is of this machine alone", file=sys.stderr)
    _server()
    _become("deployments.worker", pool, str(limit))


def console(
    host: Annotated[str, typer.Option(help="Address it listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port it listens on, pages and webhooks.")] = 4280,
    tls_cert: Annotated[Path | None, typer.Option(help="Its certificate, PEM: it speaks TLS then.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key of that certificate, PEM.")] = None,
    public_url: Annotated[str | None, typer.Option(help="Its address in browsers, where a proxy stands before it: https://HOST.")] = None,
    ui: Annotated[str | None, typer.Option(help="Where people find Prefect's UI; if not given, beside PREFECT_API_URL.")] = None,
) -> None:  # fmt: skip
    """Run the console alone, for the Prefect server at PREFECT_API_URL and the ledger."""
    from deployments.console.access import People

    options: dict[str, object] = {
        "--host": host, "--port": port, "--tls-cert": tls_cert, "--tls-key": tls_key, "--public-url": public_url,
        "--ui": ui or _server().removesuffix("/").removesuffix("/api"),
    }  # fmt: skip
    given = {key: str(value) for key, value in options.items() if value is not None}
    if token := People().first_start():
        print(f"the token of the admin is in {token}", flush=True)
    _become("deployments.console", *(part for pair in given.items() for part in pair))


def migrate() -> None:
    """Bring the ledger and Prefect's database to this version: once for all hosts, while no server runs."""
    _become("deployments.migrate")


def deploy(
    jobs: Annotated[list[Path] | None, typer.Argument(metavar="[JOB.yaml ...]", help="Jobs to deploy.")] = None,
) -> None:
    """Set up the Prefect server at PREFECT_API_URL (blocks, limits, pool, automations), and deploy jobs there."""
    from deployments.bootstrap import main

    raise typer.Exit(main([str(job) for job in jobs or []]))


def _server() -> str:
    if url := os.environ.get(API):
        trust.api_ca()
        return url
    raise ConfigError(
        f"{API} is not set: a part of a fleet works for a Prefect server",
        remedy=f"set it, such as `export {API}=http://HOST:4200/api`; all on one machine is `onblock up`",
    )


def _become(module: str, *arguments: str) -> None:
    from deployments.server_settings import with_defaults

    env: Mapping[str, str] = with_defaults(os.environ)
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], env)
