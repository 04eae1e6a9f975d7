"""From any storage to any other, through the whole of a run, against real servers: a ring in which each gives and takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.transfer.job import TransferJob
from flows.transfer.story import run_here
from tests.contract import conftest as _registers_all  # noqa: F401
from tests.contract.data import payload
from tests.contract.places import PLACES, READ_ONLY, Place

MIB = 1 << 20
RING = sorted(PLACES.keys() - {"local-cached", *READ_ONLY})
FILES = {
    "DCIM/clip one.mp4": payload(20 * MIB + 5, 1), "DCIM/100/a.jpg": payload(7000, 2), "DCIM/100/empty": b"",
    "telemetry/ümläut.csv": payload(300_000, 3), **{f"many/{n:03}.jpg": payload(n * 31, n) for n in range(40)},
}  # fmt: skip


@contextmanager
def opened(request: pytest.FixtureRequest, name: str) -> Iterator[Place]:
    with contextmanager(PLACES[name])(request) as place:
        yield place


def arrived(place: Place) -> dict[str, bytes | None]:
    return {p: place.get(p) for p in place.everything() if p != "checksums.sha256"}


@pytest.mark.parametrize(("one", "other"), list(zip(RING, [*RING[1:], RING[0]], strict=True)))
def test_there_and_nothing_twice(request: pytest.FixtureRequest, one: str, other: str) -> None:
    with opened(request, one) as source, opened(request, other) as to:
        files = FILES if not (source.dear or to.dear) else {p: d for p, d in FILES.items() if not p.startswith("many/")}
        for path, data in files.items():
            source.put(path, data)
        job = TransferJob(name="ring", source=source.storage, destinations=[to.storage], settle={"quiet": 0})
        first = run_here(job)
        assert (first["delivered"], first["failed"], first["deferred"], first["blocked"]) == (len(files), 0, 0, 0)
        assert arrived(to) == files
        assert to.get("checksums.sha256") is not None
        second = run_here(job)
        assert (second["delivered"], second["duplicates"]) == (0, len(files))
        assert arrived(source) == files


def test_one_read_feeds_several(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with opened(request, "sftp") as source, opened(request, "s3") as one, opened(request, "webhdfs") as two:
        for path, data in FILES.items():
            source.put(path, data)
        job = TransferJob(
            name="several", source=source.storage, destinations=[one.storage, two.storage], settle={"quiet": 0}
        )
        summary = run_here(job)
        assert (summary["delivered"], summary["failed"], summary["deferred"]) == (2 * len(FILES), 0, 0)
        assert arrived(one) == arrived(two) == FILES
