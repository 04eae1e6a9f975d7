"""Bytes that are hurt on their way, over a whole run: what arrives is what lies at the source, and a file is given up only
when it was hurt twice. And what was not proven before the connection broke is proven by the next attempt."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from blocks.storage import LocalStorage, S3Storage
from blocks.storage.s3_upload import _Allowance
from flows.ledger import Ledger
from flows.transfer import senders
from tests.contract.data import MIB, fetch, payload, send
from tests.servers.s3 import Meddled, OldMinIO, S3Front, SeaweedFS
from tests.transfer.conftest import Bench

SIZES = [100_000, 20 * MIB]
"""One request, and several parts."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried at once."""
    monkeypatch.setattr(senders, "TASK_RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr("flows.transfer.retry.delay_s", lambda tries: 0.0)
    monkeypatch.setattr("blocks.storage.s3_wire.DELAY_S", 0.0)


@pytest.fixture(params=["seaweedfs", "old_minio"])
def front(request: pytest.FixtureRequest) -> Iterator[S3Front]:
    server: SeaweedFS | OldMinIO = request.getfixturevalue(request.param)
    with S3Front(server) as one:
        yield one


def storage(front: S3Front, **options: object) -> S3Storage:
    values = {
        "preset": "other", "endpoint": front.info["endpoint"], "bucket": front.behind.bucket,
        "prefix": secrets.token_hex(6), "access_key": front.info["access_key"], "secret_key": front.info["secret_key"],
        "conditional_writes": True if isinstance(front.behind, SeaweedFS) else None, **options,
    }  # fmt: skip
    return S3Storage(**values)  # type: ignore[arg-type]


def hurt(data: bytes) -> bytes:
    """One bit of it."""
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:] if len(data) > 5000 else data


def times(count: int, method: str, name: str, what: Meddled = hurt) -> Callable[..., Meddled]:
    """The first so many requests of this method for bytes of this file; of its parts, for the first."""
    left = [count]

    def meddle(asked: str, path: str, headers: Mapping[str, str]) -> Meddled:
        key, _, query = path.partition("?")
        if asked != method or not key.endswith(name) or not (not query or "partNumber=1&" in query) or not left[0]:
            return None
        left[0] -= 1
        return what

    return meddle


def objects(block: S3Storage) -> dict[str, bytes]:
    with block.open() as session:
        return {f.path: fetch(session, f.path, step=MIB) for f in session.scan() if f.path != "checksums.sha256"}


def rows() -> list[tuple[str, str | None]]:
    with Ledger.open() as ledger:
        return [(r["state"], r["verified_by"]) for r in ledger.files()]


@pytest.mark.parametrize("size", SIZES)
def test_hurt_while_it_is_read(bench: Bench, front: S3Front, size: int) -> None:
    data, card = payload(size), storage(front)
    with card.open() as session:
        send(session, "clip.mp4", data)
    front.meddle = times(1, "GET", "clip.mp4")
    summary = bench.run(source=card, settle={"quiet": 0})
    assert (summary["delivered"], summary["failed"], summary["deferred"]) == (1, 0, 0)
    assert bench.files() == {"clip.mp4": data}
    bench.check_manifest()


def test_hurt_whenever_it_is_read(bench: Bench, front: S3Front) -> None:
    """Twice is enough: then it is no accident, and nothing is delivered."""
    card = storage(front)
    with card.open() as session:
        send(session, "clip.mp4", payload(100_000))
    asked: list[str] = []
    front.meddle = lambda method, path, headers: (
        asked.append(path) or hurt if method == "GET" and path.endswith("clip.mp4") else None
    )
    summary = bench.run(source=card, settle={"quiet": 0})
    assert (summary["delivered"], summary["failed"]) == (0, 1)
    assert (rows(), len(asked)) == ([("QUARANTINED", None)], 2)
    assert bench.files() == {}


def test_hurt_while_it_is_read_for_two_destinations(bench: Bench, front: S3Front, tmp_path: Path) -> None:
    data, card = payload(20 * MIB), storage(front)
    (tmp_path / "second").mkdir()
    with card.open() as session:
        send(session, "clip.mp4", data)
    front.meddle = times(1, "GET", "clip.mp4")
    both = [LocalStorage(root=str(bench.archive)), LocalStorage(root=str(tmp_path / "second"))]
    assert bench.run(source=card, destinations=both, settle={"quiet": 0})["delivered"] == 2
    assert bench.files() == bench.files(tmp_path / "second") == {"clip.mp4": data}


def test_hurt_while_it_is_fetched_into_the_spool(bench: Bench, front: S3Front) -> None:
    data, card = payload(3 * MIB), storage(front)
    with card.open() as session:
        send(session, "clip.mp4", data)
    front.meddle = times(1, "GET", "clip.mp4")
    summary = bench.run(source=card, settle={"quiet": 0}, steps=[{"kind": "rename", "prefix": "a-"}])
    assert (summary["failed"], summary["deferred"]) == (0, 0)
    assert bench.files() == {"a-clip.mp4": data}


@pytest.mark.parametrize("size", SIZES)
def test_hurt_as_often_as_a_request_is_sent(bench: Bench, front: S3Front, size: int) -> None:
    """The server refuses what it got; the file is sent once more, not only the request."""
    data, archive = payload(size), storage(front)
    bench.put("clip.mp4", data)
    front.meddle = times(4, "PUT", "clip.mp4")
    summary = bench.run(destinations=[archive])
    assert (summary["delivered"], summary["failed"]) == (1, 0), summary
    assert objects(archive) == {"clip.mp4": data}


def test_the_server_says_that_it_has_something_else(bench: Bench, front: S3Front) -> None:
    """It did not hold what came against what it was told: what it wrote under the final name does not stay there."""
    archive, removed = storage(front), list[str]()
    bench.put("clip.mp4", payload(100_000))
    said = (
        {"etag": f'"{"0" * 32}"'} if isinstance(front.behind, OldMinIO) else {"x-amz-checksum-sha256": "A" * 43 + "="}
    )
    once = times(1, "PUT", "clip.mp4", said)

    def meddle(method: str, path: str, headers: Mapping[str, str]) -> Meddled:
        if method == "DELETE" and path.endswith("clip.mp4"):
            removed.append(path)
        return once(method, path, headers)

    front.meddle = meddle
    summary = bench.run(destinations=[archive])
    assert (summary["delivered"], summary["failed"], len(removed)) == (1, 0, 1)
    assert objects(archive) == {"clip.mp4": payload(100_000)}


@pytest.mark.parametrize("size", SIZES)
def test_hurt_only_while_it_is_read_back(bench: Bench, front: S3Front, size: int) -> None:
    """What lies there is whole: it is looked at once more, and left where it is."""
    data, archive = payload(size), storage(front)
    bench.put("clip.mp4", data)
    front.meddle = times(1, "GET", "clip.mp4")
    summary = bench.run(destinations=[archive], verify="readback")
    assert (summary["delivered"], summary["failed"]) == (1, 0)
    assert objects(archive) == {"clip.mp4": data}
    assert rows() == [("VERIFIED", "readback")]
    assert front.received < 1.1 * size + 50_000


@pytest.mark.parametrize("policy", ["rename", "replace"])
@pytest.mark.parametrize("size", SIZES)
def test_damaged_under_its_final_name(bench: Bench, front: S3Front, size: int, policy: str) -> None:
    """Until it is removed: it is sent once more."""
    data, archive = payload(size), storage(front)
    bench.put("clip.mp4", data)
    with archive.open() as session:
        send(session, "other", b"left alone")
    damaged = [True]

    def meddle(method: str, path: str, headers: Mapping[str, str]) -> Meddled:
        if method == "DELETE" and path.endswith("clip.mp4"):
            damaged[0] = False
        return hurt if damaged[0] and method == "GET" and path.endswith("clip.mp4") else None

    front.meddle = meddle
    summary = bench.run(destinations=[archive], verify="readback", on_conflict=policy)
    assert (summary["delivered"], summary["failed"]) == (1, 0)
    assert objects(archive) == {"clip.mp4": data, "other": b"left alone"}
    assert front.received > 2 * size


def test_damaged_under_its_final_name_twice(bench: Bench, front: S3Front) -> None:
    bench.put("clip.mp4", payload(100_000))
    archive = storage(front)
    front.meddle = lambda method, path, headers: hurt if method == "GET" and path.endswith("clip.mp4") else None
    summary = bench.run(destinations=[archive], verify="readback")
    assert (summary["delivered"], summary["failed"]) == (0, 1)
    assert rows() == [("QUARANTINED", None)]
    assert objects(archive) == {}


# -- the connection breaks after the file has its final name ---------------------------------------------------------------


@pytest.mark.parametrize("verify", ["readback", "checksum"])
@pytest.mark.parametrize("size", SIZES)
def test_broken_while_it_is_proven(bench: Bench, front: S3Front, size: int, verify: str) -> None:
    """The next attempt goes on with the proof."""
    data, archive = payload(size), storage(front)
    bench.put("clip.mp4", data)
    front.meddle = times(6, "GET", "clip.mp4", "break")  # one attempt of the file, and half of the next
    summary = bench.run(destinations=[archive], verify=verify)
    assert (summary["delivered"], summary["adopted"], summary["failed"]) == (1, 0, 0)
    front.meddle = times(0, "GET", "clip.mp4")  # where the server keeps a checksum, nothing was read back
    assert objects(archive) == {"clip.mp4": data}
    assert rows() == [("VERIFIED", verify)]
    assert front.received < 1.1 * size + 50_000


class Away:
    """The server answers no read of the clip while `gone`, and with damaged bytes while `damaged`."""

    def __init__(self) -> None:
        self.gone, self.damaged = True, False

    def __call__(self, method: str, path: str, headers: Mapping[str, str]) -> Meddled:
        if not path.endswith("clip.mp4"):
            return None
        if method == "DELETE":
            self.damaged = False
        if method != "GET":
            return None
        return "break" if self.gone else hurt if self.damaged else None


def test_damaged_and_broken_while_it_is_proven(bench: Bench, front: S3Front) -> None:
    """What is damaged is known for ours, and does not stay."""
    data, archive, away = payload(20 * MIB), storage(front), Away()
    bench.put("clip.mp4", data)
    front.meddle = away
    assert bench.run(destinations=[archive], verify="readback")["deferred"] == 1
    away.gone, away.damaged = False, True
    assert bench.run(destinations=[archive], verify="readback")["delivered"] == 1
    assert objects(archive) == {"clip.mp4": data}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("then", [b"somebody else's", None])
def test_replaced_or_removed_before_it_is_proven(bench: Bench, front: S3Front, size: int, then: bytes | None) -> None:
    data, archive, away = payload(size), storage(front), Away()
    bench.put("clip.mp4", data)
    front.meddle = away
    assert bench.run(destinations=[archive], verify="readback")["deferred"] == 1
    client, where = front.behind.client(), {"Bucket": archive.bucket, "Key": f"{archive.prefix}/clip.mp4"}
    if then is None:
        client.delete_object(**where)
    else:
        client.put_object(**where, Body=then)
    away.gone = False
    assert bench.run(destinations=[archive], verify="readback")["delivered"] == 1
    assert objects(archive) == ({"clip.mp4": data} if then is None else {"clip.mp4": then, "clip~2.mp4": data})


# -- a name that is taken meanwhile -----------------------------------------------------------------------------------


def test_two_large_files_that_want_one_name(bench: Bench, front: S3Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large to be held in memory: the later one is sent again, once, and has the other name."""
    monkeypatch.setattr("blocks.storage.s3_upload.held", _Allowance(0))
    size, archive = 34 * MIB, storage(front)
    contents = [payload(size, seed) for seed in (1, 2)]
    for folder, content in zip("ab", contents, strict=True):
        bench.put(f"{folder}/clip.mp4", content)
    both = threading.Barrier(2)

    def meddle(method: str, path: str, headers: Mapping[str, str]) -> Meddled:
        if (
            method == "POST" and path.endswith("?uploads=") and not both.broken
        ):  # neither has the name before both begin
            both.wait(60)
            both.abort()
        return None

    front.meddle = meddle
    summary = bench.run(destinations=[archive], path="{name}", shipping={"at_once": 2})
    assert (summary["delivered"], summary["failed"], summary["deferred"]) == (2, 0, 0)
    there = objects(archive)
    assert sorted(there) == ["clip.mp4", "clip~2.mp4"]
    assert sorted(there.values()) == sorted(contents)
    assert front.received < 3.1 * size
