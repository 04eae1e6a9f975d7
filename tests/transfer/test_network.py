"""A large file and a network that breaks in the middle of it, through the whole of a run: the same job ends well, and
at most 32 MiB are sent twice. The bytes are counted on the wire."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blocks.storage import LocalStorage, RcloneStorage, RsyncStorage, S3Storage, ScpStorage, SftpStorage, WebHdfsStorage
from blocks.storage.base import Storage
from flows.transfer import senders
from flows.transfer.job import TransferJob
from flows.transfer.story import run_here
from tests.contract.data import MIB, payload
from tests.faults.breaking import BreakingStorage, broken
from tests.servers.faultproxy import FaultProxy
from tests.servers.hdfs import Front
from tests.servers.rclone import sftp_section

SIZE, TWICE = 80 * MIB, 32 * MIB
WIRE = 1.02
"""What headers, requests and the verification add to the bytes of the file."""
CLIP = payload(SIZE)
Through = Callable[[int], FaultProxy]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried at once."""
    monkeypatch.setattr(senders, "TASK_RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr("flows.transfer.retry.delay_s", lambda tries: 0.0)


@contextmanager
def far(request: pytest.FixtureRequest, kind: str, through: Through) -> Iterator[tuple[Storage, FaultProxy]]:
    """A storage that is reached through a proxy."""
    if kind == "s3":
        server = request.getfixturevalue("seaweedfs")
        proxy = through(server.info["port"])
        keys = {k: server.info[k] for k in ("access_key", "secret_key")}
        yield S3Storage(
            preset="other", endpoint=f"http://127.0.0.1:{proxy.port}", bucket=server.bucket, prefix=secrets.token_hex(6),
            **keys,
        ), proxy  # fmt: skip
        return
    if kind == "webhdfs":
        cluster = request.getfixturevalue("hdfs_cluster")
        proxy, root = through(cluster.info["datanode_http"]), f"/network/{secrets.token_hex(6)}"
        with Front(cluster, proxy.port) as front:
            user = cluster.info["user"]
            yield WebHdfsStorage(namenodes=[front.info["url"]], root=root, user=user, create_root=True), proxy
        return
    server = request.getfixturevalue("sshd_without_sftp" if kind == "scp" else "sshd")
    info = server.info
    proxy, root = through(info["port"]), str(server.new_folder())
    if kind == "rclone":
        config = sftp_section(info | {"port": proxy.port}, known_hosts_file="")
        yield RcloneStorage(remote="nas", root=root, config=config), proxy
        return
    login = {
        "host": info["host"], "port": proxy.port, "user": info["user"], "key_file": info["key"],
        "host_key": info["host_key"], "root": root,
    }  # fmt: skip
    yield {"sftp": SftpStorage, "scp": ScpStorage, "rsync": RsyncStorage}[kind](**login), proxy


def holding(storage: Storage) -> Storage:
    """The storage, with the clip on it."""
    with storage.open() as session:
        upload = session.upload("clip.mp4", SIZE)
        upload.write(memoryview(CLIP))
        upload.commit()
    return storage


def job(source: Storage, to: Storage) -> TransferJob:
    return TransferJob(name="job", source=source, destinations=[to], settle={"quiet": 0})  # type: ignore[arg-type]


def until_delivered(source: Storage, to: Storage, runs: int = 4) -> None:
    """The job, again and again: it delivers once, and has nothing to do then."""
    delivered = 0
    for _ in range(runs):
        summary = run_here(job(source, to))
        assert summary["failed"] == summary["blocked"] == 0, summary
        delivered += summary["delivered"]
        if not summary["deferred"]:
            break
    assert delivered == 1
    assert run_here(job(source, to))["duplicates"] == 1


def card(tmp_path: Path) -> LocalStorage:
    (tmp_path / "card").mkdir()
    (tmp_path / "card/clip.mp4").write_bytes(CLIP)
    return LocalStorage(root=str(tmp_path / "card"))


def fetched(storage: Storage) -> bytes:
    with storage.open() as session, session.read("clip.mp4") as reader:
        data, buffer = bytearray(), bytearray(MIB)
        while n := reader.readinto(memoryview(buffer)):
            data += buffer[:n]
        return bytes(data)


CUT = {"sftp": 50, "scp": 50, "rsync": 50, "rclone": 50, "webhdfs": 25, "s3": 12}
"""MiB until the first connection breaks; several share the file where it is less."""


@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("kind", CUT)
def test_cut_on_the_way_up(
    request: pytest.FixtureRequest, fault_proxy: Through, tmp_path: Path, kind: str, how: str
) -> None:
    with far(request, kind, fault_proxy) as (storage, proxy):
        proxy.cut_after, proxy.cut_how, proxy.only_first = (CUT[kind] * MIB, "up"), how, 1  # type: ignore[assignment]
        until_delivered(card(tmp_path), storage)
        assert proxy.strikes == 1
        twice = SIZE if kind == "rclone" else TWICE  # what rclone sent of a file is lost
        assert proxy.bytes_up <= (SIZE + twice) * WIRE
        assert fetched(storage) == CLIP


@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("kind", CUT)
def test_cut_on_the_way_down(
    request: pytest.FixtureRequest, fault_proxy: Through, tmp_path: Path, kind: str, how: str
) -> None:
    with far(request, kind, fault_proxy) as (storage, proxy):
        holding(storage)
        proxy.heal()
        proxy.cut_after, proxy.cut_how, proxy.only_first = (CUT[kind] * MIB, "down"), how, 1  # type: ignore[assignment]
        archive = tmp_path / "archive"
        archive.mkdir()
        until_delivered(storage, LocalStorage(root=str(archive)))
        assert proxy.strikes == 1
        assert proxy.bytes_down <= (SIZE + TWICE) * WIRE
        assert (archive / "clip.mp4").read_bytes() == CLIP


@pytest.mark.parametrize("kind", ["webhdfs", "s3"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_flipped_bit_and_a_transfer_that_goes_on(
    request: pytest.FixtureRequest, fault_proxy: Through, tmp_path: Path, kind: str, when: str
) -> None:
    """What the source keeps a checksum of is held against it, also where it came in two pieces; whichever is damaged."""
    with far(request, kind, fault_proxy) as (storage, proxy):
        holding(storage)
        proxy.heal()
        proxy.reset_all()  # what is counted from now on is of connections that bring the file
        archive = tmp_path / "archive"
        archive.mkdir()
        to = BreakingStorage.at(archive)

        def flip() -> None:
            proxy.reset_all()
            proxy.corrupt_at, proxy.only_first = (3 * MIB, "down"), 1

        def pulled() -> None:
            if when == "after":
                flip()
            broken()

        to.cable.at = {40 * MIB: pulled}
        if when == "before":
            flip()
        summary = run_here(job(storage, to))
        assert proxy.strikes == 1
        assert not to.cable.at
        assert summary["delivered"] + summary["failed"] == 1
        there = archive / "clip.mp4"
        assert not there.exists() or there.read_bytes() == CLIP, "what is wrong was delivered"
        assert there.exists() == summary["delivered"]


@pytest.mark.parametrize("kind", ["webhdfs", "s3"])
def test_who_goes_on_fetches_only_what_is_not_there(
    request: pytest.FixtureRequest, fault_proxy: Through, tmp_path: Path, kind: str
) -> None:
    with far(request, kind, fault_proxy) as (storage, proxy):
        holding(storage)
        proxy.heal()
        (tmp_path / "archive").mkdir()
        to = BreakingStorage.at(tmp_path / "archive")
        to.cable.at = {40 * MIB: broken}
        until_delivered(storage, to)
        ahead = 40 * MIB  # what was on its way to who had to stop
        assert proxy.bytes_down <= (SIZE + 8 * MIB + ahead) * WIRE
        assert (tmp_path / "archive/clip.mp4").read_bytes() == CLIP


@pytest.mark.parametrize(("part", "single"), [(5, 5), (5, 16), (8, 20), (8, 16)])
def test_parts_of_any_size_go_on(
    request: pytest.FixtureRequest, fault_proxy: Through, tmp_path: Path, part: int, single: int
) -> None:
    with far(request, "s3", fault_proxy) as (storage, proxy):
        storage = storage.model_copy(update={"part_size_mib": part, "multipart_from_mib": single})
        source = BreakingStorage.at(Path(card(tmp_path).root))
        source.cable.at = {58 * MIB: broken}
        until_delivered(source, storage)
        assert not source.cable.at
        assert proxy.bytes_up <= (SIZE + part * MIB + 4 * MIB) * WIRE
        assert fetched(storage) == CLIP


@pytest.mark.parametrize("kind", [SftpStorage, ScpStorage, RsyncStorage])
def test_a_server_that_is_killed_and_started_again(
    request: pytest.FixtureRequest, fault_proxy: Through, tmp_path: Path, kind: type[Storage]
) -> None:
    server = request.getfixturevalue("mortal_sshd")
    info, proxy = server.info, fault_proxy(server.info["port"])
    proxy.rate = 100 * MIB  # so that it is still on its way when the server dies
    storage = kind(
        host=info["host"], port=proxy.port, user=info["user"], key_file=info["key"], host_key=info["host_key"],
        root=str(server.new_folder()),
    )  # type: ignore[call-arg]  # fmt: skip
    outcome: list[dict[str, object]] = []
    source = card(tmp_path)
    running = threading.Thread(target=lambda: outcome.append(run_here(job(source, storage))))
    running.start()
    while proxy.bytes_up < 40 * MIB and running.is_alive():
        running.join(0.005)
    server.kill()
    running.join(120)
    assert outcome[0]["deferred"] == 1, outcome
    server.start()
    proxy.rate = 0
    until_delivered(source, storage)
    assert proxy.bytes_up <= (SIZE + TWICE) * WIRE
    assert fetched(storage) == CLIP
