"""`onblock recordings`: what was delivered of which flight and device, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from deployments.told import print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(recordings)


def recordings(
    flight: Annotated[str | None, typer.Option(help="Only those of this flight.")] = None,
    device: Annotated[str | None, typer.Option(help="Only those of this device.")] = None,
    job: Annotated[str | None, typer.Option(help="Only those that this job delivered.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with the lineage of each.")] = False,
) -> None:
    """What lies at the destinations, by flight and device; with --json also its SHA-256 and what it was made of."""
    found = list(_found(flight, device, job))
    if as_json:
        print_json({"recordings": found})
        return
    if not found:
        print("nothing of that was delivered; `onblock transfers` shows what there is")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("flight", "device", "file", "bytes", "made of", "at")
    for r in sorted(found, key=lambda r: (r["flight"] or "", r["device"] or "", r["path"])):
        origin = ", ".join(s["path"] for s in r["sources"]) if r["steps"] else ""
        table.add_row(
            r["flight"] or "-",
            r["device"] or "-",
            Text(r["path"]),
            f"{r['size']:,}",
            Text(origin),
            Text(r["destination"]),
        )
    Console().print(table)


def _found(flight: str | None, device: str | None, job: str | None) -> Iterator[dict[str, Any]]:
    from blocks import names
    from flows.ledger import Ledger
    from flows.ledger.looking import DELIVERED

    with Ledger.open(create=False) as ledger:
        for row in ledger.files(job=job, flight=flight, device=device, states=DELIVERED):
            if row["dest_path"] is None:  # what was made of it is listed
                continue
            told = json.loads(row["lineage"]) if row["lineage"] else {}
            itself = {"path": names.display(row["path"]), "size": row["size"], "mtime_ns": row["mtime_ns"],
                      "etag": row["etag"], "sha256": row["sha256"]}  # fmt: skip
            yield {
                "flight": row["flight"], "device": row["device"], "job": row["job"], "destination": row["destination"],
                "path": names.display(row["dest_path"]), "size": row["size"], "sha256": row["sha256"],
                "delivered_at": row["done_at"], "verified_by": row["verified_by"], "run": row["run_id"],
                "sources": told.get("sources", [itself]), "steps": told.get("steps", []),
            }  # fmt: skip
