"""Bad input: one clear message each, a row with its kind, the right exit code, and the other files arrive."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import ConfigError, Kind, NotFound
from blocks.storage import LocalStorage
from flows.ledger import Ledger, State
from flows.transfer.progress import Nobody
from flows.transfer.run import TransferRun
from tests.transfer.conftest import Bench, Cli, summary_of

# root may read everything: these capabilities are what makes it so
AS_A_USER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


def rows() -> dict[str, dict[str, Any]]:
    with Ledger.open() as ledger:
        return {row["path"]: row for row in ledger.files()}


def nothing_half_written(folder: Path) -> None:
    assert not [p for p in folder.rglob("*") if p.name.startswith(".onblock-")]


# -- the job ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"colour": "red"}, "colour: there is no such key; there are name,"),
        ({"min_size": "many"}, "min_size: "),
        ({"schedule": {"cron": "61 * * * *"}}, "'61 * * * *' is no cron expression"),
        ({"schedule": {"cron": "* * * * *", "timezone": "Mars/Base"}}, "no IANA time zone"),
        ({"include": ["re:("]}, "bad regular expression 're:('"),
        ({"path": "../{name}"}, "could leave its folder"),
        ({"path": "/etc/{name}"}, "is absolute"),
        ({"path": "{nmae}"}, "unknown token {nmae}"),
        ({"path": "{flight}/{name}"}, "run with --flight"),
        ({"verify": "maybe"}, "verify: "),
        ({"destination": {"type": "floppy", "root": "/a"}}, "no storage type 'floppy'"),
        ({"destination": {"type": "local-storage", "rot": "/a"}}, "no key 'rot'"),
        ({"destination": "local-storage/nas"}, "PREFECT_API_URL is not set"),
    ],
)
def test_an_invalid_job_is_refused_before_anything_is_done(bench: Bench, onblock: Cli, keys: dict, says: str) -> None:
    bench.put("a", b"1")
    done = onblock("run", bench.yaml(**keys))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(bench.archive.iterdir())


def test_a_job_that_is_not_there_or_no_yaml(bench: Bench, onblock: Cli) -> None:
    done = onblock("run", bench.folder / "nothing.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot read the job: No such file" in done.stderr
    bad = bench.folder / "bad.yaml"
    bad.write_text("name: [")
    assert "is not YAML" in onblock("run", bad).stderr
    bad.write_bytes(b"\xff\xfe")
    assert "is not YAML" in onblock("run", bad).stderr
    bad.write_text("- a list")
    assert "a job is a mapping" in onblock("run", bad).stderr


# -- folders --------------------------------------------------------------------------------------------------------


def test_a_missing_folder(bench: Bench, onblock: Cli) -> None:
    for keys in (
        {"source": {"type": "local-storage", "root": "/nowhere/card"}},
        {"destination": {"type": "local-storage", "root": "/nowhere/nas"}},
        {"folder": "DCIM"},
    ):
        done = onblock("run", bench.yaml(**keys))
        assert done.returncode == 2, done.stderr
        assert "onblock: " in done.stderr
        assert "mount" in done.stderr
        assert not Path("/nowhere").exists()


def test_a_folder_without_permission(bench: Bench, onblock: Cli) -> None:
    bench.put("fine", b"1")
    bench.put("closed/a", b"2")
    bench.put("unreadable", b"3").chmod(0)
    (bench.card / "closed").chmod(0)
    try:
        done = onblock("run", bench.yaml(), "--json", prefix=AS_A_USER)
    finally:
        (bench.card / "closed").chmod(0o755)
    assert done.returncode == 1, done.stderr
    summary = summary_of(done)
    assert (summary["delivered"], summary["failed"]) == (1, 2)
    assert bench.files() == {"fine": b"1"}
    for path in ("closed", "unreadable"):
        assert (rows()[path]["state"], rows()[path]["kind"]) == (State.FAILED, Kind.PERMISSION)
        assert "Permission denied" in rows()[path]["message"]
    # cured: the next run takes it, without being asked
    (bench.card / "unreadable").chmod(0o644)
    assert bench.run()["delivered"] == 2
    assert bench.run()["failed"] == 0
    assert {r["state"] for r in rows().values()} == {State.VERIFIED, State.CANCELLED}


def test_a_destination_without_permission(bench: Bench, onblock: Cli) -> None:
    bench.put("a", b"1")
    bench.archive.chmod(0o555)
    try:
        done = onblock("run", bench.yaml(), "--json", prefix=AS_A_USER)
    finally:
        bench.archive.chmod(0o755)
    assert (done.returncode, summary_of(done)["failed"]) == (1, 1)
    assert rows()["a"]["kind"] == Kind.PERMISSION
    assert "the right to it" in rows()["a"]["message"]
    assert not list(bench.archive.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "onblock-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(bench: Bench, small_disk: Path) -> None:
    bench.put("huge.mp4", os.urandom(40 << 20))
    bench.put("large.mp4", os.urandom(9 << 20))
    contents = {f"s{n}": os.urandom(1000) for n in range(20)}
    for path, content in contents.items():
        bench.put(path, content)
    place = [LocalStorage(root=str(small_disk))]
    summary = bench.run(destinations=place, shipping={"at_once": 1})
    assert (summary["delivered"], summary["failed"]) == (20, 2)
    for path in ("huge.mp4", "large.mp4"):
        row = rows()[path]
        assert (row["state"], row["kind"], row["next_attempt_at"]) == (State.FAILED, Kind.DISK_FULL, None)
        assert "make room" in row["message"]
    assert bench.files(small_disk) == contents
    nothing_half_written(small_disk)
    # somebody made room
    (bench.card / "huge.mp4").unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    summary = bench.run(destinations=place)
    assert (summary["delivered"], summary["failed"]) == (1, 0)
    bench.check_manifest(small_disk)


# -- files ----------------------------------------------------------------------------------------------------------


def test_special_files_and_links_that_lead_out(bench: Bench, onblock: Cli) -> None:
    bench.put("fine", b"1")
    (bench.folder / "secret").write_text("secret")
    os.symlink(bench.folder / "secret", bench.card / "out")
    os.symlink("../../etc", bench.card / "outdir")
    os.symlink("fine", bench.card / "inside")
    os.symlink("gone", bench.card / "dangling")
    os.mkfifo(bench.card / "fifo")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(bench.card / "sock"))
        done = onblock("run", bench.yaml(), "--json", "--files")
    assert done.returncode == 1
    summary = summary_of(done)
    assert (summary["delivered"], summary["blocked"], summary["failed"]) == (2, 4, 1)
    assert bench.files() == {"fine": b"1", "inside": b"1"}
    found = {f["path"]: f for f in summary["files"]}
    for path, says in (
        ("out", "link that leads out"), ("outdir", "link that leads out"), ("fifo", "is a FIFO"), ("sock", "is a socket"),
    ):  # fmt: skip
        assert found[path]["state"] == State.BLOCKED
        assert says in found[path]["message"]
    assert (found["dangling"]["state"], found["dangling"]["kind"]) == (State.FAILED, Kind.NOT_FOUND)
    # told once, then known; gone when it is gone
    assert bench.run()["blocked"] == 4
    for path in ("out", "outdir", "fifo", "sock", "dangling"):
        (bench.card / path).unlink()
    summary = bench.run()
    assert (summary["blocked"], summary["failed"]) == (0, 0)
    assert {r["state"] for r in rows().values()} == {State.VERIFIED, State.CANCELLED}


def test_excluded_special_files_are_nobodys_business(bench: Bench) -> None:
    bench.put("fine", b"1")
    os.mkfifo(bench.card / "fifo")
    assert bench.run(exclude=["fifo"])["blocked"] == 0
    assert bench.run(name="other", include=["*.mp4"])["blocked"] == 0


def test_a_folder_where_a_file_should_go(bench: Bench) -> None:
    for policy in ("fail", "replace"):
        bench.put("a", b"1")
        bench.put("b", b"2")
        (bench.archive / "a").mkdir(exist_ok=True)
        summary = bench.run(name=policy, on_conflict=policy)
        assert summary["failed"] == 1
        with Ledger.open() as ledger:
            (row,) = ledger.files(job=policy, states=[State.FAILED])
        assert (row["path"], row["kind"]) == ("a", Kind.CONFLICT)
    assert bench.files() == {"b": b"2"}
    nothing_half_written(bench.archive)
    assert bench.run(on_conflict="rename")["failed"] == 0
    assert bench.files() == {"a~2": b"1", "b": b"2"}


def test_a_file_where_a_folder_should_go(bench: Bench) -> None:
    bench.put("a/b", b"1")
    bench.put("c", b"2")
    (bench.archive / "a").write_text("in the way")
    summary = bench.run()
    assert (summary["delivered"], summary["failed"]) == (1, 1)
    assert rows()["a/b"]["kind"] == Kind.CONFLICT


class Meddler(Nobody):
    """A watcher that does something to the card just before a shipment is moved."""

    def __init__(self, act: Any):
        self.act = act

    def shipment(self, event: str, shipment: object, receipt: object = None) -> None:
        if event == "started":
            act, self.act = self.act, lambda: None
            act()


@pytest.mark.parametrize("size", [10, 1 << 20, 40 << 20])
def test_a_file_that_vanishes(bench: Bench, size: int) -> None:
    from flows.transfer.story import run_here

    gone = bench.put("gone", os.urandom(size))
    bench.put("stays", b"1")
    summary = run_here(bench.job(), watcher=Meddler(gone.unlink))
    assert (summary["delivered"], summary["failed"]) == (1, 1)
    assert (rows()["gone"]["state"], rows()["gone"]["kind"]) == (State.FAILED, Kind.SOURCE_VANISHED)
    assert bench.files() == {"stays": b"1"}
    nothing_half_written(bench.archive)


@pytest.mark.parametrize("size", [10, 1 << 20, 40 << 20])
def test_a_file_that_changes(bench: Bench, size: int) -> None:
    from flows.transfer.story import run_here

    path = bench.put("changes", os.urandom(size))
    bench.put("stays", b"1")

    def change() -> None:
        with path.open("ab") as f:
            f.write(b"more")

    summary = run_here(bench.job(), watcher=Meddler(change))
    assert (summary["delivered"], summary["deferred"], summary["failed"]) == (1, 1, 0)
    assert (rows()["changes"]["state"], rows()["changes"]["kind"]) == (State.QUEUED, Kind.SOURCE_CHANGED)
    assert bench.files() == {"stays": b"1"}
    nothing_half_written(bench.archive)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    assert bench.run()["delivered"] == 1
    assert bench.files()["changes"] == path.read_bytes()
    with Ledger.open() as ledger:
        states = sorted(r["state"] for r in ledger.files() if r["path"] == "changes")
    assert states == [State.CANCELLED, State.VERIFIED]


def test_a_file_that_grows_all_the_time_it_is_read(bench: Bench) -> None:
    """Changed under the reader by a real writer, not before it opened the file."""
    path = bench.put("grows", os.urandom(64 << 20))
    stop = threading.Event()

    def grow() -> None:
        with path.open("ab") as f:
            while not stop.is_set():
                f.write(b"x" * 4096)
                f.flush()

    writer = threading.Thread(target=grow)
    from flows.transfer.story import run_here

    try:
        summary = run_here(bench.job(), watcher=Meddler(writer.start))
    finally:
        stop.set()
        writer.join()
    assert (summary["delivered"], summary["deferred"]) == (0, 1)
    assert bench.files() == {}
    nothing_half_written(bench.archive)


def test_a_path_too_deep_for_the_ledger(bench: Bench) -> None:
    deep = bench.card
    for _ in range(11):
        deep = deep / ("d" * 200)
        os.mkdir(deep)
    (deep / "f").write_bytes(b"1")
    bench.put("fine", b"1")
    summary = bench.run()
    assert (summary["delivered"], summary["blocked"]) == (1, 1)


def test_a_name_too_long_after_the_template(bench: Bench) -> None:
    bench.put("n" * 250, b"1")
    bench.put("short", b"2")
    summary = bench.run(path="{flight}-{name}", flight="F" * 20)
    assert (summary["delivered"], summary["blocked"]) == (1, 1)
    (row,) = [r for r in rows().values() if r["state"] == State.BLOCKED]
    assert "271 bytes long" in row["message"]


def test_a_file_named_like_the_manifest(bench: Bench) -> None:
    bench.put("checksums.sha256", b"theirs")
    bench.put("a", b"1")
    summary = bench.run()
    assert (summary["delivered"], summary["blocked"]) == (1, 1)
    bench.check_manifest()


def test_an_empty_folder(bench: Bench, onblock: Cli) -> None:
    done = onblock("run", bench.yaml(), "--json")
    assert done.returncode == 0
    assert summary_of(done)["scanned"] == 0
    assert not list(bench.archive.iterdir())


# -- the destination lies ---------------------------------------------------------------------------------------------


def test_verify_finds_what_is_damaged_or_lost(bench: Bench, onblock: Cli) -> None:
    for n in range(4):
        bench.put(f"f{n}", b"content")
    bench.run()
    good = onblock("verify", bench.yaml(), "--json")
    assert good.returncode == 0, good.stderr
    damaged = bench.archive / "f1"
    before = damaged.stat()
    damaged.write_bytes(b"cXntent")
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    (bench.archive / "f2").unlink()
    manifest = (bench.archive / "checksums.sha256").read_bytes()
    bad = onblock("verify", bench.yaml())
    assert bad.returncode == 1
    assert "DAMAGED f1" in bad.stdout
    assert "DAMAGED f2" in bad.stdout
    assert (bench.archive / "checksums.sha256").read_bytes() == manifest
    assert {p: rows()[p]["state"] for p in ("f0", "f1", "f2")} == {
        "f0": State.VERIFIED, "f1": State.QUARANTINED, "f2": State.QUARANTINED,
    }  # fmt: skip
    assert bench.run()["delivered"] == 0  # not by itself: somebody should look first
    assert onblock("transfers", "retry", "--job", "job", "--state", "quarantined").returncode == 0
    damaged.unlink()
    assert bench.run()["delivered"] == 2
    assert onblock("verify", bench.yaml()).returncode == 0


def test_a_replaced_version_is_not_damage(bench: Bench, onblock: Cli) -> None:
    bench.put("a", b"1")
    bench.run(on_conflict="replace")
    bench.put("a", b"22", mtime=1_700_000_050.0)
    bench.run(on_conflict="replace")
    done = onblock("verify", bench.yaml())
    assert done.returncode == 0, done.stdout
    bench.check_manifest()


def test_a_run_needs_its_storages(bench: Bench) -> None:
    job = bench.job(destinations=[LocalStorage(root=str(bench.folder / "no"))])
    with Ledger.open() as ledger, pytest.raises(NotFound, match="does not exist"), TransferRun(job, ledger):
        pytest.fail("the run must not begin")
    with pytest.raises(ConfigError, match="--device"):
        bench.run(path="{device}/{name}")
    mode = stat.S_IMODE((bench.archive).stat().st_mode)
    assert mode == 0o755


def test_a_prefect_server_that_is_away(bench: Bench, onblock: Cli) -> None:
    bench.put("a", b"1")
    done = onblock("run", bench.yaml(), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 2
    assert "no Prefect server answers at http://127.0.0.1:9/api" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(bench.archive.iterdir())
