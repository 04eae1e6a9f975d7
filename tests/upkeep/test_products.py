"""Cleanup and scrub of what was processed: the source goes only when everything made of it is proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.ledger import Ledger
from flows.ledger.rows import MADE
from flows.upkeep.scrub import scrub
from tests.upkeep.conftest import Yard

STEPS: list[Any] = [{"kind": "compress", "format": "gzip"}]


@pytest.fixture
def processed(tmp_path: Path) -> Yard:
    yard = Yard(tmp_path)
    yard.keys |= {"steps": STEPS, "lineage": True}
    yard.put("a/clip", b"one" * 1000)
    yard.put("b/clip", b"two" * 1000)
    return yard


def states(*, made: bool) -> dict[str, str]:
    with Ledger.open() as ledger:
        rows = [r for r in ledger.files() if (r["etag"] == MADE) is made]
    return {r["dest_path" if made else "path"]: r["state"] for r in rows}


def test_a_source_goes_when_all_that_was_made_of_it_is_proven(processed: Yard) -> None:
    processed.proven()
    processed.later()
    summary = processed.clean()
    assert (summary["cleaned"], summary["waiting"], summary["files"]["kept"]) == (2, {}, [])
    assert processed.on_card() == set()
    assert states(made=False) == {"a/clip": "CLEANED", "b/clip": "CLEANED"}
    assert set(states(made=True).values()) == {"VERIFIED"}
    assert len(processed.files()) == 4
    assert processed.deliver()["delivered"] == 0


def test_it_waits_for_the_passes_of_what_was_made(processed: Yard) -> None:
    processed.deliver()
    assert processed.clean()["waiting"] == {"what was made of it 0 of 2 verify passes": 2}
    assert processed.on_card() == {"a/clip", "b/clip"}


@pytest.mark.parametrize("hurt", ["a/clip.gz", "a/clip.gz.onblock.json"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_source_stays_where_anything_made_of_it_is_hurt(processed: Yard, hurt: str, how: str) -> None:
    processed.proven()
    processed.later()
    path = processed.archive / hurt
    if how == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[5] ^= 1
        path.write_bytes(content)
    summary = processed.clean()
    assert (summary["cleaned"], summary["damaged"]) == (1, 1)
    assert processed.on_card() == {"a/clip"}
    assert states(made=True)[hurt] == "QUARANTINED"
    assert states(made=False)["a/clip"] == "VERIFIED"
    assert processed.clean()["cleaned"] == 0


def test_a_source_without_its_products_in_the_manifest_stays(processed: Yard) -> None:
    processed.proven()
    processed.later()
    (processed.archive / "checksums.sha256").write_text("")
    assert processed.clean()["cleaned"] == 0
    assert processed.on_card() == {"a/clip", "b/clip"}


def test_what_was_made_and_is_lost_is_made_and_sent_again(processed: Yard) -> None:
    processed.deliver()
    before = processed.files()
    (processed.archive / "a/clip.gz").unlink()
    found = scrub(processed.job(), part="1/1")
    assert [(d["path"], d["requeued"]) for d in found["damaged"]] == [("a/clip.gz", True)]
    assert states(made=False)["a/clip"] == "QUEUED"
    assert processed.deliver()["delivered"] >= 1
    assert processed.files()["a/clip.gz"] == before["a/clip.gz"]
    assert set(states(made=False).values()) == {"VERIFIED"}
    assert scrub(processed.job(), part="1/1")["damaged"] == []


def test_what_was_made_and_whose_source_is_gone_is_only_told(processed: Yard) -> None:
    processed.deliver()
    (processed.archive / "a/clip.gz").unlink()
    (processed.card / "a/clip").unlink()
    found = scrub(processed.job(), part="1/1")
    assert [(d["path"], d["requeued"]) for d in found["damaged"]] == [("a/clip.gz", False)]
