"""Local storage on disks that are full, read-only or closed to us, and in processes that die. The table of errors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks.errors import (
    ConfigError,
    Conflict,
    Corrupt,
    DiskFull,
    Kind,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    UnknownError,
)
from blocks.names import TEMPORARY
from blocks.storage import LocalStorage, local
from blocks.storage.local import LocalSession
from tests.contract.data import MIB, begin, chunks, fetch, listing, payload, send
from tests.storage.children import BARE, MOUNTS, files_in, in_child, mount

# -- a full disk ----------------------------------------------------------------------------------------------------------


def full_disk(folder: Path) -> None:
    mount(folder, "size=2m")
    session = LocalStorage(root=str(folder)).open()
    assert session.free_bytes() == 2 * MIB
    begun = session.upload("d/small", 100, key="k")
    begun.write(memoryview(b"x" * 100))
    for size in (3 * MIB, 9 * MIB):
        upload = session.upload("d/big", size)
        with pytest.raises(DiskFull) as caught:
            for chunk in chunks(payload(size), 100_000):
                upload.write(chunk)
        assert caught.value.path == "d/big"
        assert caught.value.kind is Kind.DISK_FULL
        assert caught.value.todo
        assert not (folder / "d/big").exists()
        assert listing(session) == set()
        if size == 3 * MIB:  # what fitted is kept, and goes on when there is room
            assert session.free_bytes() == 0
            upload.keep()
            subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
            upload = session.upload("d/big", size, resume=True)
            assert MIB < upload.offset < 2 * MIB
            upload.write(memoryview(payload(size))[upload.offset :])
            upload.commit("d/fits")
            assert (folder / "d/fits").read_bytes() == payload(size)
            session.delete("d/fits")
            subprocess.run(["mount", "-o", "remount,size=2m", str(folder)], check=True)
        else:
            upload.abort()
    assert begun.commit() == "d/small"
    assert files_in(folder) == {"d/small"}
    assert session.free_bytes() >= MIB
    send(session, "d/next", payload(MIB))
    assert files_in(folder) == {"d/small", "d/next"}


def no_inodes(folder: Path) -> None:
    mount(folder, "size=2m,nr_inodes=5")
    session = LocalStorage(root=str(folder)).open()
    with pytest.raises(DiskFull):
        for number in range(10):
            begin(session, f"file{number}", b"x")
    with pytest.raises(DiskFull):
        session.upload("a/folder/file", 1).open()


def test_a_full_disk(tmp_path: Path) -> None:
    in_child(MOUNTS, full_disk, tmp_path / "disk")


def test_a_disk_without_inodes(tmp_path: Path) -> None:
    in_child(MOUNTS, no_inodes, tmp_path / "disk")


# -- a read-only disk -----------------------------------------------------------------------------------------------------------------


def read_only(folder: Path) -> None:
    mount(folder, "size=2m")
    (folder / "file").write_bytes(b"data")
    session = LocalStorage(root=str(folder)).open()
    upload = begin(session, "coming", b"x")
    upload.seal()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    assert fetch(session, "file") == b"data"
    attempts: list[Callable[[], object]] = [
        lambda: session.upload("other", 1).open(), lambda: session.upload("folder/other", 1).open(), lambda: session.delete("file"),
        lambda: session.move("file", "there"), upload.commit, lambda: upload.commit(replace=True), upload.abort,
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(PermissionRefused) as caught:
            attempt()
        assert "writable" in caught.value.todo
    assert listing(session) == {"file"}


def test_a_read_only_disk(tmp_path: Path) -> None:
    in_child(MOUNTS, read_only, tmp_path / "disk")


# -- rights -----------------------------------------------------------------------------------------------------------------


def rights(folder: Path) -> None:
    for name in ("closed/file", "open/secret", "open/file", "unsearchable/file", "fixed/file"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"data")
    (folder / "open/secret").chmod(0)
    (folder / "closed").chmod(0)
    (folder / "unsearchable").chmod(0o400)
    (folder / "fixed").chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            (folder / "open/secret").read_bytes()  # else this shows nothing
        session = LocalStorage(root=str(folder)).open()
        found = {f.path: f for f in session.scan()}
        assert {p for p, f in found.items() if f.problem} == {"closed", "unsearchable/file"}
        assert {p for p, f in found.items() if not f.problem} == {"open/secret", "open/file", "fixed/file"}
        for path in ("closed", "unsearchable/file"):
            problem = found[path].problem
            assert isinstance(problem, PermissionRefused)
            assert problem.path == path
        attempts: list[Callable[[], object]] = [
            lambda: list(session.scan("closed")), lambda: session.stat("closed/file"),
            lambda: session.read("closed/file"), lambda: session.read("open/secret"),
            lambda: session.checksum("open/secret"), lambda: session.checksum("open/secret", fresh=True),
            lambda: session.upload("closed/new", 1).open(), lambda: session.upload("closed/a/new", 1).open(),
            lambda: session.upload("fixed/new", 1).open(), lambda: session.upload("fixed/a/new", 1).open(),
            lambda: session.delete("fixed/file"), lambda: session.delete("closed/file"),
            lambda: session.move("fixed/file", "here"), lambda: session.move("open/file", "fixed/file~2"),
            lambda: LocalStorage(root=str(folder / "closed/x")).open(),
            lambda: LocalStorage(root=str(folder / "fixed/x"), create_root=True).open(),
        ]  # fmt: skip
        for number, attempt in enumerate(attempts):
            with pytest.raises(OnblockError) as caught:
                attempt()
            assert isinstance(caught.value, PermissionRefused), f"{number}: {caught.value!r}"
            assert caught.value.todo, number
        with pytest.raises(PermissionRefused):  # listed without the right to look: no empty folder
            list(LocalStorage(root=str(folder / "closed")).open().scan())
        assert fetch(session, "fixed/file") == b"data"
        upload = begin(session, "open/new", b"x")
        (folder / "open").chmod(0o500)
        for end in (upload.commit, upload.abort):
            with pytest.raises(PermissionRefused):
                end()
        (folder / "open").chmod(0o700)
        upload.abort()
    finally:
        for name in ("closed", "unsearchable", "fixed", "open"):
            (folder / name).chmod(0o700)
    assert len(files_in(folder)) == 5


def times_of_others(folder: Path) -> None:
    """A file system that lets nobody set times: each upload says so, none is lost, none is called delivered."""
    session = LocalStorage(root=str(folder)).open()
    uploads = [begin(session, f"f{n}", b"x", mtime_ns=1) for n in range(9)]
    for path in folder.iterdir():
        os.chown(path, 65534, 65534)
    done = session.commit_all(uploads)
    assert len(done) == 9
    assert all(isinstance(d, PermissionRefused) for d in done)
    assert listing(session) == set()
    for upload in uploads:
        upload.abort()
    assert files_in(folder) == set()


def test_rights(root: Path) -> None:
    in_child(BARE, rights, root)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_times_that_may_not_be_set(root: Path) -> None:
    in_child(BARE, times_of_others, root)


# -- the table of errors ------------------------------------------------------------------------------------------------------

TABLE = {
    DiskFull: "ENOSPC EDQUOT",
    PermissionRefused: "EACCES EPERM EROFS",
    NotFound: "ENOENT",
    Conflict: "EEXIST EISDIR ENOTDIR ENOTEMPTY",
    ConfigError: "ENAMETOOLONG ELOOP EINVAL EILSEQ EFBIG EXDEV",
    Corrupt: "EUCLEAN",
    NetworkError: "ENODEV ENXIO ENOTCONN ESTALE ETIMEDOUT EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ECONNRESET "
    "ECONNREFUSED ECONNABORTED EREMOTEIO",
    UnknownError: "EIO EMFILE ENOMEM EBUSY EDOM",
}


@pytest.mark.parametrize(("name", "kind"), [(n, kind) for kind, all_of in TABLE.items() for n in all_of.split()])
def test_errno(name: str, kind: type[OnblockError]) -> None:
    error = OSError(getattr(errno, name), "whatever")
    failure = local.os_failure(error, "cannot do it", "d/file")
    assert type(failure) is kind
    assert failure.__cause__ is error
    assert failure.path == "d/file"
    assert os.strerror(getattr(errno, name)) in str(failure)
    assert "cannot do it" in str(failure)
    assert failure.todo, "it does not say what to do"


def test_the_table_is_all_of_it() -> None:
    listed = {getattr(errno, n) for kind, all_of in TABLE.items() if kind is not UnknownError for n in all_of.split()}
    assert listed == set(local.ERRNO)
    assert type(local.os_failure(OSError("no number"), "cannot")) is UnknownError


# -- a process that dies ------------------------------------------------------------------------------------------------------

KILLED = 6 * MIB + 1


def upload_and_tell(root: str, size: int, announced: int, tell: int) -> None:
    """In the child: one byte into the pipe after each step."""
    with LocalStorage(root=root).open() as session:
        upload = session.upload("d/file", announced, key="version 1")
        os.write(tell, b"b")
        for chunk in chunks(payload(size), MIB // 4):
            upload.write(chunk)
            os.write(tell, b"w")
        upload.digest()
        os.write(tell, b"d")
        upload.commit()
        os.write(tell, b"c")


@pytest.mark.parametrize("turn", range(20))
def test_a_killed_upload_leaves_no_final_name(root: Path, session: LocalSession, turn: int) -> None:
    chance = random.Random(turn)
    steps = chance.randint(0, 27)  # of 28: begin, 25 chunks, digest, commit
    hear, tell = os.pipe()
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            os.close(hear)
            upload_and_tell(str(root), KILLED, [KILLED, 64 * MIB][turn % 2], tell)
        os._exit(0)
    os.close(tell)
    with os.fdopen(hear, "rb", buffering=0) as told:
        heard = b""
        while len(heard) < steps and (byte := told.read(1)):
            heard += byte
        until = time.monotonic() + chance.uniform(0, 0.004)
        while time.monotonic() < until:
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        heard += told.read(100) or b""
    final = root / "d/file"
    if final.exists():
        assert heard.endswith((b"d", b"c")), "the final name is there before commit"
        assert final.read_bytes() == payload(KILLED)
        final.unlink()
    else:
        assert not heard.endswith(b"c")
    assert all(TEMPORARY.search(name) for name in files_in(root))
    assert listing(session) == set()
    upload = session.upload("d/file", KILLED, key="version 1", resume=bool(turn % 3))
    for chunk in chunks(payload(KILLED)[upload.offset :], MIB):
        upload.write(chunk)
    assert upload.digest() == hashlib.sha256(payload(KILLED)).hexdigest()
    upload.commit()
    assert final.read_bytes() == payload(KILLED)
    assert files_in(root) == {"d/file"}


def test_a_staged_file_that_is_whole_already_is_not_written_over(root: Path, session: LocalSession) -> None:
    """Where a file system renames by a second name, one that dies in between leaves both."""
    data = payload(9 * MIB)
    upload = begin(session, "file", data, key="1")
    upload.keep()
    os.link(upload.staged, root / "file")  # type: ignore[attr-defined]
    session.rekey("file", "1", "2")
    upload = session.upload("file", len(data), key="2", resume=True)
    assert upload.offset == 0
    upload.write(memoryview(b"another"))
    upload.rewind(0)
    upload.seal()
    assert (root / "file").read_bytes() == data
    with pytest.raises(Conflict):
        upload.commit()
    upload.abort()
    assert files_in(root) == {"file"}
