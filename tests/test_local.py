"""What only a local file system does: real full disks, real modes, links, FIFOs, kills.

What needs a mount or fewer rights runs in a child process: `unshare` gives it a mount namespace that dies with it,
`setpriv` takes from root what makes root ignore permission bits. The child runs a function of this file.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

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
    SourceChanged,
    SourceVanished,
    UnknownError,
)
from blocks.names import TEMPORARY
from blocks.storage import LocalStorage, local, posix
from blocks.storage.base import FileInfo
from blocks.storage.local import LocalSession
from blocks.storage.pool import SessionPool
from tests.contract.data import MIB, begin, chunks, fetch, listing, payload, send

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def session(root: Path) -> Iterator[LocalSession]:
    with LocalStorage(root=str(root)).open() as one:
        yield one


def files_in(folder: Path) -> set[str]:
    return {os.path.relpath(os.path.join(base, n), folder) for base, _, names in os.walk(folder) for n in names}


def problems(session: LocalSession) -> dict[str, OnblockError]:
    return {f.path: f.problem for f in session.scan() if f.problem is not None}


# -- children -----------------------------------------------------------------------------------------------------------

MOUNTS = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
"""A mount namespace of its own, also for who is not root."""
DROPPED = ",".join(f"-{c}" for c in ("dac_override", "dac_read_search", "fowner"))
BARE = ["setpriv", f"--bounding-set={DROPPED}", f"--inh-caps={DROPPED}"] if os.geteuid() == 0 else []
"""Without the capabilities by which root ignores modes and owners."""


def in_child(prefix: list[str], function: Callable[[Path], None], folder: Path) -> None:
    code = "import sys; from pathlib import Path; import tests.test_local as t; "
    code += f"t.{function.__name__}(Path(sys.argv[1])); print('all of it ran')"
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.endswith("all of it ran\n"), done.stderr


def mount(folder: Path, options: str) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


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


# -- mounts -----------------------------------------------------------------------------------------------------------------


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


def mounts(folder: Path) -> None:
    mount(folder, "size=2m")
    (folder / "sub/sub").mkdir(parents=True)
    for inside in (folder, folder / "sub/sub"):
        LocalStorage(root=str(inside), require_mount=True).open().close()
    subprocess.run(["umount", str(folder)], check=True)
    with pytest.raises(NotFound):  # the folder of an unmounted share is not the share
        LocalStorage(root=str(folder / "sub/sub"), require_mount=True).open()
    # a share below the root of another file system: a rename across is refused, and nothing is lost
    inner = folder / "inner"
    mount(inner, "size=1m")
    (folder / "file").write_bytes(b"data")
    session = LocalStorage(root=str(folder)).open()
    with pytest.raises(OnblockError):
        session.move("file", "inner/file")
    assert files_in(folder) == {"file"}
    assert send(session, "inner/file", b"x") == "inner/file"  # an upload begins in its own folder


def test_a_read_only_disk(tmp_path: Path) -> None:
    in_child(MOUNTS, read_only, tmp_path / "disk")


def test_mounts(tmp_path: Path) -> None:
    in_child(MOUNTS, mounts, tmp_path / "disk")


def test_nothing_is_mounted() -> None:
    with pytest.raises(NotFound, match="mounted"):
        LocalStorage(root="/etc", require_mount=True).open()
    LocalStorage(root="/dev/shm", require_mount=True).open().close()


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


# -- the root ---------------------------------------------------------------------------------------------------------------


def test_a_missing_root(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        LocalStorage(root=str(tmp_path / "none")).open()
    assert "create_root" in caught.value.todo
    assert caught.value.path == str(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_root_that_is_made(tmp_path: Path) -> None:
    with LocalStorage(root=str(tmp_path / "a/b/c"), create_root=True).open() as session:
        send(session, "x/y", b"data")
    assert (tmp_path / "a/b/c/x/y").read_bytes() == b"data"


@pytest.mark.parametrize("create", [False, True])
def test_a_root_that_is_a_file(tmp_path: Path, create: bool) -> None:
    (tmp_path / "file").write_bytes(b"data")
    for path in ("file", "file/below"):
        with pytest.raises(Conflict):
            LocalStorage(root=str(tmp_path / path), create_root=create).open()
    assert (tmp_path / "file").read_bytes() == b"data"


def test_a_root_that_goes_away(root: Path, session: LocalSession) -> None:
    """A share unmounted meanwhile is not made again as a folder on the system disk."""
    upload = begin(session, "d/file", b"data")
    shutil.rmtree(root)
    attempts: list[Callable[[], object]] = [
        lambda: session.upload("x", 1).open(), lambda: session.upload("d/e/x", 1).open(), lambda: list(session.scan()),
        lambda: session.stat("d/file"), lambda: session.move("a", "b/c"), lambda: session.delete("a"),
        session.free_bytes, upload.commit,
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(NotFound):
            attempt()
    with pytest.raises(SourceVanished):
        session.read("d/file")
    upload.abort()
    assert not root.exists()


@pytest.mark.parametrize("bad", ["relative", "./x", "", "a\0b", "/a\0b"])
def test_a_root_must_be_absolute(bad: str) -> None:
    with pytest.raises(ValidationError, match="root"):
        LocalStorage(root=bad)


def test_a_root_is_written_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """`place` is the destination's identity in the ledger."""
    monkeypatch.setenv("HOME", "/home/somebody")
    for spelling in ("/data/in", "/data/in/", "/data//in", "/data/./in", "/data/x/../in", "//data/in"[1:]):
        assert LocalStorage(root=spelling).place() == "local:/data/in"
    assert LocalStorage(root="~/in").place() == "local:/home/somebody/in"


def test_the_root_of_everything(tmp_path: Path) -> None:
    """`root: /` works like any other."""
    inside = str(tmp_path)[1:]
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    with LocalStorage(root="/").open() as session:
        assert {f.path for f in session.scan(inside) if not f.problem} == {f"{inside}/file", f"{inside}/link"}
        assert fetch(session, f"{inside}/link") == b"data"
        send(session, f"{inside}/d/new", b"x")
    assert (tmp_path / "d/new").read_bytes() == b"x"


# -- links ------------------------------------------------------------------------------------------------------------------


def test_links(tmp_path: Path, root: Path, session: LocalSession) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"secret")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2/file").write_bytes(b"a neighbour whose name begins alike")
    (root / "d").mkdir()
    (root / "d/file").write_bytes(b"data")
    targets = {
        "to file inside": "d/file", "to file outside": "../outside/file", "to folder inside": "d",
        "to folder outside": "../outside", "to nothing": "none", "to nothing outside": "../none", "to itself": "to itself",
        "absolute": "/etc/passwd", "to the neighbour": "../root2/file", "by a detour": "../root/d/file",
        "to the root": ".", "to above": "..",
    }  # fmt: skip
    for name, target in targets.items():
        (root / name).symlink_to(target)
    found = {f.path: f for f in session.scan()}
    taken = {p for p, f in found.items() if not f.problem}
    assert taken == {"d/file", "to file inside", "by a detour"}
    assert {found[p].size for p in taken} == {4}
    refused = set(found) - taken
    assert refused == set(targets) - {"to file inside", "by a detour", "to folder inside"}
    for path in refused:
        assert found[path].problem.kind in (Kind.CONFIG, Kind.NOT_FOUND)  # type: ignore[union-attr]
    for path in taken:
        assert fetch(session, path) == b"data"
        assert session.checksum(path) == hashlib.sha256(b"data").hexdigest()
    for path in refused | {"to folder inside"}:
        with pytest.raises(OnblockError):
            fetch(session, path)
    for folder in ("to folder outside", "to above", "to folder outside/x"):
        with pytest.raises(ConfigError):
            list(session.scan(folder))


def test_a_file_swapped_for_a_link_after_the_scan(tmp_path: Path, root: Path, session: LocalSession) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "file").write_bytes(b"data!!")
    (info,) = session.scan()
    (root / "file").unlink()
    (root / "file").symlink_to(tmp_path / "secret")
    for attempt in (session.read, session.checksum):
        with pytest.raises(ConfigError, match="leads out"):
            attempt(info.path)


def test_a_file_swapped_for_a_link_while_it_is_read(tmp_path: Path, root: Path, session: LocalSession) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "file").write_bytes(payload(10_000))
    with session.read("file") as reader:
        assert reader.readinto(bytearray(10)) == 10
        (root / "file").unlink()
        (root / "file").symlink_to(tmp_path / "secret")
        with pytest.raises(SourceChanged):
            reader.info()


def test_a_link_at_the_final_name_is_not_followed(tmp_path: Path, root: Path, session: LocalSession) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    for name, target in (("link", outside), ("dangling", tmp_path / "none")):
        (root / name).symlink_to(target)
        upload = begin(session, name, b"data")
        with pytest.raises(Conflict):
            upload.commit()
        upload.commit(replace=True)
        assert not (root / name).is_symlink()
        assert (root / name).read_bytes() == b"data"
    assert outside.read_bytes() == b"untouched"
    assert not (tmp_path / "none").exists()


def test_a_link_planted_at_the_temporary_name(tmp_path: Path, root: Path, session: LocalSession) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    upload = session.upload("file", 1, key="k")
    upload.open()
    (staged,) = root.iterdir()
    upload.abort()
    staged.symlink_to(outside)
    for resume in (False, True):
        with pytest.raises(OnblockError):
            session.upload("file", 1, key="k", resume=resume).open()
    assert outside.read_bytes() == b"untouched"


def test_hard_links_are_files(root: Path, session: LocalSession) -> None:
    (root / "a").write_bytes(b"data")
    os.link(root / "a", root / "b")
    assert listing(session) == {"a", "b"}
    send_over = begin(session, "a", b"new")
    send_over.commit(replace=True)
    assert (root / "b").read_bytes() == b"data"


# -- what is no file --------------------------------------------------------------------------------------------------------


def in_time(work: Callable[[], Any], seconds: float = 20) -> Any:
    """The outcome of something that must not block, result or exception."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:  # noqa: BLE001  handed to the test
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, "it blocks"
    return outcome[0]


def test_fifos_sockets_and_devices(root: Path, session: LocalSession) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        where = os.getcwd()
        os.chdir(root)  # a socket's path is at most 108 bytes
        try:
            server.bind("socket")
        finally:
            os.chdir(where)
        (root / "file").write_bytes(b"data")
        found = in_time(lambda: {f.path: f for f in session.scan()})
        assert set(found) == {"fifo", "socket", "file"}
        assert "FIFO" in str(found["fifo"].problem)
        assert "socket" in str(found["socket"].problem)
        for name in ("fifo", "socket"):
            assert isinstance(found[name].problem, ConfigError)
            for work in (session.read, session.checksum, lambda n: session.checksum(n, fresh=True)):
                error = in_time(lambda work=work, name=name: work(name))
                assert isinstance(error, OnblockError)
                assert error.kind in (Kind.CONFIG, Kind.CONFLICT), error
            assert isinstance(in_time(lambda name=name: session.stat(name)), Conflict)
            upload = begin(session, name, b"data")
            assert isinstance(in_time(upload.commit), Conflict)
            upload.abort()
    with LocalStorage(root="/dev").open() as devices:
        error = in_time(lambda: devices.read("zero"))
        assert isinstance(error, ConfigError)
        assert "character device" in str(error)


def test_a_file_swapped_for_a_fifo_after_the_scan(root: Path, session: LocalSession) -> None:
    (root / "file").write_bytes(b"data")
    (info,) = session.scan()
    (root / "file").unlink()
    os.mkfifo(root / "file")
    for writer in (False, True):  # nobody at the other end, and somebody who keeps silent
        end = os.open(root / "file", os.O_RDWR) if writer else -1
        error = in_time(lambda: session.read(info.path))
        assert isinstance(error, ConfigError), error
        if writer:
            os.close(end)


def test_a_folder_where_a_file_should_go(root: Path, session: LocalSession) -> None:
    (root / "name").mkdir()
    (root / "full/below").mkdir(parents=True)
    for path in ("name", "full"):
        upload = begin(session, path, b"data")
        for replace in (False, True):
            with pytest.raises(Conflict):
                upload.commit(replace=replace)
        upload.commit(f"{path}~2")
        with pytest.raises(Conflict):
            session.delete(path)
        with pytest.raises(Conflict):
            session.stat(path)
        with pytest.raises(Conflict):
            session.move(f"{path}~2", path)
    assert files_in(root) == {"name~2", "full~2"}


def test_a_file_where_a_folder_should_go(root: Path, session: LocalSession) -> None:
    (root / "name").write_bytes(b"data")
    attempts: list[Callable[[], object]] = [
        lambda: session.upload("name/file", 1).open(), lambda: session.upload("name/a/b/file", 1).open(),
        lambda: session.move("name", "name/file"), lambda: list(session.scan("name")),
        lambda: session.stat("name/x"), lambda: session.delete("name/x"),
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(Conflict):
            attempt()
    assert files_in(root) == {"name"}
    assert (root / "name").read_bytes() == b"data"


def test_a_path_longer_than_the_system_takes(root: Path, session: LocalSession) -> None:
    path = "/".join(["x" * 250] * 20)
    for attempt in (lambda: session.upload(path, 1).open(), lambda: session.stat(path), lambda: session.read(path)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert "shorten" in caught.value.todo
    assert files_in(root) == set()


# -- renaming without overwriting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rename", [posix.rename_exclusive, posix.rename_by_link])
def test_rename_never_overwrites(tmp_path: Path, rename: Callable[[str, str], None]) -> None:
    old, new = tmp_path / "old\n", tmp_path / "new"
    old.write_bytes(b"old")
    for make in (lambda: new.write_bytes(b"there"), new.mkdir, lambda: new.symlink_to("none"), lambda: os.mkfifo(new)):
        make()
        with pytest.raises(FileExistsError):
            rename(str(old), str(new))
        assert old.read_bytes() == b"old"
        assert new.is_symlink() or new.exists()
        if new.is_dir():
            new.rmdir()
        else:
            new.unlink()
    rename(str(old), str(new))
    assert (new.read_bytes(), old.exists()) == (b"old", False)
    with pytest.raises(FileNotFoundError):
        rename(str(old), str(tmp_path / "x"))
    with pytest.raises(FileNotFoundError):
        rename(str(new), str(tmp_path / "none/x"))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL])
def test_rename_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """FAT and exFAT answer link(2) so; this kernel has no vfat to show it."""

    def link(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    new.symlink_to("none")
    with pytest.raises(FileExistsError):
        posix.rename_by_link(str(old), str(new))
    assert new.is_symlink()
    new.unlink()
    posix.rename_by_link(str(old), str(new))
    assert (new.read_bytes(), old.exists()) == (b"old", False)


def test_rename_by_link_hides_no_other_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(OSError, match="broken"):
        posix.rename_by_link(str(tmp_path / "old"), str(tmp_path / "new"))
    assert (tmp_path / "old").exists()


@pytest.mark.parametrize("rename", [posix.rename_exclusive, posix.rename_by_link])
def test_rename_by_many_has_one_winner(tmp_path: Path, rename: Callable[[str, str], None]) -> None:
    """By processes: no lock of Python's orders them."""
    for turn in range(10):
        new, children = str(tmp_path / f"new{turn}"), []
        start, go = os.pipe()
        for number in range(8):
            (tmp_path / f"{number}").write_bytes(b"%d" % number)
            if not (pid := os.fork()):
                code = 9
                try:
                    os.close(go)
                    os.read(start, 1)  # returns when the parent closes its end
                    rename(str(tmp_path / f"{number}"), new)
                    code = 0
                except FileExistsError:
                    code = 1
                finally:
                    os._exit(code)
            children.append(pid)
        os.close(start)
        os.close(go)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert sorted(codes) == [0] + [1] * 7
        assert Path(new).read_bytes() == b"%d" % codes.index(0)


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


# -- what is held -------------------------------------------------------------------------------------------------------------


def test_no_descriptor_stays_open(root: Path) -> None:
    """However an upload, a read or a scan ends."""
    before = set(os.listdir("/proc/self/fd"))
    with LocalStorage(root=str(root)).open() as session:
        for n in range(9):
            send(session, f"d{n}/e/f", b"x")
        for end in ("commit", "abort", "keep", "seal"):
            getattr(begin(session, f"new/{end}", b"x", key="k"), end)()
        upload = begin(session, "d1/e/f", b"x")
        with pytest.raises(Conflict):
            upload.commit()
        upload.abort()
        session.commit_all([begin(session, f"all/{n % 8}", b"x", key=str(n)) for n in range(12)])
        scan = session.scan()
        next(scan)
        assert len(os.listdir("/proc/self/fd")) > len(before)
        scan.close()  # type: ignore[attr-defined]
        session.checksum("d1/e/f", fresh=True)
        with session.read("d1/e/f"):
            pass
        os.mkfifo(root / "fifo")
        for missing in ("none", "fifo", "d1"):
            with pytest.raises(OnblockError):
                session.read(missing)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_temporary_of_another_is_not_listed(root: Path, session: LocalSession) -> None:
    (root / ".onblock-0123456789abcdef.part").write_bytes(b"x")
    (root / ".onblock-0123456789ABCDEF.part").write_bytes(b"not our form: a file like any other")
    assert listing(session) == {".onblock-0123456789ABCDEF.part"}


def test_pool_never_takes_one_storage_for_another(tmp_path: Path) -> None:
    """Also when a storage is gone and another has its place in memory."""
    pool = SessionPool()
    for n in range(10):
        (tmp_path / str(n)).mkdir()
        storage = LocalStorage(root=str(tmp_path / str(n)))
        with pool.session(storage) as session:
            assert session.root == str(tmp_path / str(n))  # type: ignore[attr-defined]
        del storage
        gc.collect()
    pool.close()


# -- the block ----------------------------------------------------------------------------------------------------------------


def test_the_block_and_its_form() -> None:
    schema = LocalStorage.model_json_schema()
    assert schema["block_type_slug"] == LocalStorage.get_block_type_slug() == "local-storage"
    assert schema["required"] == ["root"]  # without one, a reference to the block would be ambiguous
    assert schema["secret_fields"] == []
    assert set(schema["properties"]) == {"root", "create_root", "require_mount", "direct_io"}
    assert all(p["description"] for p in schema["properties"].values())
    registered = LocalStorage._to_block_schema(block_type_id=uuid.uuid4())
    assert registered.fields == schema
    assert LocalStorage._calculate_schema_checksum().startswith("sha256:")
    assert LocalStorage._to_block_type().slug == "local-storage"


def test_the_block_round_trips() -> None:
    block = LocalStorage(root="/data", create_root=True, direct_io=False)
    for mode in ("python", "json"):
        again = LocalStorage.model_validate(block.model_dump(mode=mode))
        assert (again.place(), again.create_root, again.require_mount, again.direct_io) == (
            "local:/data", True, False, False,
        )  # fmt: skip
    assert isinstance(LocalStorage.get_block_class_from_schema(LocalStorage._to_block_schema()), type)


def test_a_listing_is_plain_data() -> None:
    assert FileInfo("a", 1, 2) == ("a", 1, 2, "", None)
    assert FileInfo("a", 1, 2).version == (1, 2, "")
