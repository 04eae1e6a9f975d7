"""The event that a recording is complete, which starts the transfer jobs of its device: what it says, and that it is owed.

It is owed from its first moment on, and until somebody has told it: a file in the recording's folder says so. Who records tells it;
what he cannot (a kill, a server that is away), the agent or the flow `recover-recordings` tells later. Its id follows
from the recording and its clock, so that telling it twice starts nothing twice. How it is told is not here.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blocks.errors import OnblockError
from flows.capture import at_work
from flows.capture.locks import LOCK
from flows.capture.manifest import COMPLETED, Manifest, completed, load
from flows.capture.merge import unmerged
from flows.starts import DEVICE

OWED = ".announce"
"""In a recording's folder: its event is still to be told."""
SEGMENTS = "segments"
"""Stands in it once the recording was announced without its file, because the disk has no room for one."""


def event(manifest: Manifest, as_it_is: str = "") -> dict[str, Any]:
    """The event, as the server takes it. `as_it_is`: the recording is not merged, and cannot be."""
    once = f"{manifest.id} {manifest.boot_id} {manifest.start_monotonic_ns} {as_it_is}"
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{COMPLETED} {once}")), "event": COMPLETED,
        "occurred": datetime.now(UTC).isoformat(), "payload": completed(manifest),
        "resource": {"prefect.resource.id": f"onblock.recording.{manifest.id}", "prefect.resource.name": manifest.id},
        "related": [{"prefect.resource.id": f"{DEVICE}{manifest.device}", "prefect.resource.role": "device"}],
    }  # fmt: skip


def owe(folder: Path) -> None:
    """From now on it is owed. Raises OSError."""
    (folder / OWED).touch()


def settled(folder: Path, as_it_is: str = "") -> None:
    """It is told; `as_it_is`: without its file, which is still owed. Raises OSError."""
    if as_it_is:
        (folder / OWED).write_text(as_it_is)
    else:
        (folder / OWED).unlink(missing_ok=True)


def is_due(manifest: Manifest) -> bool:
    """Whether it can be told: there is all that there will be."""
    whole = manifest.state in ("sealed", "recovered") and not manifest.spec.get("merge", True)
    return manifest.final is not None or whole


def as_it_is(folder: Path) -> Manifest | None:
    """A recording that is owed, and that the disk has no room to merge, if it was not announced without its file yet.
    Raises OnblockError, OSError."""
    if not (folder / OWED).exists() or (folder / OWED).read_bytes() == SEGMENTS.encode():
        return None
    manifest = load(folder)
    # else the disk is too full even to put it in order, or the file is there
    return manifest if manifest.state in ("sealed", "recovered") and manifest.final is None else None


def owed(root: Path) -> list[Path]:
    """The folders of recordings whose event is owed."""
    return sorted(path.parent for path in root.glob(f"*/{OWED}"))


def left(root: Path) -> Iterator[Path]:
    """Folders of recordings that are to be put in order or merged, and that nobody is at work in."""
    for lock in sorted(root.glob(f"*/{LOCK}")):
        if at_work.held(lock):
            continue
        try:
            manifest = load(lock.parent)
            if manifest.state == "recording" or unmerged(manifest):
                yield lock.parent
        except (OnblockError, OSError):
            yield lock.parent  # its manifest is made anew


def folder_of(root: Path, error: OnblockError) -> Path:
    """Of which recording a failure speaks; `root` if of none."""
    try:
        return root / Path(error.path).relative_to(root).parts[0]
    except (ValueError, IndexError):
        return root
