"""Cleanup as it should go: after enough passes, long enough after the delivery, and not a moment before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blocks.errors import Cancelled, ConfigError
from blocks.storage import LocalStorage
from flows.ledger import Ledger
from flows.ledger.wishes import Wish
from tests.upkeep.conftest import Yard

BACKUP = {"action": "backup", "backup_folder": "delivered"}


def test_the_whole_story(yard: Yard) -> None:
    yard.put("DCIM/a.mp4", b"take one")
    yard.put("b.jpg", b"picture")
    assert yard.deliver()["delivered"] == 2
    summary = yard.clean()
    assert (summary["passes"], summary["cleaned"]) == (0, 0), "nothing is looked at within the hour"
    assert summary["waiting"] == {"0 of 2 verify passes": 2}
    yard.later(1)
    assert yard.clean()["passes"] == 2
    assert yard.clean()["passes"] == 0, "two looks at one time are one look"
    yard.later(1)
    summary = yard.clean()
    assert (summary["passes"], summary["cleaned"]) == (2, 0)
    assert summary["waiting"] == {"was delivered less than min_age ago": 2}
    yard.later(21)
    assert yard.clean()["cleaned"] == 0
    yard.later(1.1)
    dry = yard.clean(dry=True)
    assert (dry["cleaned"], dry["bytes"], dry["dry_run"]) == (2, 15, True)
    assert yard.on_card() == {"DCIM/a.mp4", "b.jpg"}
    summary = yard.clean()
    assert (summary["cleaned"], summary["bytes"]) == (2, 15)
    assert [f["path"] for f in summary["files"]["cleaned"]] == ["DCIM/a.mp4", "b.jpg"]
    assert yard.on_card() == set()
    assert (yard.card / "DCIM").is_dir(), "folders stay"
    assert yard.states() == ["CLEANED", "CLEANED"]
    yard.check_manifest()
    assert yard.deliver()["scanned"] == 0
    assert yard.clean()["scanned"] == 0
    assert yard.states() == ["CLEANED", "CLEANED"]


def test_off_is_off(yard: Yard) -> None:
    yard.put("a")
    yard.proven()
    with pytest.raises(ConfigError, match="the cleanup of job 'job' is off"):
        yard.clean(cleanup={})
    assert yard.on_card() == {"a"}


def test_a_job_that_never_ran(yard: Yard) -> None:
    yard.put("a")
    with pytest.raises(ConfigError, match="has never delivered to"):
        yard.clean()
    assert yard.on_card() == {"a"}


def test_into_a_backup_folder(yard: Yard) -> None:
    yard.put("DCIM/a.mp4", b"take one", mtime=1_600_000_000.25)
    yard.keys["cleanup"] = BACKUP
    yard.proven()
    assert yard.clean()["cleaned"] == 1
    kept = yard.card / "delivered/DCIM/a.mp4"
    assert kept.read_bytes() == b"take one"
    assert kept.stat().st_mtime_ns == 1_600_000_000_250_000_000
    assert yard.on_card() == {"delivered/DCIM/a.mp4"}
    assert yard.rows("state", "journal") == [("CLEANED", "delivered/DCIM/a.mp4")]
    assert yard.deliver()["scanned"] == 0, "the job never takes files from its own backup"


def test_a_backup_is_never_over_another(yard: Yard) -> None:
    yard.put("a.mp4", b"take one")
    yard.put("delivered/a.mp4", b"somebody's")
    yard.put("delivered/a~2.mp4/x", b"a folder of that name")
    yard.keys["cleanup"] = BACKUP
    yard.proven()
    assert yard.clean()["cleaned"] == 1
    assert (yard.card / "delivered/a.mp4").read_bytes() == b"somebody's"
    assert (yard.card / "delivered/a~3.mp4").read_bytes() == b"take one"
    assert yard.rows("journal") == ["delivered/a~3.mp4"]


@pytest.mark.parametrize(("path", "cleaned"), [("clip.mp4", 1), ("clip~2.mp4", 0)])
def test_what_was_numbered_is_judged_by_the_name_it_had(yard: Yard, path: str, cleaned: int) -> None:
    """A rule that knows no ~2 has let the file pass under its own name; what has ~2 at the source is judged with it."""
    yard.archive.mkdir(exist_ok=True)
    (yard.archive / "clip.mp4").write_bytes(b"somebody's")
    yard.put(path, b"take one")
    yard.proven()
    assert set(yard.files()) == {"clip.mp4", "clip~2.mp4"}
    summary = yard.clean(gate={"own": [{"name": "plain", "must": "^[a-z]+[.]mp4$"}]})
    assert (summary["cleaned"], summary["kept"]) == (cleaned, 1 - cleaned)


def test_what_describes_others_stays(yard: Yard) -> None:
    for name in ("a.mp4", "DCIM/metadata.json", "card.md5", "mine.txt"):
        yard.put(name)
    keys = {"cleanup": {"action": "delete", "keep": ["*.txt", "metadata.json", "*.md5"]}}
    yard.proven(**keys)
    summary = yard.clean(**keys)
    assert (summary["cleaned"], summary["waiting"]) == (1, {"is kept, as the job says": 3})
    assert yard.on_card() == {"DCIM/metadata.json", "card.md5", "mine.txt"}


def test_what_the_job_leaves_stays_though_it_was_delivered(yard: Yard) -> None:
    yard.put("a.mp4")
    yard.put("b.mp4")
    yard.proven()
    assert yard.clean(exclude=["b.*"])["cleaned"] == 1
    assert yard.on_card() == {"b.mp4"}


def test_old_files_are_cleaned_though_the_job_takes_young_ones(yard: Yard) -> None:
    yard.put("a.mp4")
    yard.proven()
    assert yard.clean(max_age="1 h", min_size="1 GB")["cleaned"] == 1


def test_hostile_names(yard: Yard) -> None:
    hostile = [b"-rf", b"two\nlines", b"no-\xff-utf8", b" ", b"back\\slash", b"~", b"n" * 255, b"d/e"]
    for n, name in enumerate(hostile):
        yard.put(name, b"%d" % n)
    yard.proven()
    assert yard.clean()["cleaned"] == len(hostile)
    assert yard.on_card() == set()
    assert set(yard.states()) == {"CLEANED"}


def test_two_destinations_of_which_one_is_not_proven(yard: Yard, tmp_path: Path) -> None:
    yard.put("a.mp4", b"take one")
    (tmp_path / "second").mkdir()
    both = [LocalStorage(root=str(yard.archive)), LocalStorage(root=str(tmp_path / "second"))]
    yard.deliver()
    yard.later()
    yard.clean()
    yard.later()
    assert yard.clean(destinations=both[:1], cleanup={"action": "delete", "min_age": "99 d"})["passes"] == 1
    with pytest.raises(ConfigError, match="has never delivered to"):
        yard.clean(destinations=both)
    assert yard.deliver(destinations=both)["delivered"] == 1
    summary = yard.clean(destinations=both)
    assert (summary["cleaned"], summary["waiting"]) == (0, {"0 of 2 verify passes": 1})
    for _ in range(2):
        yard.later(1)
        assert yard.clean(destinations=both)["cleaned"] == 0
    assert yard.on_card() == {"a.mp4"}
    yard.later(22)
    (tmp_path / "second/a.mp4").write_bytes(b"take 0ne")
    summary = yard.clean(destinations=both)
    assert (summary["cleaned"], summary["damaged"]) == (0, 1)
    assert yard.on_card() == {"a.mp4"}
    assert yard.rows("state") == ["VERIFIED", "QUARANTINED"]


def test_both_destinations_proven(yard: Yard, tmp_path: Path) -> None:
    yard.put("a.mp4", b"take one")
    (tmp_path / "second").mkdir()
    both = {"destinations": [LocalStorage(root=str(yard.archive)), LocalStorage(root=str(tmp_path / "second"))]}
    yard.proven(**both)
    assert yard.clean(**both)["cleaned"] == 1
    assert yard.states() == ["CLEANED", "CLEANED"]


def test_rows_of_another_job_are_not_ours(yard: Yard, tmp_path: Path) -> None:
    yard.put("a.mp4", b"take one")
    yard.proven()
    (tmp_path / "elsewhere").mkdir()
    other = {"name": "other", "destinations": [LocalStorage(root=str(tmp_path / "elsewhere"))]}
    yard.deliver(**other)
    assert yard.clean(**other)["cleaned"] == 0
    assert yard.on_card() == {"a.mp4"}
    assert yard.clean()["cleaned"] == 1
    assert yard.states() == ["CLEANED", "VERIFIED"]


def test_a_job_on_hold_deletes_nothing(yard: Yard) -> None:
    yard.put("a")
    yard.proven()
    with Ledger.open() as ledger:
        ledger.hold("job", who="me")
    with pytest.raises(Cancelled, match="was paused by me"):
        yard.clean()
    assert (yard.on_card(), yard.states()) == ({"a"}, ["VERIFIED"])


def test_what_was_asked_for_again_is_not_cleaned(yard: Yard) -> None:
    yard.put("a")
    yard.proven()
    with Ledger.open() as ledger:
        ledger.grant(Wish.RETRY, ledger.choose(job="job"), who="me")
    assert yard.clean()["waiting"] == {"is QUEUED, not VERIFIED": 1}
    assert yard.deliver()["adopted"] == 1
    assert yard.rows("verify_passes", "proven_at") == [(0, None)], "passes are counted since the delivery"
    assert yard.clean()["waiting"] == {"0 of 2 verify passes": 1}
    assert yard.on_card() == {"a"}


def test_cleaned_and_there_again(yard: Yard) -> None:
    path = yard.put("a", b"data", mtime=1_600_000_000)
    yard.proven()
    assert yard.clean()["cleaned"] == 1
    path.write_bytes(b"data")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    assert yard.clean()["waiting"] == {"was cleaned up before, and is there again": 1}
    assert yard.deliver()["duplicates"] == 1
    assert yard.on_card() == {"a"}
