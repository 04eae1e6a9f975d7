"""Local storage: its root, its mounts, its block, and what it holds on to."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from blocks.errors import (
    Conflict,
    NotFound,
    OnblockError,
    SourceVanished,
)
from blocks.storage import LocalStorage
from blocks.storage.base import FileInfo
from blocks.storage.local import LocalSession
from blocks.storage.pool import SessionPool
from tests.contract.data import begin, fetch, listing, send
from tests.storage.children import MOUNTS, files_in, in_child, mount

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


# -- mounts -------------------------------------------------------------------------------------------------------------


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


def test_mounts(tmp_path: Path) -> None:
    in_child(MOUNTS, mounts, tmp_path / "disk")


def test_nothing_is_mounted() -> None:
    with pytest.raises(NotFound, match="mounted"):
        LocalStorage(root="/etc", require_mount=True).open()
    LocalStorage(root="/dev/shm", require_mount=True).open().close()


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
    assert set(schema["properties"]) == {"root", "create_root", "require_mount", "shared", "direct_io"}
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
