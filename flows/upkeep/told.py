"""Summaries of upkeep in a sentence, and whether all is well: for people, exit codes and states of flow runs."""

from __future__ import annotations

from typing import Any


def clean(summary: dict[str, Any]) -> tuple[str, bool]:
    """Of a cleanup. What waits is well; what is damaged, or could not be looked at, is not."""
    would = "would be " if summary["dry_run"] else ""
    done = "moved into the backup folder" if summary["action"] == "backup" else "deleted"
    parts = [f"{summary['cleaned']} {would}{done}, {summary['bytes']:,} bytes"]
    if summary["passes"]:
        parts.append(f"{summary['passes']} read back and proven")
    if waiting := sum(summary["waiting"].values()):
        parts.append(f"{waiting} stay for now")
    parts += [f"{summary[what]} {text}" for what, text in (
        ("kept", "left alone at the last moment"), ("damaged", "damaged at a destination"),
        ("unverified", "could not be looked at"),
    ) if summary[what]]  # fmt: skip
    return "; ".join(parts), not (summary["damaged"] or summary["unverified"] or summary["kept"])


def retention(summary: dict[str, Any]) -> tuple[str, bool]:
    """Of a retention."""
    would = "would be " if summary["dry_run"] else ""
    text = f"{summary['removed']} of {summary['backups']} backups {would}removed, {summary['bytes']:,} bytes"
    if summary["kept"]:
        text += f"; {len(summary['kept'])} kept that should have gone"
    return text, not summary["kept"]


def scrub(summary: dict[str, Any]) -> tuple[str, bool]:
    """Of a scrub."""
    damaged = len(summary["damaged"])
    parts = [f"{summary['checked'] - damaged} of {summary['checked']} files are as they were delivered"]
    if damaged:
        parts.append(f"{damaged} damaged or lost, {summary['requeued']} of them queued again")
    if summary["unverified"]:
        parts.append(f"{len(summary['unverified'])} could not be looked at")
    parts += summary["problems"]
    return "; ".join(parts), not (damaged or summary["unverified"] or summary["problems"])
