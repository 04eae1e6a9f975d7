"""A card with recordings, a job that brings them home, and everything that must be true of what arrived."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from blocks.names import TEMPORARY
from flows.ledger import Ledger

MIB = 1 << 20
HOSTILE = [
    b"DCIM/no-\xff\xfeutf8.jpg", b"DCIM/two\nlines.jpg", b"-rf", b"DCIM/100%\\done.jpg", "DCIM/é/\U0001f681.jpg".encode(),
    b" ", b"...", b"DCIM/" + b"n" * 255, b"empty",
]  # fmt: skip
MANIFEST = b"checksums.sha256"


def make_card(root: Path, *, small: int = 1500, large: tuple[int, ...] = (40 * MIB, 48 * MIB + 123)) -> Path:
    """`small` files of 0 to 20 KB in folders, some with hostile names, and large ones. An hour old."""
    dice = random.Random(str(root.name))
    noise = dice.randbytes(1 * MIB)
    paths = [f"DCIM/{n // 100:03}/IMG_{n:05}.jpg".encode() for n in range(small - len(HOSTILE))]
    for n, path in enumerate([*HOSTILE, *paths]):
        start = dice.randrange(MIB - 20_000)
        put(root, path, b"" if path == b"empty" else b"%d" % n + noise[start : start + dice.randrange(20_000)])
    for n, size in enumerate(large):
        put(root, b"DCIM/video-%d.mp4" % n, (noise[n:] + noise[:n]) * (size // MIB) + b"%d" % n * (size % MIB))
    return root


def put(root: Path, path: bytes, content: bytes) -> None:
    """A file, an hour old."""
    full = os.path.join(os.fsencode(root), path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as file:  # noqa: PTH123 - bytes
        file.write(content)
    hour_ago = time.time() - 3600
    os.utime(full, (hour_ago, hour_ago))


def write_job(path: Path, card: Path, archive: Path, **keys: Any) -> Path:
    job = {
        "name": "card", "source": {"type": "local-storage", "root": str(card)},
        "destination": {"type": "local-storage", "root": str(archive), "create_root": True},
        **keys,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(job))
    return path


def walk(root: Path) -> Iterator[bytes]:
    """Relative paths of all files."""
    top = os.fsencode(root)
    for folder, _, files in os.walk(top):
        for name in files:
            yield os.path.relpath(os.path.join(folder, name), top)


def temporary_files(root: Path) -> list[bytes]:
    return [p for p in walk(root) if os.path.basename(p).startswith(b".onblock")]


class Truth:
    """What each file must hold: SHA-256 by path. Files that did not change since they were looked at are not read again."""

    def __init__(self, card: Path):
        self.digests = {p: _sha256(os.path.join(os.fsencode(card), p)) for p in walk(card)}
        self._looked_at: dict[tuple[int, int, int], str] = {}  # device, inode, ctime: no write leaves ctime alone

    def __len__(self) -> int:
        return len(self.digests)

    def digest(self, full: bytes) -> str:
        st = os.stat(full)
        key = (st.st_dev, st.st_ino, st.st_ctime_ns)
        if key not in self._looked_at:
            self._looked_at[key] = _sha256(full)
        return self._looked_at[key]

    def check_whole(self, archive: Path) -> int:
        """Every final name holds the whole file, and nothing is there that nobody sent; how many there are."""
        count = 0
        for path in walk(archive):
            if path == MANIFEST or TEMPORARY.search(os.fsdecode(path)):
                continue
            assert path in self.digests, f"{path!r} is at the destination and was never at the source"
            assert self.digest(os.path.join(os.fsencode(archive), path)) == self.digests[path], f"{path!r} is not whole"
            count += 1
        return count

    def check_complete(self, archive: Path, ledger_url: str | None = None) -> None:
        """Each file is there once and whole, nothing temporary is left, and the ledger and the manifest say so."""
        assert temporary_files(archive) == []
        assert self.check_whole(archive) == len(self.digests)
        with Ledger.open(ledger_url) as ledger:
            rows = list(ledger.files())
            assert len(rows) == len(self.digests)
            for row in rows:
                path = os.fsencode(row["path"])
                assert (row["state"], row["sha256"]) == ("VERIFIED", self.digests[path]), row
                assert row["dest_path"] == row["path"]
        check_manifest(archive, set(self.digests))


def check_manifest(archive: Path, paths: set[bytes]) -> None:
    """The list names these files and no others, and the real sha256sum agrees."""
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", os.fsdecode(MANIFEST)],
        cwd=archive,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = (archive / os.fsdecode(MANIFEST)).read_bytes().splitlines(keepends=True)
    assert len([line for line in lines if line.endswith(b"\n")]) == len(paths)


def _sha256(full: bytes) -> str:
    with open(full, "rb") as file:  # noqa: PTH123 - bytes
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(folder: Path) -> None:
    shutil.rmtree(os.fsencode(folder))


def until(what: str, look: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.001)
