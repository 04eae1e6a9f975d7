"""The demo as a user runs it, once; what it claims is looked at again by other means. And that it can fail."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployments import demo

COUNT = len(demo.CLIPS) + demo.PHOTOS + 1


@dataclass(frozen=True)
class Ran:
    code: int
    seconds: float
    out: str
    root: Path

    @property
    def card(self) -> Path:
        return self.root / "card"

    @property
    def delivered(self) -> Path:
        return self.root / "archive" / demo.FLIGHT


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    home = tmp_path_factory.mktemp("home")
    started = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "demo"],
        env={**os.environ, "ONBLOCK_HOME": str(home), "COLUMNS": "200"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=200,
        check=False,
    )
    seconds = time.monotonic() - started
    assert child.returncode == 0, child.stdout + child.stderr
    (root,) = (home / "demo").iterdir()
    yield Ran(child.returncode, seconds, child.stdout, root)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def below(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def test_it_ends_well_and_in_time(ran: Ran) -> None:
    assert ran.code == 0
    assert ran.seconds < 60


@pytest.mark.parametrize(
    "line",
    [
        f"{COUNT} files, ",
        f"{COUNT} delivered of {COUNT} found, 0 failed",
        f"{COUNT} by checksum: ",
        f"... sha256sum: {COUNT} of {COUNT} OK",
        f"0 delivered, all {COUNT} known (duplicates)",
        f"1 delivered, {COUNT - 1} known: just the changed file was sent",
        "on_conflict: rename",
        f"... sha256sum: {COUNT + 1} of {COUNT + 1} OK",
        "All as it must be.",
        "onblock run ",
        "checksums.sha256",
    ],
)
def test_it_says(ran: Ran, line: str) -> None:
    assert line in ran.out


def test_the_flight_is_real(ran: Ran) -> None:
    import av

    for name, (_, seconds) in demo.CLIPS.items():
        with av.open(str(ran.card / name)) as clip:
            assert clip.streams.video[0].codec_context.name == "h264"
            assert sum(1 for _ in clip.decode(video=0)) == round(seconds * demo.RATE)
    photos = sorted(ran.card.rglob("*.JPG"))
    assert len(photos) == demo.PHOTOS
    assert len({digest(p) for p in photos}) > demo.PHOTOS * 0.9
    for photo in photos[:: demo.PHOTOS // 10]:
        with av.open(str(photo)) as image:
            assert next(image.decode(video=0)).width == 320


def test_every_file_arrived_whole(ran: Ran) -> None:
    card, archive = below(ran.card), below(ran.delivered)
    assert len(card) == COUNT
    added = set(archive) - set(card) - {"checksums.sha256"}
    assert len(added) == 1  # the changed telemetry, beside the older one
    for name, path in card.items():
        if name != demo.TELEMETRY:
            assert digest(archive[name]) == digest(path), name
    assert digest(archive[added.pop()]) == digest(card[demo.TELEMETRY])
    assert digest(archive[demo.TELEMETRY]) != digest(card[demo.TELEMETRY])
    assert archive[demo.TELEMETRY].stat().st_size == card[demo.TELEMETRY].stat().st_size


def test_nothing_temporary_is_left(ran: Ran) -> None:
    assert not list(ran.root.rglob(".onblock-*"))


def test_the_manifest_is_true(ran: Ran) -> None:
    lines = (ran.delivered / "checksums.sha256").read_text("utf-8").splitlines()
    listed = dict(reversed(line.split("  ", 1)) for line in lines)
    assert len(listed) == len(lines) == COUNT + 1
    assert listed == {n: digest(p) for n, p in below(ran.delivered).items() if n != "checksums.sha256"}


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"delivered": 1}, f"first run: delivered is 1, expected {COUNT}"),
        ({"failed": 1}, "first run: failed is 1, expected 0"),
        ({"bytes": 1}, "first run: 1 bytes reported"),
        ({"verified_by": {}}, "first run: 0 files verified"),
        ({}, "do not hold the same names"),  # a program that says all went well and did nothing
    ],
)
def test_a_deviation_ends_in_1(
    wrong: dict[str, Any],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def make_card(card: Path) -> None:
        for number in range(COUNT):
            (card / "a").mkdir(parents=True, exist_ok=True)
            (card / "a" / f"{number}").write_bytes(b"x")

    summary = {
        "scanned": COUNT, "delivered": COUNT, "duplicates": 0, "failed": 0, "blocked": 0, "deferred": 0,
        "settling": 0, "bytes": COUNT, "seconds": 1.0, "verified_by": {"checksum": COUNT}, "destinations": [],
    }  # fmt: skip
    monkeypatch.setattr(demo, "make_card", make_card)
    monkeypatch.setattr(demo, "_run", lambda console, at: summary | wrong)
    assert demo.demo(tmp_path) == 1
    assert line in capsys.readouterr().out


def test_a_wrong_manifest_ends_in_1(tmp_path: Path) -> None:
    at = demo._Places(tmp_path)
    at.delivered.mkdir(parents=True)
    (at.delivered / "a").write_bytes(b"x")
    console = demo.Console()
    with pytest.raises(demo.DemoFailed, match="no manifest"):
        demo._sha256sum(console, at, at.delivered, 1)
    at.manifest.write_text(f"{digest(at.delivered / 'a')}  a\n")
    demo._sha256sum(console, at, at.delivered, 1)
    with pytest.raises(demo.DemoFailed, match="lists 1 files, expected 2"):
        demo._sha256sum(console, at, at.delivered, 2)
    (at.delivered / "a").write_bytes(b"y")
    with pytest.raises(demo.DemoFailed, match="a: FAILED"):
        demo._sha256sum(console, at, at.delivered, 1)
