"""RsyncStorage: what its failures mean, its processes, and what no other storage has. The contract is elsewhere."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from blocks.errors import (
    AuthError,
    Cancelled,
    ConfigError,
    Conflict,
    DiskFull,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceVanished,
    ToolMissing,
    UnknownError,
)  # fmt: skip
from blocks.storage.program import Finished, Program, run
from blocks.storage.rsync import EXIT_CODES, RsyncSession, RsyncStorage, exit_failure
from blocks.storage.rsync_transfer import RsyncReader
from blocks.storage.ssh_shell import classify
from tests.contract.data import BYTES, HOSTILE, MIB, begin, chunks, fetch, payload, send
from tests.servers.faultproxy import FaultProxy
from tests.servers.sshd import Sshd
from tests.storage.test_rclone import members, until


def storage_at(server: Sshd, root: Path | str, **fields: Any) -> RsyncStorage:
    info = server.info
    known = {
        "host": info["host"], "port": info["port"], "user": info["user"], "key_file": info["key"],
        "known_hosts": info["known_hosts"], "root": str(root),
    }  # fmt: skip
    return RsyncStorage(**(known | fields))


@pytest.fixture
def folder(sshd: Sshd) -> Path:
    path = sshd.new_folder() / "root"
    path.mkdir()
    return path


@pytest.fixture
def proxied(sshd: Sshd, folder: Path, fault_proxy: Callable[[int], FaultProxy]) -> tuple[RsyncStorage, FaultProxy]:
    """The same server behind a proxy."""
    proxy = fault_proxy(sshd.info["port"])
    return storage_at(sshd, folder, port=proxy.port, host_key=sshd.info["host_key"], io_timeout=4), proxy


# -- the tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, ConfigError), (2, ConfigError), (3, NotFound), (4, ConfigError), (5, NetworkError), (6, UnknownError),
        (10, NetworkError), (11, UnknownError), (12, NetworkError), (13, UnknownError), (14, UnknownError),
        (20, UnknownError), (21, UnknownError), (22, UnknownError), (23, UnknownError), (24, SourceVanished),
        (25, ConfigError), (30, NetworkError), (35, NetworkError), (126, PermissionRefused), (127, ToolMissing),
        (255, NetworkError), (99, UnknownError), (-9, UnknownError),
    ],
)  # fmt: skip
def test_exit_codes(code: int, kind: type[OnblockError]) -> None:
    error = exit_failure("cannot send", Finished(code, ""))
    assert type(error) is kind
    assert f"exit code {code}" in str(error)


def test_every_documented_exit_code_is_there() -> None:
    documented = {*range(1, 7), *range(10, 15), *range(20, 26), 30, 35}
    assert documented <= set(EXIT_CODES)


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (23, 'rsync: [sender] send_files failed to open "/card/x": Permission denied (13)', PermissionRefused),
        (23, 'rsync: [receiver] mkstemp "/data/.x" failed: Permission denied (13)', PermissionRefused),
        (255, "xfer@nas: Permission denied (publickey,password).", AuthError),
        (255, "Host key verification failed.", AuthError),
        (11, 'rsync: [receiver] write failed on "/data/x": No space left on device (28)', DiskFull),
        (12, "write failed: Disk quota exceeded (122)\nrsync error: error in rsync protocol data stream", DiskFull),
        (23, 'rsync: [sender] link_stat "/data/x" failed: No such file or directory (2)', NotFound),
        (24, 'file has vanished: "/data/x"', SourceVanished),
        (23, 'rsync: [receiver] mkdir "/data/x" failed: File exists (17)', Conflict),
        (255, "ssh: connect to host nas port 22: Connection refused", NetworkError),
        (255, "ssh: Could not resolve hostname nas: Name or service not known", NetworkError),
        (12, "rsync: connection unexpectedly closed (0 bytes received so far) [sender]", NetworkError),
        (127, "sh: 1: rsync: not found", ToolMissing),
        (23, "Read-only file system (30)", PermissionRefused),
        (1, "--timeout=SECONDS  set I/O timeout in seconds", ConfigError),  # the usage speaks of everything
    ],
)
def test_what_rsync_says_goes_before_its_code(code: int, said: str, kind: type[OnblockError]) -> None:
    assert type(exit_failure("cannot send", Finished(code, said))) is kind


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("cat: ./x: Permission denied", PermissionRefused),
        ("/bin/sh: 1: cannot open ./none: No such file", NotFound),
        ("/bin/sh: 1: cannot create ./a/b: Directory nonexistent", NotFound),
        ("ln: failed to create hard link './x': File exists", Conflict),
        ("rm: cannot remove './a': Is a directory", Conflict),
        ("mkdir: cannot create directory './a': Not a directory", Conflict),
        ("cat: write error: No space left on device", DiskFull),
        ("mkdir: cannot create directory './a': File name too long", ConfigError),
        ("Timeout, server nas not responding.", NetworkError),
        ("WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!", AuthError),
        ("This account is currently not available.", ConfigError),
        ("", UnknownError),
    ],
)
def test_what_the_far_side_says(said: str, kind: type[OnblockError]) -> None:
    assert classify(said) is kind


# -- logging in -------------------------------------------------------------------------------------------------------


def new_key(folder: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "new")], check=True)
    return folder / "new"


def test_wrong_key(sshd: Sshd, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AuthError) as caught:
        storage_at(sshd, folder, key_file=str(new_key(tmp_path))).open()
    assert sshd.info["host"] in str(caught.value)


def test_changed_host_key(sshd: Sshd, folder: Path, tmp_path: Path) -> None:
    other = new_key(tmp_path).with_suffix(".pub").read_text().rsplit(" ", 1)[0]
    with pytest.raises(AuthError):
        storage_at(sshd, folder, host_key=other).open()
    known = tmp_path / "known"
    known.write_text(f"[{sshd.info['host']}]:{sshd.info['port']} {other}\n")
    with pytest.raises(AuthError):
        storage_at(sshd, folder, known_hosts=str(known)).open()


def test_an_unknown_host_is_refused_until_it_is_asked_for(sshd: Sshd, folder: Path, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.touch()
    with pytest.raises(AuthError):
        storage_at(sshd, folder, known_hosts=str(known)).open()
    assert known.read_text() == ""
    storage_at(sshd, folder, known_hosts=str(known), accept_new_host_key=True).open().close()
    assert known.read_text()
    storage_at(sshd, folder, known_hosts=str(known)).open().close()


def test_a_key_in_the_block(sshd: Sshd, folder: Path) -> None:
    key = SecretStr(Path(sshd.info["key"]).read_text())
    storage = storage_at(sshd, folder, key_file=None, private_key=key, host_key=sshd.info["host_key"])
    assert "PRIVATE" not in repr(storage)
    with storage.open() as session:
        send(session, "file", b"x")
        private = Path(session._login.folder)
        assert private.stat().st_mode & 0o077 == 0
        assert all(p.stat().st_mode & 0o077 == 0 for p in private.iterdir())
    assert not private.exists()


def test_passwords_are_for_other_storages(sshd: Sshd) -> None:
    for field in ("password", "passphrase"):
        with pytest.raises(ValidationError, match="SFTP"):
            storage_at(sshd, "/", **{field: SecretStr("x")})


def test_nobody_listens(proxied: tuple[RsyncStorage, FaultProxy]) -> None:
    storage, proxy = proxied
    proxy.down()
    with pytest.raises(NetworkError, match="refused"):
        storage.open()


def test_what_ssh_said_is_told_also_when_it_has_ended_before_it_is_asked(
    proxied: tuple[RsyncStorage, FaultProxy],
) -> None:
    storage, proxy = proxied
    with storage.open() as session:
        assert isinstance(session, RsyncSession)
        shell = session.shell
        proxy.reset_all()
        until(lambda: not shell.alive, 60)
        with pytest.raises(NetworkError, match=r"the connection to .* ended: \w+"):
            session.stat("a")


def test_a_server_that_never_answers(proxied: tuple[RsyncStorage, FaultProxy]) -> None:
    storage, proxy = proxied
    proxy.freeze = True
    with pytest.raises(NetworkError):
        storage.model_copy(update={"connect_timeout": 1.0}).open()


@pytest.mark.parametrize("user", ["noshell", "sftponly"])
def test_an_account_without_a_shell(sshd: Sshd, folder: Path, user: str) -> None:
    with pytest.raises((ConfigError, NetworkError), match=r"SFTP|no shell|not available"):
        storage_at(sshd, folder, user=user, connect_timeout=3).open()


def test_a_missing_root(sshd: Sshd, folder: Path) -> None:
    with pytest.raises(NotFound, match="none"):
        storage_at(sshd, folder / "none").open()
    (folder / "file").touch()
    with pytest.raises(Conflict):
        storage_at(sshd, folder / "file").open()


def test_the_program_is_missing_here(sshd: Sshd, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with storage_at(sshd, folder, binary="/nowhere/rsync").open() as session:
        upload = session.upload("file", 1, key="k")
        with pytest.raises(ToolMissing, match="/nowhere/rsync"):
            session.push([(str(tmp_path / "file"), upload)], lambda n: None, threading.Event())


# -- failures at the far side -----------------------------------------------------------------------------------------


def test_a_full_disk(sshd_small: Sshd, tmp_path: Path) -> None:
    with storage_at(sshd_small, sshd_small.info["small"]).open() as session:
        for size in (3 * MIB, 200_000):
            uploads = []
            with pytest.raises(DiskFull):
                for n in range(20):
                    uploads.append(session.upload(f"d/{n}", size, key="k"))
                    for chunk in chunks(payload(size, n), 100_000):
                        uploads[-1].write(chunk)
                    uploads[-1].seal()
            for upload in uploads:
                upload.abort()
            assert list(session.scan()) == []
        (tmp_path / "big").write_bytes(payload(3 * MIB))
        upload = session.upload("big", 3 * MIB, key="k")
        assert session.push([(str(tmp_path / "big"), upload)], lambda n: None, threading.Event()) == [None]
        upload.abort()
        send(session, "small", b"fits again")
        assert fetch(session, "small") == b"fits again"
        session.delete("small")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask for what it may not")
def test_what_one_may_not_is_no_failed_login(sshd: Sshd, folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    (folder / "secret").write_bytes(b"x")
    (folder / "secret").chmod(0o600)
    with storage_at(sshd, folder, user=sshd.info["plain"]).open() as session:
        with pytest.raises(PermissionRefused):
            send(session, "file", b"x")
        with pytest.raises(PermissionRefused):
            fetch(session, "secret")
        found = {f.path: f.problem for f in session.scan()}
        assert isinstance(found["closed"], PermissionRefused)
        assert found["secret"] is None


def test_links_and_special_files(sshd: Sshd, folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "file").write_bytes(b"inside")
    (folder.parent / "outside").write_bytes(b"x")
    for name, target in (("in", "d/file"), ("folder", "d"), ("out", "../outside"), ("nothing", "none")):
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "fifo")
    with storage_at(sshd, folder).open() as session:
        found = {f.path: type(f.problem) for f in session.scan()}
        assert found == {
            "d/file": type(None), "in": type(None), "out": ConfigError, "nothing": NotFound, "fifo": ConfigError
        }  # fmt: skip
        assert fetch(session, "in") == b"inside"
        with pytest.raises(ConfigError):
            session.read("out")


# -- the network ------------------------------------------------------------------------------------------------------


def test_resume_after_a_reset(proxied: tuple[RsyncStorage, FaultProxy], folder: Path) -> None:
    """Up and down: what was there is not sent again."""
    storage, proxy = proxied
    data = payload(12 * MIB)
    with storage.open() as session:
        proxy.cut_after = (6 * MIB, "up")
        proxy.bytes_up = 0
        with pytest.raises(NetworkError):
            begin(session, "d/file", data, key="v1").commit()
    assert not (folder / "d" / "file").exists()
    proxy.cut_after = None
    with storage.open() as session:
        upload = session.upload("d/file", len(data), key="v1", resume=True)
        assert upload.offset > 0
        for chunk in chunks(data[upload.offset :], MIB):
            upload.write(chunk)
        assert upload.digest() == hashlib.sha256(data).hexdigest()
        upload.commit()
        assert (folder / "d" / "file").read_bytes() == data
        assert proxy.bytes_up < len(data) + 4 * MIB
    buffer, got = bytearray(MIB), bytearray()
    with storage.open() as session:
        proxy.cut_after = (5 * MIB, "down")
        with pytest.raises(NetworkError), session.read("d/file") as reader:
            while n := reader.readinto(buffer):
                got += buffer[:n]
            raise AssertionError("it was not cut")
    proxy.heal()
    with storage.open() as session:
        assert bytes(got) + fetch(session, "d/file", len(got), MIB) == data


def test_a_commit_cut_in_the_middle(sshd: Sshd, folder: Path) -> None:
    """The final name is there, the temporary one still: whoever goes on does not write to the final file."""
    with storage_at(sshd, folder).open() as session:
        begin(session, "file", payload(5000), key="v1").keep()
        (staged,) = folder.iterdir()
        (folder / "file").hardlink_to(staged)
        upload = session.upload("file", 6000, key="v1", resume=True)
        assert upload.offset == 0
        upload.write(memoryview(b"another"))
        upload.seal()
        assert (folder / "file").read_bytes() == payload(5000)
        with pytest.raises(Conflict):
            upload.commit()
        upload.abort()
        assert list(folder.iterdir()) == [folder / "file"]


def test_a_half_open_connection_ends(proxied: tuple[RsyncStorage, FaultProxy], tmp_path: Path) -> None:
    storage, proxy = proxied
    with storage.open() as session:
        group = session.shell._program.pid
        proxy.freeze = True
        with pytest.raises(NetworkError):
            session.stat("anything")
        until(lambda: not members(group))
    proxy.heal()
    storage.open().close()


def test_a_disk_that_hangs_at_the_far_side(sshd: Sshd, folder: Path) -> None:
    """ssh is well and answers; what it runs does not."""
    storage = storage_at(sshd, folder, io_timeout=1)

    def writes(session: RsyncSession, at: str, size: int) -> None:
        upload = session.upload("file", size)
        upload.staged = at
        upload.write(memoryview(bytes(size)))
        upload.seal()

    ways: list[Callable[[RsyncSession, str], object]] = [
        lambda session, at: session.digest(at, "file", 0),
        lambda session, at: RsyncReader(session, "file", at).readinto(memoryview(bytearray(10))),
        lambda session, at: writes(session, at, 1000),
        lambda session, at: writes(session, at, MIB),
        lambda session, at: writes(session, at, 16 * MIB),
    ]
    for number, hangs in enumerate(ways):
        os.mkfifo(folder / f"{number}")
        with storage.open() as session, pytest.raises(NetworkError) as caught:
            hangs(session, f"{number}")
        assert "in time" in str(caught.value) and caught.value.todo


def test_a_push_that_falls_silent(proxied: tuple[RsyncStorage, FaultProxy], folder: Path, tmp_path: Path) -> None:
    storage, proxy = proxied
    (tmp_path / "file").write_bytes(payload(20 * MIB))
    with storage.open() as session:
        upload = session.upload("file", 20 * MIB, key="k")
        proxy.cut_after, proxy.cut_how = (2 * MIB, "up"), "hang"
        with pytest.raises(NetworkError):
            session.push([(str(tmp_path / "file"), upload)], lambda n: None, threading.Event())
    assert not (folder / "file").exists()


def test_a_push_stops_and_leaves_no_process(
    proxied: tuple[RsyncStorage, FaultProxy], folder: Path, tmp_path: Path
) -> None:
    storage, proxy = proxied
    (tmp_path / "file").write_bytes(payload(20 * MIB))
    stop, moved = threading.Event(), []
    with storage.open() as session:
        upload = session.upload("file", 20 * MIB, key="k")
        proxy.rate = 2 * MIB

        def progress(n: int) -> None:
            moved.append(n)
            stop.set()

        with pytest.raises(Cancelled):
            session.push([(str(tmp_path / "file"), upload)], progress, stop)
        assert moved
        assert not [line for line in commands() if "--files-from=-" in line and session._login.folder in line]
        proxy.heal()
        upload.abort()
    assert list(folder.rglob("*")) == []


def commands() -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            found.append(Path(f"/proc/{entry}/cmdline").read_bytes().decode("utf-8", "replace"))
        except OSError:
            continue
    return found


def test_no_name_is_on_a_command_line(proxied: tuple[RsyncStorage, FaultProxy], folder: Path, tmp_path: Path) -> None:
    storage, proxy = proxied
    (tmp_path / "local-WITNESS").write_bytes(payload(8 * MIB))
    (folder / "remote-WITNESS").write_bytes(payload(8 * MIB))
    seen: list[str] = []
    with storage.open() as session:
        upload = session.upload("final-WITNESS", 8 * MIB, key="k")
        proxy.rate = 8 * MIB
        session.push([(str(tmp_path / "local-WITNESS"), upload)], lambda n: seen.extend(commands()), threading.Event())
        upload.commit()
        reader = session.read("remote-WITNESS")
        seen += commands()
        reader.close()
    assert [line for line in seen if "--files-from=-" in line]
    assert not [line for line in seen if "WITNESS" in line]
    assert (folder / "final-WITNESS").read_bytes() == payload(8 * MIB)


# -- many at once -----------------------------------------------------------------------------------------------------


def test_pull_of_what_is_no_utf8_and_what_vanished(sshd: Sshd, folder: Path, tmp_path: Path) -> None:
    names = [n for n in (*HOSTILE, *BYTES) if "/" not in n]
    for n, name in enumerate(names):
        Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name)))).write_bytes(payload(100, n))
    wanted = [(name, str(tmp_path / str(n))) for n, name in enumerate([*names, "gone", "also/gone"])]
    with storage_at(sshd, folder).open() as session:
        results = session.pull(wanted, lambda n: None, threading.Event())
    assert results[: len(names)] == [None] * len(names)
    assert [type(r) for r in results[len(names) :]] == [SourceVanished] * 2
    for n in range(len(names)):
        assert (tmp_path / str(n)).read_bytes() == payload(100, n)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".onblock")]


def test_new_files_have_the_rights_of_the_account(sshd: Sshd, folder: Path, tmp_path: Path) -> None:
    """Not those of the card they came from, nor of our temporary folders."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "file").chmod(0o400)
    with storage_at(sshd, folder).open() as session:
        pushed, written = session.upload("new/pushed", 1, key="k"), session.upload("other/written", 1, key="k")
        assert session.push([(str(tmp_path / "file"), pushed)], lambda n: None, threading.Event()) != [None]
        written.write(memoryview(b"x"))
        session.commit_all([pushed, written])
    assert (folder / "new/pushed").stat().st_mode == (folder / "other/written").stat().st_mode
    assert (folder / "new").stat().st_mode == (folder / "other").stat().st_mode


# -- programs ---------------------------------------------------------------------------------------------------------


def test_run_gives_lines_exit_code_and_what_was_said() -> None:
    lines: list[bytes] = []
    done = run(
        ["/bin/sh", "-c", "cat; echo last >&2; printf tail; exit 3"], stdin=b"a\nb\n" * 50_000, line=lines.append
    )
    assert (done.code, done.stderr) == (3, "last")
    assert lines == [b"a", b"b"] * 50_000 + [b"tail"]


def test_a_program_that_takes_no_input_ends_all_the_same() -> None:
    assert run(["/bin/false"], stdin=bytes(1 << 20)).code == 1


def test_what_a_program_says_is_bounded() -> None:
    done = run(["/bin/sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x >&2; echo END >&2"])
    assert len(done.stderr) <= 64 << 10
    assert done.stderr.endswith("END")


def test_a_silent_program_is_ended_with_its_children() -> None:
    with pytest.raises(NetworkError, match="silent"):
        run(["/bin/sh", "-c", "echo pid >&2; sleep 987 & sleep 987"], idle=0.5)
    assert not [line for line in commands() if line.startswith("sleep\x00987")]


def test_a_program_that_ignores_the_signal_is_killed() -> None:
    stop = threading.Event()
    with pytest.raises(Cancelled):
        run(
            ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 986; done"],
            stop=stop,
            line=lambda text: stop.set(),
        )
    assert not [line for line in commands() if line.startswith("sleep\x00986")]


def test_nothing_outlives_a_killed_process() -> None:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            program = Program(["/bin/sh", "-c", "sleep 985 & wait"])
            os.write(write, str(program.pid).encode())
            while True:
                time.sleep(60)
        finally:
            os._exit(1)
    group = int(os.read(read, 20))
    until(lambda: len(members(group)) >= 3)  # the shell, its child, and what kills them when we die
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    until(lambda: not members(group))
