"""The reader that follows the writer of a large local file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from blocks.storage.base import aligned_buffer
from blocks.storage.local import LocalStorage
from blocks.storage.trail import PIECE, Trail
from tests.contract.data import MIB, payload


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(payload(3 * PIECE + 4096))
    os.sync()
    return path


@pytest.mark.parametrize("steps", [[4096], [PIECE - 1], [PIECE, 2 * PIECE], [PIECE + 5, 3 * PIECE + 4096]])
def test_it_follows_as_far_as_was_written(file: Path, steps: list[int]) -> None:
    trail = Trail(str(file))
    for offset in steps:
        trail.reached(offset)
    found = trail.finish()
    assert found is not None
    digest, at = found
    assert at == steps[-1] // PIECE * PIECE
    assert digest.hexdigest() == hashlib.sha256(file.read_bytes()[:at]).hexdigest()


def test_it_reads_the_disk_and_not_what_was_meant(file: Path) -> None:
    meant = hashlib.sha256(file.read_bytes()[: 2 * PIECE]).hexdigest()
    with file.open("r+b") as other:
        other.seek(PIECE + 7)
        other.write(b"\0\1\2\3")
        os.fsync(other.fileno())
    trail = Trail(str(file))
    trail.reached(2 * PIECE)
    found = trail.finish()
    assert found is not None and found[0].hexdigest() != meant


def test_a_file_that_becomes_shorter_gives_nothing(file: Path) -> None:
    os.truncate(file, PIECE)
    trail = Trail(str(file))
    trail.reached(2 * PIECE)
    assert trail.finish() is None


def test_dropped_it_leaves_nothing_open(file: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for offset in (0, PIECE, 3 * PIECE):
        trail = Trail(str(file))
        trail.reached(offset)
        trail.drop()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("end", ["digest", "abort", "keep", "seal", "rewind", "replay"])
def test_an_upload_ends_it(tmp_path: Path, end: str) -> None:
    data, buffer = payload(24 * MIB + 77), aligned_buffer(4 * MIB)
    before = set(os.listdir("/proc/self/fd"))
    with LocalStorage(root=str(tmp_path)).open() as session:
        upload = session.upload("file", len(data))
        for at in range(0, len(data), len(buffer)):
            part = data[at : at + len(buffer)]
            buffer[: len(part)] = part
            upload.write(memoryview(buffer)[: len(part)])
        if end == "digest":
            assert upload.digest() == hashlib.sha256(data).hexdigest()
            assert upload.digest() == hashlib.sha256(data).hexdigest()
        elif end == "rewind":
            upload.rewind(8 * MIB)
            assert upload.digest() == hashlib.sha256(data[: 8 * MIB]).hexdigest()
        elif end == "replay":
            seen = hashlib.sha256()
            assert upload.replay(seen.update)
            assert seen.hexdigest() == hashlib.sha256(data).hexdigest()
        else:
            getattr(upload, end)()
        upload.abort()
    assert set(os.listdir("/proc/self/fd")) == before
