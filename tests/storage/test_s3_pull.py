"""Many small objects at once: what the fetching program leaves to the session, and what ends it."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blocks.errors import Cancelled
from blocks.storage.s3 import S3Storage
from blocks.storage.s3_fetcher import Times, Unusual, proven, split
from blocks.storage.s3_session import S3Session
from tests.contract.data import payload, send
from tests.servers.faultproxy import FaultProxy, How
from tests.servers.s3 import SeaweedFS

COUNT = 40
Proxies = Callable[[int], FaultProxy]


@pytest.fixture
def proxy(seaweedfs: SeaweedFS, fault_proxy: Proxies) -> FaultProxy:
    return fault_proxy(seaweedfs.info["port"])


@pytest.fixture
def session(seaweedfs: SeaweedFS, proxy: FaultProxy) -> Iterator[S3Session]:
    info = seaweedfs.info
    block = S3Storage(
        bucket=seaweedfs.bucket, prefix=secrets.token_hex(6), preset="other", access_key=info["access_key"],
        secret_key=info["secret_key"], endpoint=f"http://127.0.0.1:{proxy.port}",
    )  # type: ignore[arg-type]  # fmt: skip
    with block.open() as one:
        yield one


@pytest.fixture
def wanted(session: S3Session, tmp_path: Path) -> list[tuple[str, str]]:
    """Objects that are there, and where they shall go."""
    for n in range(COUNT):
        send(session, f"f/{n}", payload(n * 997, n))
    return [(f"f/{n}", str(tmp_path / str(n))) for n in range(COUNT)]


def came(wanted: list[tuple[str, str]]) -> list[bool]:
    """Which arrived, whole; nothing else lies there."""
    there = [os.path.exists(local) for _, local in wanted]
    for n, (_, local) in enumerate(wanted):
        assert not there[n] or Path(local).read_bytes() == payload(n * 997, n)
    return there


def test_what_was_fetched_has_the_objects_time(session: S3Session, wanted: list[tuple[str, str]]) -> None:
    moved: list[int] = []
    assert session.pull(wanted, moved.append, threading.Event()) == [None] * COUNT
    assert all(came(wanted))
    assert sum(moved) == sum(n * 997 for n in range(COUNT))
    for path, local in wanted:
        assert os.stat(local).st_mtime_ns == session.stat(path).mtime_ns


def test_a_flipped_bit_is_left_to_the_session(
    session: S3Session, proxy: FaultProxy, wanted: list[tuple[str, str]]
) -> None:
    proxy.corrupt_at, proxy.only_first = (20_000, "down"), 1
    results = session.pull(wanted, lambda n: None, threading.Event())
    assert proxy.strikes == 1
    assert came(wanted) == [r is None for r in results]
    assert 1 <= sum(r is not None for r in results) <= 2  # where headers were hit, the connection went with it


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_broken_connection_costs_what_was_on_it(
    session: S3Session, proxy: FaultProxy, wanted: list[tuple[str, str]], how: How
) -> None:
    proxy.cut_after, proxy.cut_how, proxy.only_first = (20_000, "down"), how, 1
    results = session.pull(wanted, lambda n: None, threading.Event())
    assert proxy.strikes == 1
    assert came(wanted) == [r is None for r in results]
    assert sum(r is not None for r in results) == 1
    again = [w for w, r in zip(wanted, results, strict=True) if r]
    assert session.pull(again, lambda n: None, threading.Event()) == [None]


def test_a_server_that_is_away_is_not_asked_for_each(
    session: S3Session, proxy: FaultProxy, wanted: list[tuple[str, str]]
) -> None:
    proxy.down()
    results = session.pull(wanted, lambda n: None, threading.Event())
    assert all(r is not None for r in results) and not any(came(wanted))
    proxy.up()
    assert session.pull(wanted, lambda n: None, threading.Event()) == [None] * COUNT


def test_a_stop_ends_it(session: S3Session, proxy: FaultProxy, wanted: list[tuple[str, str]]) -> None:
    """The server says nothing any more; nobody waits for it, and the program is gone."""
    proxy.freeze = True
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    with pytest.raises(Cancelled):
        session.pull(wanted, lambda n: None, stop)
    timer.join()
    assert session._fetcher is not None and session._fetcher._process is None
    proxy.heal()


def test_the_program_dies(session: S3Session, wanted: list[tuple[str, str]]) -> None:
    """What it had not told of is left to the session; the next page gets another one."""
    assert session.pull(wanted[:8], lambda n: None, threading.Event()) == [None] * 8
    assert session._fetcher is not None and session._fetcher._process is not None
    session._fetcher._process.kill()
    session._fetcher._process.wait()
    results = session.pull(wanted[8:], lambda n: None, threading.Event())
    assert all(r is not None for r in results)
    assert session.pull(wanted[8:], lambda n: None, threading.Event()) == [None] * (COUNT - 8)


def test_what_nobody_can_prove_is_left_to_the_session(session: S3Session, wanted: list[tuple[str, str]]) -> None:
    """After a few such answers, no more are asked for."""
    object.__setattr__(session._bucket.rules, "etags_are_md5", False)
    results = session.pull(wanted, lambda n: None, threading.Event())
    assert all(r is not None for r in results) and not any(came(wanted))


def test_a_local_file_that_is_there_is_left_alone(session: S3Session, wanted: list[tuple[str, str]]) -> None:
    Path(wanted[2][1]).write_bytes(b"mine")
    results = session.pull(wanted[:4], lambda n: None, threading.Event())
    assert [r is None for r in results] == [True, True, False, True]
    assert Path(wanted[2][1]).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        ({b"etag": b'"acbd18db4cc2f85cedef654fccc4a4d8"'}, True),
        ({b"etag": b'"acbd18db4cc2f85cedef654fccc4a4d9"'}, False),
        ({b"etag": b'"acbd18db4cc2f85cedef654fccc4a4d8-1"'}, None),
        ({}, None),
        ({b"etag": b'"acbd18db4cc2f85cedef654fccc4a4d8"', b"x-amz-server-side-encryption": b"aws:kms"}, None),
        ({b"etag": b'"acbd18db4cc2f85cedef654fccc4a4d8"', b"x-amz-server-side-encryption": b"AES256"}, True),
        ({b"etag": b'"acbd18db4cc2f85cedef654fccc4a4d8"',
          b"x-amz-server-side-encryption-customer-algorithm": b"AES256"}, None),
        ({b"x-amz-checksum-sha256": b"LCa0a2j/xo/5m0U8HTBBNBNCLXBkg7+g+YpeiGJm564="}, True),
        ({b"x-amz-checksum-sha256": b"LCa0a2j/xo/5m0U8HTBBNBNCLXBkg7+g+YpeiGJm565="}, False),
    ],
)  # fmt: skip
def test_evidence(fields: dict[bytes, bytes], good: bool | None) -> None:
    assert proven(b"foo", fields, etags_are_md5=True) is good


def test_dates() -> None:
    times = Times()
    assert times.seconds(b"Fri, 13 Feb 2009 23:31:30 GMT") == 1234567890
    for wrong in (b"", b"Fri, 13 Foo 2009 23:31:30 GMT", b"2009-02-13T23:31:30Z"):
        with pytest.raises(Unusual):
            times.seconds(wrong)


def test_frames_that_came_in_pieces() -> None:
    import io

    from blocks.storage.s3_fetcher import send as frame

    pipe = io.BytesIO()
    for what in ((1, 2), None, (3, -1)):
        frame(pipe, what)
    held, found = b"", []
    for at in range(len(pipe.getvalue())):
        held, some = split(held + pipe.getvalue()[at : at + 1])
        found += some
    assert found == [(1, 2), None, (3, -1)] and not held
