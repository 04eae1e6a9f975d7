"""Many small files by one call of the storage: pushed, or fetched into the spool first. The spool is gone afterwards."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import Cancelled
from blocks.storage import HadoopCliStorage, RcloneStorage, RsyncStorage
from blocks.storage.base import Storage
from flows.transfer.spool import Spool, clear_dead
from tests.contract.data import HOSTILE, MIB, payload
from tests.contract.hdfs_place import HdfsPlace
from tests.servers.hdfs import Hdfs
from tests.servers.sshd import Sshd
from tests.storage.test_rclone import until
from tests.transfer.conftest import Bench

NAMES = [
    f"d{n % 5}/{n}-{name}" for n, name in enumerate(HOSTILE)
    if "/" not in name and len(name) < 60 and ".part" not in name  # a scan takes those for unfinished
]  # fmt: skip
Far = Callable[[Path], Storage]


@pytest.fixture(params=["rsync", "rclone"])
def far(request: pytest.FixtureRequest, sshd: Sshd) -> Far:
    """A storage of that kind, over SSH, of a folder of this machine."""
    info = sshd.info
    if request.param == "rclone":
        config = request.getfixturevalue("rclone_nas")
        return lambda folder: RcloneStorage(remote="nas", root=str(folder), config=config)
    return lambda folder: RsyncStorage(
        host=info["host"], port=info["port"], user=info["user"], key_file=info["key"],
        known_hosts=info["known_hosts"], root=str(folder),
    )  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many files went by each call of `push`, `pull` and `read`. They do what they do."""
    from blocks.storage.local import LocalSession
    from blocks.storage.rclone import RcloneSession
    from blocks.storage.rsync import RsyncSession

    seen: dict[str, list[int]] = {"push": [], "pull": [], "read": []}

    def watch(kind: type, name: str) -> None:
        real = getattr(kind, name)

        def counted(self: Any, files: Any, moved: Any, stop: Any) -> Any:
            seen[name].append(len(files))
            return real(self, files, moved, stop)

        monkeypatch.setattr(kind, name, counted)

    def watch_reads(kind: type) -> None:
        real = kind.read  # type: ignore[attr-defined]

        def counted(self: Any, path: str, offset: int = 0) -> Any:
            seen["read"].append(1)
            return real(self, path, offset)

        monkeypatch.setattr(kind, "read", counted)

    for kind in (RcloneSession, RsyncSession):
        watch(kind, "push")
        watch(kind, "pull")
        watch_reads(kind)
    watch(LocalSession, "push")
    return seen


def filled(bench: Bench) -> dict[str, bytes]:
    """Small files, and one that is too large to go with them."""
    files = {name: payload(n * 977 % 50_000, n) for n, name in enumerate(NAMES)}
    files |= {"middle.mp4": payload(MIB, 1), "large.mp4": payload(40 * MIB, 2)}
    for name, data in files.items():
        bench.put(name, data)
    return files


def spool_is_gone(home: Path) -> bool:
    return not (home / "spool").exists() or list((home / "spool").iterdir()) == []


def test_to_a_far_place(bench: Bench, far: Far, calls: dict[str, list[int]], onblock_home: Path) -> None:
    files = filled(bench)
    done = bench.run(destinations=[far(bench.archive)])
    assert (done["delivered"], done["failed"], done["deferred"]) == (len(files), 0, 0)
    assert bench.files() == files
    bench.check_manifest()
    assert (sum(calls["push"]), calls["pull"]) == (len(files) - 1, [])
    assert done["verified_by"] == {"checksum": len(files)}
    assert bench.run(destinations=[far(bench.archive)])["delivered"] == 0


def test_from_a_far_place(bench: Bench, far: Far, calls: dict[str, list[int]], onblock_home: Path) -> None:
    files = filled(bench)
    done = bench.run(source=far(bench.card))
    assert (done["delivered"], done["failed"], done["deferred"]) == (len(files), 0, 0)
    assert bench.files() == files
    bench.check_manifest()
    assert (sum(calls["pull"]), sum(calls["read"])) == (len(files) - 1, 1)  # what was fetched is not read again
    assert spool_is_gone(onblock_home)


def test_from_hdfs_by_its_program(hdfs_cluster: Hdfs, bench: Bench, tmp_path: Path) -> None:
    """One run of it fetches many files, and none of them is read again."""
    (script := tmp_path / "hadoop").write_text(
        f'#!/bin/sh\necho " $* " >> {tmp_path}/runs\nexec {hdfs_cluster.info["hadoop"]} "$@"\n'
    )
    script.chmod(0o755)
    source = HadoopCliStorage(program=str(script), root="/test-bulk/from")
    place = HdfsPlace(source, hdfs_cluster, source.root)
    files = {f"d/{n}": payload(1000 + n, n) for n in range(12)}
    for path, data in files.items():
        place.put(path, data, 1_600_000_000_123_000_000)
    done = bench.run(source=source)
    assert (done["delivered"], done["failed"], done["deferred"]) == (12, 0, 0)
    assert bench.files() == files
    runs = (tmp_path / "runs").read_text()
    assert (runs.count(" -get "), runs.count(" -cat ")) == (1, 0)


def test_from_one_far_place_to_another(bench: Bench, far: Far, calls: dict[str, list[int]], onblock_home: Path) -> None:
    files = filled(bench)
    done = bench.run(source=far(bench.card), destinations=[far(bench.archive)])
    assert (done["delivered"], done["failed"]) == (len(files), 0)
    assert bench.files() == files
    assert (sum(calls["push"]), sum(calls["pull"])) == (len(files) - 1, len(files) - 1)
    assert spool_is_gone(onblock_home)


def test_a_file_that_changes_while_it_is_fetched(
    bench: Bench, far: Far, onblock_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not delivered as what it was; the others are."""
    for n in range(20):
        bench.put(f"{n}", payload(1000, n))
    source = far(bench.card)
    with source.open() as session:
        kind = type(session)
    real = kind.pull  # type: ignore[attr-defined]

    def slow(self: Any, files: Any, moved: Any, stop: Any) -> Any:
        bench.put("7", b"another, longer" * 100, mtime=1_700_000_100)
        (bench.card / "8").unlink(missing_ok=True)
        return real(self, files, moved, stop)

    monkeypatch.setattr(kind, "pull", slow)
    done = bench.run(source=source)
    assert done["delivered"] == 18
    assert set(bench.files()) == {str(n) for n in range(20)} - {"7", "8"}
    assert spool_is_gone(onblock_home)


def test_what_the_dead_left_in_the_spool_is_removed(onblock_home: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            with Spool("dead").room() as room:
                (room / "file").write_bytes(b"x")
                os.write(write, b"!")
                threading.Event().wait()
        finally:
            os._exit(1)
    os.read(read, 1)
    assert clear_dead() == 0  # it lives
    with Spool("mine").room() as room:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        until(lambda: clear_dead() == 1)
        assert not (onblock_home / "spool" / "dead").exists()
        assert room.is_dir()


def test_a_spool_is_removed_with_its_run(onblock_home: Path) -> None:
    spool = Spool("run")
    with pytest.raises(Cancelled), spool.room() as room:
        (room / "file").write_bytes(b"x")
        raise Cancelled("the run was stopped")
    assert not room.exists()
    spool.close()
    spool.close()
    assert spool_is_gone(onblock_home)
