"""What was recorded on this machine, as its manifests tell. A manifest is read again when it was replaced, not for everybody
who looks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blocks import names
from blocks.errors import OnblockError
from blocks.home import home
from deployments.console.shown import iso
from flows.capture.manifest import NAME, load

MOST = 200
"""So many recordings are shown, the newest."""


class Here:
    """Recordings of this machine. Shared by threads: at the worst two read the same."""

    def __init__(self) -> None:
        self._known: dict[
            str, tuple[tuple[int, int, int], dict[str, Any]]
        ] = {}  # by folder: which file, and what it told

    def recordings(self) -> list[dict[str, Any]]:
        """The newest first, for programs. One that cannot be read says so."""
        try:
            folders = sorted((f for f in (home() / "recordings").iterdir() if not f.name.startswith(".")), reverse=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            return [_unreadable(home() / "recordings", error.strerror or type(error).__name__)]
        found: list[dict[str, Any]] = []
        known: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        for folder in folders:
            if len(found) == MOST:
                break
            try:
                if not folder.is_dir():
                    continue
                st = (folder / NAME).stat()
                mark = st.st_ino, st.st_mtime_ns, st.st_size
                before = self._known.get(folder.name)
                known[folder.name] = before if before is not None and before[0] == mark else (mark, _read(folder))
                found.append(known[folder.name][1])
            except FileNotFoundError:
                found.append(_unreadable(folder, "is no recording: it has no manifest"))
            except OSError as error:
                found.append(_unreadable(folder, error.strerror or type(error).__name__))
        self._known = known
        return found


def _read(folder: Path) -> dict[str, Any]:
    """A recording, for programs. Raises OSError."""
    try:
        m = load(folder)
    except OnblockError as error:
        return _unreadable(folder, error.what)
    size = m.final.bytes if m.final else sum(s.bytes for e in m.streams.values() for s in e.segments)
    return {
        "id": m.id, "device": m.device, "flight": m.flight, "state": m.state, "seconds": (m.ended_ns or 0) / 1e9,
        "bytes": size, "merged": m.final is not None, "started_at": iso(m.start_wall_ns / 1e6), "problem": "; ".join(m.problems),
    }  # fmt: skip


def _unreadable(folder: Path, why: str) -> dict[str, Any]:
    return {"id": names.display(folder.name), "state": "unreadable", "problem": names.display(why)}
