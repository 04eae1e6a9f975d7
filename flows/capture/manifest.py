"""`recording.json`: what a recording is, from its first second to its last. Replaced as a whole, never edited.

States: `recording`; `sealed` (ended in order), `recovered` (ended by a kill, put in order), `failed` (nothing was
recorded). `final` names a file only after that was read back.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from blocks.errors import Corrupt, NotFound
from flows.capture.segment import sync_folder

NAME = "recording.json"


class SegmentEntry(BaseModel):
    """A segment that is closed."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    number: int
    video: str | None
    """File below the recording's folder; None of a sensor."""
    sidecar: str
    bytes: int
    """Of both files."""
    video_bytes: int = 0
    sha256: dict[str, str]
    """By file."""
    count: int
    """Packets or samples."""
    dropped: int = 0
    first_ns: int | None
    last_ns: int | None
    repaired: str | None = None
    """What a recovery had to leave out."""
    damaged: int = 0
    """Packets that were damaged when it was merged: they are not in the final file, and its video file is kept."""
    merged: bool = False
    """All its packets are in the final file, and its video file may be gone."""


class StreamEntry(BaseModel):
    """A camera or sensor."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    kind: Literal["video", "sensor"]
    state: str = "starting"
    captured: int = 0
    written: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    in_flight: int = 0
    """At the end: what was lost."""
    reconnects: int = 0
    last_error: str = ""
    segments: list[SegmentEntry] = Field(default_factory=list)


class FinalEntry(BaseModel):
    """The merged file, read back."""

    model_config = ConfigDict(extra="forbid")
    file: str
    bytes: int
    sha256: str
    packets: dict[str, int]


class Manifest(BaseModel):
    """A recording."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    version: Literal[1] = 1
    id: str
    device: str
    flight: str | None = None
    state: Literal["recording", "sealed", "recovered", "failed"] = "recording"
    stopped_because: str = ""
    boot_id: str = ""
    start_monotonic_ns: int
    """Zero of all times in the recording, on CLOCK_MONOTONIC of that boot."""
    start_wall_ns: int
    """What the machine believed the time was then."""
    ended_ns: int | None = None
    """After the start."""
    spec: dict[str, Any] = Field(default_factory=dict)
    streams: dict[str, StreamEntry] = Field(default_factory=dict)
    final: FinalEntry | None = None
    problems: list[str] = Field(default_factory=list)
    quarantined: list[str] = Field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Replace the manifest in `folder`: it is on the disk when this returns. Raises OSError; the old one stays then."""
        temporary = folder / f".{NAME}.part"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(self.model_dump_json(indent=1).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(folder / NAME)
        sync_folder(folder)


def load(folder: Path) -> Manifest:
    """The manifest in a recording's folder. Raises NotFound, Corrupt."""
    path = folder / NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFound("is no recording: it has no manifest", path=str(folder), remedy="") from None
    except ValidationError as error:
        raise Corrupt(f"is no manifest that can be read ({error.error_count()} errors)", path=str(path)) from error


def numbers(lane: Path) -> set[int]:
    """The segments that lie in a lane's folder, also in part."""
    return {
        int(path.stem)
        for path in (*lane.glob("*.idx"), *lane.glob("*.mkv"))
        if path.stem.isdecimal() and f"{int(path.stem):06}" == path.stem
    }


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Segments on the disk that the manifest does not name: it is not to be called complete before they are in it."""
    return [
        f"{name}/{number:06}"
        for name, entry in manifest.streams.items()
        for number in sorted(numbers(folder / name) - {s.number for s in entry.segments})
    ]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


COMPLETED = "onblock.recording.completed"
"""The event that starts the transfer job of the device."""


def completed(manifest: Manifest) -> dict[str, Any]:
    """What that event says. `file` is None where the recording is in segments."""
    final = manifest.final
    return {
        "recording": manifest.id, "device": manifest.device, "flight": manifest.flight, "state": manifest.state,
        "file": final.file if final else None, "bytes": final.bytes if final else None,
        "sha256": final.sha256 if final else None,
    }  # fmt: skip


def told(manifest: Manifest) -> str:
    """A recording in a sentence."""
    seconds = (manifest.ended_ns or 0) / 1e9
    parts = [
        f"{name}: {e.written} of {e.captured}" + "".join(f", {n} {reason}" for reason, n in e.dropped.items())
        for name, e in manifest.streams.items()
    ]
    problems = f"; {len(manifest.problems)} problems, the first: {manifest.problems[0]}" if manifest.problems else ""
    return f"{manifest.id} {manifest.state} after {seconds:.1f} s ({manifest.stopped_because}); {'; '.join(parts)}{problems}"
