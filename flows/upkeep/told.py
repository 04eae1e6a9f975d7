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
    """Of a retention. What waits for its source is well; what was kept for another reason is not."""
    would = "would be " if summary["dry_run"] else ""
    parts: list[str] = []
    if "forgotten" in summary:
        parts.append(f"{summary['forgotten']} missing at the source {would}forgotten")
    if "backups" in summary:
        parts.append(f"{summary['removed']} of {summary['backups']} backups {would}removed, {summary['bytes']:,} bytes")
    for one in summary.get("delivered", ()):
        parts.append(
            f"{one['removed']} of {one['files']} delivered files {would}removed at {one['place']}, {one['bytes']:,} bytes"
        )
        if waiting := sum(one["waiting"].values()):
            parts.append(f"{waiting} stay for now")
    kept = len(summary.get("kept", ())) + sum(one["unremoved"] for one in summary.get("delivered", ()))
    if kept:
        parts.append(f"{kept} kept that should have gone")
    parts += [one["problem"] for one in summary.get("delivered", ()) if one["problem"]]
    return "; ".join(parts), not kept and not any(one["problem"] for one in summary.get("delivered", ()))


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
