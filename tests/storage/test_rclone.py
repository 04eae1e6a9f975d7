"""RcloneStorage: what its failures mean, what stays secret, and what no other storage has. The contract is elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from blocks.errors import (
    AuthError,
    Cancelled,
    ConfigError,
    Conflict,
    DiskFull,
    HashMismatch,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceChanged,
    SourceVanished,
    ToolMissing,
    UnknownError,
)  # fmt: skip
from blocks.storage.hadoop_run import failure as hadoop_failure
from blocks.storage.rclone import RcloneStorage
from blocks.storage.rclone_daemon import EXIT_CODES, Daemon, classify, decode, encode
from tests.contract.data import HOSTILE, MIB, begin, fetch, payload, send
from tests.servers.faultproxy import FaultProxy
from tests.servers.rclone import RcloneServe, sftp_section
from tests.servers.sshd import Sshd

DISK = SecretStr("type = local")


def members(group: int) -> list[int]:
    """The live processes of a process group."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[2]) == group:
            found.append(int(entry))
    return found


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("open /data/x: permission denied", PermissionRefused),
        ("operation not permitted", PermissionRefused),
        ("AccessDenied: Access Denied", PermissionRefused),
        ("read-only file system", PermissionRefused),
        ('sftp: "Permission denied" (SSH_FX_PERMISSION_DENIED)', PermissionRefused),
        ("couldn't connect SSH: ssh: handshake failed: ssh: unable to authenticate, attempted methods [none]", AuthError),
        ("knownhosts: key mismatch", AuthError),
        ("401 Unauthorized", AuthError),
        ("SignatureDoesNotMatch: the request signature", AuthError),
        ('oauth2: "invalid_grant" "Token has been expired or revoked."', AuthError),
        ("tls: failed to verify certificate: x509: certificate signed by unknown authority", AuthError),
        ("write /data/x: no space left on device", DiskFull),
        ("write: disk quota exceeded", DiskFull),
        ("googleapi: Error 403: The user's Drive storage quota has been exceeded., storageQuotaExceeded", DiskFull),
        ("507 Insufficient Storage", DiskFull),
        ("dial tcp 127.0.0.1:1: connect: connection refused", NetworkError),
        ("read tcp: connection reset by peer", NetworkError),
        ("dial tcp: lookup nas: no such host", NetworkError),
        ("i/o timeout", NetworkError),
        ("unexpected EOF", NetworkError),
        ("503 Service Unavailable", NetworkError),
        ("directory not found", NotFound),
        ("object not found", NotFound),
        ("NoSuchBucket: the specified bucket", NotFound),
        ("is a directory not a file", Conflict),
        ("mkdir /x: not a directory", Conflict),
        ("corrupted on transfer: md5 hashes differ src \"a\" vs dst \"b\"", HashMismatch),
        ("can't copy - source file is being updated (size changed from 1 to 2)", SourceChanged),
        ('didn\'t find section in config file ("nas")', ConfigError),
        ("open /x: file name too long", ConfigError),
        ("something nobody has seen", UnknownError),
    ],
)  # fmt: skip
def test_what_rclone_says(said: str, kind: type[OnblockError]) -> None:
    assert classify(said) is kind
    assert classify(said, code=5 if kind is not UnknownError else 1) is kind  # words go before the exit code


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, UnknownError), (2, ConfigError), (3, NotFound), (4, NotFound), (5, NetworkError), (6, UnknownError),
        (7, UnknownError), (8, ConfigError), (9, UnknownError), (10, ConfigError),
        (11, UnknownError), (-9, NetworkError),
    ],
)  # fmt: skip
def test_exit_codes(code: int, kind: type[OnblockError]) -> None:
    assert classify("", code) is kind
    assert set(EXIT_CODES) == set(range(1, 11))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("open /srv/flight-401/clip.mp4: input/output error", UnknownError),
        ("open /srv/DCIM/clip-507.mp4: input/output error", UnknownError),
        ("failed to open source object: open /data/cam-403/a.mp4: no such file or directory", NotFound),
        ("read tcp 10.0.0.1:401->10.0.0.2:22: connection reset by peer", NetworkError),
        ('sftp: "Failure" (SSH_FX_FAILURE) for /data/flight 401/x', UnknownError),
        ('object "flight-404/a.bin": 503 slow down', NetworkError),
        ('Post "https://h/403/x": net/http: TLS handshake timeout', NetworkError),
        ('Post "https://cdn/403": dial tcp: lookup cdn: i/o timeout', NetworkError),
        ("dial tcp: lookup x509-host: no such host", NetworkError),
        ('error="read tcp: i/o timeout"', NetworkError),
        ('open "see /srv/x": connection reset by peer', NetworkError),
        ("HTTP error 403 (403 Something) returned body", PermissionRefused),
        ("operation error S3: HeadObject, https response error StatusCode: 401, RequestID: ,", AuthError),
        ("b2: bad token (401 expired_auth_token)", AuthError),
        ("RESPONSE 404: 404 The specified blob", NotFound),
        ("HTTP/1.1 507", DiskFull),
    ],
)  # fmt: skip
def test_a_number_in_a_name_is_no_status(said: str, kind: type[OnblockError]) -> None:
    assert classify(said) is kind


WORDS = [
    "401", "error 403", "status 404", "permission denied", "x509", "no space left on device", "EOF", "not found", "timeout",
    "File exists", "No such file or directory", "quota exceeded", "can't copy", '"', "'", "`", "': ", ": ", "\\", "a", "o", "ü",
]  # fmt: skip


@given(
    name=st.lists(st.lists(st.sampled_from(WORDS), min_size=1).map(" ".join), min_size=1).map("/".join),
    said=st.sampled_from([
        "open /srv/{}: input/output error", "mkdir /srv/{}: permission denied", "open /srv/{}: no such file or directory",
        'mkdir "{}" failed: i/o timeout', "write /srv/{}: no space left on device", 'Failed to copy "{}": something else',
    ]),
)  # fmt: skip
def test_a_name_never_changes_the_kind(name: str, said: str) -> None:
    assert classify(said.format(name), known=(name,)) is classify(said.format("x"), known=("x",))
    for form in (
        "put: `/srv/{}': something else",
        "put: `/srv/{}': No such file or directory",
        "File does not exist: /srv/{}",
    ):
        kinds = {type(hadoop_failure(form.format(one), 1, "", one)) for one in (name, "x")}
        assert len(kinds) == 1


def test_http_statuses() -> None:
    assert classify("", status=404) is NotFound
    assert classify("", status=500) is UnknownError


# -- real failures ----------------------------------------------------------------------------------------------------


def test_the_binary_is_missing(tmp_path: Path) -> None:
    storage = RcloneStorage(remote="disk", root=str(tmp_path), config=DISK, binary="/nowhere/rclone")
    with pytest.raises(ToolMissing, match="/nowhere/rclone"):
        storage.open()


def test_the_binary_is_another_program(tmp_path: Path) -> None:
    with pytest.raises(OnblockError) as caught:
        RcloneStorage(remote="disk", root=str(tmp_path), config=DISK, binary="/bin/false").open()
    assert "exit code 1" in str(caught.value)


def test_a_missing_root(rclone_disk: SecretStr, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="create_root"):
        RcloneStorage(remote="disk", root=str(tmp_path / "none"), config=rclone_disk).open()
    RcloneStorage(remote="disk", root=str(tmp_path / "none"), config=rclone_disk, create_root=True).open().close()
    assert (tmp_path / "none").is_dir()


def test_wrong_key(sshd: Sshd, tmp_path: Path) -> None:
    other = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    section = sftp_section(sshd.info, key_file=other)
    with pytest.raises(AuthError) as caught:
        RcloneStorage(remote="nas", root=str(tmp_path), config=section).open()
    assert "nas" in str(caught.value)


def test_changed_host_key(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    info = sshd.info
    key = Path(info["key"] + ".pub").read_text().rsplit(" ", 1)[0]
    known.write_text(f"[{info['host']}]:{info['port']} {key}\n")
    with pytest.raises(AuthError):
        RcloneStorage(remote="nas", root="/", config=sftp_section(info, known_hosts_file=known)).open()


def test_nobody_listens(sshd: Sshd, fault_proxy: Callable[[int], FaultProxy]) -> None:
    proxy = fault_proxy(sshd.info["port"])
    proxy.down()
    section = sftp_section(sshd.info, port=proxy.port, known_hosts_file="")
    with pytest.raises(NetworkError):
        RcloneStorage(remote="nas", root="/", config=section).open()


def test_a_full_disk(sshd_small: Sshd) -> None:
    info = sshd_small.info
    with RcloneStorage(remote="nas", root=info["small"], config=sftp_section(info)).open() as session:
        for size in (3 * MIB, 900 * 1024):
            uploads = []
            with pytest.raises(DiskFull):
                for n in range(4):
                    uploads.append(session.upload(f"{n}", size, key="k"))
                    uploads[-1].write(memoryview(payload(size, n)))
                    uploads[-1].seal()
            for upload in uploads:
                upload.abort()
            assert list(session.scan()) == []
        send(session, "small", b"fits again")
        assert fetch(session, "small") == b"fits again"
        session.delete("small")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask for what it may not")
def test_a_folder_one_may_not_write_is_no_failed_login(sshd: Sshd) -> None:
    folder = sshd.new_folder() / "root"
    folder.mkdir()
    folder.chmod(0o755)
    section = sftp_section(sshd.info, user=sshd.info["plain"])
    with RcloneStorage(remote="nas", root=str(folder), config=section).open() as session:
        with pytest.raises(PermissionRefused):
            send(session, "file", b"x")
        assert list(session.scan()) == []


def test_a_server_that_falls_silent(sshd: Sshd, fault_proxy: Callable[[int], FaultProxy]) -> None:
    """A half-open connection ends after the idle timeout; afterwards a new session works."""
    folder = sshd.new_folder()
    (folder / "file").write_bytes(payload(8 * MIB))
    proxy = fault_proxy(sshd.info["port"])
    known = folder / ".known"
    known.write_text(f"[{sshd.info['host']}]:{proxy.port} {sshd.info['host_key']}\n")
    section = sftp_section(sshd.info, port=proxy.port, known_hosts_file=known)
    storage = RcloneStorage(remote="nas", root=str(folder), config=section, idle_timeout=2)
    with storage.open() as session:
        proxy.cut_after, proxy.cut_how, proxy.only_first = (200_000, "down"), "rst", None
        proxy.reset_all()
        with pytest.raises(NetworkError):
            fetch(session, "file")
    proxy.heal()
    with storage.open() as session:
        assert fetch(session, "file") == payload(8 * MIB)


def test_the_daemon_dies(tmp_path: Path) -> None:
    """Killed from outside in the middle of a file: a failure that is tried again, and the next session works."""
    storage = RcloneStorage(remote="mortal", root=str(tmp_path), config=DISK)
    with storage.open() as session:
        upload = begin(session, "file", payload(3 * MIB))
        os.kill(Daemon.running[next(k for k in Daemon.running if "mortal" in k[1])].program.pid, signal.SIGKILL)
        with pytest.raises(NetworkError):
            for _ in range(100):
                upload.write(memoryview(bytes(MIB)))
            upload.commit()
        assert not (tmp_path / "file").exists()
        with storage.open() as again:
            send(again, "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


# -- processes --------------------------------------------------------------------------------------------------------


def group_of(remote: str) -> int:
    return Daemon.running[next(k for k in Daemon.running if remote in k[1])].program.pid


def test_sessions_share_a_daemon_that_ends_with_the_last(tmp_path: Path) -> None:
    storage = RcloneStorage(remote="shared", root=str(tmp_path), config=DISK)
    first, second = storage.open(), storage.open()
    group = group_of("shared")
    assert len(members(group)) == 2  # the daemon, and what kills it when we die
    first.close()
    send(second, "file", b"x")
    second.close()
    assert members(group) == []
    assert not [k for k in Daemon.running if "shared" in k[1]]


def test_nothing_outlives_a_killed_process(tmp_path: Path) -> None:
    """SIGKILL of the process that moves files: its rclone goes with it."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            session = RcloneStorage(remote="orphan", root=str(tmp_path), config=DISK).open()
            daemon = next(d for k, d in Daemon.running.items() if "orphan" in k[1])
            os.write(write, f"{daemon.program.pid} {os.path.dirname(daemon.socket)}".encode())
            threading.Event().wait()
            session.close()
        finally:
            os._exit(1)
    pid, _, private = os.read(read, 1000).decode().partition(" ")
    assert len(members(int(pid))) == 2
    assert Path(private, "rclone.conf").exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    until(lambda: not members(int(pid)))
    assert not Path(private).exists()  # nor its configuration


def test_a_push_stops_within_two_seconds(sshd: Sshd, fault_proxy: Callable[[int], FaultProxy], tmp_path: Path) -> None:
    folder = sshd.new_folder()
    proxy = fault_proxy(sshd.info["port"])
    known = tmp_path / "known"
    known.write_text(f"[{sshd.info['host']}]:{proxy.port} {sshd.info['host_key']}\n")
    section = sftp_section(sshd.info, port=proxy.port, known_hosts_file=known)
    files = []
    for n in range(20):
        (tmp_path / f"{n}").write_bytes(payload(MIB, n))
        files.append(str(tmp_path / f"{n}"))
    stop = threading.Event()
    with RcloneStorage(remote="slow", root=str(folder), config=section).open() as session:
        uploads = [session.upload(f"d/{n}", MIB, key="k") for n in range(20)]
        proxy.rate = 200_000
        started = threading.Timer(1.0, stop.set)
        started.start()
        with pytest.raises(Cancelled):
            session.push(list(zip(files, uploads, strict=True)), lambda n: None, stop)
        started.join()
        proxy.heal()
        for upload in uploads:
            upload.abort()
    until(lambda: not [p for p in folder.rglob("*") if p.is_file()])


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_are_nowhere_to_be_seen(sshd: Sshd, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither on a command line, nor in the environment, a message, a log, or a file others may read."""
    section = sftp_section(sshd.info, key_file="", **{"pass": "obscured-SECRET"})
    storage = RcloneStorage(remote="hidden", root=str(tmp_path), config=section)
    with pytest.raises(OnblockError) as caught:
        storage.open()
    assert "SECRET" not in str(caught.value) + repr(caught.value) + caplog.text + repr(storage) + str(
        storage.model_dump()
    )
    wrong = SecretStr("type = local\nnounc = a-SECRET")
    with pytest.raises(ConfigError) as caught:
        RcloneStorage(remote="wrong", root=str(tmp_path), config=wrong).open()
    assert "SECRET" not in str(caught.value) + caplog.text
    quiet = RcloneStorage(remote="kept", root=str(tmp_path), config=SecretStr("type = local\ndescription = SECRET"))
    with quiet.open():
        pid = group_of("kept")
        for what in ("cmdline", "environ"):
            assert b"SECRET" not in Path(f"/proc/{pid}/{what}").read_bytes()
        config = Path(f"/proc/{pid}/environ").read_bytes().split(b"RCLONE_CONFIG=")[1].split(b"\0")[0].decode()
        assert "SECRET" in Path(config).read_text()
        assert Path(config).stat().st_mode & 0o077 == 0
        assert Path(config).parent.stat().st_mode & 0o077 == 0
    assert not Path(config).exists()


# -- configuration ----------------------------------------------------------------------------------------------------


def test_an_rclone_conf_of_the_users(tmp_path: Path) -> None:
    config = tmp_path / "rclone.conf"
    config.write_text(f"[card]\ntype = local\n\n[box]\ntype = alias\nremote = card:{tmp_path}/files\n")
    (tmp_path / "files").mkdir()
    with RcloneStorage(remote="box", config_file=str(config)).open() as session:
        send(session, "line\nbreak", b"x")
        assert [f.path for f in session.scan()] == ["line\nbreak"]
    assert (tmp_path / "files" / "line\nbreak").read_bytes() == b"x"
    with pytest.raises(ConfigError, match=r"rclone\.conf"):
        RcloneStorage(remote="box", config_file=str(tmp_path / "none" / "rclone.conf")).open()
    with pytest.raises(ConfigError):
        RcloneStorage(remote="nobody", config_file=str(config)).open()


@pytest.mark.parametrize(
    "fields",
    [
        {"remote": "-x", "config": "type = local"}, {"remote": "a:b", "config": "type = local"}, {"remote": "a"},
        {"remote": "a", "config": "type = local", "config_file": "/x"}, {"remote": "a", "root": "x]", "config": "t = l"},
        {"remote": "a", "root": "x\ny", "config": "t = l"}, {"remote": "a", "config": "t = l", "idle_timeout": 0},
    ],
)  # fmt: skip
def test_a_block_that_cannot_be(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RcloneStorage(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [*HOSTILE, "\u240a", "\u201b", "\u201b\u240a", "a\u2421\x7f"], ids=ascii)
def test_names_as_rclone_writes_them(path: str) -> None:
    assert decode(encode(path)) == path
    assert decode(encode(path, False), False) == path
    assert all(ord(c) >= 32 and c != "\x7f" for c in encode(path))


# -- other kinds of remote --------------------------------------------------------------------------------------------


def test_webdav(rclone_webdav: RcloneServe) -> None:
    section = SecretStr(f"type = webdav\nurl = {rclone_webdav.info['url']}\nvendor = rclone")
    served = Path(rclone_webdav.info["folder"])
    with RcloneStorage(remote="dav", config=section).open() as session:
        for size in (0, 5, 3 * MIB + 1):
            upload = begin(session, f"a b/ü/{size}", payload(size))
            upload.digest()
            assert not (served / f"a b/ü/{size}").exists()
            upload.commit()
            assert (served / f"a b/ü/{size}").read_bytes() == payload(size)
            assert fetch(session, f"a b/ü/{size}") == payload(size)
        with pytest.raises(Conflict):
            send(session, "a b/ü/5", b"other")
        found = {f.path: f.size for f in session.scan()}
        assert found == {"a b/ü/0": 0, "a b/ü/5": 5, f"a b/ü/{3 * MIB + 1}": 3 * MIB + 1}


def test_s3(rclone_s3: RcloneServe) -> None:
    section = SecretStr(
        f"type = s3\nprovider = Rclone\nendpoint = {rclone_s3.info['url']}\naccess_key_id = key\n"
        "secret_access_key = secret\nuse_multipart_uploads = true"
    )
    (Path(rclone_s3.info["folder"]) / "bucket").mkdir(exist_ok=True)
    with RcloneStorage(remote="s3", root="bucket/pre", config=section, create_root=True).open() as session:
        for size in (1, 3 * MIB + 1):
            upload = begin(session, f"d/{size}", payload(size))
            upload.digest()
            upload.commit()
            assert fetch(session, f"d/{size}", 0) == payload(size)
            assert session.stat(f"d/{size}").size == size
        assert {f.path for f in session.scan()} == {"d/1", f"d/{3 * MIB + 1}"}
        session.delete("d/1")
        with pytest.raises(NotFound):
            session.delete("d/1")
    with pytest.raises((AuthError, PermissionRefused)):
        bad = SecretStr(section.get_secret_value().replace("= secret", "= wrong"))
        RcloneStorage(remote="s3", root="bucket", config=bad).open()


def s3_section(host: str, port: int) -> SecretStr:
    return SecretStr(
        f"type = s3\nprovider = Rclone\nendpoint = http://{host}:{port}\naccess_key_id = key\n"
        "secret_access_key = secret"
    )


def test_a_bit_that_flips_on_the_way_from_s3_is_seen(
    rclone_s3: RcloneServe, fault_proxy: Callable[[int], FaultProxy], tmp_path: Path
) -> None:
    """The hash that such a source keeps is held against what came, of a file read singly and of many fetched at once."""
    proxy = fault_proxy(rclone_s3.info["port"])
    section = s3_section(rclone_s3.info["host"], proxy.port)
    with RcloneStorage(remote="flips", root="flips", config=section, create_root=True).open() as session:
        for n in range(12):
            send(session, f"{n}", payload(200_000, n))
        send(session, "large", payload(3 * MIB + 1))
        proxy.corrupt_at, proxy.only_first = (MIB, "down"), 1
        proxy.reset_all()
        with pytest.raises(HashMismatch) as caught:
            fetch(session, "large")
        assert caught.value.path == "large"
        assert fetch(session, "large") == payload(3 * MIB + 1)
        for turned, whole in ((0, True), (1, False)):  # what goes on in the middle, shown what came before
            with session.read("large", 2 * MIB) as reader:
                first = bytearray(payload(3 * MIB + 1)[: 2 * MIB])
                first[-1] ^= turned
                reader.before(memoryview(first))
                rest = bytearray(2 * MIB)
                if whole:
                    assert rest[: reader.readinto(rest)] == payload(3 * MIB + 1)[2 * MIB :]
                else:
                    with pytest.raises(HashMismatch):
                        reader.readinto(rest)
        wanted = [(f"{n}", str(tmp_path / f"{n}")) for n in range(12)]
        proxy.corrupt_at, proxy.only_first, proxy.strikes = (150_000, "down"), 1, 0
        proxy.reset_all()
        results = session.pull(wanted, lambda n: None, threading.Event())
        assert [type(r) for r in results if r is not None] == [HashMismatch]
        for n, result in enumerate(results):
            assert result is not None or (tmp_path / f"{n}").read_bytes() == payload(200_000, n)


def test_a_source_replaced_while_it_is_read_has_changed(rclone_s3: RcloneServe) -> None:
    """That another hash is there now says nothing of the bytes that came."""
    section = s3_section(rclone_s3.info["host"], rclone_s3.info["port"])
    buffer = bytearray(MIB)
    with RcloneStorage(remote="changing", root="changing", config=section, create_root=True).open() as session:
        send(session, "f", payload(9 * MIB))
        with session.read("f") as reader:
            reader.readinto(buffer)
            upload = begin(session, "f", payload(9 * MIB + 1))
            upload.commit(replace=True)
            with pytest.raises(SourceChanged):
                while reader.readinto(buffer):
                    pass
        with session.read("f") as reader:
            reader.readinto(buffer)
            session.delete("f")
            while reader.readinto(buffer):
                pass
            with pytest.raises(SourceVanished):
                reader.info()


def test_what_a_storage_can_is_asked_of_rclone(rclone_disk: SecretStr, tmp_path: Path) -> None:
    with RcloneStorage(remote="disk", root=str(tmp_path), config=rclone_disk).open() as session:
        assert "sha256" in session.features.server_checksums
        assert not session.features.resume_write
        assert (session.free_bytes() or 0) > 0
        assert json.loads(json.dumps(session.features.server_checksums))
