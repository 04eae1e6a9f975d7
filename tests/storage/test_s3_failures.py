"""What goes wrong between us and an S3 server: which kind it is, and that the file arrives once it is over."""

from __future__ import annotations

import dataclasses
import email.utils
import hashlib
import http.client
import os
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks.errors import (
    AuthError,
    ConfigError,
    DiskFull,
    HashMismatch,
    Kind,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    UnknownError,
)
from blocks.storage.s3 import S3Storage
from blocks.storage.s3_bucket import Bucket
from blocks.storage.s3_session import S3Session
from blocks.storage.s3_wire import CODES, STATUS, Answer, Keys, Refused, as_failure
from tests.contract.data import MIB, begin, fetch, payload, send
from tests.servers.faultproxy import FaultProxy
from tests.servers.s3 import OldMinIO, S3Front, SeaweedFS, SmallDisk
from tests.storage.test_s3 import S3, storage, unfinished

Proxies = Callable[[int], FaultProxy]


@pytest.fixture(params=["seaweedfs", "old_minio"])
def server(request: pytest.FixtureRequest) -> S3:
    return request.getfixturevalue(request.param)


def behind(proxy: FaultProxy, server: S3, **options: object) -> S3Storage:
    return storage(server, endpoint=f"http://127.0.0.1:{proxy.port}", **options)


# -- the table ------------------------------------------------------------------------------------------------------


def answer(status: int, code: str = "", message: str = "", **headers: str) -> Refused:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode() if code else b""
    return Refused(Answer(status, headers, body))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((answer(400, code), cls.kind) for code, cls in CODES.items()),
        *((answer(status), cls.kind) for status, cls in STATUS.items()),
        (answer(500), Kind.NETWORK), (answer(503), Kind.NETWORK), (answer(502, "Odd"), Kind.NETWORK),
        (answer(418), Kind.UNKNOWN), (answer(400, "Odd"), Kind.UNKNOWN), (answer(403, "Odd"), Kind.PERMISSION),
        (answer(500, "InternalError", "No writable volumes"), Kind.DISK_FULL),
        (TimeoutError(), Kind.NETWORK), (ConnectionRefusedError(), Kind.NETWORK), (ConnectionResetError(), Kind.NETWORK),
        (socket.gaierror(-2, "x"), Kind.NETWORK), (http.client.RemoteDisconnected(), Kind.NETWORK),
        (http.client.IncompleteRead(b""), Kind.NETWORK), (http.client.BadStatusLine("x"), Kind.NETWORK),
        (ssl.SSLError(), Kind.NETWORK), (ssl.SSLCertVerificationError(), Kind.CONFIG), (ValueError("x"), Kind.UNKNOWN),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_kinds(error: Exception, kind: Kind) -> None:
    failure = as_failure(error, "cannot write it", "a/file", "s3:nas/bucket")
    assert failure.kind == kind
    assert failure.__cause__ is error
    assert "a/file" in str(failure)
    assert "s3:nas/bucket" in str(failure)


def test_a_wrong_clock_is_told_with_its_error() -> None:
    then = email.utils.formatdate(time.time() - 3600, usegmt=True)
    failure = as_failure(answer(403, "RequestTimeTooSkewed", "x", date=then), "cannot write it", "f", "s3:nas/b")
    assert failure.kind is Kind.AUTH
    assert "3600 s ahead" in str(failure) or "3601 s ahead" in str(failure)
    assert "NTP" in str(failure)


def test_a_wrong_region_is_told_with_the_right_one() -> None:
    error = Refused(
        Answer(400, {}, b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>")
    )
    assert "set `region: eu-west-1`" in str(as_failure(error, "cannot open the bucket", "b", "s3:x/b"))


# -- who may not ------------------------------------------------------------------------------------------------------


def test_wrong_keys(server: S3) -> None:
    for fields in ({"secret_key": "wrong"}, {"access_key": "unknown", "secret_key": "wrong"}):
        with pytest.raises(AuthError) as caught:
            storage(server, **fields).open()
        assert "127.0.0.1" in str(caught.value)
        assert "wrong" not in str(caught.value).replace("wrong with", "")
        assert server.info["secret_key"] not in str(caught.value)


@pytest.mark.parametrize("wrong", [Keys("unknown", "wrong"), Keys("", "wrong")])
def test_keys_that_end_are_told_of_by_a_look_as_well(server: S3, wrong: Keys) -> None:
    """The answer to a HEAD has no body, and so no code: it is asked for."""
    if not wrong.access_key:
        wrong = wrong._replace(access_key=server.info["access_key"])
    now = [Keys(server.info["access_key"], server.info["secret_key"])]
    block = storage(server)
    bucket = Bucket(dataclasses.replace(block.server(), keys=lambda: now[0]), block.rules())
    with S3Session(bucket) as session:
        send(session, "f", b"there")
        assert session.stat("f").size == 5
        now[0] = wrong
        with pytest.raises(AuthError, match=r"InvalidAccessKeyId|SignatureDoesNotMatch"):
            session.stat("f")


def test_a_token_that_ends_is_told_of_by_a_look_as_well(server: S3) -> None:
    """Amazon answers 400, which says nothing by itself."""
    ended = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
    with S3Front(server) as front, storage(server, endpoint=front.info["endpoint"]).open() as session:
        send(session, "f", b"there")
        front.meddle = lambda method, path, headers: (400, ended)
        for look in (lambda: session.stat("f"), lambda: session.upload("f", 9 * MIB), lambda: session.delete("f")):
            with pytest.raises(AuthError, match="put a new one into the credentials block"):
                look()
        front.meddle = lambda method, path, headers: (400, b"") if method == "HEAD" else None
        with pytest.raises(UnknownError, match="400"):  # nothing more is to be learnt
            session.stat("f")
        front.meddle = lambda method, path, headers: None
        assert session.stat("f").size == 5


def test_an_unknown_bucket(server: S3) -> None:
    with pytest.raises(NotFound, match="make the bucket"):
        storage(server, bucket="no-such-bucket").open()


def test_an_account_that_may_only_read(seaweedfs: SeaweedFS) -> None:
    info = seaweedfs.info
    prefix = secrets.token_hex(4)
    with storage(seaweedfs, prefix=prefix).open() as session:
        send(session, "f", b"there")
    reader = storage(seaweedfs, access_key=info["readonly_key"], secret_key=info["readonly_secret"], prefix=prefix)
    with reader.open() as session:
        assert fetch(session, "f") == b"there"
        for attempt in (
            lambda: send(session, "small", b"x"),
            lambda: send(session, "large", payload(6 * MIB)),
            lambda: session.delete("f"),
        ):
            with pytest.raises(PermissionRefused):
                attempt()


def test_a_key_over_1024_bytes(server: S3) -> None:
    with storage(server).open() as session:
        path = "/".join(["d" * 200] * 6)
        with pytest.raises(ConfigError, match=r"1,024"):
            session.upload(path, 1)


# -- no room ----------------------------------------------------------------------------------------------------------


def test_a_full_disk(tmp_path: Path) -> None:
    """Most servers call it an InternalError, or forget the upload, so that it may be NETWORK or UNKNOWN: put off, and there once there is room."""
    with SmallDisk(tmp_path / "server", size="24m") as server:
        block, data = storage(server), payload(3 * MIB)
        with block.open() as session:
            sent = 0
            with pytest.raises((DiskFull, NetworkError, UnknownError), match=r"127\.0\.0\.1"):
                for sent in range(20):
                    send(session, f"f{sent}", data, key="k")
            there = {f.path for f in session.scan()}
            assert there == {f"f{n}" for n in range(sent)}
            assert all(fetch(session, path, step=MIB) == data for path in there)
            for path in there:
                session.delete(path)
            session.discard(f"f{sent}", "k")
            assert send(session, f"f{sent}", data, key="k") == f"f{sent}"
            assert fetch(session, f"f{sent}", step=MIB) == data


# -- the network --------------------------------------------------------------------------------------------------------


def test_a_reset_in_the_middle_costs_one_part(server: S3, fault_proxy: Proxies) -> None:
    data = payload(33 * MIB)
    proxy = fault_proxy(server.info["port"])
    with behind(proxy, server).open() as session:
        proxy.cut_after, proxy.only_first = (3 * MIB, "up"), 2
        send(session, "f", data, key="k")
        assert proxy.strikes == 2
        assert proxy.bytes_up - len(data) <= 32 * MIB
        assert fetch(session, "f", step=MIB) == data
        proxy.heal()
        proxy.cut_after, proxy.only_first = (3 * MIB, "down"), 3
        assert fetch(session, "f", step=MIB) == data
        assert proxy.strikes == 3


def test_a_small_file_whose_answer_was_lost_is_there_once(server: S3, fault_proxy: Proxies) -> None:
    """The connection breaks after the server has it: the second try must not take the first for somebody else's."""
    proxy = fault_proxy(server.info["port"])
    with behind(proxy, server).open() as session:
        proxy.reset_all()
        proxy.cut_after, proxy.only_first = (1, "down"), 1
        upload = begin(session, "f", b"content")
        try:
            assert upload.commit() == "f"
        except OnblockError as error:  # looked for before it was written: that answer was the one lost
            pytest.fail(str(error))
        assert proxy.strikes == 1
        proxy.heal()
        assert fetch(session, "f") == b"content"


def test_a_server_that_hangs(server: S3, fault_proxy: Proxies) -> None:
    proxy = fault_proxy(server.info["port"])
    with behind(proxy, server, timeout_s=1).open() as session:
        send(session, "f", payload(9 * MIB))
        proxy.freeze = True
        for attempt in (lambda: session.stat("f"), lambda: fetch(session, "f"), lambda: send(session, "g", b"x")):
            with pytest.raises(NetworkError, match="no answer in time"):
                attempt()
        proxy.freeze = False
        proxy.reset_all()
        assert session.stat("f").size == 9 * MIB


def test_a_connection_that_lay_idle_and_was_closed(server: S3, fault_proxy: Proxies) -> None:
    proxy = fault_proxy(server.info["port"])
    with behind(proxy, server).open() as session:
        send(session, "f", b"x")
        proxy.reset_all()
        assert session.stat("f").size == 1


@pytest.mark.parametrize("size", [3 * MIB, 23 * MIB])
def test_a_bit_flipped_on_the_way_up_never_arrives(server: S3, fault_proxy: Proxies, size: int) -> None:
    data = payload(size)
    proxy = fault_proxy(server.info["port"])
    with behind(proxy, server).open() as session:
        proxy.reset_all()
        proxy.corrupt_at, proxy.only_first = (2 * MIB, "up"), 1
        try:
            send(session, "f", data, key="k")
        except HashMismatch:
            session.discard("f", "k")
            assert [f.path for f in session.scan()] == []
            send(session, "f", data, key="k")
        assert proxy.strikes == 1
        proxy.heal()
        assert fetch(session, "f", step=MIB) == data


@pytest.mark.parametrize("size", [3 * MIB, 9 * MIB, 23 * MIB])
def test_a_bit_flipped_on_the_way_down_is_seen(server: S3, fault_proxy: Proxies, size: int) -> None:
    """Also in an object that came by multipart, which boto3 let pass."""
    data = payload(size)
    proxy = fault_proxy(server.info["port"])
    with behind(proxy, server).open() as session:
        send(session, "f", data)
        proxy.reset_all()
        proxy.corrupt_at, proxy.only_first = (2 * MIB, "down"), 1
        with pytest.raises(HashMismatch):
            fetch(session, "f", step=MIB)
        assert proxy.strikes == 1
        proxy.reset_all()
        proxy.only_first = 2
        with pytest.raises(HashMismatch):
            session.checksum("f", fresh=True)
        proxy.heal()
        assert fetch(session, "f", step=MIB) == data


def test_a_bit_flipped_in_what_another_program_sent_by_multipart(seaweedfs: SeaweedFS, fault_proxy: Proxies) -> None:
    """Only its ETag, made of those of its parts, tells; the server says how large they are."""
    from boto3.s3.transfer import TransferConfig

    proxy = fault_proxy(seaweedfs.info["port"])
    with behind(proxy, seaweedfs).open() as session:
        data = payload(17 * MIB)
        client = seaweedfs.client(request_checksum_calculation="when_required")
        import io

        client.upload_fileobj(
            io.BytesIO(data), seaweedfs.bucket, f"{session._prefix}f",
            Config=TransferConfig(multipart_threshold=6 * MIB, multipart_chunksize=6 * MIB),
        )  # fmt: skip
        head = client.head_object(Bucket=seaweedfs.bucket, Key=f"{session._prefix}f", ChecksumMode="ENABLED")
        assert head["ETag"].endswith('-3"')
        assert not [k for k in head if k.startswith("Checksum")]
        assert fetch(session, "f", step=MIB) == data
        proxy.reset_all()
        proxy.corrupt_at, proxy.only_first = (2 * MIB, "down"), 1
        with pytest.raises(HashMismatch):
            fetch(session, "f", step=MIB)


# -- the server dies --------------------------------------------------------------------------------------------------


def test_what_is_under_way_fails_while_it_is_kept(seaweedfs: SeaweedFS, fault_proxy: Proxies) -> None:
    """Letting go never fails: nobody has waited for those parts yet, and who goes on sends them again."""
    proxy, data = fault_proxy(seaweedfs.info["port"]), payload(40 * MIB)
    with behind(proxy, seaweedfs, part_size_mib=8, multipart_from_mib=16).open() as session:
        upload = session.upload("f", len(data), key="k")
        upload.write(memoryview(data)[: 17 * MIB])
        upload.rewind(16 * MIB)  # waits for the two parts
        proxy.down()
        upload.write(memoryview(data)[16 * MIB : 32 * MIB])
        journal = upload.journal
        upload.keep()
    proxy.up()
    with behind(proxy, seaweedfs, part_size_mib=8, multipart_from_mib=16).open() as later:
        upload = later.upload("f", len(data), key="k", resume=True, journal=journal)
        assert upload.offset == 16 * MIB
        upload.write(memoryview(data)[upload.offset :])
        upload.commit()
        assert fetch(later, "f", step=MIB) == data
        assert unfinished(later) == []


def test_a_server_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path, fault_proxy: Proxies) -> None:
    """At most 32 MiB are sent twice."""
    data = payload(60 * MIB)
    with OldMinIO(tmp_path / "server") as server:  # SeaweedFS takes half a minute to be ready again
        proxy = fault_proxy(server.info["port"])
        block = behind(proxy, server, part_size_mib=8, multipart_from_mib=16)
        session = block.open()
        upload = session.upload("f", len(data), key="k")
        upload.write(memoryview(data)[: 41 * MIB])
        journal = upload.journal
        assert server.process is not None
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
        proxy.reset_all()
        with pytest.raises(NetworkError):
            upload.write(memoryview(data)[41 * MIB :])
            upload.commit()
        upload.keep()
        session.close()
        server.start()
        with block.open() as later:
            upload = later.upload("f", len(data), key="k", resume=True, journal=journal)
            assert upload.offset >= 16 * MIB
            upload.write(memoryview(data)[upload.offset :])
            upload.commit()
            assert proxy.bytes_up - len(data) <= 32 * MIB
            assert fetch(later, "f", step=MIB) == data
            assert later.checksum("f") == hashlib.sha256(data).hexdigest()
            assert unfinished(later) == []
