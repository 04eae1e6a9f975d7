"""Names that steps give: prefix, template and time, for any name a device may have."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blocks.errors import ConfigError
from blocks.names import BadName
from flows.transfer.steps import Ask, kept_path, run_steps
from flows.transfer.steps.rename import Rename, Timestamp
from tests.steps.conftest import MTIME_NS, Bench

any_name = st.binary(min_size=1, max_size=255).map(os.fsdecode).filter(
    lambda n: "/" not in n and "\0" not in n and n not in (".", "..")
)  # fmt: skip
"""Every name a Linux file system can hold."""


@given(any_name, st.sampled_from([Rename(prefix="cam1_"), Rename(template="{flight}_{name}"), Rename(template="{date} {stem}.{ext}"), Timestamp(), Timestamp(place="suffix")]))  # fmt: skip
@example("..x", Rename(template="{stem}.{ext}"))
@example("a.", Rename(template="{date} {stem}.{ext}"))
@example(".profile", Timestamp(place="suffix"))
@settings(max_examples=150)
def test_any_name_is_renamed_or_refused(name: str, step: Rename | Timestamp) -> None:
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        (folder / "in").mkdir()
        source = folder / "in" / name
        source.write_bytes(b"bytes")
        os.utime(source, ns=(MTIME_NS, MTIME_NS))
        try:
            (out,) = run_steps([step], [source], folder / "w", Ask(folder, MTIME_NS, flight="F7"))
        except BadName:
            assert len(os.fsencode(name)) > 255 - 30
            return
        kept = kept_path(out, folder / "w")
        assert "/" not in kept
        assert out.read_bytes() == b"bytes"
        assert source.read_bytes() == b"bytes"
        if getattr(step, "prefix", "") or (isinstance(step, Timestamp) and step.place == "prefix"):
            assert kept.endswith(name)


def test_the_time_is_that_of_the_source_in_the_jobs_zone(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"x")
    names = [
        next(iter(bench.go(step, path, zone=ZoneInfo(zone))))
        for zone in ("UTC", "Asia/Tokyo")
        for step in (Timestamp(), Timestamp(place="suffix", format="%d.%m.%y %Hh", separator="-"), Rename(template="{date}_{time}_{name}"))
    ]  # fmt: skip
    assert names == [
        "20260709-122640_clip.mp4", "clip-09.07.26 12h.mp4", "2026-07-09_122640_clip.mp4",
        "20260709-212640_clip.mp4", "clip-09.07.26 21h.mp4", "2026-07-09_212640_clip.mp4",
    ]  # fmt: skip


def test_a_time_that_is_in_no_calendar_is_told(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="calendar"):
        bench.go(Timestamp(), path, mtime_ns=10**21)
    with pytest.raises(ConfigError, match=r"\{device\}"):
        bench.go(Rename(template="{device}_{name}"), path)


def test_the_output_may_have_another_time_than_the_input(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"x" * 3_000_000)
    before = path.stat().st_mtime_ns
    out = bench.one(Rename(prefix="a"), path)
    assert out.stat().st_mtime_ns == MTIME_NS
    assert path.stat().st_mtime_ns == before
    assert out.read_bytes() == path.read_bytes()
