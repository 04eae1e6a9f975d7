"""What commands print for programs: one JSON object. Tables for people are in the commands."""

from __future__ import annotations

import json
from typing import Any


def print_json(value: dict[str, Any]) -> None:
    """The one object of `--json`."""
    print(json.dumps(value, ensure_ascii=False))


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the ledger."""
    from blocks import names

    wanted = (
        "id", "job", "destination", "path", "size", "mtime_ns", "state", "kind", "stage", "message", "dest_path", "sha256",
        "verified_by", "tries", "next_attempt_at", "flight", "device", "priority", "bytes_done",
    )  # fmt: skip
    out = {k: row[k] for k in wanted}
    for k in ("path", "dest_path"):
        out[k] = None if out[k] is None else names.display(out[k])
    out["findings"] = json.loads(row["findings"] or "[]")
    return out


def noted(findings: str | None) -> str:
    """What the gate found of a file that passed all the same, for people."""
    found = json.loads(findings or "[]")
    return "; ".join(
        f"{f['rule']}: {f['text']}" + (f" (override {f['override']})" if "override" in f else "") for f in found
    )
