"""Retention at a destination: what goes, what stays and why, that nothing comes back, and kill -9 before every step."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from blocks.errors import NetworkError
from blocks.storage import LocalStorage
from flows.ledger import Ledger
from flows.ledger.models import File
from flows.transfer.verify import verify_route
from flows.upkeep.retention import retain
from flows.upkeep.scrub import scrub
from tests.ledger.test_rows import version
from tests.upkeep.conftest import Cli, Yard
from tests.upkeep.test_by_mistake import WatchedStorage, damage, once
from tests.upkeep.test_killed import Steps, code_of, in_a_process

OLD = {"delivered": {"max_age": "30 d"}}


@pytest.fixture
def old(yard: Yard) -> Yard:
    """Three files, delivered a month ago, gone from the card."""
    yard.keys = {"cleanup": {"action": "delete"}, "retention": OLD}
    for n, name in enumerate("abc"):
        yard.put(f"DCIM/{name}", name.encode() * (n + 1))
    yard.proven()
    assert yard.clean()["cleaned"] == 3
    in_order()
    yard.later(31 * 24)
    return yard


def in_order() -> None:
    """The files were delivered one after the other."""
    with Ledger.open() as ledger, ledger.engine.begin() as c:
        for n, name in enumerate("abc"):
            c.execute(update(File).where(File.path == f"DCIM/{name}").values(done_at=File.done_at - 100 + n))


def removed(yard: Yard, **keys: Any) -> dict[str, Any]:
    """What a retention says of the one destination."""
    dry = keys.pop("dry", False)
    (one,) = retain(yard.job(**keys), dry=dry)["delivered"]
    return one


def all_true(yard: Yard) -> None:
    """Manifest, scrub and forced verification agree with what lies there; the next run has nothing to do."""
    if yard.files():
        yard.check_manifest()
    else:
        assert (yard.archive / "checksums.sha256").read_bytes() == b""
    found = scrub(yard.job(), part="1/1")
    assert (found["checked"], found["damaged"], found["problems"]) == (len(yard.files()), [], [])
    with Ledger.open() as ledger:
        *_, last = verify_route(ledger, "job", LocalStorage(root=str(yard.archive)))
    assert (last.checked, last.damaged, last.unverified) == (len(yard.files()), [], [])


def test_by_age(old: Yard) -> None:
    before = old.files()
    (old.archive / "somebody's").write_bytes(b"never ours")
    assert removed(old, retention={"delivered": {"max_age": "40 d"}})["removed"] == 0
    dry = removed(old, dry=True)
    assert (dry["files"], dry["removed"], dry["bytes"], dry["names"]) == (3, 3, 6, ["DCIM/a", "DCIM/b", "DCIM/c"])
    assert old.files() == before | {"somebody's": b"never ours"}
    assert old.states() == ["CLEANED"] * 3
    done = removed(old)
    assert (done["removed"], done["bytes"], done["kept"], done["waiting"]) == (3, 6, [], {})
    assert old.files() == {"somebody's": b"never ours"}
    assert old.states() == ["RETIRED"] * 3
    assert old.rows("journal") == [None] * 3
    (old.archive / "somebody's").unlink()
    all_true(old)
    assert removed(old)["files"] == 0


@pytest.mark.parametrize(
    ("limits", "left"), [({"max_files": 2}, "bc"), ({"max_size": 3}, "c"), ({"max_size": "5 B", "max_files": 3}, "bc")]
)
def test_by_count_and_size(old: Yard, limits: dict[str, Any], left: str) -> None:
    removed(old, retention={"delivered": limits})
    assert sorted(old.files()) == [f"DCIM/{name}" for name in left]
    all_true(old)


def test_what_was_removed_is_not_delivered_again(old: Yard) -> None:
    """The card comes back from its owner's backup, with the same files."""
    removed(old)
    for n, name in enumerate("abc"):
        old.put(f"DCIM/{name}", name.encode() * (n + 1))
    summary = old.deliver()
    assert (summary["delivered"], summary["duplicates"]) == (0, 3)
    assert old.files() == {}
    cleaned = old.clean()
    assert cleaned["waiting"] == {"was removed at its destination by retention: this is the last copy": 3}
    assert len(old.on_card()) == 3
    with Ledger.open() as ledger:  # unless somebody asks for it
        from flows.ledger.wishes import Wish

        ledger.grant(Wish.RETRY, ledger.choose([old.rows("id")[0]]), who="me")
    assert old.deliver()["delivered"] == 1
    assert old.states() == ["VERIFIED", "RETIRED", "RETIRED"]
    assert list(old.files()) == ["DCIM/a"]
    all_true(old)


def test_the_destinations_copy_goes_last(yard: Yard) -> None:
    yard.keys = {"retention": OLD}
    yard.put("DCIM/a")
    yard.deliver()
    yard.later(31 * 24)
    assert removed(yard)["waiting"] == {"its source still has it": 1}
    away = yard.card.rename(yard.folder / "away")
    assert removed(yard)["waiting"] == {"its source is away, and may still have it": 1}
    yard.card.mkdir()  # another card: who knows what became of that one
    (yard.card / "other").write_bytes(b"x")
    assert removed(yard, dry=True)["removed"] == 1
    yard.card.joinpath("other").unlink()
    yard.card.rmdir()
    away.rename(yard.card)
    yard.keys["cleanup"] = {"action": "backup", "backup_folder": "old"}
    yard.proven()
    assert yard.clean()["cleaned"] == 1
    yard.later(31 * 24)
    assert removed(yard)["waiting"] == {"its backup at the source is still there": 1}
    both = retain(yard.job(retention=OLD | {"backup": {"max_age": "30 d"}}))
    assert (both["removed"], both["delivered"][0]["removed"]) == (1, 1)
    assert (yard.on_card(), yard.files(), yard.states()) == (set(), {}, ["RETIRED"])
    all_true(yard)


@pytest.mark.parametrize("harm", ["damaged", "gone", "longer"])
def test_what_is_not_what_was_delivered_stays(old: Yard, harm: str) -> None:
    copy = old.archive / "DCIM/b"
    {"damaged": lambda: damage(copy), "gone": copy.unlink, "longer": lambda: copy.write_bytes(b"edited")}[harm]()
    done = removed(old)
    assert (done["removed"], [k["path"] for k in done["kept"]]) == (2, ["DCIM/b"])
    assert old.states() == ["RETIRED", "QUARANTINED", "RETIRED"]
    assert sorted(old.files()) == ([] if harm == "gone" else ["DCIM/b"])


def test_written_anew_after_it_was_read_back(old: Yard) -> None:
    path = "DCIM/b"
    store = WatchedStorage.at(
        old.archive, once("delete", lambda: (old.archive / path).write_bytes(b"somebody's"), "DCIM/a")
    )
    done = removed(old, destinations=[store])
    assert (done["removed"], [k["why"] for k in done["kept"]]) == (2, ["has changed while it was looked at"])
    assert old.files() == {path: b"somebody's"}


def test_a_mount_point_where_nothing_is_mounted(old: Yard) -> None:
    away = old.archive.rename(old.folder / "away")
    old.archive.mkdir()
    done = removed(old)
    assert (done["removed"], done["problem"] != "") == (0, True)
    assert old.states() == ["CLEANED"] * 3
    old.archive.rmdir()
    away.rename(old.archive)
    assert removed(old)["removed"] == 3


def test_a_destination_that_stops_answering(old: Yard) -> None:
    def away() -> None:
        raise NetworkError("does not answer")

    store = WatchedStorage.at(old.archive, once("delete", away, "DCIM/b"))
    done = removed(old, destinations=[store])
    assert (done["removed"], "does not answer" in done["problem"]) == (1, True)
    assert old.states() == ["RETIRED", "CLEANED", "CLEANED"]
    all_true(old)
    assert removed(old)["removed"] == 2


def test_what_another_job_counts_on_stays(old: Yard) -> None:
    old.put("DCIM/a", b"a")
    old.deliver(name="other")
    assert old.rows("state") == ["CLEANED", "VERIFIED", "CLEANED", "CLEANED"]
    done = removed(old)
    assert (done["removed"], sum(done["waiting"].values())) == (2, 1), done
    assert list(old.files()) == ["DCIM/a"]
    old.check_manifest()


def test_what_was_replaced_is_not_counted(yard: Yard) -> None:
    """Of two versions with one final name, the row of the first goes with the file."""
    yard.keys = {"retention": OLD, "on_conflict": "replace"}
    yard.put("a", b"first")
    yard.deliver()
    yard.put("a", b"second", mtime=1_700_000_100.0)
    yard.deliver()
    (yard.card / "a").unlink()
    yard.later(31 * 24)
    done = removed(yard)
    assert (done["files"], done["removed"], done["bytes"]) == (1, 1, 6)
    assert yard.states() == ["RETIRED"] * 2
    all_true(yard)


def test_a_newer_version_is_on_its_way(old: Yard) -> None:
    with Ledger.open() as ledger:
        from tests.ledger.test_rows import enter

        run = ledger.begin_run("job", flight=None, device=None)
        enter(ledger, run, old.rows("route_id")[0], [version("DCIM/a", 9)])
        ledger.end_run(run, {})
    assert removed(old)["removed"] == 2
    assert list(old.files()) == ["DCIM/a"]


def test_duplicates_go_with_what_they_stand_for(yard: Yard) -> None:
    """And the same content, when it comes again, is delivered: there is nothing it could be a duplicate of."""
    yard.keys = {"retention": OLD, "dedup": "content"}
    yard.put("a", b"same")
    yard.deliver()
    yard.put("b", b"same")
    yard.deliver()
    assert yard.states() == ["VERIFIED", "DUPLICATE"]
    (yard.card / "a").unlink()
    yard.later(31 * 24)
    assert removed(yard)["removed"] == 1
    assert yard.states() == ["RETIRED", "RETIRED"]
    yard.put("c", b"same")
    assert yard.deliver()["delivered"] == 1
    assert yard.files() == {"c": b"same"}
    all_true(yard)


def test_paused_meanwhile(old: Yard) -> None:
    from blocks.errors import Cancelled

    with Ledger.open() as ledger:
        ledger.hold("job", who="me")
    with pytest.raises(Cancelled, match="was paused by me"):
        retain(old.job())
    assert (old.states(), len(old.files())) == (["CLEANED"] * 3, 3)


def test_killed_before_each_step(old: Yard) -> None:
    """Whatever is there is in the books and in the manifest, after the next retention."""
    home = Path(os.environ["ONBLOCK_HOME"])
    saved = {p.name: p.read_bytes() for p in home.glob("ledger.db*")}
    manifest, content = (old.archive / "checksums.sha256").read_bytes(), old.files()
    fatal, half = 0, 0
    while True:
        fatal += 1
        for name in list(home.glob("ledger.db*")):
            name.unlink()
        for name, data in saved.items():
            (home / name).write_bytes(data)
        (old.archive / "checksums.sha256").write_bytes(manifest)
        for path, data in content.items():
            (old.archive / path).write_bytes(data)
        steps = Steps(fatal)

        def work(steps: Steps = steps) -> None:
            retain(old.job(destinations=[WatchedStorage.at(old.archive, steps.hook)]))

        code = code_of(in_a_process(work))
        assert code in (0, -signal.SIGKILL)
        left = [p for p in old.files() if ".onblock-" not in p]
        half += 0 < len(left) < 3
        listed = {line.split()[-1].decode() for line in (old.archive / "checksums.sha256").read_bytes().splitlines()}
        assert {n.lstrip("*") for n in listed} <= set(left), "the manifest never names what is gone"
        done = removed(old, retention={"delivered": {"max_age": "9999 d"}})
        assert (done["removed"], done["problem"]) == (0, "")
        assert {path for path, state in old.rows("path", "state") if state == "CLEANED"} == set(left), fatal
        assert old.rows("journal") == [None] * 3
        all_true(old)
        if code == 0:
            break
    assert fatal > 5
    assert half >= 2


def test_the_command(old: Yard, onblock: Cli) -> None:
    job = old.yaml(retention={"delivered": {"max_files": 1}})
    done = onblock("retention", job, "--dry-run")
    assert (done.returncode, "2 of 3 delivered files would be removed" in done.stdout) == (0, True), done
    done = onblock("retention", job, "--json")
    assert (done.returncode, json.loads(done.stdout)["delivered"][0]["removed"]) == (0, 2)
    listed = onblock("transfers", "list", "--state", "retired", "--json")
    assert len(json.loads(listed.stdout)["files"]) == 2, listed
