"""Links, FIFOs, sockets, folders and paths where local storage expects a file."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import (
    ConfigError,
    Conflict,
    Kind,
    OnblockError,
    SourceChanged,
)
from blocks.storage import LocalStorage
from blocks.storage.local import LocalSession
from tests.contract.data import begin, fetch, listing, payload
from tests.storage.children import files_in

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
