"""Cleanup, backup, retention and scrub end to end, with real servers as source and as destination."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flows.upkeep.retention import retain
from flows.upkeep.scrub import scrub
from tests.contract import s3_place
from tests.contract.places import PLACES, Place
from tests.upkeep.conftest import Yard

KINDS = ["sftp", "scp", "s3", "rsync", "rclone-local"]
CONTENT = {"DCIM/a.mp4": b"take one" * 1000, "b c.jpg": b"picture", "empty": b""}
assert s3_place


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with contextmanager(PLACES[request.param])(request) as place:
        yield place


def test_from_there(yard: Yard, place: Place) -> None:
    """The card is at the server: what is proven here goes there; backed up in its own folder first, then for good."""
    yard.keys |= {
        "source": place.storage,
        "settle": {"quiet": 0},
        "cleanup": {"action": "backup", "backup_folder": "old"},
    }
    yard.keys["retention"] = {"backup": {"max_age": "30 d"}}
    for path, content in CONTENT.items():
        place.put(path, content)
    yard.proven()
    place.put("new", b"never delivered")
    assert yard.clean()["cleaned"] == 3
    assert place.everything() == {"new", *(f"old/{p}" for p in CONTENT)}
    assert {p: place.get(f"old/{p}") for p in CONTENT} == CONTENT
    assert yard.deliver()["delivered"] == 1
    yard.later(31 * 24)
    assert retain(yard.job())["removed"] == 3
    assert place.everything() == {"new"}
    yard.keys["cleanup"] = {"action": "delete"}
    yard.keys["retention"] = None
    for _ in range(2):
        yard.later()
        yard.clean()
    assert place.everything() == set(), "twice proven and a day old"
    assert yard.states() == ["CLEANED"] * 4
    assert yard.files() == CONTENT | {"new": b"never delivered"}


def test_to_there(yard: Yard, place: Place) -> None:
    """The archive is at the server: what is not proven there stays here."""
    yard.keys |= {"destinations": [place.storage]}
    for path, content in CONTENT.items():
        yard.put(path, content)
    yard.proven()
    place.flip("DCIM/a.mp4", 3)
    place.remove("empty")
    summary = yard.clean()
    assert (summary["cleaned"], summary["damaged"], summary["unverified"], summary["kept"]) == (1, 2, 0, 0), summary
    assert yard.on_card() == {"DCIM/a.mp4", "empty"}
    assert yard.rows("path", "state") == [
        ("DCIM/a.mp4", "QUARANTINED"),
        ("b c.jpg", "CLEANED"),
        ("empty", "QUARANTINED"),
    ]
    place.remove("b c.jpg")
    summary = scrub(yard.job(), part="1/1")
    assert [(d["path"], d["requeued"]) for d in summary["damaged"]] == [("b c.jpg", False)], summary
