"""SFTP beyond the contract: what goes wrong on the way and at the far side, and what it costs to go on."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    SourceVanished,
)  # fmt: skip
from blocks.storage import SftpStorage
from blocks.storage.base import Session, aligned_buffer
from blocks.storage.sftp import SftpSession
from blocks.storage.sftp_messages import Refused
from blocks.storage.sftp_server import STATUS, refusal
from tests.contract.data import KIB, MIB, begin, fetch, listing, payload, send
from tests.servers.faultproxy import FaultProxy, Way
from tests.servers.sshd import Sshd

RESENT_LIMIT = 32 * MIB
"""Bytes of one interrupted file that may travel twice."""


def sftp(server: Sshd, root: Path | str | None = None, **changes: object) -> SftpStorage:
    info = server.info
    fields = {
        "host": info["host"], "port": info["port"], "user": info["user"], "root": str(root or server.new_folder()),
        "key_file": info["key"], "host_key": info["host_key"], "connect_timeout": 10, "io_timeout": 10,
    }  # fmt: skip
    return SftpStorage(**{**fields, **changes})  # type: ignore[arg-type]


def tell(error: OnblockError, *words: str) -> None:
    """The message names the host and what to do."""
    assert "127.0.0.1" in str(error) and error.todo, str(error)
    assert all(word in str(error) for word in words), str(error)


# -- accounts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "tools"),
    [
        ("xfer", {"sha256", "sync"}),
        ("plain", {"sha256", "sync"}),
        ("sftponly", set()),
        ("noshell", set()),
        ("bare", set()),
    ],
)
def test_every_account_delivers(sshd: Sshd, user: str, tools: set[str]) -> None:
    folder = sshd.new_folder()
    folder.chmod(0o777)
    data = payload(3 * MIB)
    with sftp(sshd, folder, user=user).open() as session:
        assert session.server.tools == tools
        assert session.features.server_checksums == (("sha256",) if tools else ())
        for fresh in (False, True):
            upload = begin(session, "a/b/file", data, mtime_ns=1_234_567_890_000_000_000)
            assert upload.digest(fresh=fresh) == hashlib.sha256(data).hexdigest()
            upload.commit(replace=True)
            assert session.checksum("a/b/file", fresh=fresh) == hashlib.sha256(data).hexdigest()
        assert fetch(session, "a/b/file", step=MIB) == data
        assert session.stat("a/b/file").mtime_ns == 1_234_567_890_000_000_000
        assert (session.free_bytes() is None) == (user == "bare")
    assert {p.name for p in (folder / "a/b").iterdir()} == {"file"}


def test_the_shell_may_be_left_alone(sshd: Sshd) -> None:
    with sftp(sshd, use_shell=False).open() as session:
        assert session.server.tools == set()


def test_a_shell_that_sees_another_folder_is_not_believed(sshd: Sshd) -> None:
    """On some appliances the SFTP root is not the shell's."""
    folder = sshd.new_folder()
    with sftp(sshd, folder).open() as session:
        folder.rename(folder.with_name("elsewhere-" + folder.name))
        folder.mkdir()
        os.utime(folder, (1, 1))
        session.server.root = os.fsencode(folder.with_name("elsewhere-" + folder.name))
        session.server.quoted = lambda path: os.fsencode(folder)  # type: ignore[method-assign]
        assert session.server._look_for_tools() == set()


def test_roots(sshd: Sshd, tmp_path: Path) -> None:
    home = Path(sshd.info["home"])
    (home / "in/deep").mkdir(parents=True, exist_ok=True)
    for root in ("in/deep", "~/in/deep", str(home / "in/deep"), f"{home}/in/../in/deep/"):
        with sftp(sshd, root).open() as session:
            send(session, "file", b"x")
            assert (home / "in/deep/file").read_bytes() == b"x"
            session.delete("file")
    (home / "file").write_bytes(b"")
    for root, kind in (("none", NotFound), ("file", Conflict), ("file/below", OnblockError)):
        with pytest.raises(kind) as caught:
            sftp(sshd, root).open()
        assert root in str(caught.value)
    with sftp(sshd, "new/and/deep", create_root=True).open() as session:
        send(session, "file", b"x")
    assert (home / "new/and/deep/file").read_bytes() == b"x"
    with sftp(sshd, "/").open() as session:
        assert session.stat(f"{home}/new/and/deep/file"[1:]).size == 1


def test_a_server_without_sftp_says_so(sshd_without_sftp: Sshd) -> None:
    with pytest.raises(ConfigError) as caught:
        sftp(sshd_without_sftp).open()
    tell(caught.value, "scp-storage")


# -- links and special files ------------------------------------------------------------------------------------------------


def test_links_and_special_files(sshd: Sshd, tmp_path: Path) -> None:
    root = sshd.new_folder()
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
    with sftp(sshd, root).open() as session:
        found = {f.path: f for f in session.scan()}
        assert {p for p, f in found.items() if not f.problem} == {"d/file", "inside"}
        assert set(found) == {"d/file", "inside", "outside", "nothing", "out", "fifo", "socket"}
        assert found["inside"].size == 5
        assert fetch(session, "inside") == b"12345"
        with pytest.raises(ConfigError):
            session.read("outside")
        with pytest.raises(SourceVanished):
            session.read("nothing")
        with pytest.raises(ConfigError):
            list(session.scan("out"))


# -- what the far side refuses ----------------------------------------------------------------------------------------------


def test_no_permission(sshd: Sshd) -> None:
    root = sshd.new_folder()
    for name in ("closed", "shut"):
        (root / name).mkdir()
    (root / "closed/file").write_bytes(b"x")
    (root / "secret").write_bytes(b"x")
    (root / "secret").chmod(0)
    root.chmod(0o755)
    (root / "closed").chmod(0o555)
    (root / "shut").chmod(0o000)
    with sftp(sshd, root, user="plain").open() as session:
        for attempt in (
            lambda: session.upload("closed/new", 1),
            lambda: session.upload("new/folder/file", 1),
            lambda: session.upload("shut/file", 1),
            lambda: session.read("secret"),
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
        assert listing_without(session, "shut") == {"secret", "closed/file"}
    (root / "shut").chmod(0o700)


def listing_without(session: Session, folder: str) -> set[str]:
    return {f.path for f in session.scan(enter=lambda f: f != folder)}


def test_a_full_disk(sshd_small: Sshd) -> None:
    with sftp(sshd_small, sshd_small.info["small"]).open() as session:
        large = session.upload("large", 3 * MIB)
        with pytest.raises(DiskFull) as caught:
            large.write(memoryview(payload(3 * MIB)))
            large.digest()
        tell(caught.value)
        with pytest.raises(DiskFull):
            large.commit()  # what once failed is never whole
        large.abort()
        send(session, "small", payload(1000))
        filler = begin(session, "filler", payload(2 * MIB - 64 * KIB), key="k")
        uploads = [begin(session, f"f{n}", payload(9000, n)) for n in range(8)]
        done = session.commit_all(uploads)
        assert any(isinstance(d, DiskFull) for d in done)
        assert all(isinstance(d, str | DiskFull) for d in done)
        for upload, result in zip(uploads, done, strict=True):
            if not isinstance(result, str):
                upload.abort()
        filler.abort()
        assert listing(session) == {"small"} | {d for d in done if isinstance(d, str)}
        for path in listing(session):
            session.delete(path)
        send(session, "now it fits", payload(MIB))
        session.delete("now it fits")


def test_a_name_too_long_for_the_far_side(sshd: Sshd) -> None:
    with sftp(sshd).open() as session:
        with pytest.raises(ConfigError) as caught:
            session.upload("/".join(["d" * 250] * 20), 1)
        tell(caught.value, "too long")


def test_a_file_where_a_folder_should_be(sshd: Sshd) -> None:
    with sftp(sshd).open() as session:
        send(session, "a", b"x")
        for path in ("a/b", "a/b/c"):
            with pytest.raises(Conflict) as caught:
                session.upload(path, 1)
            assert caught.value.path == path


def test_what_a_folder_at_the_final_name_does(sshd: Sshd) -> None:
    with sftp(sshd).open() as session:
        send(session, "a/b", b"x")
        upload = begin(session, "a", b"new")
        with pytest.raises(Conflict):
            upload.commit()
        with pytest.raises(OnblockError):
            upload.commit(replace=True)
        upload.abort()
        assert listing(session) == {"a/b"}


@pytest.mark.parametrize("user", ["xfer", "sftponly"])
@pytest.mark.parametrize("size", [3, 40 * MIB])
def test_a_staged_file_that_is_whole_already_is_not_written_over(sshd: Sshd, user: str, size: int) -> None:
    """The server renames by a second name: should it die in between, the next attempt must leave the first alone."""
    root, data = sshd.new_folder(), payload(size)
    with sftp(sshd, root, user=user).open() as session:
        (root / "taken").write_bytes(b"another")
        for name, final, resume in (("new", "new", False), ("resumed", "resumed", True), ("taken", "taken~2", True)):
            upload = begin(session, name, data, key="k")
            upload.keep()
            os.link(os.fsencode(root) + b"/" + upload.staged.rpartition(b"/")[2], root / final)
            session.rekey(name, "k", "l")
            again = session.upload(name, size, key="l", resume=resume)
            assert again.offset == 0
            again.write(memoryview(b"new"))
            again.rewind(1)
            again.abort()
            assert (root / final).read_bytes() == data
        assert listing(session) == {"new", "resumed", "taken", "taken~2"}


def test_replace_without_posix_rename(sshd: Sshd) -> None:
    """What was there goes aside, and comes back if the new one does not arrive."""
    root = sshd.new_folder()
    with sftp(sshd, root, user="bare").open() as session:
        send(session, "file", b"old")
        upload = begin(session, "file", b"new")
        upload.seal()
        upload.settle()
        os.unlink(os.fsencode(root) + b"/" + upload.staged.rpartition(b"/")[2])
        with pytest.raises(NotFound):
            upload.commit(replace=True)
        assert {p.name: p.read_bytes() for p in root.iterdir()} == {"file": b"old"}
        begin(session, "file", b"new").commit(replace=True)
        assert {p.name: p.read_bytes() for p in root.iterdir()} == {"file": b"new"}


# -- the table ----------------------------------------------------------------------------------------------------------


KINDS = {
    2: Kind.NOT_FOUND, 3: Kind.PERMISSION, 4: Kind.UNKNOWN, 5: Kind.CONFIG, 6: Kind.NETWORK, 7: Kind.NETWORK,
    8: Kind.CONFIG, 9: Kind.NETWORK, 10: Kind.NOT_FOUND, 11: Kind.CONFLICT, 12: Kind.PERMISSION, 13: Kind.NOT_FOUND,
    14: Kind.DISK_FULL, 15: Kind.DISK_FULL, 16: Kind.AUTH, 17: Kind.NETWORK, 18: Kind.CONFLICT, 19: Kind.CONFLICT,
    20: Kind.CONFIG, 21: Kind.CONFIG, 22: Kind.UNKNOWN, 24: Kind.CONFLICT,
}  # fmt: skip


@pytest.mark.parametrize("code", [*KINDS, 99])
def test_the_table(code: int) -> None:
    error = refusal(Refused(code, "said\nby the server"), "cannot do it at me@nas", "a/file")
    assert error.kind is KINDS.get(code, Kind.UNKNOWN)
    assert isinstance(error.__cause__, Refused)
    assert "said\\nby the server" in str(error) and error.todo


def test_every_line_of_the_table_is_tested() -> None:
    assert set(KINDS) == set(STATUS)


# -- the way there ------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(sshd: Sshd, fault_proxy: Callable[[int], FaultProxy]) -> FaultProxy:
    return fault_proxy(sshd.info["port"])


def through(proxy: FaultProxy, server: Sshd, root: Path, **changes: object) -> SftpStorage:
    return sftp(server, root, port=proxy.port, **changes)


def write_all(session: Session, path: str, data: bytes) -> None:
    """As the mover does: on from what is there, kept when the network fails (which then cannot be told the server)."""
    upload = session.upload(path, len(data), key="k", resume=True)
    for start in range(upload.offset, len(data), MIB):
        upload.write(memoryview(data)[start : start + MIB])
    assert upload.digest() == hashlib.sha256(data).hexdigest()
    upload.commit()


FAULTS: dict[str, Callable[[FaultProxy], None]] = {
    "reset": lambda p: setattr(p, "cut_after", (10 * MIB, "up")),
    "closed": lambda p: (setattr(p, "cut_after", (10 * MIB, "up")), setattr(p, "cut_how", "fin"))[0],
    "half-open": lambda p: (setattr(p, "cut_after", (10 * MIB, "up")), setattr(p, "cut_how", "hang"))[0],
    "flipped bit": lambda p: setattr(p, "corrupt_at", (10 * MIB, "up")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_upload_goes_on_after(sshd: Sshd, proxy: FaultProxy, fault: str) -> None:
    root, data = sshd.new_folder(), payload(24 * MIB)
    storage = through(proxy, sshd, root, io_timeout=1.5)
    proxy.only_first = 1
    FAULTS[fault](proxy)
    with storage.open() as session, pytest.raises(NetworkError) as caught:
        write_all(session, "file", data)
    tell(caught.value)
    assert not (root / "file").exists()
    proxy.reset_all()
    with storage.open() as session:
        write_all(session, "file", data)
    assert (root / "file").read_bytes() == data
    assert {p.name for p in root.iterdir()} == {"file"}
    assert proxy.bytes_up - len(data) < RESENT_LIMIT
    assert proxy.bytes_up < len(data) + 12 * MIB


@pytest.mark.parametrize("fault", FAULTS)
def test_a_download_goes_on_after(sshd: Sshd, proxy: FaultProxy, fault: str) -> None:
    root, data = sshd.new_folder(), payload(24 * MIB)
    (root / "file").write_bytes(data)
    storage = through(proxy, sshd, root, io_timeout=1.5, use_shell=False)
    proxy.only_first = 1
    FAULTS[fault](proxy)
    if proxy.cut_after:
        proxy.cut_after = (10 * MIB, "down")
    if proxy.corrupt_at:
        proxy.corrupt_at = (10 * MIB, "down")
    got, buffer = bytearray(), aligned_buffer(MIB)
    with storage.open() as session, pytest.raises(NetworkError) as caught, session.read("file") as reader:
        while n := reader.readinto(buffer):
            got += buffer[:n]
    tell(caught.value)
    assert 0 < len(got) < len(data)
    with storage.open() as session, session.read("file", len(got)) as reader:
        while n := reader.readinto(buffer):
            got += buffer[:n]
        assert reader.info().size == len(data)
    assert got == data
    assert proxy.bytes_down < len(data) + 12 * MIB


def test_the_server_dies_and_comes_back(mortal_sshd: Sshd, fault_proxy: Callable[[int], FaultProxy]) -> None:
    """Killed while a file is on its way, there again at the same address: at most 32 MiB travel twice."""
    proxy = fault_proxy(mortal_sshd.info["port"])
    root, data = mortal_sshd.new_folder(), payload(40 * MIB)
    storage = through(proxy, mortal_sshd, root)
    session = storage.open()
    upload = session.upload("file", len(data), key="k")
    with pytest.raises(NetworkError) as caught:
        for start in range(0, len(data), MIB):
            if start == 20 * MIB:
                mortal_sshd.kill()
            upload.write(memoryview(data)[start : start + MIB])
        upload.commit()
    tell(caught.value)
    with pytest.raises(NetworkError):
        upload.abort()
    with pytest.raises(NetworkError):
        session.stat("file")
    session.close()
    with pytest.raises(NetworkError):
        storage.open()
    mortal_sshd.start()
    with storage.open() as session:
        write_all(session, "file", data)
    assert (root / "file").read_bytes() == data
    assert proxy.bytes_up - len(data) < RESENT_LIMIT


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_half_open_connection_ends_every_wait(sshd: Sshd, proxy: FaultProxy, way: Way) -> None:
    with through(proxy, sshd, sshd.new_folder(), io_timeout=0.7).open() as session:
        proxy.freeze = True
        with pytest.raises(NetworkError) as caught:
            session.stat("file")
        tell(caught.value, "no answer")
    proxy.freeze = False


def test_a_slow_link_is_no_failure(sshd: Sshd, proxy: FaultProxy) -> None:
    """Slower than its timeout as a whole, never silent that long."""
    root, data = sshd.new_folder(), payload(2 * MIB)
    with through(proxy, sshd, root, io_timeout=1).open() as session:
        proxy.rate = 1 * MIB
        write_all(session, "file", data)
        assert fetch(session, "file", step=256 * KIB) == data


def test_latency_is_paid_once_for_many(sshd: Sshd, proxy: FaultProxy) -> None:
    """Requests are sent ahead of their answers: counted in turns of the line, not in seconds."""
    root = sshd.new_folder()
    with through(proxy, sshd, root, use_shell=False).open() as session:
        turns = Turns(session)
        uploads = [begin(session, f"f{n}", payload(4096, n), key=str(n)) for n in range(20)]
        assert turns.taken() <= 20  # to open each
        for upload in uploads:
            assert upload.digest()
            upload.seal()
        assert turns.taken() <= 20  # to read each back
        assert session.commit_all(uploads) == [f"f{n}" for n in range(20)]
        assert turns.taken() <= 2
        for n in range(20):
            with session.read(f"f{n}") as reader:
                assert reader.readinto(bytearray(8192)) == 4096
                assert reader.info().size == 4096
        assert turns.taken() <= 40
        large = begin(session, "large", payload(3 * MIB))
        assert turns.taken() <= 1  # all of it is on its way before the first answer
        large.abort()


class Turns:
    """Counts how often a session waited for an answer after it had sent something: turns of the line."""

    def __init__(self, session: SftpSession):
        self.count, self._sent = 0, False
        wire = session.server.wire
        send, answer = wire.send, wire.answer

        def sending(*request: Any) -> int:
            self._sent = True
            return send(*request)

        def answering(number: int, *kind: int) -> Any:
            if not wire.answered(number):
                self.count, self._sent = self.count + self._sent, False
            return answer(number, *kind)

        wire.send, wire.answer = sending, answering  # type: ignore[method-assign]

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count


# -- memory ---------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_file(sshd: Sshd) -> None:
    """A sparse file of 1 GiB: what is asked for ahead is bounded, and so is what waits to be sent."""
    root = sshd.new_folder()
    with (root / "large").open("wb") as file:
        file.truncate(1 << 30)
    buffer, process = aligned_buffer(4 * MIB), psutil.Process()
    with sftp(sshd, root).open() as session, session.read("large") as reader:
        reader.readinto(buffer)
        before = most = process.memory_info().rss
        for _ in range(40):
            assert reader.readinto(buffer) == len(buffer)
            most = max(most, process.memory_info().rss)
    assert most - before < 64 * MIB


def test_reading_stops_when_nobody_wants_more(sshd: Sshd) -> None:
    """Many readers of large files, closed early, on one session."""
    root = sshd.new_folder()
    data = payload(9 * MIB)
    (root / "f").write_bytes(data)
    with sftp(sshd, root).open() as session:
        for n in range(30):
            with session.read("f", n) as reader:
                assert reader.readinto(view := bytearray(100)) == 100
                assert view == data[n : n + 100]
        send(session, "g", data)
        assert not session.server.wire._answers and len(session.server.wire._nobodys) < 40


def test_a_rekey_in_the_middle(sshd: Sshd) -> None:
    """paramiko asks for new keys after 512 MiB; here sooner."""
    data = payload(16 * MIB)
    with sftp(sshd).open() as session:
        session.server.connection.transport.packetizer.REKEY_BYTES = MIB  # type: ignore[misc]
        send(session, "f", data)
        assert fetch(session, "f", step=MIB) == data


def test_sessions_side_by_side(sshd: Sshd) -> None:
    storage = sftp(sshd)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with storage.open() as session:
                for turn in range(20):
                    send(session, f"d{number}/{turn}", payload(4096, turn))
        except BaseException as error:  # noqa: BLE001  whatever it is, the test must see it
            failures.append(error)

    with storage.open() as session:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(session.features.parallel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with storage.open() as session:
        assert len(listing(session)) == 20 * len(threads)
