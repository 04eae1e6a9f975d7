"""What a job does with files that are in order: delivered once, proven, listed in a manifest."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from blocks.storage import LocalStorage
from flows.ledger import Ledger, State
from flows.ledger.store import NewFile
from flows.ledger.wishes import Wish
from flows.transfer.job import Settle, Shipping
from flows.transfer.progress import Nobody
from flows.transfer.story import run_here
from tests.transfer.conftest import Bench, sha256

HOSTILE = [
    b"with space.txt", b"-rf", b"--help", b"new\nline.txt", b"back\\slash", b"tab\there", b"umlaut \xc3\xa4.txt",
    b"latin1 \xe4\xff.txt", b"quote'\".txt", b"x" * 255, b"sub/-leading/\nfile", b"100%.txt", b"a" * 250 + b".mp4",
    b"emoji \xf0\x9f\x9b\xa9", b"%2e%2e", b"$(touch x)", b"cr\rlf", b".hidden",
]  # fmt: skip


def test_delivers_once_and_finds_nothing_to_do_then(bench: Bench) -> None:
    contents = {f"DCIM/{n % 5}/f{n:03}.jpg": os.urandom(n * 37) for n in range(100)}
    contents["clip.mp4"] = os.urandom(40 << 20)
    contents["empty"] = b""
    for path, content in contents.items():
        bench.put(path, content)
    first = bench.run()
    assert (first["delivered"], first["failed"], first["bytes"]) == (102, 0, sum(map(len, contents.values())))
    assert first["verified_by"] == {"checksum": 102}
    assert bench.files() == contents
    bench.check_manifest()
    assert (bench.archive / "clip.mp4").stat().st_mtime == 1_700_000_000.0
    manifest = (bench.archive / "checksums.sha256").stat()
    second = bench.run()
    assert (second["delivered"], second["duplicates"], second["bytes"]) == (0, 102, 0)
    assert (bench.archive / "checksums.sha256").stat().st_mtime_ns == manifest.st_mtime_ns


def test_the_ledger_says_what_was_read_and_where_it_is(bench: Bench) -> None:
    bench.put("a/b.bin", b"content")
    bench.run(path="{flight}/{name}", flight="F12", device="cam-1")
    with Ledger.open() as ledger:
        (row,) = ledger.files()
    assert row["state"] == State.VERIFIED
    assert (row["path"], row["dest_path"], row["sha256"]) == ("a/b.bin", "F12/b.bin", sha256(b"content"))
    assert (row["flight"], row["device"], row["verified_by"], row["attempt"]) == ("F12", "cam-1", "checksum", 1)


def test_an_edit_that_keeps_the_size_is_sent_and_both_versions_stay(bench: Bench) -> None:
    bench.put("log.csv", b"one")
    bench.put("other", b"x")
    bench.run()
    bench.put("log.csv", b"two", mtime=1_700_000_001.0)
    again = bench.run()
    assert (again["delivered"], again["duplicates"]) == (1, 1)
    assert bench.files() == {"log.csv": b"one", "log~2.csv": b"two", "other": b"x"}
    bench.check_manifest()


@pytest.mark.parametrize(
    ("policy", "content", "counted"),
    [("replace", b"new", "delivered"), ("skip", b"old", "skipped"), ("fail", b"old", "failed")],
)
def test_conflict_policies(bench: Bench, policy: str, content: bytes, counted: str) -> None:
    (bench.archive / "f").write_bytes(b"old")
    bench.put("f", b"new")
    bench.put("g", b"fine")
    summary = bench.run(on_conflict=policy)
    assert summary[counted] == (2 if counted == "delivered" else 1)
    assert bench.files() == {"f": content, "g": b"fine"}
    again = bench.run(on_conflict=policy)
    assert again["delivered"] == 0
    assert bench.files() == {"f": content, "g": b"fine"}


@pytest.mark.parametrize("policy", ["skip", "replace", "rename", "fail"])
def test_the_same_content_at_the_final_name_is_no_conflict(bench: Bench, policy: str) -> None:
    (bench.archive / "f").write_bytes(b"same")
    bench.put("f", b"same")
    summary = bench.run(on_conflict=policy)
    assert summary["failed"] == summary["skipped"] == 0
    assert summary["adopted"] + summary["delivered"] == 1
    assert bench.files() == {"f": b"same"}
    bench.check_manifest()


def test_hostile_names_arrive_byte_for_byte(bench: Bench) -> None:
    for name in HOSTILE:
        bench.put(name, name)
    summary = bench.run()
    assert (summary["delivered"], summary["failed"], summary["blocked"]) == (len(HOSTILE), 0, 0)
    root = os.fsencode(bench.archive)
    for name in HOSTILE:
        assert Path(os.fsdecode(root + b"/" + name)).read_bytes() == name
    bench.check_manifest()
    assert bench.run()["duplicates"] == len(HOSTILE)
    # a newer version of each: the other name must be legal too
    for name in HOSTILE:
        bench.put(name, name + b"2", mtime=1_700_000_099.0)
    assert bench.run()["delivered"] == len(HOSTILE)
    bench.check_manifest()


@pytest.mark.parametrize("verify", ["exists", "size", "checksum", "readback"])
def test_every_way_of_verifying_is_recorded(bench: Bench, verify: str) -> None:
    for n in range(12):
        bench.put(f"small{n}", os.urandom(100 + n))
    bench.put("large", os.urandom((33 << 20) + 13))
    assert bench.run(verify=verify)["verified_by"] == {verify: 13}
    bench.check_manifest()


def test_several_destinations_are_fed_by_one_read(bench: Bench) -> None:
    bench.put("a", b"1")
    bench.put("big", os.urandom(33 << 20))
    second = bench.folder / "second"
    places = [LocalStorage(root=str(bench.archive)), LocalStorage(root=str(second), create_root=True)]
    assert bench.run(destinations=places)["delivered"] == 4
    assert bench.files() == bench.files(second)
    bench.check_manifest()
    bench.check_manifest(second)
    # a third place later: only it is fed
    third = LocalStorage(root=str(bench.folder / "third"), create_root=True)
    summary = bench.run(destinations=[*places, third])
    assert (summary["delivered"], summary["duplicates"]) == (2, 4)
    assert bench.files(bench.folder / "third") == bench.files()


def test_one_destination_that_fails_does_not_keep_the_other(bench: Bench) -> None:
    bench.put("a", b"1")
    (bench.archive / "a").mkdir()
    second = LocalStorage(root=str(bench.folder / "second"), create_root=True)
    summary = bench.run(destinations=[LocalStorage(root=str(bench.archive)), second], on_conflict="fail")
    assert (summary["delivered"], summary["failed"]) == (1, 1)
    assert bench.files(bench.folder / "second") == {"a": b"1"}


def test_content_dedup_sends_a_content_once(bench: Bench) -> None:
    big = os.urandom(33 << 20)
    for n in range(5):
        bench.put(f"copy{n}", b"same")
        bench.put(f"big{n}", big)
    bench.put("other", b"different")
    summary = bench.run(dedup="content")
    assert (summary["delivered"], summary["duplicates"]) == (3, 8)
    assert sorted(map(len, bench.files().values())) == [4, 9, 33 << 20]
    bench.check_manifest()
    bench.put("renamed later", b"same")
    summary = bench.run(dedup="content")
    assert (summary["delivered"], summary["duplicates"]) == (0, 12)


def test_patterns_sizes_and_ages_choose(bench: Bench) -> None:
    for path in ("a.mp4", "a.jpg", "DCIM/b.mp4", "DCIM/deep/c.MP4", "trash/d.mp4", "x.tmp"):
        bench.put(path, b"12345")
    bench.put("large.mp4", b"x" * 2048)
    bench.put("young.mp4", b"12345", mtime=time.time() - 60)
    summary = bench.run(include=["*.mp4", "re:.*\\.MP4"], exclude=["trash/"], max_size="1 KiB", min_age="10 min")
    assert set(bench.files()) == {"a.mp4", "DCIM/b.mp4", "DCIM/deep/c.MP4"}
    assert summary["scanned"] == 3
    assert bench.run(name="flat", recursive=False, include=["*.mp4"], max_age="1 h")["delivered"] == 1
    assert "young.mp4" in bench.files()


def test_a_folder_of_the_source_and_a_template(bench: Bench) -> None:
    bench.put("DCIM/100/clip one.mp4", b"1", mtime=1_700_000_000.0)
    bench.put("misc/no", b"2")
    job = {"folder": "DCIM", "path": "{flight}/{device}/{date}/{folder}/{stem}-{hour}.{ext}"}
    summary = bench.run(**job, flight="F7", device="cam")
    assert set(bench.files()) == {"F7/cam/2023-11-14/100/clip one-22.mp4"}
    assert summary["destinations"][0]["manifest"] == "F7/cam/checksums.sha256"
    bench.check_manifest(bench.archive / "F7/cam")


def test_settling_files_wait_and_unfinished_ones_are_left(bench: Bench) -> None:
    bench.put("done.mp4", b"1")
    bench.put("clip.mp4.part", b"1")
    growing = bench.put("growing.mp4", b"1", mtime=time.time())
    stop = threading.Event()

    def grow() -> None:
        while not stop.wait(0.05):
            with growing.open("ab") as f:
                f.write(b"more")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        summary = bench.run(settle=Settle(quiet=timedelta(seconds=1)))
    finally:
        stop.set()
        writer.join()
    assert (summary["delivered"], summary["settling"], summary["failed"]) == (1, 1, 0)
    assert set(bench.files()) == {"done.mp4"}
    os.utime(growing, (1_700_000_000, 1_700_000_000))
    assert bench.run()["delivered"] == 1


def test_a_file_that_has_just_been_finished_is_taken_after_a_second_look(bench: Bench) -> None:
    bench.put("fresh.mp4", b"1", mtime=time.time())
    bench.put("clock ahead.mp4", b"1", mtime=time.time() + 86400)
    assert bench.run(settle=Settle(quiet=timedelta(milliseconds=300)))["delivered"] == 2


def test_a_folder_waits_for_its_sentinel(bench: Bench) -> None:
    bench.put("one/a", b"1")
    bench.put("two/b", b"1")
    bench.put("two/flight.complete", b"")
    summary = bench.run(settle=Settle(sentinel="*.complete"))
    assert set(bench.files()) == {"two/b", "two/flight.complete"}
    assert summary["settling"] == 1


def test_manifest_keeps_lines_it_did_not_write_and_repairs_disorder(bench: Bench) -> None:
    (bench.archive / "theirs").write_bytes(b"theirs")
    (bench.archive / "checksums.sha256").write_text(f"{sha256(b'theirs')}  theirs\n")
    bench.put("b", b"b")
    bench.put("z", b"z")
    bench.run()
    bench.check_manifest()
    lines = (bench.archive / "checksums.sha256").read_text().splitlines()
    (bench.archive / "checksums.sha256").write_text("\n".join(reversed(lines)))
    bench.put("m", b"m")
    bench.run()
    bench.check_manifest()
    assert len((bench.archive / "checksums.sha256").read_text().splitlines()) == 4


def test_two_jobs_share_the_manifest_of_a_destination(bench: Bench) -> None:
    bench.put("a", b"1")
    bench.run(name="one", path="one/{path}", manifest="checksums.sha256")
    bench.run(name="two", path="{path}")
    bench.run(name="three", path="three-{path}")
    assert (bench.archive / "one/checksums.sha256").exists()
    lines = (bench.archive / "checksums.sha256").read_text()
    assert "  a\n" in lines
    assert "  three-a\n" in lines


def test_a_file_is_sent_again_when_asked(bench: Bench) -> None:
    bench.put("a", b"1")
    bench.run()
    (bench.archive / "a").unlink()
    assert bench.run()["delivered"] == 0  # known: dedup looks at the ledger, `onblock verify` at the destination
    with Ledger.open() as ledger:
        ledger.grant(Wish.RETRY, ledger.choose([row["id"] for row in ledger.files()]), who="me")
    assert bench.run()["delivered"] == 1
    assert bench.files() == {"a": b"1"}


def test_shipments_of_any_size_bring_the_same(bench: Bench) -> None:
    contents = {f"f{n}": os.urandom(n) for n in range(50)}
    for path, content in contents.items():
        bench.put(path, content)
    for n, shipping in enumerate(
        (Shipping(max_files=1), Shipping(max_files=7, at_once=4), Shipping(max_bytes=30), Shipping(large=10))
    ):
        folder = bench.folder / f"out{n}"
        summary = bench.run(
            name=f"j{n}", destinations=[LocalStorage(root=str(folder), create_root=True)], shipping=shipping
        )
        assert summary["delivered"] == 50
        assert bench.files(folder) == contents


def test_a_dry_run_writes_nothing(bench: Bench, onblock) -> None:
    bench.put("a", b"1")
    done = onblock("plan", bench.yaml(), "--json")
    assert done.returncode == 0
    assert '"to_deliver": 1' in done.stdout
    assert not list(bench.archive.iterdir())
    assert not (Path(os.environ["ONBLOCK_HOME"]) / "ledger.db").exists()
    bench.run()
    assert '"to_deliver": 0' in onblock("plan", bench.yaml(), "--json").stdout


def test_memory_of_a_watcher_is_not_needed(bench: Bench) -> None:
    bench.put("a", b"1")
    seen: list[str] = []

    class Watcher(Nobody):
        def shipment(self, event: str, shipment: object, receipt: object = None) -> None:
            seen.append(event)

    run_here(bench.job(), watcher=Watcher())
    assert seen == ["queued", "started", "completed"]


def test_a_file_the_job_no_longer_asks_for_is_not_missed(bench: Bench) -> None:
    bench.put("a", b"1")
    with Ledger.open() as ledger:
        run_id = ledger.begin_run("job", flight=None, device=None)
        route = ledger.route("job", bench.job().destinations[0].place())
        info = next(iter(bench.job().source.open().scan()))
        ledger.enter(run_id, [NewFile(route, info, "a", None)], flight=None, device=None)
        ledger.end_run(run_id, {})
    summary = bench.run(exclude=["a"])
    assert (summary["delivered"], summary["failed"]) == (0, 0)
    with Ledger.open() as ledger:
        (row,) = ledger.files()
    assert (row["state"], row["message"]) == (State.CANCELLED, "a: the job no longer asks for it")
    assert bench.run()["delivered"] == 1  # and it asks again


def test_a_file_that_was_left_for_another_is_taken_when_the_policy_changes(bench: Bench) -> None:
    (bench.archive / "f").write_bytes(b"old")
    bench.put("f", b"new")
    assert bench.run(on_conflict="skip")["skipped"] == 1
    assert bench.run(on_conflict="skip")["skipped"] == 1
    assert bench.run(on_conflict="rename")["delivered"] == 1
    assert bench.files() == {"f": b"old", "f~2": b"new"}


def test_a_version_that_comes_back_is_delivered(bench: Bench) -> None:
    """The first version was deferred, a second took its place and went, the first returns."""
    bench.put("f", b"first")
    with Ledger.open() as ledger:
        run_id = ledger.begin_run("job", flight=None, device=None)
        route = ledger.route("job", bench.job().destinations[0].place())
        ledger.enter(
            run_id, [NewFile(route, next(iter(bench.job().source.open().scan())), "f", None)], flight=None, device=None
        )
        ledger.end_run(run_id, {})
    bench.put("f", b"second", mtime=1_700_000_001.0)
    assert bench.run()["delivered"] == 1
    bench.put("f", b"first")
    assert bench.run()["delivered"] == 1
    assert sorted(bench.files().values()) == [b"first", b"second"]


def test_one_shipment_at_a_time_is_enough(bench: Bench) -> None:
    for n in range(20):
        bench.put(f"f{n}", b"x")
    assert bench.run(shipping=Shipping(max_files=3, at_once=1))["delivered"] == 20
