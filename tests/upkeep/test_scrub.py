"""Scrub: the longest unproven first, a part at a time; what is lost is told, and sent again where that can be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blocks.errors import ConfigError, NetworkError
from blocks.storage import LocalStorage
from flows.upkeep.scrub import scrub
from tests.upkeep.conftest import Cli, Yard
from tests.upkeep.test_by_mistake import WatchedStorage, damage


def test_a_part_at_a_time_and_the_longest_unproven_first(yard: Yard) -> None:
    for n in range(10):
        yard.put(f"{n}", b"%d" % n)
    yard.deliver()
    seen: list[str] = []

    def hook(step: str, path: str) -> None:
        if step == "checksum":
            seen.append(path)

    job = yard.job(destinations=[WatchedStorage.at(yard.archive, hook)])
    for expected in (4, 4, 2):
        before = set(seen)
        summary = scrub(job, part="2/5")
        assert (summary["checked"], summary["damaged"], summary["problems"]) == (4, [], [])
        assert len(set(seen) - before) == expected, "what was not looked at comes first"
    assert set(seen) == {str(n) for n in range(10)}
    yard.later(2)
    assert scrub(job, part="1/1")["checked"] == 10
    assert set(yard.rows("verify_passes")) == {1}, "a scrub is a verify pass, when enough time has passed"


def test_damage_is_told_and_sent_again(yard: Yard) -> None:
    for name in "abc":
        yard.put(name, name.encode() * 10)
    yard.deliver()
    damage(yard.archive / "a")
    (yard.archive / "b").unlink()
    events: list[tuple[str, dict[str, Any]]] = []
    summary = scrub(yard.job(), part="1/1", told=lambda name, payload: events.append((name, payload)))
    assert (summary["checked"], summary["requeued"]) == (3, 2)
    assert sorted((e, p["path"], p["kind"], p["requeued"]) for e, p in events) == [
        ("onblock.scrub.damaged", "a", "HASH_MISMATCH", True), ("onblock.scrub.damaged", "b", "NOT_FOUND", True),
    ]  # fmt: skip
    assert yard.states() == ["QUEUED", "QUEUED", "VERIFIED"]
    assert yard.deliver()["delivered"] == 2
    assert yard.states() == ["VERIFIED"] * 3
    files = yard.files()
    assert (files["a~2"], files["b"]) == (b"a" * 10, b"b" * 10), "what is damaged is kept beside it"


def test_damage_of_what_is_no_longer_at_the_source(yard: Yard) -> None:
    path, other = yard.put("a", b"take one"), yard.put("b", b"take one")
    yard.deliver()
    path.unlink()
    other.write_bytes(b"another take")
    for name in "ab":
        damage(yard.archive / name)
    summary = scrub(yard.job(), part="1/1")
    assert [d["requeued"] for d in summary["damaged"]] == [False, False]
    assert yard.states() == ["QUARANTINED", "QUARANTINED"]


def test_damage_of_what_was_cleaned(yard: Yard) -> None:
    yard.put("a", b"take one")
    yard.proven()
    assert yard.clean()["cleaned"] == 1
    (yard.archive / "a").unlink()
    assert len(scrub(yard.job(), part="1/1")["damaged"]) == 1
    assert yard.rows("state", "kind") == [("QUARANTINED", "NOT_FOUND")], "the last copy is lost: it is a row"


def test_the_source_is_away(yard: Yard) -> None:
    yard.put("a", b"take one")
    yard.deliver()
    damage(yard.archive / "a")
    yard.card.rename(yard.folder / "unplugged")
    summary = scrub(yard.job(), part="1/1")
    assert [d["requeued"] for d in summary["damaged"]] == [False]
    assert yard.states() == ["QUARANTINED"]


def test_a_destination_that_stops_answering(yard: Yard) -> None:
    """Nobody can tell: no verdict. What was seen before is written down, and the next one goes on there."""
    for name in "abcd":
        yard.put(name, name.encode())
    yard.deliver()
    seen: list[str] = []

    def hook(step: str, path: str) -> None:
        if step == "checksum":
            seen.append(path)
            if len(seen) == 3:
                raise NetworkError("no answer")

    job = yard.job(destinations=[WatchedStorage.at(yard.archive, hook)])
    summary = scrub(job, part="1/1")
    assert (summary["checked"], len(summary["problems"])) == (2, 1)
    assert yard.states() == ["VERIFIED"] * 4
    scrub(job, part="1/2")
    assert seen[2] == seen[3]
    assert set(seen) == set("abcd")


def test_a_destination_that_is_not_mounted(yard: Yard) -> None:
    """Its folder is there, and empty: nobody can tell. Nothing is condemned, nor sent again into the mount point."""
    for name in "ab":
        yard.put(name, name.encode())
    yard.deliver()
    yard.later()
    away = yard.folder / "away"
    yard.archive.rename(away)
    yard.archive.mkdir()
    summary = scrub(yard.job(), part="1/1")
    assert (summary["checked"], summary["damaged"], len(summary["unverified"])) == (0, [], 2)
    summary = yard.clean()
    assert (summary["passes"], summary["damaged"], summary["unverified"]) == (0, 0, 2)
    assert yard.states() == ["VERIFIED"] * 2
    yard.archive.rmdir()
    away.rename(yard.archive)
    assert scrub(yard.job(), part="1/1")["checked"] == 2


def test_lost_where_there_is_no_manifest(yard: Yard) -> None:
    yard.put("a")
    yard.deliver(manifest=None, cleanup={})
    (yard.archive / "a").unlink()
    assert len(scrub(yard.job(manifest=None, cleanup={}), part="1/1")["damaged"]) == 1


def test_a_file_that_a_cleanup_works_on_is_left_to_it(yard: Yard) -> None:
    yard.put("a", b"take one")
    yard.proven()

    def hook(step: str, path: str) -> None:
        if step == "move":
            damage(yard.archive / "a")
            assert scrub(yard.job(), part="1/1")["checked"] == 0

    yard.clean(source=WatchedStorage.at(yard.card, hook))
    assert yard.states() == ["CLEANED"]


def test_the_command(yard: Yard, onblock: Cli) -> None:
    job = yard.yaml(scrub={"part": "1/2"})
    done = onblock("scrub", job)
    assert (done.returncode, "has never delivered" in done.stderr) == (2, True)
    for name in "abcd":
        yard.put(name, name.encode())
    yard.deliver()
    done = onblock("scrub", job, "--json")
    assert (done.returncode, json.loads(done.stdout)["checked"]) == (0, 2)
    damage(yard.archive / "c")
    done = onblock("scrub", job, "--part", "1/1")
    assert (done.returncode, "DAMAGED c: " in done.stdout, "queued again" in done.stdout) == (1, True, True), done
    done = onblock("scrub", job, "--part", "4/3")
    assert (done.returncode, "is no part" in done.stderr) == (2, True)


@pytest.mark.parametrize("part", ["0/3", "4/3", "x", "1/0", "1", "-1/3", "1/3/5", ""])
def test_parts_that_are_none(part: str) -> None:
    from flows.transfer.aftercare import parse_part

    with pytest.raises(ValueError, match="is no part"):
        parse_part(part)


def test_never_run(yard: Yard) -> None:
    with pytest.raises(ConfigError, match="has never delivered"):
        scrub(yard.job(destinations=[LocalStorage(root=str(yard.archive))]))


def test_verify_is_a_pass_too(yard: Yard, onblock: Cli) -> None:
    yard.put("a", b"take one")
    yard.put("b", b"take two")
    yard.deliver()
    yard.later()
    (yard.archive / "b").unlink()
    done = onblock("verify", yard.yaml(cleanup={"action": "delete"}))
    assert (done.returncode, "DAMAGED b: " in done.stdout) == (1, True), done
    assert yard.rows("verify_passes", "state") == [(1, "VERIFIED"), (0, "QUARANTINED")]
    yard.later(1)
    assert yard.clean()["cleaned"] == 1
