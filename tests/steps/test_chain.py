"""The chain: what passes by, what is kept, what is removed, what is refused; and that the form loads no heavy library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from blocks.errors import Cancelled, ConfigError, Conflict, DiskFull, UnknownError
from flows.transfer.steps import AnyStep, Ask, Step, lineage
from flows.transfer.steps.compress import Compress
from flows.transfer.steps.decompress import Decompress
from flows.transfer.steps.rename import Rename, Timestamp
from tests.steps.conftest import MTIME_NS, Bench
from tests.storage.children import MOUNTS, in_child, mount

KINDS = {
    "compress", "decompress", "rename", "timestamp", "script", "transcode", "remux", "hls", "stitch", "thumbnail",
}  # fmt: skip


def parse(data: dict[str, Any]) -> Step:
    return TypeAdapter(AnyStep).validate_python(data)


def data(folder: Path, name: str = "data.csv", content: bytes = b"a,b\n" * 1000) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_every_kind_is_found_by_its_name_and_describes_its_fields() -> None:
    schema = TypeAdapter(AnyStep).json_schema()
    assert set(schema["discriminator"]["mapping"]) == KINDS
    for model in schema["$defs"].values():
        if "kind" in model.get("properties", {}):
            assert model["description"]
            assert not [k for k, v in model["properties"].items() if k != "kind" and not v.get("description")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "compress", "format": "rar"}, {"kind": "compress", "level": 20}, {"kind": "compress", "levle": 3},
        {"kind": "compress", "format": "gzip", "level": 9}, {"kind": "compress", "only": ["re:("]}, {"kind": "shrink"}, {},
        {"kind": "decompress", "max_ratio": 1}, {"kind": "rename"}, {"kind": "rename", "prefix": "a/"},
        {"kind": "rename", "prefix": "a", "template": "{name}"}, {"kind": "rename", "template": "{flight}"},
        {"kind": "rename", "template": "{folder}/{name}"}, {"kind": "rename", "template": "../{name}"},
        {"kind": "rename", "template": "{name.__class__}"}, {"kind": "rename", "template": "{name!r}"},
        {"kind": "rename", "template": "{name:>99999999}"}, {"kind": "timestamp", "format": "%c"},
        {"kind": "timestamp", "format": "x"}, {"kind": "timestamp", "format": "%Y/%m"},
        {"kind": "timestamp", "separator": "/"}, {"kind": "transcode", "size": "big"}, {"kind": "transcode", "size": "x"},
        {"kind": "transcode", "crf": 52}, {"kind": "transcode", "codec": "av1", "preset": "fast"},
        {"kind": "transcode", "preset": "8"}, {"kind": "stitch", "size": "641x320"}, {"kind": "thumbnail", "at": 1.5},
        {"kind": "script", "program": ""}, {"kind": "script", "program": "../sh"}, {"kind": "script", "program": "-x"},
        {"kind": "script", "program": "a", "args": ["\0"]},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse(wrong)


def test_reading_the_form_loads_no_heavy_library() -> None:
    code = (
        "import sys, flows.transfer.steps; "
        "print([m for m in ('av', 'numpy', 'prefect_shell', 'isal.igzip_threaded') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == "[]"


def test_outputs_of_one_step_are_the_inputs_of_the_next(bench: Bench, tmp_path: Path) -> None:
    path = data(tmp_path)
    steps = [Timestamp(), Rename(template="{flight}-{stem}.{ext}"), Compress(), Rename(prefix="x_")]
    out = bench.go(steps, path, flight="F7")
    assert set(out) == {"x_F7-20260709-122640_data.csv.zst"}
    assert [p.stat().st_mtime_ns for p in out.values()] == [MTIME_NS]
    assert path.read_bytes() == b"a,b\n" * 1000, "the input is never touched"
    assert bench.told == sorted(bench.told)
    assert bench.told[-1] == 1.0


def test_files_a_step_is_not_for_pass_by(bench: Bench, tmp_path: Path) -> None:
    a, b = data(tmp_path, "a.csv"), data(tmp_path, "b.txt")
    assert set(bench.go(Compress(only=["*.csv"]), a, b)) == {"a.csv.zst", "b.txt"}
    assert bench.go(Decompress(), a)["a.csv"] == a
    assert bench.go([], a)["a.csv"] == a
    assert set(bench.go([Compress(only=["*.csv"]), Decompress(only=["*.zst"])], a)) == {"a.csv"}


def test_two_outputs_of_one_name_are_refused(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(Conflict, match=r"all\.csv"):
        bench.go(Rename(prefix="all."), data(tmp_path, "csv"), data(tmp_path / "one", "csv"))
    assert bench.nothing_left()


class Odd(Step):
    """Does what a step must not do."""

    kind: Literal["odd"] = "odd"
    how: str

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        if self.how == "outside":
            return [work.parent.parent / "elsewhere"]
        if self.how == "link":
            (work / "link").symlink_to("/etc/hostname")
            return [work / "link"]
        if self.how == "linked folder":
            (work / "folder").symlink_to("/etc")
            return [work / "folder" / "hostname"]
        if self.how == "up":
            return [work / ".." / "x"]
        if self.how == "nothing":
            return []
        raise RuntimeError("a bug")


@pytest.mark.parametrize("how", ["outside", "link", "linked folder", "up", "nothing"])
def test_what_is_no_plain_file_of_the_step_is_refused(bench: Bench, tmp_path: Path, how: str) -> None:
    with pytest.raises(ConfigError):
        bench.go(Odd(how=how), data(tmp_path))
    assert bench.nothing_left()


def test_a_bug_in_a_step_is_unknown_with_its_cause(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UnknownError, match="a bug") as caught:
        bench.go(Odd(how="bug"), data(tmp_path))
    assert caught.value.path == "data.csv"
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_cancelled_between_steps(bench: Bench, tmp_path: Path) -> None:
    bench.stop_after = 1
    with pytest.raises(Cancelled):
        bench.go([Compress(), Decompress(), Compress()], data(tmp_path))
    assert bench.nothing_left()


class Hopeful(Decompress):
    """Says that it needs no room."""

    def room(self, size: int) -> int:
        return 0


def full_disk(folder: Path) -> None:
    mount(folder, "size=4m")
    outside = data(folder.parent, "noise.bin", os.urandom(6 << 20))
    for step in (Compress(), Compress(format="gzip"), Compress(format="bzip2"), Compress(format="zip")):
        (folder / "w").mkdir()
        with pytest.raises(OSError, match="No space left"):
            step.run([outside], folder / "w", Ask(folder, 0))
        subprocess.run(["rm", "-r", str(folder / "w")], check=True)
        bench = Bench(folder)
        with pytest.raises(DiskFull, match=r"noise\.bin.*needs") as caught:
            bench.go(step, outside)
        assert "ONBLOCK_HOME" in caught.value.todo
        assert bench.nothing_left()
        (folder / "work1").rmdir()
    packed = Bench(folder.parent).one(Compress(), outside)
    bench = Bench(folder)
    with pytest.raises(DiskFull, match="No space left"):
        bench.go(Hopeful(), packed)
    assert bench.nothing_left()


def test_a_full_disk(tmp_path: Path) -> None:
    in_child(MOUNTS, full_disk, tmp_path / "disk")


def test_lineage_tells_kind_version_and_parameters() -> None:
    told = lineage([Compress(level=7), Timestamp()])
    assert [(t["kind"], t["version"]) for t in told] == [("compress", 1), ("timestamp", 1)]
    assert told[0]["parameters"] == {"only": [], "format": "zstd", "level": 7, "threads": 0}
    assert parse({"kind": "compress", **told[0]["parameters"]}) == Compress(level=7)
