"""What is being recorded on this machine at this moment, whoever began it: the agent, a flow run, somebody in a terminal.

Whoever records holds two locks of the kernel: `ROOT/.DEVICE.lock`, and that of his recording's folder. Who repairs or merges
one holds only the second. They are looked for in /proc/locks: to try one would be to take it, and he who asks for it at
that moment would be refused. Names are not asked: after a clock step the newest is not the last.
"""

from __future__ import annotations

import json
from pathlib import Path

from flows.capture.locks import LOCK
from flows.capture.manifest import NAME

STOP = "stop"
"""Whoever makes this file in a recording's folder ends the recording."""
LOCKS = Path("/proc/locks")


def running(root: Path, device: str, locks: Path = LOCKS) -> Path | None:
    """The folder of what is being recorded on `device` at this moment; None if nothing is."""
    held = _held(locks)
    records = held.get(_inode(root / f".{device}.lock"), set())
    if not records:  # as a rule: one file to read, and nothing below `root`
        return None
    try:
        folders = sorted(root.iterdir(), reverse=True)
    except OSError:
        return None
    for folder in folders:
        if records & held.get(_inode(folder / LOCK), set()) and _state(folder) == ("recording", device):
            return folder
    return None


def held(lock: Path) -> bool:
    """Whether somebody holds this lock."""
    return _inode(lock) in _held(LOCKS)


def stop(folder: Path) -> None:
    """Ask who records there to end it; he looks once a second. Raises OSError."""
    (folder / STOP).touch()


def request_stop(root: Path, device: str | None = None) -> list[str]:
    """Ask what is being recorded below `root`, on one device or all, to stop; the ids. It is sealed within a second or
    so. Raises OSError."""
    devices = [device] if device else [p.name[1 : -len(".lock")] for p in root.glob(".*.lock")]
    folders = [folder for one in sorted(devices) if (folder := running(root, one)) is not None]
    for folder in folders:
        stop(folder)
    return [folder.name for folder in folders]


def _held(locks: Path) -> dict[str, set[str]]:
    """Which processes hold a lock on which inode (of whichever disk): lines of proc_locks(5), `1: FLOCK ADVISORY WRITE 77 fd:01:1234 0 EOF`."""
    try:
        lines = locks.read_text().splitlines()
    except OSError:
        return {}
    held: dict[str, set[str]] = {}
    for fields in map(str.split, lines):
        if len(fields) >= 6 and fields[1] == "FLOCK":
            held.setdefault(fields[5].rpartition(":")[2], set()).add(fields[4])
    return held


def _inode(file: Path) -> str:
    """As it stands in /proc/locks; empty where there is no such file."""
    try:
        return str(file.stat().st_ino)
    except OSError:
        return ""


def _state(folder: Path) -> tuple[str, str] | None:
    try:
        manifest = json.loads((folder / NAME).read_bytes())
        return str(manifest["state"]), str(manifest["device"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
