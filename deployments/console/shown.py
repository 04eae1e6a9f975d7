"""Rows of the ledger as programs and people read them. Every name in them is shown as `names.display` does: no control
character, no byte that is no text. That it is text and no markup, the templates see to.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from blocks import names
from flows.ledger.rows import MADE
from flows.ledger.wishes import Priority

PHASES = {
    "FETCHING": "fetch", "FETCHED": "fetch", "PROCESSING": "process", "PROCESSED": "process", "DELIVERING": "deliver",
    "AWAITING_VERIFY": "verify",
}  # fmt: skip
"""What is being done about a file, by its state."""
LARGEST = 1 << 63


def row_as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row, for programs. Times are in ISO 8601, UTC."""
    return {
        "id": row["id"], "job": row["job"], "path": names.display(row["path"]), "made": row["etag"] == MADE,
        "size": row["size"], "state": row["state"], "phase": PHASES.get(row["state"]), "bytes_done": row["bytes_done"],
        "kind": row["kind"], "stage": row["stage"], "message": _text(row["message"]), "wish": row["wish"],
        "flight": row["flight"], "device": row["device"], "priority": Priority(row["priority"]).name,
        "destination": names.display(row["destination"]), "dest_path": _text(row["dest_path"]), "sha256": row["sha256"],
        "verified_by": row["verified_by"], "verify_passes": row["verify_passes"], "tries": row["tries"],
        "attempt": row["attempt"], "run_id": row["run_id"], "mtime": iso(row["mtime_ns"] / 1e6),
        "queued_at": iso(row["queued_at"]), "done_at": iso(row["done_at"]), "updated_at": iso(row["updated_at"]),
        "next_attempt_at": iso(row["next_attempt_at"]), "findings": findings(row["findings"]),
    }  # fmt: skip


def findings(told: str | None) -> list[dict[str, Any]]:
    """What the gate found."""
    return [{k: _text(v) if isinstance(v, str) else v for k, v in f.items()} for f in json.loads(told or "[]")]


def part(told: Any, *keys: str) -> Any:
    """What stands in mappings in mappings; None where there is none: what devices tell is theirs."""
    for key in keys:
        told = told.get(key) if isinstance(told, dict) else None
    return told


def number(told: Any, *keys: str) -> float | None:
    """A number in mappings in mappings; None of what is none (NaN, infinities), and of what no counter reaches."""
    found = part(told, *keys)
    if not isinstance(found, (int, float)) or isinstance(found, bool):
        return None
    return found if -LARGEST < found < LARGEST else None


def device_facts(told: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What a device's agent told, in words."""
    if not told:
        return [("Agent", "has told nothing in ten minutes, or there is none")]
    facts: list[tuple[str, str]] = []
    if (percent := number(told, "battery", "percent")) is not None:
        facts.append(
            ("Battery", f"{percent:.0f} %" + (", charging" if part(told, "battery", "charging") is True else ""))
        )
    if (free := number(told, "storage", "free")) is not None:
        facts.append(("Disk", f"{size(free)} free of {size(number(told, 'storage', 'total'))}"))
    if (busy := number(told, "cpu", "percent")) is not None:
        heat = number(told, "cpu", "temperature_c")
        facts.append(("Processor", f"{busy:.0f} %" + ("" if heat is None else f", {heat:.0f} °C")))
    if (memory := number(told, "memory", "available")) is not None:
        facts.append(("Memory", f"{size(memory)} available of {size(number(told, 'memory', 'total'))}"))
    if reach := part(told, "network", "reach"):
        ssid, signal = part(told, "network", "ssid"), number(told, "network", "signal_percent")
        facts.append(
            (
                "Network",
                str(reach).lower() + (f", {ssid}" if ssid else "") + ("" if signal is None else f", {signal:.0f} %"),
            )
        )
    if (seconds := number(told, "recording", "seconds")) is not None and part(told, "recording", "state") != "idle":
        facts.append(("Recording", f"{duration(seconds)}, {size(number(told, 'recording', 'bytes') or 0)}"))
    if uptime := number(told, "uptime_s"):
        facts.append(("Up for", duration(uptime)))
    if version := part(told, "version"):
        facts.append(("Version", str(version)))
    troubles = part(told, "troubles")
    if isinstance(troubles, dict) and troubles:
        facts.append(("Trouble", "; ".join(f"{what}: {why}" for what, why in troubles.items())))
    return facts


def dropped(told: Any) -> int | None:
    """Frames and samples that the recording under way has dropped; None where none is."""
    streams = part(told, "recording", "streams")
    if not isinstance(streams, dict):
        return None
    reasons = [part(stream, "dropped") for stream in streams.values()]
    return sum(int(n) for r in reasons if isinstance(r, dict) for n in map(number, r.values()) if n is not None)


def iso(ms: float | None) -> str | None:
    """ms since the epoch as a time; None of what no calendar has."""
    if ms is None:
        return None
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None


def size(n: float | None) -> str:
    """Bytes with a unit: 1.5 GB is 1,500,000,000 bytes."""
    if n is None:
        return ""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if abs(n) < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} PB"


def duration(seconds: float | None) -> str:
    """1 h 05 min; 42 s."""
    if seconds is None:
        return ""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02} s"
    return f"{s // 3600} h {s % 3600 // 60:02} min" if s < 86_400 else f"{s / 86_400:.1f} d"


def _text(value: str | None) -> str | None:
    return None if value is None else names.display(value)
