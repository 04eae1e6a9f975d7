"""Bytes out of a reader: all of them, in order, hashed; read on while what was read before is being written."""

from __future__ import annotations

import hashlib
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.storage.base import FileInfo, Reader
from flows.transfer import pump

if TYPE_CHECKING:
    from blocks.storage.base import Buffer


class Source(Reader):
    """Reads `data`, and breaks off at `broken`. `calls` is released by each call, before it reads; behind the first chunk it
    waits for `hold`."""

    def __init__(self, data: bytes, broken: int | None = None, *, ahead: bool = True):
        self.data, self.broken, self.at, self.ahead = data, broken, 0, ahead
        self.calls, self.hold = threading.Semaphore(0), threading.Event()
        self.hold.set()
        self.done: list[str] = []

    def readinto(self, buffer: Buffer) -> int:
        self.calls.release()
        assert not self.at or self.hold.wait(20)
        if self.broken is not None and self.at >= self.broken:
            raise ConnectionResetError("the card was pulled")
        view = memoryview(buffer)
        part = self.data[self.at : self.at + len(view)]
        view[: len(part)] = part
        self.at += len(part)
        self.done.append("read")
        return len(part)

    def info(self) -> FileInfo:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def chunk(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(pump, "CHUNK", 4096)
    monkeypatch.setattr(pump, "buffers", pump.Buffers())
    return 4096


@given(size=st.integers(0, 5 * 4096) | st.integers(0, 5).map(lambda n: n * 4096), ahead=st.booleans())
@settings(max_examples=60)
def test_all_of_it_in_order(size: int, ahead: bool) -> None:
    data, digest = bytes(n % 251 for n in range(size)), hashlib.sha256()
    got = b"".join(bytes(view) for view in pump.chunks(Source(data, ahead=ahead), digest))
    assert got == data and digest.digest() == hashlib.sha256(data).digest()


@given(size=st.integers(0, 5 * 4096), start=st.integers(0, 5 * 4096), ahead=st.booleans())
@settings(max_examples=60)
def test_all_of_it_from_any_byte_on(size: int, start: int, ahead: bool) -> None:
    data, digest = bytes(n % 251 for n in range(size)), hashlib.sha256()
    source = Source(data, ahead=ahead)
    assert pump.skip(source, digest, start, lambda: None) == min(start, size) == source.at
    sizes = [len(view) for view in pump.chunks(source, digest, source.at)]
    assert digest.digest() == hashlib.sha256(data).digest()
    assert sum(sizes) == size - min(start, size)
    assert all(n == 4096 for n in sizes[1:-1])
    assert len(sizes) < 2 or (start + sizes[0]) % 4096 == 0


def test_the_next_chunk_is_read_while_this_one_is_written(chunk: int) -> None:
    source = Source(bytes(3 * chunk))
    with closing(pump.chunks(source, hashlib.sha256())) as pieces:
        first = next(pieces)
        assert source.calls.acquire(timeout=20) and source.calls.acquire(timeout=20), "nobody reads on"
        assert len(first) == chunk


def test_what_was_written_is_noted_before_what_comes_next_is_there(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow card, or one that is pulled, does not take back what lies at the destination already."""
    monkeypatch.setattr(pump, "CHECKPOINT", chunk)
    source, noted = Source(bytes(3 * chunk)), threading.Event()
    source.hold.clear()

    def note(offset: int, sha256: str) -> None:
        assert (offset, sha256) == (chunk, hashlib.sha256(bytes(chunk)).hexdigest())
        noted.set()
        raise InterruptedError

    def write() -> None:
        with pytest.raises(InterruptedError):
            for _ in pump.chunks(source, hashlib.sha256(), 0, note):
                pass

    writing = threading.Thread(target=write)
    writing.start()
    try:
        assert noted.wait(20)
    finally:
        source.hold.set()
        writing.join()


def test_who_wants_nothing_ahead_gets_nothing(chunk: int) -> None:
    source = Source(bytes(3 * chunk), ahead=False)
    with closing(pump.chunks(source, hashlib.sha256())) as pieces:
        next(pieces)
        assert source.at == chunk
        next(pieces)
        assert source.at == 2 * chunk


def test_what_was_read_before_it_broke_off_is_written(chunk: int) -> None:
    got, digest = bytearray(), hashlib.sha256()
    with pytest.raises(ConnectionResetError):
        for view in pump.chunks(Source(bytes(5 * chunk), broken=2 * chunk), digest):
            got += view
    assert len(got) == 2 * chunk and digest.digest() == hashlib.sha256(got).digest()


def test_nobody_reads_any_more_when_it_is_left(chunk: int) -> None:
    source = Source(bytes(3 * chunk))
    source.hold.clear()
    pieces = pump.chunks(source, hashlib.sha256())
    next(pieces)
    assert source.calls.acquire(timeout=20) and source.calls.acquire(timeout=20)

    def leave() -> None:
        pieces.close()
        source.done.append("left")

    leaving = threading.Thread(target=leave)
    leaving.start()
    source.hold.set()
    leaving.join()
    assert source.done == ["read", "read", "left"]
