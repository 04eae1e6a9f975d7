"""What is made of files, and what that means for them: flights, pairs, wishes, steps that change, scripts, lineage."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import Corrupt, NetworkError, NotFound
from blocks.storage import LocalStorage
from flows.ledger import Ledger, State
from flows.ledger.wishes import Wish
from flows.transfer.steps.base import Step
from flows.transfer.steps.compress import Compress
from flows.transfer.story import run_here
from tests.transfer.conftest import Bench, Cli, sha256, summary_of
from tests.transfer.phases import (
    READ,
    ZSTD,
    Away,
    Counting,
    CountingSession,
    Steps,
    camera,
    card_files,
    check,
    nas_away,
    ready,
    rows,
    run,
    spooled,
    steps,
    unzstd,
)

__all__ = ["camera", "steps"]


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that wants two files at once: compress, with the group of `a_1` and `a_2`."""

    def group(self: Step, name: str) -> str | None:
        return name[:-2] if name[-2:] in ("_1", "_2") else None

    def both(self: Step, inputs: list[Path], work: Path, ask: Any) -> list[Path]:
        if len(inputs) < 2:
            raise NotFound("its other half is missing", path=inputs[0].name)
        (work / "both").write_bytes(b"".join(p.read_bytes() for p in sorted(inputs, key=lambda p: p.name)))
        return [work / "both"]

    monkeypatch.setattr(Compress, "group", group)
    monkeypatch.setattr(Compress, "run", both)


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("card", ["empty", "names used again"])
def test_a_pair_in_the_spool_outlives_a_card_that_was_formatted(bench: Bench, card: str) -> None:
    for name in ("v_1", "v_2"):
        bench.put(name, name.encode())
    nas = nas_away(bench)
    for name in ("v_1", "v_2"):
        (bench.card / name).unlink()
        if card == "names used again":
            bench.put(name, b"of the next flight " + name.encode(), mtime=1_700_009_000)
    summary = run(bench, destinations=[nas])
    assert (summary["failed"], summary["problems"]) == (0, [])
    found = set(bench.files().values())
    assert b"v_1v_2" in found
    assert len(found) == (1 if card == "empty" else 2)
    assert spooled() == []


@pytest.mark.usefixtures("pairs")
def test_a_half_whose_other_half_could_not_be_fetched_waits(bench: Bench) -> None:
    for name in ("v_1", "v_2"):
        bench.put(name, name.encode())
    with pytest.MonkeyPatch.context() as patch:
        whole = CountingSession.read

        def read(self: CountingSession, path: str, offset: int = 0) -> Any:
            if path == "v_2":
                raise NetworkError("broken off", path=path)
            return whole(self, path, offset)

        patch.setattr(CountingSession, "read", read)
        patch.setattr("flows.transfer.senders.TASK_RETRY_DELAYS_S", ())
        assert run(bench)["deferred"] == 2
    assert {r["state"] for r in rows().values()} == {State.QUEUED}
    ready()
    assert run(bench)["delivered"] == 1
    assert list(bench.files().values()) == [b"v_1v_2"]


def test_a_recording_keeps_its_flight(camera: Bench) -> None:
    """Another flight has ended before the first could be delivered."""
    (camera.folder / "nas-away").touch()
    nas = Away(root=str(camera.archive))
    steps: list[Any] = [{"kind": "rename", "template": "{flight}_{name}"}, *ZSTD]
    job = camera.job(
        source=Counting(root=str(camera.card)), destinations=[nas], steps=steps, path="{flight}/{path}", lineage=True
    )
    run_here(job, flight="F1")
    (camera.folder / "nas-away").unlink()
    ready()
    camera.put("second", b"of the second flight")
    run_here(job, flight="F2")
    arrived = camera.files()
    assert sorted({p.partition("/")[0] for p in arrived}) == ["F1", "F2"]
    assert [p for p in arrived if p.startswith("F2/") and p.endswith(".zst")] == ["F2/F2_second.zst"]
    for path, content in arrived.items():
        if path.endswith(".json"):
            assert json.loads(content)["flight"] == path.partition("/")[0]
    for flight in ("F1", "F2"):
        camera.check_manifest(camera.archive / flight)


def test_steps_that_are_added_while_files_wait(camera: Bench) -> None:
    nas = nas_away(camera, steps=[])
    assert run(camera, destinations=[nas])["delivered"] == 5
    check(camera)
    assert {r["dest_path"] for r in rows().values()} == {None}


def test_steps_that_are_removed_while_files_wait(camera: Bench) -> None:
    nas = nas_away(camera)
    assert run(camera, destinations=[nas], steps=[])["delivered"] == 5
    assert camera.files() == card_files(camera)
    camera.check_manifest()
    assert spooled() == []
    assert {r["state"] for r in rows(made=True).values()} == {State.CANCELLED}


def test_content_whose_product_is_lost_is_processed_again(camera: Bench) -> None:
    run(camera, dedup="content")
    with Ledger.open() as ledger:
        ledger.mark_damaged([(rows(made=True)["notes.zst"]["id"], Corrupt("lost"))])
    (camera.archive / "notes.zst").unlink()
    camera.put("from the backup card", b"small")
    assert run(camera, dedup="content")["delivered"] == 1
    assert unzstd(camera.files()["from the backup card.zst"]) == b"small"


@pytest.mark.parametrize("name", ["n" * 245, "ü" * 122])
def test_a_name_that_leaves_no_room_for_that_of_the_sidecar(camera: Bench, name: str) -> None:
    camera.put(name, b"long")
    summary = run(camera, lineage=True)
    assert (summary["delivered"], summary["failed"]) == (12, 0)
    assert sum(p.endswith(".onblock.json") for p in camera.files()) == 6
    camera.check_manifest()


def test_a_file_that_is_asked_for_again_is_delivered_again(camera: Bench) -> None:
    run(camera)
    (camera.archive / "notes.zst").unlink()
    with Ledger.open() as ledger:
        ledger.grant(Wish.RETRY, ledger.choose([rows()["notes"]["id"]]), who="me")
    summary = run(camera)
    assert (summary["delivered"], summary["deferred"], summary["duplicates"]) == (1, 0, 4)
    check(camera)


def test_a_file_that_is_asked_for_again_and_whose_source_is_gone_stays_delivered(camera: Bench) -> None:
    run(camera)
    before = camera.files()
    (camera.card / "notes").unlink()
    with Ledger.open() as ledger:
        ledger.grant(Wish.RETRY, ledger.choose([rows()["notes"]["id"]]), who="me")
    run(camera)
    assert rows()["notes"]["state"] == rows(made=True)["notes.zst"]["state"] == State.VERIFIED
    assert camera.files() == before
    camera.check_manifest()


def test_what_was_delivered_by_a_run_that_died_before_it_could_say_so(camera: Bench) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "settle_origins", lambda self, claims: {})
        run(camera)
    assert {r["state"] for r in rows(made=True).values()} == {State.VERIFIED}
    summary = run(camera)
    assert (summary["delivered"], summary["deferred"], summary["failed"]) == (0, 0, 0)
    check(camera)
    assert {r["state"] for r in rows().values()} == {State.VERIFIED}


def test_what_is_given_up_takes_its_products_along(camera: Bench) -> None:
    nas = nas_away(camera)
    with Ledger.open() as ledger:
        ledger.grant(Wish.CANCEL, ledger.choose([rows()["notes"]["id"]]), who="me")
    assert rows(made=True)["notes.zst"]["state"] == State.CANCELLED
    run(camera, destinations=[nas])
    assert "notes.zst" not in camera.files()


def test_who_asks_for_what_waits_is_not_refused_for_what_is_under_way(camera: Bench) -> None:
    """A run died over a file when one of the things made of it was at rest: the file is nobody's to ask for yet."""
    nas_away(camera)
    origin = rows()["notes"]["id"]
    with Ledger.open() as ledger:
        with ledger.engine.begin() as c:
            c.exec_driver_sql(f"UPDATE files SET state = 'DELIVERING' WHERE id = {origin}")
        waiting = ledger.choose(job="job", states=[State.QUEUED])
        assert len(waiting) == 4 and origin not in {r.id for r in waiting}
        assert ledger.grant(Wish.RETRY, waiting, who="me").moved == 4
        assert origin in {r.id for r in ledger.choose(job="job", states=[State.QUEUED, State.DELIVERING])}


def test_a_late_writer_changes_nothing(camera: Bench) -> None:
    """A run that was taken for dead while it worked on a file: its successor has delivered, and it finds that out."""
    run(camera)
    row = rows()["notes"]
    made = rows(made=True)["notes.zst"]
    with Ledger.open() as ledger:
        assert ledger.link([({row["id"]: row["attempt"] - 1}, [(made["id"], "{}")])]) == set()
        assert (
            ledger.link([({row["id"]: row["attempt"]}, [(rows(made=True)["DCIM/101/clip0.txt.zst"]["id"], "{}")])])
            == set()
        )
        assert ledger.settle_origins([(row["id"], row["attempt"] - 1, "0" * 64)]) == {}
        assert ledger.products_of([row["id"]]) == {row["id"]: [made["id"]]}
    assert rows()["notes"] == row
    assert rows(made=True)["notes.zst"] == made


def test_a_name_rule_means_what_is_delivered(camera: Bench) -> None:
    gate: dict[str, Any] = {"prefix": {"any_of": ["cam1_"]}}
    steps: list[Any] = [{"kind": "rename", "prefix": "cam1_"}]
    summary = run(camera, steps=steps, gate=gate)
    assert (summary["delivered"], summary["blocked"]) == (5, 0)


def test_a_camera_is_free_before_the_processor_is(camera: Bench, steps: Steps) -> None:
    """All of it is fetched while the first file is processed."""
    for n in range(12):
        camera.put(f"DCIM/103/clip{n}.txt", os.urandom(100) * (11_000 + n))
    total = len(card_files(camera))
    seen: list[int] = []

    def first_waits(name: str) -> None:
        if not seen:
            seen.append(0)
            deadline = time.monotonic() + 60
            while len(READ) < total and time.monotonic() < deadline:
                time.sleep(0.01)
            seen[0] = len(READ)

    steps.fail(first_waits)
    assert run(camera, shipping={"processing_at_once": 1})["delivered"] == total
    assert seen == [total]
    check(camera)


def test_one_destination_that_is_away_does_not_stop_the_other(camera: Bench, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    nas = Away(root=str(camera.archive))
    (camera.folder / "nas-away").touch()
    both = [nas, LocalStorage(root=str(second))]
    summary = run(camera, destinations=both)
    assert (summary["delivered"], summary["deferred"]) == (5, 5)
    assert len(camera.files(second)) == 5
    (camera.folder / "nas-away").unlink()
    ready()
    READ.clear()
    assert run(camera, destinations=both)["delivered"] == 5
    assert READ == []
    check(camera)


def test_what_a_script_was_told_is_not_told_on(camera: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "copy.sh").write_text('#!/bin/sh\ncp "$1" ./copied\n')
    (scripts / "copy.sh").chmod(0o755)
    monkeypatch.setenv("ONBLOCK_SCRIPTS", str(scripts))
    script: list[Any] = [{"kind": "script", "program": "copy.sh", "args": ["{input}", "--token=hunter2"]}]
    assert run(camera, steps=script, lineage=True, include=["notes"])["delivered"] == 2
    assert b"hunter2" not in camera.files()["copied.onblock.json"]
    with Ledger.open() as ledger:
        assert "hunter2" not in str(list(ledger.files()))


def test_a_script_that_changes_what_it_reads(camera: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "spoil.sh").write_text('#!/bin/sh\nchmod u+w "$1"; echo more >> "$1"; echo x > ./x\n')
    (scripts / "spoil.sh").chmod(0o755)
    monkeypatch.setenv("ONBLOCK_SCRIPTS", str(scripts))
    script: list[Any] = [{"kind": "script", "program": "spoil.sh"}]
    assert run(camera, steps=script, include=["notes"])["failed"] == 1
    assert camera.files() == {}
    with Ledger.open() as ledger:
        ledger.grant(Wish.RETRY, ledger.choose([rows()["notes"]["id"]]), who="me")
    assert run(camera, include=["notes"])["delivered"] == 1
    assert unzstd(camera.files()["notes.zst"]) == b"small"


def test_recordings_are_listed_by_flight_with_their_lineage(camera: Bench, onblock: Cli) -> None:
    job = camera.job(source=Counting(root=str(camera.card)), steps=ZSTD, path="{flight}/{path}", include=["notes"])
    run_here(job, flight="F1", device="cam")
    camera.put("plain")
    run_here(camera.job(name="plain", include=["plain"]), flight="F2")
    found = summary_of(onblock("recordings", "--json"))["recordings"]
    assert [(r["flight"], r["device"], r["path"]) for r in found] == [
        ("F1", "cam", "F1/notes.zst"), ("F2", None, "plain"),
    ]  # fmt: skip
    made, plain = found
    assert [s["kind"] for s in made["steps"]] == ["compress"]
    assert [(s["path"], s["sha256"]) for s in made["sources"]] == [("notes", sha256(b"small"))]
    assert made["sha256"] == sha256(camera.files()["F1/notes.zst"])
    assert plain["sources"][0]["sha256"] == plain["sha256"] == sha256(b"data")
    assert summary_of(onblock("recordings", "--flight", "F2", "--json"))["recordings"] == [plain]
    shown = onblock("recordings", "--device", "cam", COLUMNS="200")
    assert "F1/notes.zst" in shown.stdout and "plain" not in shown.stdout
    assert onblock("recordings", "--flight", "F3").stdout.startswith("nothing of that was delivered")
