"""WebHDFS beyond the contract: what its refusals mean, what breaks on the way, how one gets in, the checksums of HDFS."""

from __future__ import annotations

import hashlib
import http.server
import itertools
import logging
import os
import ssl
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crc32c import crc32c

from blocks.errors import (
    AuthError,
    ConfigError,
    Conflict,
    Corrupt,
    DiskFull,
    HashMismatch,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    UnknownError,
)
from blocks.storage.base import Session
from blocks.storage.hdfs_checksum import FarChecksum, HdfsChecksum
from blocks.storage.webhdfs import WebHdfsSession, WebHdfsStorage
from blocks.storage.webhdfs_wire import classify, refused
from tests.contract.data import KIB, MIB, begin, chunks, fetch, payload, send
from tests.contract.hdfs_place import HdfsPlace
from tests.servers.base import LOOPBACK, free_port
from tests.servers.faultproxy import FaultProxy
from tests.servers.hdfs import Front, Hdfs
from tests.servers.kdc import REALM, Kdc

_numbers = itertools.count()


def storage(cluster: Hdfs, **options: object) -> WebHdfsStorage:
    """A folder of this test's own."""
    options = {
        "namenodes": [cluster.info["url"]], "root": f"/test-webhdfs/{next(_numbers)}", "create_root": True,
        "user": cluster.info["user"],
    } | options  # fmt: skip
    return WebHdfsStorage(**options)  # type: ignore[arg-type]


@pytest.fixture
def session(hdfs_cluster: Hdfs) -> Iterator[WebHdfsSession]:
    with storage(hdfs_cluster).open() as one:
        yield one


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- the table --------------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[str | None, str, int, type[OnblockError]]] = [
    ("FileNotFoundException", "File does not exist: /a", 404, NotFound),
    ("FileAlreadyExistsException", "rename destination /a already exists", 403, Conflict),
    ("ParentNotDirectoryException", "/a (is not a directory)", 403, Conflict),
    ("AccessControlException", "Permission denied: user=bob", 403, PermissionRefused),
    ("AuthorizationException", "User: x is not allowed to impersonate y", 403, PermissionRefused),
    ("SecurityException", "Failed to obtain user group information", 403, AuthError),
    ("InvalidToken", "token can't be found in cache", 403, AuthError),
    ("DSQuotaExceededException", "The DiskSpace quota of /a is exceeded", 403, DiskFull),
    ("NSQuotaExceededException", "The NameSpace quota of /a is exceeded", 403, DiskFull),
    ("SafeModeException", "Cannot create file. Name node is in safe mode.", 403, NetworkError),
    ("StandbyException", "Operation category READ is not supported in state standby", 403, NetworkError),
    ("RetriableException", "NameNode still not started", 403, NetworkError),
    ("AlreadyBeingCreatedException", "this file lease is currently owned by", 403, NetworkError),
    ("RecoveryInProgressException", "another recovery is in progress", 403, NetworkError),
    ("PathComponentTooLongException", "The maximum path component name limit", 403, ConfigError),
    ("IllegalArgumentException", 'Invalid value for webhdfs parameter "op"', 400, ConfigError),
    ("UnsupportedOperationException", "TRUNCATE is not supported", 400, ConfigError),
    ("ChecksumException", "Checksum error: /a at 0", 403, Corrupt),
    ("BlockMissingException", "Could not obtain block", 403, NetworkError),
    ("IOException", "could only be replicated to 0 nodes instead of minReplication (=1).  There are 0 datanode(s) "
     "running", 403, NetworkError),
    ("IOException", "could only be replicated to 0 nodes instead of minReplication (=1).  There are 3 datanode(s) "
     "running", 403, DiskFull),
    ("IOException", "Failed to find datanode, suggest to check cluster health.", 403, NetworkError),
    ("IOException", "Source /a and destination /b must both be directories", 403, Conflict),
    ("RemoteException", "Invalid path name /a:b", 403, ConfigError),
    ("IOException", "Pathname too long.  Limit 8000 characters, 1000 levels.", 403, ConfigError),
    (None, "<html>Unauthorized</html>", 401, AuthError),
    (None, "<html>Forbidden</html>", 403, PermissionRefused),
    (None, "<html>Not Found</html>", 404, NotFound),
    (None, "Bad Gateway", 502, NetworkError),
    (None, "Service Unavailable", 503, NetworkError),
    ("IOException", "something nobody has seen", 0, UnknownError),
    (None, "something nobody has seen", 500, UnknownError),
]  # fmt: skip


@pytest.mark.parametrize(("exception", "message", "status", "kind"), REFUSALS)
def test_what_a_refusal_means(exception: str | None, message: str, status: int, kind: type[OnblockError]) -> None:
    assert classify(exception, message, status) is kind
    error = refused(exception, message + "\n\tat org.apache.hadoop...", "a/file", status)
    assert type(error) is kind
    assert error.path == "a/file"
    assert str(error).isprintable()
    assert "org.apache" not in str(error)


# -- the checksums of HDFS --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 8192])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 8191, 8192, 8193, 16384, 100_003, 70 * 8192 + 5, 5 * MIB + 1])
def test_our_checksum_is_that_of_hdfs(hdfs_cluster: Hdfs, size: int, block: int | None) -> None:
    """However the bytes are cut, of one block and of many; and a changed byte shows."""
    if block and size > MIB:
        return  # a thousand blocks
    data = payload(size)
    with storage(hdfs_cluster, block_size=block).open() as session:
        send(session, "f", data)
        far = session.wire.far_checksum(session.wire.at("f"), "f")
        for step in (7001, MIB):
            ours = HdfsChecksum(block or 128 * MIB)
            for chunk in chunks(data, step):
                ours.update(chunk)
            assert ours.matches(far) is True
        assert session.checksum("f", "MD5-of-MD5-of-CRC") == far.digest
        if size:
            other = HdfsChecksum(block or 128 * MIB)
            other.update(memoryview(data[:-1] + bytes([data[-1] ^ 1])))
            assert other.matches(far) is False


def test_a_composite_checksum() -> None:
    data = payload(100_000)
    ours = HdfsChecksum(8192)
    ours.update(memoryview(data))
    assert ours.matches(FarChecksum("COMPOSITE-CRC32C", f"{crc32c(data):08x}")) is True
    assert ours.matches(FarChecksum("COMPOSITE-CRC32C", f"{crc32c(data) ^ 1:08x}")) is False
    for other in ("COMPOSITE-CRC32", "MD5-of-0MD5-of-4096CRC32C", "MD5-of-0MD5-of-512CRC32", "NONE"):
        assert ours.matches(FarChecksum(other, "00" * 28)) is None


def test_proof_moves_no_bytes(hdfs_cluster: Hdfs, fault_proxy: Callable[[int], FaultProxy]) -> None:
    """Of an upload of 5 MiB, 5 MiB go up and next to nothing comes down."""
    data = payload(5 * MIB)
    with through(hdfs_cluster, fault_proxy) as (session, proxy):
        upload = begin(session, "f", data)
        assert upload.matches(sha256(data))
        upload.commit()
        assert 5 * MIB < proxy.bytes_up < 5 * MIB + 64 * KIB
        assert proxy.bytes_down < 64 * KIB
        assert upload.path == "f"


# -- faults on the way ------------------------------------------------------------------------------------------------


class through:
    """A session whose way to the DataNode leads through a fault proxy."""

    def __init__(self, cluster: Hdfs, fault_proxy: Callable[[int], FaultProxy], **options: object):
        self.proxy = fault_proxy(cluster.info["datanode_http"])
        self.front = Front(cluster, self.proxy.port)
        self.cluster, self.options = cluster, options

    def __enter__(self) -> tuple[WebHdfsSession, FaultProxy]:
        self.front.start()
        self.session = storage(self.cluster, namenodes=[self.front.info["url"]], **self.options).open()
        return self.session, self.proxy

    def __exit__(self, *exc: object) -> None:
        self.session.close()
        self.front.stop()


def write_all(session: Session, data: bytes, *, resume: bool) -> None:
    upload = session.upload("f", len(data), key="k", resume=resume)
    for chunk in chunks(data[upload.offset :], MIB):
        upload.write(chunk)
    assert upload.digest() == sha256(data)
    upload.commit()


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_an_interrupted_upload_goes_on(hdfs_cluster: Hdfs, fault_proxy: Callable[[int], FaultProxy], how: str) -> None:
    data = payload(12 * MIB)
    with through(hdfs_cluster, fault_proxy) as (session, proxy):
        proxy.cut_after, proxy.cut_how, proxy.only_first = (7 * MIB, "up"), how, 1  # type: ignore[assignment]
        with pytest.raises(NetworkError) as caught:
            write_all(session, data, resume=False)
        assert caught.value.path == "f"
        write_all(session, data, resume=True)
        assert proxy.bytes_up < len(data) + 4 * MIB  # what was under way when it was cut
        assert fetch(session, "f") == data


def test_a_connection_that_hangs_is_given_up(hdfs_cluster: Hdfs, fault_proxy: Callable[[int], FaultProxy]) -> None:
    data = payload(12 * MIB)
    with through(hdfs_cluster, fault_proxy, timeout_s=1.5) as (session, proxy):
        send(session, "there", data)
        proxy.cut_after, proxy.cut_how, proxy.only_first = (3 * MIB, "up"), "hang", 1
        with pytest.raises(NetworkError):
            write_all(session, data, resume=False)
        proxy.heal()
        proxy.cut_after, proxy.cut_how, proxy.only_first = (3 * MIB, "down"), "hang", 1
        with pytest.raises(NetworkError):
            fetch(session, "there")


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_download_cut_short_is_no_whole_file(
    hdfs_cluster: Hdfs, fault_proxy: Callable[[int], FaultProxy], how: str
) -> None:
    data = payload(3 * MIB)
    with through(hdfs_cluster, fault_proxy) as (session, proxy):
        send(session, "f", data)
        proxy.cut_after, proxy.cut_how, proxy.only_first = (MIB, "down"), how, 1  # type: ignore[assignment]
        with pytest.raises(NetworkError):
            fetch(session, "f")
        assert fetch(session, "f", MIB) == data[MIB:]


def test_a_flipped_bit_on_the_wire(hdfs_cluster: Hdfs, fault_proxy: Callable[[int], FaultProxy]) -> None:
    """Up: the digest is not that of what was read. Down: the reader itself tells."""
    data = payload(3 * MIB)
    with through(hdfs_cluster, fault_proxy) as (session, proxy):
        proxy.corrupt_at, proxy.only_first = (2 * MIB, "up"), 1
        upload = begin(session, "f", data)
        assert upload.digest() != sha256(data)
        upload.abort()
        proxy.heal()
        send(session, "f", data)
        proxy.corrupt_at, proxy.only_first = (2 * MIB, "down"), 1
        with pytest.raises(HashMismatch):
            fetch(session, "f")
        assert fetch(session, "f") == data


@pytest.mark.parametrize("crc", ["CRC32", "CRC32C"])
def test_a_flipped_bit_in_the_first_file_whatever_its_crcs(
    hdfs_cluster: Hdfs, fault_proxy: Callable[[int], FaultProxy], tmp_path: Path, crc: str
) -> None:
    """Each file may be of another polynomial: who wrote it has chosen."""
    (tmp_path / "f").write_bytes(data := payload(3 * MIB))
    with through(hdfs_cluster, fault_proxy) as (session, proxy):
        full = session.wire.at("f")
        hdfs_cluster.hadoop("fs", f"-Ddfs.checksum.type={crc}", "-put", str(tmp_path / "f"), full)
        proxy.corrupt_at, proxy.only_first = (2 * MIB, "down"), 1
        with pytest.raises(HashMismatch):
            fetch(session, "f")
        assert proxy.strikes == 1
        assert fetch(session, "f") == data
        assert session.wire.far_checksum(full, "f").crc == crc


def test_datanode_killed_in_mid_file_and_started_again(mortal_hdfs: Hdfs) -> None:
    """HDFS gives up the dead writer after 60 s, or when it is told to, as here; then no more than 32 MiB go twice."""
    data = payload(40 * MIB)
    with storage(mortal_hdfs).open() as session:
        upload = session.upload("f", len(data), key="k")
        upload.write(memoryview(data)[: 36 * MIB])
        staged = next(iter(HdfsPlace(session.storage, mortal_hdfs, session.storage.root).everything()))
        mortal_hdfs.kill_datanode()
        with pytest.raises(NetworkError):
            for _ in range(200):
                upload.write(memoryview(data)[36 * MIB : 37 * MIB])
        mortal_hdfs.start_datanode()
        mortal_hdfs.wait(mortal_hdfs.ready)
        with pytest.raises(NetworkError) as caught:
            session.upload("f", len(data), key="k", resume=True)
        assert "60 s" in str(caught.value)
        mortal_hdfs.hadoop("debug", "recoverLease", "-path", f"{session.storage.root}/{staged}", "-retries", "10")
        resumed = session.upload("f", len(data), key="k", resume=True)
        assert 4 * MIB <= resumed.offset <= 240 * MIB
        offset = resumed.rewind(min(resumed.offset, 36 * MIB))
        assert 36 * MIB - offset <= 32 * MIB
        resumed.write(memoryview(data)[offset:])
        assert resumed.digest() == sha256(data)
        resumed.commit()
        assert session.checksum("f") == sha256(data)


# -- refusals of the server -------------------------------------------------------------------------------------------


def test_no_permission(hdfs_cluster: Hdfs) -> None:
    with storage(hdfs_cluster).open() as session:
        send(session, "f", b"x")
        HdfsPlace(session.storage, hdfs_cluster, session.storage.root).ask(
            "PUT", session.storage.root, "SETPERMISSION", permission="700"
        )
    mine = session.storage.model_copy(update={"user": "somebody"})
    with pytest.raises(PermissionRefused), mine.open() as stranger:
        stranger.stat("f")
    for attempt in (
        lambda s: send(s, "g", b"x"), lambda s: s.delete("f"), lambda s: fetch(s, "f"), lambda s: s.move("f", "g"),
    ):  # fmt: skip
        with mine.model_copy(update={"root": "/"}).open() as stranger, pytest.raises(OnblockError) as caught:
            attempt(_Below(stranger, session.storage.root))
        assert isinstance(caught.value, PermissionRefused), caught.value


class _Below:
    """A session of '/', spoken to with names below a folder."""

    def __init__(self, session: WebHdfsSession, root: str):
        self._session, self._root = session, root[1:]

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*paths: object, **options: object) -> object:
            full = [f"{self._root}/{p}" if isinstance(p, str) else p for p in paths]
            return getattr(self._session, name)(*full, **options)

        return call


def test_quota(hdfs_cluster: Hdfs, session: WebHdfsSession) -> None:
    root = session.storage.root
    hdfs_cluster.hadoop("dfsadmin", "-setSpaceQuota", "1m", root)
    assert session.free_bytes() == MIB // 3
    with pytest.raises(DiskFull) as caught:
        send(session, "f", payload(9 * MIB))
    assert caught.value.path == "f"
    hdfs_cluster.hadoop("dfsadmin", "-clrSpaceQuota", root)
    send(session, "f", payload(9 * MIB))


def test_safe_mode_passes(hdfs_cluster: Hdfs, session: WebHdfsSession) -> None:
    send(session, "there", b"x")
    hdfs_cluster.hadoop("dfsadmin", "-safemode", "enter")
    try:
        for attempt in (lambda: send(session, "f", b"x"), lambda: session.delete("there")):
            with pytest.raises(NetworkError) as caught:
                attempt()
            assert "safe mode" in str(caught.value)
        assert fetch(session, "there") == b"x"
    finally:
        hdfs_cluster.hadoop("dfsadmin", "-safemode", "leave")
    send(session, "f", b"x")


def test_a_path_too_long_for_hdfs(session: WebHdfsSession) -> None:
    with pytest.raises(ConfigError):
        send(session, "/".join(["d" * 250] * 40), b"x")


@pytest.mark.parametrize("root", ["relative", "", "/a/../b", "/a:b", "/.snapshot"])
def test_a_root_that_cannot_be(root: str) -> None:
    with pytest.raises(ValueError, match="root"):
        WebHdfsStorage(namenodes=["http://nn:1"], root=root)


def test_a_root_that_is_not_there(hdfs_cluster: Hdfs) -> None:
    with pytest.raises(NotFound):
        storage(hdfs_cluster, create_root=False).open()


# -- getting there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["http://no-such-host.invalid:9870", f"http://{LOOPBACK}:1"])
def test_nobody_there(hdfs_cluster: Hdfs, address: str) -> None:
    with pytest.raises(NetworkError) as caught:
        storage(hdfs_cluster, namenodes=[address]).open()
    assert address.split("/")[2].split(":")[0] in str(caught.value)


@pytest.fixture
def standby() -> Iterator[str]:
    """A NameNode in standby, as far as anybody can tell from here."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = b'{"RemoteException":{"exception":"StandbyException","message":"not supported in state standby"}}'
            self.send_response(403)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_PUT = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            return

    with http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{LOOPBACK}:{server.server_port}"
        server.shutdown()


def test_the_next_namenode_is_asked(hdfs_cluster: Hdfs, standby: str) -> None:
    away, active = f"http://{LOOPBACK}:{free_port()}", hdfs_cluster.info["url"]
    with storage(hdfs_cluster, namenodes=[away, standby, active]).open() as session:
        send(session, "f", b"x")
        assert fetch(session, "f") == b"x"
    with pytest.raises(NetworkError):
        storage(hdfs_cluster, namenodes=[away, standby]).open()


@pytest.fixture
def tls(hdfs_cluster: Hdfs, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The NameNode behind TLS, with a certificate that no public authority has signed."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    front = Front(hdfs_cluster, hdfs_cluster.info["datanode_http"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    front.web.socket = context.wrap_socket(front.web.socket, server_side=True)
    front.start()
    yield f"https://localhost:{front.web.server_port}", cert
    front.stop()


def test_tls_is_verified(hdfs_cluster: Hdfs, tls: tuple[str, Path]) -> None:
    address, cert = tls
    with pytest.raises(ConfigError) as caught:
        storage(hdfs_cluster, namenodes=[address]).open()
    assert "certificate" in str(caught.value)
    for options in ({"ca_file": str(cert)}, {"verify_tls": False}):
        with storage(hdfs_cluster, namenodes=[address], **options).open() as session:
            assert list(session.scan()) == []
            with pytest.raises(ConfigError) as caught:  # the bytes would travel in clear
                send(session, "f", b"x")
            assert "without TLS" in str(caught.value)
    with pytest.raises(ConfigError):
        storage(hdfs_cluster, namenodes=[address], ca_file="/no/such/file").open()


# -- Kerberos ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pilot(kerberos_hdfs: Hdfs, realm: Kdc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """How `pilot` gets in, and a folder that is his."""
    for name, value in realm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path}/not-ours")
    cache = f"FILE:{tmp_path}/superuser"
    keytab = str(kerberos_hdfs.folder / "hdfs.keytab")
    subprocess.run(["kinit", "-c", cache, "-k", "-t", keytab, "hdfs/localhost"], check=True)
    root = f"/home/{next(_numbers)}"
    kerberos_hdfs.hadoop("fs", "-mkdir", "-p", root, KRB5CCNAME=cache)
    kerberos_hdfs.hadoop("fs", "-chmod", "777", root, KRB5CCNAME=cache)
    return {
        "namenodes": [kerberos_hdfs.info["url"]], "root": root,
        "principal": f"pilot@{REALM}", "keytab": realm.info["keytab"],
    }  # fmt: skip


def test_by_keytab(pilot: dict[str, object], tmp_path: Path) -> None:
    """Both ways, with a ticket in a cache of our own; then by a delegation token, which is told to nobody."""
    data = payload(300_000)
    with WebHdfsStorage(**pilot).open() as session:  # type: ignore[arg-type]
        send(session, "f", data)
        assert fetch(session, "f") == data
        assert not (tmp_path / "not-ours").exists()
        answer = session.wire._client._request(
            "GET", f"{session.wire.where}/webhdfs/v1/", params={"op": "GETDELEGATIONTOKEN", "renewer": "pilot"}
        )
        token = answer.json()["Token"]["urlString"]
    by_token = {"namenodes": pilot["namenodes"], "root": pilot["root"], "token": token}
    with WebHdfsStorage(**by_token).open() as session:  # type: ignore[arg-type]
        assert fetch(session, "f") == data
        send(session, "g", data)


def test_without_a_ticket(pilot: dict[str, object]) -> None:
    for options in ({"user": "pilot"}, {"ticket_cache": "FILE:/nonexistent/cache"}):
        with pytest.raises(AuthError):
            WebHdfsStorage(namenodes=pilot["namenodes"], root=pilot["root"], **options).open()  # type: ignore[arg-type]


def test_wrong_keytabs(pilot: dict[str, object], realm: Kdc, tmp_path: Path) -> None:
    keytab = str(tmp_path / "changing.keytab")
    realm.add("changing", keytab)
    realm.admin("cpw -randkey changing")
    for principal, file, kind in (
        (f"changing@{REALM}", keytab, AuthError),
        (f"pilot@{REALM}", keytab, AuthError),
        (f"nobody@{REALM}", realm.info["keytab"], AuthError),
        (f"pilot@{REALM}", str(tmp_path / "none"), ConfigError),
        ("pilot@ELSEWHERE.TEST", realm.info["keytab"], OnblockError),
    ):
        with pytest.raises(kind) as caught:
            WebHdfsStorage(**pilot | {"principal": principal, "keytab": file}).open()  # type: ignore[arg-type]
        assert principal in str(caught.value)


def test_a_ticket_is_renewed_before_it_ends(pilot: dict[str, object], realm: Kdc, tmp_path: Path) -> None:
    keytab = str(tmp_path / "brief.keytab")
    realm.add("brief", keytab, maxlife="2 seconds")
    with WebHdfsStorage(**pilot | {"principal": f"brief@{REALM}", "keytab": keytab}).open() as session:  # type: ignore[arg-type]
        auth = session.wire._http.auth
        cache = auth.ticket.cache()  # type: ignore[union-attr]
        first = Path(cache.removeprefix("FILE:")).read_bytes()
        while subprocess.run(["klist", "-s", "-c", cache], check=False).returncode == 0:
            pass  # until it has ended
        session.wire._http.cookies.clear()  # which has outlived the ticket
        send(session, "f", b"x")
        assert Path(auth.ticket.cache().removeprefix("FILE:")).read_bytes() != first  # type: ignore[union-attr]


def test_an_expired_ticket_of_somebody_else(pilot: dict[str, object], realm: Kdc, tmp_path: Path) -> None:
    keytab, cache = str(tmp_path / "fleeting.keytab"), f"FILE:{tmp_path}/fleeting"
    realm.add("fleeting", keytab, maxlife="1 second")
    subprocess.run(["kinit", "-c", cache, "-k", "-t", keytab, "fleeting"], check=True)
    end = time.monotonic() + 60  # it is good for some seconds more: clocks differ
    with pytest.raises(AuthError) as caught:
        while time.monotonic() < end:
            WebHdfsStorage(namenodes=pilot["namenodes"], root=pilot["root"], ticket_cache=cache).open().close()  # type: ignore[arg-type]
    assert "kinit" in str(caught.value)


def test_a_kdc_that_is_away(
    pilot: dict[str, object], realm: Kdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "krb5.conf"
    config.write_text(Path(realm.env["KRB5_CONFIG"]).read_text().replace(f":{realm.info['port']}", ":1"))
    monkeypatch.setenv("KRB5_CONFIG", str(config))
    with pytest.raises(NetworkError):
        WebHdfsStorage(**pilot).open()  # type: ignore[arg-type]


def test_a_token_is_told_to_nobody(hdfs_cluster: Hdfs, caplog: pytest.LogCaptureFixture) -> None:
    secret = "IAAFcGlsb3QFcGlsb3QAigGbTOKEN"
    caplog.set_level(logging.DEBUG)
    for address in (hdfs_cluster.info["url"], f"http://{LOOPBACK}:1"):
        block = storage(hdfs_cluster, namenodes=[address], user="", token=secret)
        with pytest.raises(OnblockError) as caught:
            block.open()
        said = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(block) + block.place()
        assert secret not in said
    assert secret not in caplog.text
    assert "delegation=***" in caplog.text  # it was there to be told


def test_one_way_in() -> None:
    for options in (
        {"user": "a", "token": "t"}, {"principal": "p@R"}, {"keytab": "/k"}, {"ticket_cache": "c", "user": "a"},
        {"namenodes": ["ftp://nn"]}, {"namenodes": ["http://user:pw@nn:1"]}, {"namenodes": []}, {"block_size": 5000},
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            WebHdfsStorage(**{"namenodes": ["http://nn:1"], "root": "/r"} | options)  # type: ignore[arg-type]
        assert "user:pw" not in str(caught.value)


def test_settings_of_new_files(hdfs_cluster: Hdfs) -> None:
    with storage(hdfs_cluster, permission="600", replication=2, block_size=8192).open() as session:
        send(session, "f", payload(20_000))
        status = session.wire.status("f", session.wire.at("f"))
        assert (status["permission"], status["replication"], status["blockSize"]) == ("600", 2, 8192)
        assert os.environ.get("KRB5CCNAME") is None
