"""Many files at once: `push` where `features.bulk_push`, `pull` where `features.bulk_pull`."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from blocks.errors import Cancelled
from blocks.storage.base import Session, Upload
from tests.contract.data import HOSTILE, listing, payload
from tests.contract.places import Place


def laid_out(folder: Path, count: int) -> dict[str, bytes]:
    """Files to push, by local path."""
    folder.mkdir()
    files = {str(folder / f"{n}"): payload(n * 37 % 9000, n) for n in range(count)}
    for name, data in files.items():
        Path(name).write_bytes(data)
        os.utime(name, ns=(1_234_567_890_000_000_000, 1_234_567_890_000_000_000))
    return files


def begun(session: Session, files: dict[str, bytes], names: list[str]) -> list[tuple[str, Upload]]:
    return [
        (local, session.upload(path, len(data), key="k", mtime_ns=1_234_567_890_000_000_000))
        for (local, data), path in zip(files.items(), names, strict=True)
    ]


def test_push(place: Place, session: Session, tmp_path: Path) -> None:
    """Hostile names, nested folders and empty files; nothing at a final name before the commit."""
    if not session.features.bulk_push:
        return
    names = [
        f"f{n % 7}/{n}-{name}" if "/" not in name and len(name) < 60 else f"f/{n}"
        for n, name in enumerate(HOSTILE)
        if place.holds(name)
    ]
    files = laid_out(tmp_path / "local", len(names))
    uploads = begun(session, files, names)
    moved: list[int] = []
    hashes = session.push(uploads, moved.append, threading.Event())
    assert listing(session) == set()
    assert len(hashes) == len(names)
    for sha256, (_, upload), data in zip(hashes, uploads, files.values(), strict=True):
        assert sha256 in ("", hashlib.sha256(data).hexdigest())
        if session.features.staged_digest:
            for fresh in (False, True):
                assert upload.digest(fresh=fresh) == hashlib.sha256(data).hexdigest()
        upload.seal()
    assert sum(moved) == sum(map(len, files.values()))
    assert session.commit_all([u for _, u in uploads]) == names
    assert {name: place.get(name) for name in names} == dict(zip(names, files.values(), strict=True))
    assert place.everything() == set(names)
    if session.features.mtime_set:
        assert abs(session.stat(names[5]).mtime_ns - 1_234_567_890_000_000_000) < 2_000_000_000


def test_push_of_what_does_not_go(place: Place, session: Session, tmp_path: Path) -> None:
    """A file that vanished or has another size is told apart; the others arrive, and the commit never overwrites."""
    if not session.features.bulk_push:
        return
    files = laid_out(tmp_path / "local", 20)
    names = [f"d/{n}" for n in range(20)]
    locals_ = list(files)
    Path(locals_[3]).unlink()
    Path(locals_[4]).write_bytes(b"longer than it was, or shorter" * 1000)
    place.put("d/7", b"was here first")
    uploads = begun(session, files, names)
    hashes = session.push(uploads, lambda n: None, threading.Event())
    gone = {n for n, sha256 in enumerate(hashes) if sha256 is None}
    assert gone == {3, 4}
    for n in gone:
        uploads[n][1].abort()
    left = [n for n in range(20) if n not in gone]
    done = session.commit_all([uploads[n][1] for n in left])
    assert {n for n, result in zip(left, done, strict=True) if not isinstance(result, str)} == {7}
    assert place.get("d/7") == b"was here first"
    uploads[7][1].abort()
    assert place.everything() == {f"d/{n}" for n in left}
    assert place.get("d/9") == files[locals_[9]]


def test_push_stops(place: Place, session: Session, tmp_path: Path) -> None:
    if not session.features.bulk_push:
        return
    files = laid_out(tmp_path / "local", 300)
    uploads = begun(session, files, [f"d/{n}" for n in range(300)])
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        session.push(uploads, lambda n: None, stop)
    for _, upload in uploads:
        upload.abort()
    assert place.everything() == set()


def test_pull(place: Place, session: Session, tmp_path: Path) -> None:
    """Hostile names arrive whole, with the size and the time a listing shows; a file that is not there is told."""
    if not session.features.bulk_pull:
        return
    files = {f"f/{n}-{name}" if "/" not in name and len(name) < 60 else f"f/{n}": payload(n * 37 % 9000, n)
             for n, name in enumerate(HOSTILE) if place.holds(name)}  # fmt: skip
    for path, data in files.items():
        place.put(path, data, 1_234_567_890_123_000_000 if place.puts_mtime else None)
    versions = {file.path: file.version[:2] for file in session.scan()}
    wanted = [(path, str(tmp_path / str(n))) for n, path in enumerate([*files, "f/none"])]
    moved: list[int] = []
    results = session.pull(wanted, moved.append, threading.Event())
    assert [r is None for r in results] == [True] * len(files) + [False]
    for (path, local), data in zip(wanted, files.values(), strict=False):
        assert Path(local).read_bytes() == data
        assert (os.stat(local).st_size, os.stat(local).st_mtime_ns) == versions[path]
    assert not Path(wanted[-1][1]).exists()
