"""Retention of backups: which go, by values; and that none goes whose delivery is not proven."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from blocks.errors import ConfigError
from blocks.storage import LocalStorage
from flows.ledger import Ledger
from flows.ledger.models import File
from flows.transfer.aftercare import Limits
from flows.upkeep.retention import beyond, retain
from tests.upkeep.conftest import Cli, Yard
from tests.upkeep.test_by_mistake import WatchedStorage, damage, once

DAY = 86_400_000
CLEANUP = {"action": "backup", "backup_folder": "old"}


@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        ({"max_age": "10 d"}, 0),
        ({"max_age": "3 d"}, 0),
        ({"max_age": "2 d"}, 1),
        ({"max_age": "0 s"}, 3),
        ({"max_files": 3}, 0),
        ({"max_files": 2}, 1),
        ({"max_files": 0}, 3),
        ({"max_size": 60}, 0),
        ({"max_size": 59}, 1),
        ({"max_size": 49}, 2),
        ({"max_size": 0}, 3),
        ({"max_age": "2 d", "max_files": 1}, 2),
    ],
)
def test_what_is_beyond_the_limits(limits: dict[str, Any], gone: int) -> None:
    now = 100 * DAY
    backups = [(now - 3 * DAY, 10), (now - 2 * DAY, 20), (now - DAY, 30)]
    assert beyond(backups, Limits.model_validate(limits), now) == gone
    assert beyond([], Limits(max_age=timedelta(0)), now) == 0
    assert beyond([(now + DAY, 10)], Limits(max_age=timedelta(0)), now) == 0, "the clock was set back"


@pytest.fixture
def backed_up(yard: Yard) -> Yard:
    """Three files in the backup folder."""
    yard.keys = {"cleanup": CLEANUP, "retention": {"backup": {"max_age": "30 d"}}}
    for name in "abc":
        yard.put(f"DCIM/{name}", name.encode() * 8)
    yard.proven()
    assert yard.clean()["cleaned"] == 3
    return yard


def test_by_age(backed_up: Yard) -> None:
    (backed_up.card / "old/somebody's").write_bytes(b"never ours")
    assert retain(backed_up.job())["removed"] == 0
    backed_up.later(31 * 24)
    assert retain(backed_up.job(), dry=True)["removed"] == 3
    assert len(backed_up.on_card()) == 4
    summary = retain(backed_up.job())
    assert (summary["removed"], summary["bytes"], summary["kept"]) == (3, 24, [])
    assert backed_up.on_card() == {"old/somebody's"}
    assert retain(backed_up.job())["backups"] == 0
    assert backed_up.states() == ["CLEANED"] * 3


def test_by_count_and_size(backed_up: Yard) -> None:
    with Ledger.open() as ledger, ledger.engine.begin() as c:
        c.execute(update(File).where(File.path == "DCIM/b").values(done_at=File.done_at - 2))
        c.execute(update(File).where(File.path == "DCIM/a").values(done_at=File.done_at - 1))
    assert retain(backed_up.job(retention={"backup": {"max_files": 2}}))["files"] == ["old/DCIM/b"]
    assert retain(backed_up.job(retention={"backup": {"max_size": "8 B"}}))["files"] == ["old/DCIM/a"]
    assert backed_up.on_card() == {"old/DCIM/c"}


@pytest.mark.parametrize("harm", ["damaged", "gone", "no longer listed", "another backup"])
def test_what_is_not_proven_stays(backed_up: Yard, harm: str) -> None:
    backed_up.later(31 * 24)
    copy, manifest = backed_up.archive / "DCIM/b", backed_up.archive / "checksums.sha256"
    {
        "damaged": lambda: damage(copy), "gone": copy.unlink,
        "no longer listed": lambda: manifest.write_text(manifest.read_text().replace("DCIM/b", "DCIM/x")),
        "another backup": lambda: (backed_up.card / "old/DCIM/b").write_bytes(b"somebody"),
    }[harm]()  # fmt: skip
    summary = retain(backed_up.job())
    assert (summary["removed"], [k["path"] for k in summary["kept"]]) == (2, ["old/DCIM/b"])
    assert backed_up.on_card() == {"old/DCIM/b"}
    if harm in ("damaged", "gone"):
        assert backed_up.rows("path", "state")[1] == ("DCIM/b", "QUARANTINED")


def test_another_card_is_in(backed_up: Yard) -> None:
    """Its backups are not there now, which does not say that they are gone."""
    backed_up.later(31 * 24)
    away = backed_up.folder / "away"
    backed_up.card.rename(away)
    backed_up.card.mkdir()
    summary = retain(backed_up.job())
    assert (summary["backups"], summary["removed"]) == (3, 0)
    assert {k["why"] for k in summary["kept"]} == {"is not there now"}
    backed_up.card.rmdir()
    away.rename(backed_up.card)
    assert retain(backed_up.job())["removed"] == 3
    assert backed_up.on_card() == set()


def test_backups_that_somebody_removed_are_forgotten_when_he_says_so(backed_up: Yard, onblock: Cli) -> None:
    job = backed_up.yaml(**backed_up.keys)
    old, away = backed_up.card / "old", backed_up.folder / "away"
    backed_up.card.rename(away)
    backed_up.card.mkdir()
    done = onblock("retention", job, "--forget-missing")
    assert (done.returncode, "so is the whole backup folder" in done.stderr) == (2, True), done
    backed_up.card.rmdir()
    away.rename(backed_up.card)
    (old / "DCIM/a").unlink()
    (old / "DCIM/b").unlink()
    assert retain(backed_up.job())["backups"] == 3, "not by itself"
    done = onblock("retention", job, "--forget-missing", "--dry-run", "--json")
    assert (json.loads(done.stdout)["forgotten"], backed_up.rows("journal").count(None)) == (2, 0)
    done = onblock("retention", job, "--forget-missing")
    assert (done.returncode, "2 missing at the source forgotten" in done.stdout) == (0, True), done
    assert retain(backed_up.job())["backups"] == 1
    assert backed_up.rows("state", "journal") == [("CLEANED", None), ("CLEANED", None), ("CLEANED", "old/DCIM/c")]


@pytest.mark.parametrize("step", ["checksum", "delete"])
def test_a_card_that_is_pulled_out_meanwhile(backed_up: Yard, step: str) -> None:
    backed_up.later(31 * 24)
    path, away = "old/DCIM/b", backed_up.folder / "away"
    source = WatchedStorage.at(backed_up.card, once(step, lambda: (backed_up.card / path).rename(away), path))
    summary = retain(backed_up.job(source=source))
    assert (summary["removed"], [k["path"] for k in summary["kept"]]) == (2, [path])
    away.rename(backed_up.card / path)
    assert retain(backed_up.job())["removed"] == 1


def test_unverified_files_are_refused_and_nothing_changes(backed_up: Yard, tmp_path: Path) -> None:
    backed_up.later(31 * 24)
    (tmp_path / "second").mkdir()
    second = LocalStorage(root=str(tmp_path / "second"))
    with pytest.raises(ConfigError, match="has never delivered to"):
        retain(backed_up.job(destinations=[LocalStorage(root=str(backed_up.archive)), second]))
    backed_up.put("x")
    backed_up.deliver(destinations=[LocalStorage(root=str(backed_up.archive)), second])
    with pytest.raises(ConfigError, match="retention would delete unverified files") as caught:
        retain(backed_up.job(destinations=[LocalStorage(root=str(backed_up.archive)), second]))
    assert "and 2 more" in str(caught.value)
    assert len(backed_up.on_card()) == 4


def test_the_command(backed_up: Yard, onblock: Cli) -> None:
    job = backed_up.yaml(cleanup=CLEANUP, retention={"backup": {"max_files": 1}})
    done = onblock("retention", job, "--dry-run")
    assert (done.returncode, "2 of 3 backups would be removed" in done.stdout) == (0, True), done
    done = onblock("retention", job, "--json")
    assert (done.returncode, json.loads(done.stdout)["removed"]) == (0, 2)
    done = onblock("retention", backed_up.yaml())
    assert (done.returncode, "has no `retention`" in done.stderr) == (2, True)
