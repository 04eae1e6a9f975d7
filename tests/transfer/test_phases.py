"""Two phases: fetched into the spool, processed there, delivered from it; each of them broken off and taken up again."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import Corrupt, Kind
from blocks.home import home
from blocks.storage import LocalStorage
from flows.ledger import Ledger, State
from flows.ledger.products import Part, fate
from flows.ledger.states import DONE
from flows.ledger.wishes import Wish
from flows.transfer.locker import files_root
from flows.transfer.process import steps_key
from flows.transfer.run import TransferRun
from flows.transfer.story import shipments
from tests.transfer.conftest import Bench, sha256
from tests.transfer.phases import (
    READ,
    ZSTD,
    Away,
    Steps,
    camera,
    card_files,
    check,
    ready,
    rows,
    run,
    spooled,
    steps,
    unzstd,
)

__all__ = ["camera", "steps"]


def test_everything_arrives_processed_once(camera: Bench) -> None:
    summary = run(camera)
    assert (summary["scanned"], summary["delivered"], summary["problems"]) == (5, 5, [])
    check(camera)
    found = rows()
    assert {r["state"] for r in found.values()} == {State.VERIFIED}
    assert {p: r["sha256"] for p, r in found.items()} == {p: sha256(c) for p, c in card_files(camera).items()}
    made = rows(made=True)
    assert {p: r["sha256"] for p, r in made.items()} == {p: sha256(c) for p, c in camera.files().items()}
    READ.clear()
    again = run(camera)
    assert (again["duplicates"], again["delivered"], again["adopted"], READ) == (5, 0, 0, [])


def test_lineage_is_told_by_a_sidecar_and_by_the_ledger(camera: Bench) -> None:
    summary = run(camera, lineage=True, device="cam")
    assert summary["delivered"] == 10
    told = json.loads(camera.files()["DCIM/101/clip0.txt.zst.onblock.json"])
    source = camera.card / "DCIM/101/clip0.txt"
    assert told["sources"] == [{
        "place": f"local:{camera.card}", "path": "DCIM/101/clip0.txt", "size": source.stat().st_size,
        "mtime_ns": source.stat().st_mtime_ns, "etag": "", "sha256": sha256(source.read_bytes()),
    }]  # fmt: skip
    assert told["steps"][0]["kind"] == "compress"
    assert (told["device"], told["run"], told["job"]) == ("cam", summary["run_id"], "job")
    delivered = camera.files()["DCIM/101/clip0.txt.zst"]
    assert told["files"] == [{"name": "clip0.txt.zst", "size": len(delivered), "sha256": sha256(delivered)}]
    of_row = json.loads(rows(made=True)["DCIM/101/clip0.txt.zst"]["lineage"])
    assert of_row["sources"] == told["sources"]
    camera.check_manifest()


def test_several_destinations_are_fetched_and_processed_for_once(camera: Bench, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    summary = run(camera, destinations=[LocalStorage(root=str(camera.archive)), LocalStorage(root=str(second))])
    assert summary["delivered"] == 10
    assert sorted(READ) == sorted(card_files(camera))
    check(camera)
    assert camera.files(second) == camera.files()
    camera.check_manifest(second)


def test_a_finished_fetch_is_not_repeated(camera: Bench, steps: Steps) -> None:
    """The steps fail for a reason that may pass; the next run fetches nothing again, and takes what is there first."""
    steps.fail(lambda name: OSError(5, "Input/output error"))
    summary = run(camera)
    assert (summary["deferred"], summary["delivered"]) == (5, 0)
    assert {r["stage"] for r in rows().values()} == {"process"}
    assert sum("/in/" in p for p in spooled()) == 5
    steps.heal()
    ready()
    READ.clear()
    (camera.folder / "away").touch()  # and the camera is not even there
    summary = run(camera)
    assert (summary["delivered"], READ) == (5, [])
    assert any("camera is away" in p for p in summary["problems"])
    check(camera)
    (camera.folder / "away").unlink()
    assert run(camera)["duplicates"] == 5
    assert READ == []


def test_a_nas_that_is_away_gets_what_was_made_without_fetching_or_making_it_again(camera: Bench, steps: Steps) -> None:
    nas = Away(root=str(camera.archive))
    (camera.folder / "nas-away").touch()
    assert run(camera, destinations=[nas])["deferred"] == 5
    assert {r["state"] for r in rows().values()} == {State.QUEUED}
    assert {r["kind"] for r in rows().values()} == {Kind.NETWORK}
    assert all(r["next_attempt_at"] for r in rows().values())
    READ.clear()
    (camera.folder / "nas-away").unlink()
    (camera.folder / "away").touch()
    steps.fail(lambda name: AssertionError("made again"))
    ready()
    assert run(camera, destinations=[nas])["delivered"] == 5
    assert READ == []
    check(camera)


def test_one_that_cannot_be_processed_does_not_hold_up_the_others(camera: Bench, steps: Steps) -> None:
    steps.fail(lambda name: Corrupt("is no clip", path=name) if name == "clip1.txt" else None)
    summary = run(camera)
    assert (summary["delivered"], summary["failed"]) == (4, 1)
    row = rows()["DCIM/100/clip1.txt"]
    assert (row["state"], row["kind"], row["stage"]) == (State.FAILED, Kind.CORRUPT, "process")
    steps.heal()
    assert run(camera)["failed"] == 1  # it waits until somebody asks
    READ.clear()
    with Ledger.open() as ledger:
        ledger.grant(Wish.RETRY, ledger.choose([row["id"]]), who="me")
    assert run(camera)["delivered"] == 1
    assert READ == []
    check(camera)


@pytest.mark.parametrize("wish", [Wish.PAUSE, Wish.CANCEL])
def test_somebody_stops_a_file_while_it_is_processed(camera: Bench, steps: Steps, wish: Wish) -> None:
    asked = threading.Event()

    def ask_and_wait(name: str) -> None:
        if name == "clip1.txt" and not asked.is_set():
            asked.set()
            with Ledger.open() as ledger:
                ledger.grant(wish, ledger.choose([rows()["DCIM/100/clip1.txt"]["id"]]), who="me")

    steps.fail(ask_and_wait, wait=lambda name: name == "clip1.txt")
    run(camera)
    row = rows()["DCIM/100/clip1.txt"]
    assert row["state"] == (State.PAUSED if wish is Wish.PAUSE else State.CANCELLED)
    assert len(camera.files()) == 4
    steps.heal()
    run(camera)
    assert len(camera.files()) == 4
    with Ledger.open() as ledger:
        ledger.grant(Wish.RESUME if wish is Wish.PAUSE else Wish.RETRY, ledger.choose([row["id"]]), who="me")
    READ.clear()
    run(camera)
    assert ([] if wish is Wish.PAUSE else ["DCIM/100/clip1.txt"]) == READ
    check(camera)


def test_what_is_wanted_of_a_product_is_wanted_of_its_file(camera: Bench) -> None:
    nas = Away(root=str(camera.archive))
    (camera.folder / "nas-away").touch()
    run(camera, destinations=[nas])
    product = rows(made=True)["notes.zst"]["id"]
    with Ledger.open() as ledger:
        (chosen,) = ledger.choose([product])
        assert chosen.path == "notes"
        assert {c.path for c in ledger.choose(job="job")} == set(card_files(camera))
        ledger.grant(Wish.CANCEL, [chosen], who="me")
    (camera.folder / "nas-away").unlink()
    ready()
    assert run(camera, destinations=[nas])["delivered"] == 4
    assert "notes.zst" not in camera.files()
    assert spooled() == []


def test_other_steps_make_it_anew(camera: Bench) -> None:
    nas = Away(root=str(camera.archive))
    (camera.folder / "nas-away").touch()
    run(camera, destinations=[nas])
    (camera.folder / "nas-away").unlink()
    ready()
    READ.clear()
    gz: list[Any] = [{"kind": "compress", "format": "gzip"}]
    assert run(camera, destinations=[nas], steps=gz)["delivered"] == 5
    assert READ == []
    assert {p.rpartition(".")[2] for p in camera.files()} == {"gz"}
    states = {(r["dest_path"].rpartition(".")[2], r["state"]) for r in rows(made=True).values()}
    assert states == {("gz", State.VERIFIED), ("zst", State.CANCELLED)}
    camera.check_manifest()
    assert spooled() == []


def test_what_lies_in_the_spool_and_is_hurt_is_fetched_again(camera: Bench, steps: Steps) -> None:
    steps.fail(lambda name: OSError(5, "Input/output error"))
    run(camera)
    hurt = next(p for p in files_root().rglob("clip2.txt"))
    content = bytearray(hurt.read_bytes())
    content[1000] ^= 1
    hurt.write_bytes(content)
    steps.heal()
    ready()
    READ.clear()
    assert run(camera)["delivered"] == 5
    assert READ == ["DCIM/100/clip2.txt"]
    check(camera)


def test_content_that_was_processed_before_is_not_processed_again(camera: Bench) -> None:
    run(camera, dedup="content")
    camera.put("DCIM/102/copy.txt", (camera.card / "DCIM/100/clip0.txt").read_bytes())
    summary = run(camera, dedup="content")
    assert (summary["delivered"], summary["duplicates"]) == (0, 6)
    assert rows()["DCIM/102/copy.txt"]["state"] == State.DUPLICATE
    assert spooled() == []


def test_a_gate_looks_at_what_was_made(camera: Bench) -> None:
    summary = run(camera, gate={"own": [{"name": "no-zst", "must_not": r"clip1.*\.zst$", "message": "no"}]})
    assert (summary["delivered"], summary["blocked"]) == (4, 1)
    row = rows()["DCIM/100/clip1.txt"]
    assert (row["state"], row["stage"]) == (State.BLOCKED, "gate")
    assert run(camera)["delivered"] == 1
    check(camera)


def test_a_new_version_while_the_old_lies_in_the_spool(camera: Bench) -> None:
    nas = Away(root=str(camera.archive))
    (camera.folder / "nas-away").touch()
    run(camera, destinations=[nas])
    (camera.folder / "nas-away").unlink()
    camera.put("notes", b"newer", mtime=1_700_000_500)
    ready()
    run(camera, destinations=[nas])
    contents = sorted(unzstd(c) for p, c in camera.files().items() if p.startswith("notes"))
    assert contents == [b"newer", b"small"]  # both were there, both were asked for
    assert spooled() == []


def test_a_disk_without_room_for_the_spool(camera: Bench) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.transfer.process.free_at", lambda folder: 100_000)
        summary = run(camera)
    assert (summary["delivered"], summary["failed"]) == (1, 4)  # the small one fits
    assert {r["kind"] for r in rows().values() if r["state"] == State.FAILED} == {Kind.DISK_FULL}
    assert run(camera)["delivered"] == 4
    check(camera)


def test_a_dry_run_makes_nothing(camera: Bench) -> None:
    job = camera.job(steps=ZSTD)
    with Ledger.open() as ledger, TransferRun(job, ledger, dry=True) as dry:
        planned = sum(len(s.items) for s in shipments(dry))
    assert planned == 5
    assert not (home() / "spool" / "files").exists()


def test_steps_key_names_what_is_made(bench: Bench) -> None:
    keys = {
        steps_key(bench.job(steps=steps, lineage=told))
        for steps in (ZSTD, [{"kind": "compress", "format": "gzip"}], [*ZSTD, {"kind": "timestamp"}], [])
        for told in (False, True)
    }
    assert len(keys) == 8
    assert steps_key(bench.job(steps=ZSTD)) == steps_key(bench.job(name="other", steps=ZSTD))


@pytest.mark.parametrize(
    ("parts", "state"),
    [
        ([State.VERIFIED, State.VERIFIED], State.VERIFIED),
        ([State.VERIFIED, State.DUPLICATE], State.VERIFIED),
        ([State.VERIFIED, State.QUEUED], State.QUEUED),
        ([State.FAILED, State.QUEUED], State.FAILED),
        ([State.QUARANTINED, State.VERIFIED], State.FAILED),
        ([State.PAUSED, State.QUEUED], State.PAUSED),
        ([State.CANCELLED, State.PAUSED], State.CANCELLED),
        ([State.DELIVERING, State.VERIFIED], State.QUEUED),
        ([], State.QUEUED),
    ],
)
def test_the_fate_of_an_origin(parts: list[State], state: State) -> None:
    assert fate([Part(p, Kind.UNKNOWN, "write", "said") for p in parts]).state is state
    assert (fate([Part(p) for p in parts]).state is State.VERIFIED) == (bool(parts) and all(p in DONE for p in parts))
