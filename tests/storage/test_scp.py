"""SCP beyond the contract: a host without SFTP, what its programs say when they fail, and what it costs to go on."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from blocks.errors import (
    ConfigError,
    Conflict,
    DiskFull,
    Kind,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceChanged,
    SourceVanished,
)
from blocks.storage import ScpStorage
from blocks.storage.base import Session, aligned_buffer
from blocks.storage.scp_files import ScpReader
from blocks.storage.scp_host import FAILURES, STATUS, said
from tests.contract.data import KIB, MIB, begin, fetch, listing, payload, send
from tests.servers.faultproxy import FaultProxy
from tests.servers.sshd import Sshd


def scp(server: Sshd, root: Path | str | None = None, **changes: object) -> ScpStorage:
    info = server.info
    fields = {
        "host": info["host"], "port": info["port"], "user": info["user"], "root": str(root or server.new_folder()),
        "key_file": info["key"], "host_key": info["host_key"], "connect_timeout": 10, "io_timeout": 10,
    }  # fmt: skip
    return ScpStorage(**{**fields, **changes})  # type: ignore[arg-type]


def tell(error: OnblockError, *words: str) -> None:
    """The message names the host and what to do."""
    assert "127.0.0.1" in str(error) and error.todo, str(error)
    assert all(word in str(error) for word in words), str(error)


# -- accounts and roots ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["sftponly", "noshell", "bare"])
def test_an_account_without_a_shell_is_told(sshd: Sshd, user: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scp(sshd, user=user).open()
    tell(caught.value, "shell", "sftp-storage")


def test_roots(sshd_without_sftp: Sshd) -> None:
    home = Path(sshd_without_sftp.info["home"])
    (home / "in/de ep").mkdir(parents=True, exist_ok=True)
    for root in ("in/de ep", "~/in/de ep", f"{home}/in/../in/de ep/"):
        with scp(sshd_without_sftp, root).open() as session:
            send(session, "file", b"x")
            assert (home / "in/de ep/file").read_bytes() == b"x"
            session.delete("file")
    (home / "file").write_bytes(b"")
    for root, kind in (("none", NotFound), ("file", Conflict)):
        with pytest.raises(kind) as caught:
            scp(sshd_without_sftp, root).open()
        tell(caught.value)
    with scp(sshd_without_sftp, "new/and/deep", create_root=True).open() as session:
        send(session, "file", b"x")
    assert (home / "new/and/deep/file").read_bytes() == b"x"


def test_a_host_without_gnu_tools(sshd_without_sftp: Sshd) -> None:
    """Where `find` has no -printf, `stat` no fractions and `sync` no names, it takes the long way to the same."""
    data = payload(3 * MIB)
    root = sshd_without_sftp.new_folder()
    (root / "d").mkdir()
    with scp(sshd_without_sftp, root).open() as session:
        assert session.host.tools == {"scp", "sha256sum", "find", "nanoseconds", "sync"}
        session.host.tools.clear()
        session.host.hashes = False
        session.host._stat = b"stat -c '%f %s %Y %i %h' "
        for name in ("file", "d/-x", "d/.hidden", "d/..two", "d/new\nline", "d/a b"):
            upload = begin(session, name, data[:70_000], mtime_ns=1_234_567_890_500_000_000)
            assert upload.digest(fresh=True) == hashlib.sha256(data[:70_000]).hexdigest()
            assert session.commit_all([upload]) == [name]
        found = {f.path: f for f in session.scan()}
        assert set(found) == {"file", "d/-x", "d/.hidden", "d/..two", "d/new\nline", "d/a b"}
        for path, info in found.items():
            assert info == session.stat(path)
            assert (info.size, info.mtime_ns) == (70_000, 1_234_567_890_000_000_000)


def test_times_are_exact_where_the_host_says_them(sshd_without_sftp: Sshd) -> None:
    with scp(sshd_without_sftp).open() as session:
        send(session, "file", b"x", mtime_ns=1_234_567_890_123_456_789)
        (info,) = session.scan()
        assert info.mtime_ns == session.stat("file").mtime_ns == 1_234_567_890_123_456_789


# -- links, special files, changes ------------------------------------------------------------------------------------------


def test_links_and_special_files(sshd_without_sftp: Sshd, tmp_path: Path) -> None:
    root = sshd_without_sftp.new_folder()
    (root / "d").mkdir()
    (root / "d/file").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"secret")
    for name, target in {
        "inside": "d/file", "outside": str(tmp_path / "secret"), "nothing": "none", "folder": "d", "out": str(tmp_path),
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(root / "socket"))
    with scp(sshd_without_sftp, root).open() as session:
        found = {f.path: f for f in session.scan()}
        assert {p for p, f in found.items() if not f.problem} == {"d/file", "inside"}
        assert set(found) == {"d/file", "inside", "outside", "nothing", "out", "fifo", "socket"}
        assert found["inside"].size == 5
        assert fetch(session, "inside") == b"12345"
        for path in ("outside", "fifo"):
            with pytest.raises(ConfigError):
                session.read(path)
        with pytest.raises((SourceVanished, ConfigError)):
            session.read("nothing")
        with pytest.raises(ConfigError):
            list(session.scan("out"))


def test_a_file_of_another_inode_is_another(sshd_without_sftp: Sshd) -> None:
    root = sshd_without_sftp.new_folder()
    for name in ("file", "other"):
        (root / name).write_bytes(b"12345")
        os.utime(root / name, ns=(0, 0))
    with scp(sshd_without_sftp, root).open() as session, session.read("file") as reader:
        (root / "other").rename(root / "file")
        with pytest.raises(SourceChanged):
            reader.info()


# -- what the far side refuses ----------------------------------------------------------------------------------------------


def test_no_permission(sshd_without_sftp: Sshd) -> None:
    root = sshd_without_sftp.new_folder()
    for name in ("closed", "shut"):
        (root / name).mkdir()
    (root / "closed/file").write_bytes(b"x")
    (root / "secret").write_bytes(b"x")
    (root / "secret").chmod(0)
    root.chmod(0o755)
    (root / "closed").chmod(0o555)
    (root / "shut").chmod(0o000)
    with scp(sshd_without_sftp, root, user="plain").open() as session:
        for attempt in (
            lambda: session.upload("closed/new", 1),
            lambda: session.upload("new/folder/file", 1),
            lambda: session.upload("shut/file", 1),
            lambda: session.read("secret"),
            lambda: session.read("secret", 1).readinto(bytearray(1)),
            lambda: session.delete("closed/file"),
            lambda: session.move("closed/file", "closed/other"),
            lambda: session.stat("shut/file"),
            lambda: list(session.scan("shut")),
        ):
            with pytest.raises(PermissionRefused) as caught:
                attempt()
            tell(caught.value)
        (problem,) = [f for f in session.scan() if f.problem]
        assert problem.path == "shut" and isinstance(problem.problem, PermissionRefused)
    (root / "shut").chmod(0o700)


@pytest.mark.parametrize("announced", [0, 3 * MIB], ids=["cat", "scp"])
def test_a_full_disk(sshd_small: Sshd, announced: int) -> None:
    with scp(sshd_small, sshd_small.info["small"]).open() as session:
        large = session.upload("large", announced)
        with pytest.raises(DiskFull) as caught:
            for _ in range(6):
                large.write(memoryview(payload(512 * KIB)))
            large.digest()
        tell(caught.value, "No space left")
        large.abort()
        assert listing(session) == set()
        send(session, "now it fits", payload(MIB))
        session.delete("now it fits")


def test_a_name_too_long_for_the_far_side(sshd_without_sftp: Sshd) -> None:
    with scp(sshd_without_sftp).open() as session:
        with pytest.raises(ConfigError) as caught:
            session.upload("/".join(["d" * 250] * 20), 1)
        tell(caught.value, "too long")


def test_a_file_where_a_folder_should_be(sshd_without_sftp: Sshd) -> None:
    with scp(sshd_without_sftp).open() as session:
        send(session, "a", b"x")
        with pytest.raises(Conflict):
            session.upload("a/b", 1)
        send(session, "d/e", b"x")
        upload = begin(session, "d", b"new")
        with pytest.raises(Conflict):
            upload.commit()
        with pytest.raises(OnblockError):
            upload.commit(replace=True)
        upload.abort()
        assert listing(session) == {"a", "d/e"}


def test_a_staged_file_that_is_whole_already_is_not_written_over(sshd_without_sftp: Sshd) -> None:
    root = sshd_without_sftp.new_folder()
    with scp(sshd_without_sftp, root).open() as session:
        for resume in (False, True):
            upload = begin(session, f"{resume}", b"whole", key="k")
            upload.keep()
            os.link(upload.staged, root / f"{resume}")
            again = session.upload(f"{resume}", 3, key="k", resume=resume)
            assert again.offset == 0
            again.write(memoryview(b"new"))
            again.abort()
            assert (root / f"{resume}").read_bytes() == b"whole"


# -- the table ----------------------------------------------------------------------------------------------------------


TABLE = [
    (1, "scp: /x: No space left on device", Kind.DISK_FULL),
    (1, "sh: 1: cannot create x: Disk quota exceeded", Kind.DISK_FULL),
    (1, "mkdir: cannot create directory 'x': Permission denied", Kind.PERMISSION),
    (1, "rm: cannot remove 'x': Operation not permitted", Kind.PERMISSION),
    (1, "touch: cannot touch 'x': Read-only file system", Kind.PERMISSION),
    (2, "sh: 3: cannot create x: File name too long", Kind.CONFIG),
    (1, "mv: cannot move: Invalid argument", Kind.CONFIG),
    (1, "cat: write error: File too large", Kind.CONFIG),
    (1, "sh: cannot open x: Too many levels of symbolic links", Kind.CONFIG),
    (127, "sh: 5: sha256sum: not found", Kind.TOOL_MISSING),
    (1, "stat: cannot statx 'x': No such file or directory", Kind.NOT_FOUND),
    (1, "mv: cannot overwrite: Is a directory", Kind.CONFLICT),
    (1, "mkdir: cannot create directory: File exists", Kind.CONFLICT),
    (1, "sh: cd: x: Not a directory", Kind.CONFLICT),
    (1, "cat: x: Stale file handle", Kind.NETWORK),
    (1, "cat: x: Input/output error", Kind.UNKNOWN),
    (71, "", Kind.CONFLICT),
    (72, "sh: cd: can't cd to x", Kind.NOT_FOUND),
    (73, "", Kind.NOT_FOUND),
    (126, "", Kind.TOOL_MISSING),
    (127, "", Kind.TOOL_MISSING),
    (137, "", Kind.UNKNOWN),
]


@pytest.mark.parametrize(("status", "words", "kind"), TABLE)
def test_the_table(status: int, words: str, kind: Kind) -> None:
    error = said(status, words, "cannot do it at me@nas", "a/file")
    assert error.kind is kind
    assert str(error).startswith("a/file: cannot do it at me@nas: ") and error.todo


def test_every_line_of_the_table_is_tested() -> None:
    assert {status for status, words, _ in TABLE} >= set(STATUS)
    for _, cls, _ in FAILURES:
        assert any(kind is cls.kind for _, words, kind in TABLE if words)


# -- the way there ------------------------------------------------------------------------------------------------------


def write_all(session: Session, path: str, data: bytes) -> None:
    upload = session.upload(path, len(data), key="k", resume=True)
    for start in range(upload.offset, len(data), MIB):
        upload.write(memoryview(data)[start : start + MIB])
    assert upload.digest() == hashlib.sha256(data).hexdigest()
    upload.commit()


@pytest.mark.parametrize("how", ["rst", "fin", "hang", "bit"])
def test_it_goes_on_after(sshd_without_sftp: Sshd, fault_proxy: Callable[[int], FaultProxy], how: str) -> None:
    """Up, then down, each broken off half way and taken up again."""
    server = sshd_without_sftp
    proxy = fault_proxy(server.info["port"])
    root, data = server.new_folder(), payload(24 * MIB)
    storage = scp(server, root, port=proxy.port, io_timeout=1.5)

    def fault(way: str) -> None:
        proxy.only_first = 1
        if how == "bit":
            proxy.corrupt_at = (10 * MIB, way)  # type: ignore[assignment]
        else:
            proxy.cut_after, proxy.cut_how = (10 * MIB, way), how  # type: ignore[assignment]

    fault("up")
    with storage.open() as session, pytest.raises(NetworkError) as caught:
        write_all(session, "file", data)
    tell(caught.value)
    assert not (root / "file").exists()
    proxy.reset_all()
    with storage.open() as session:
        write_all(session, "file", data)
    assert (root / "file").read_bytes() == data
    assert {p.name for p in root.iterdir()} == {"file"}
    assert proxy.bytes_up < len(data) + 12 * MIB  # sent twice

    proxy.reset_all()
    proxy.heal()
    fault("down")
    got, buffer = bytearray(), aligned_buffer(MIB)
    with storage.open() as session, pytest.raises(NetworkError) as caught, session.read("file") as reader:
        while n := reader.readinto(buffer):
            got += buffer[:n]
    tell(caught.value)
    assert len(got) < len(data)
    with storage.open() as session, session.read("file", len(got)) as reader:
        while n := reader.readinto(buffer):
            got += buffer[:n]
        assert reader.info().size == len(data)
    assert got == data
    assert proxy.bytes_down < len(data) + 12 * MIB


@pytest.mark.parametrize("offset", [0, 1])
def test_a_file_that_is_cut_while_it_is_read(sshd_without_sftp: Sshd, offset: int) -> None:
    """What came is not taken for the whole file."""
    root = sshd_without_sftp.new_folder()
    (root / "file").write_bytes(payload(8 * MIB))
    with scp(sshd_without_sftp, root).open() as session, session.read("file", offset) as reader:
        reader.readinto(bytearray(1000))
        os.truncate(root / "file", 3 * MIB)
        told = False
        try:
            while reader.readinto(bytearray(MIB)):
                pass
        except OnblockError:
            told = True
        assert told or reader.info().size == 3 * MIB


def test_a_program_that_is_killed_is_no_end_of_file(sshd_without_sftp: Sshd) -> None:
    root = sshd_without_sftp.new_folder()
    os.mkfifo(root / "fifo")
    with scp(sshd_without_sftp, root).open() as session:
        reader = ScpReader(session.host, "fifo", str(root / "fifo"), 1, "")
        with (root / "fifo").open("wb") as pipe:
            pipe.write(payload(60_000))
            pipe.flush()
            assert reader.readinto(bytearray(500)) == 500
            reads = str(root / "fifo")
            (tail,) = [p for p in psutil.process_iter() if p.name() == "tail" and standard_input(p.pid) == reads]
            tail.kill()
            with pytest.raises(OnblockError):
                while reader.readinto(bytearray(500)):
                    pass


def standard_input(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/0")
    except OSError:
        return ""
