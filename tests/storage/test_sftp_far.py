"""The far side of the fast lane, spoken to as by a client: what it does to a file, and what it makes of nonsense."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.storage import sftp_messages as wire
from blocks.storage.sftp_far import Far
from blocks.storage.sftp_messages import Ask, Messages, Refused, string

KIB = 1 << 10
SPAN = 600 * KIB
"""Files are this long at most: longer than one block."""


class Channel:
    """A socket, as `Messages` wants it."""

    out_max_packet_size = 32 * KIB

    def __init__(self, end: socket.socket):
        self.end = end
        self.sendall, self.recv = end.sendall, end.recv

    def recv_ready(self) -> bool:
        return bool(select.select([self.end], [], [], 0)[0])


@contextmanager
def far() -> Iterator[tuple[Messages, socket.socket]]:
    """One that serves, and our end."""
    ours, its = socket.socketpair()
    thread = threading.Thread(target=Far(its.fileno(), its.fileno()).serve)
    thread.start()
    with ours, its:
        ours.settimeout(20)
        try:
            yield Messages(Channel(ours), lambda: None), ours
        finally:
            ours.shutdown(socket.SHUT_WR)
            thread.join(20)
            assert not thread.is_alive()


def opened(messages: Messages, path: Path, flags: int = wire.READ | wire.WRITE) -> bytes:
    head = string(os.fsencode(path)) + struct.pack(">I", flags) + wire.attributes()
    return string(messages.handle(messages.send(Ask.OPEN, head)))


Where = st.one_of(st.none(), st.integers(0, SPAN))
"""At an offset, or, for None, behind what was written last."""
Step = st.one_of(
    st.tuples(st.just("write"), Where, st.integers(1, 255 * KIB), st.integers(0, 255)),
    st.tuples(st.just("shorten"), Where, st.just(0), st.just(0)),
)


@given(steps=st.lists(Step, max_size=8), follows=st.booleans())
def test_a_file_is_what_was_written_and_so_is_its_digest(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int | None, int, int]], follows: bool
) -> None:
    path = tmp_path_factory.mktemp("far") / "f"
    whole, last, followed = bytearray(b"" if follows else b"before"), 0, follows
    path.write_bytes(whole)
    with far() as (messages, _):
        handle = opened(messages, path)
        for what, where, size, byte in steps:
            at = min(last if where is None else where, len(whole))
            if what == "write":
                data = bytes([byte]) * size
                messages.answer(messages.send(Ask.WRITE, handle + struct.pack(">Q", at), string(data)))
                whole[at : at + size] = data
                followed = followed and at == last
                last = at + size
            else:
                messages.answer(messages.send(Ask.FSETSTAT, handle + wire.attributes(size=at)))
                followed = False
                del whole[at:]
        assert messages.attributes(messages.send(Ask.FSTAT, handle)).size == len(whole)
        try:
            said = messages.answer(messages.send(Ask.EXTENDED, string(wire.DIGEST) + handle), wire.EXTENDED_REPLY)
            assert said.string().decode() == hashlib.sha256(whole).hexdigest()
        except Refused:
            assert not followed
        read, at = b"", 0
        while at < len(whole):
            part = messages.data(messages.send(Ask.READ, handle + struct.pack(">QI", at, 255 * KIB)))
            read, at = read + bytes(part), at + len(part)
        messages.answer(messages.send(Ask.CLOSE, handle))
    assert read == whole == path.read_bytes()


@given(messages=st.lists(st.tuples(st.integers(2, 255), st.binary(max_size=60)), max_size=6))
def test_nonsense_is_answered_by_a_status(messages: list[tuple[int, bytes]]) -> None:
    with far() as (client, ours):
        for number, (kind, body) in enumerate(messages, 1 << 30):
            ours.sendall(struct.pack(">IBI", 5 + len(body), kind, number) + body)
            with pytest.raises(Refused):
                client.answer(number, 0)
        assert client.attributes(client.send(Ask.STAT, string(b"/"))).is_folder()


@pytest.mark.parametrize("size", [0, 4, 1 << 30])
def test_what_is_no_message_ends_it(size: int) -> None:
    with far() as (_, ours):
        ours.sendall(struct.pack(">I", size) + b"GET / HTTP")


def test_what_goes_wrong_is_said_as_the_server_says_it(tmp_path: Path) -> None:
    with far() as (messages, _):
        for path, code in ((tmp_path / "none", 2), (tmp_path / ("n" * 300), 5), (tmp_path, 4)):
            with pytest.raises(Refused) as refused:
                opened(messages, path)
            assert refused.value.code == code, refused.value
        (tmp_path / "f").write_bytes(b"some")
        handle = opened(messages, tmp_path / "f", wire.READ)
        with pytest.raises(Refused) as refused:
            messages.answer(messages.send(Ask.WRITE, handle + struct.pack(">Q", 0), string(b"other")))
        assert refused.value.code == 2, "a handle that is not for writing"
        messages.answer(messages.send(Ask.CLOSE, handle))
        with pytest.raises(Refused):
            messages.answer(messages.send(Ask.CLOSE, handle))
    assert (tmp_path / "f").read_bytes() == b"some"


def test_a_disk_that_failed_is_told_to_who_asks_for_durability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux tells it once for an open file: here to the thread that follows, which has nobody to tell it to."""
    told = threading.Event()

    def fails(fd: int) -> None:
        told.set()
        raise OSError(errno.EIO, "the disk failed")

    monkeypatch.setattr("blocks.storage.sftp_far.SYNC", KIB)
    monkeypatch.setattr(os, "fdatasync", fails)
    (tmp_path / "f").touch()
    with far() as (messages, _):
        handle = opened(messages, tmp_path / "f")
        messages.answer(messages.send(Ask.WRITE, handle + struct.pack(">Q", 0), string(bytes(64 * KIB))))
        assert told.wait(20)
        with pytest.raises(Refused):
            messages.answer(messages.send(Ask.EXTENDED, string(wire.DIGEST) + handle), wire.EXTENDED_REPLY)
        with pytest.raises(Refused):
            messages.answer(messages.send(Ask.EXTENDED, string(wire.FSYNC) + handle))


def test_without_another_thread_it_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").touch()
    with far() as (messages, _):

        def none_left(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", none_left)
        handle = opened(messages, tmp_path / "f")
        messages.answer(messages.send(Ask.WRITE, handle + struct.pack(">Q", 0), string(b"data")))
        with pytest.raises(Refused):
            messages.answer(messages.send(Ask.EXTENDED, string(wire.DIGEST) + handle), wire.EXTENDED_REPLY)
        messages.answer(messages.send(Ask.EXTENDED, string(wire.FSYNC) + handle))
    assert (tmp_path / "f").read_bytes() == b"data"
