"""compress and decompress: there and back for any bytes and names; archives made to do harm; damage; stopping."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blocks.errors import Cancelled, Corrupt
from blocks.names import BadName
from flows.transfer.steps import Ask, kept_path, run_steps
from flows.transfer.steps.compress import Compress
from flows.transfer.steps.decompress import Bomb, Decompress
from tests.servers.base import program
from tests.steps.conftest import Bench
from tests.steps.test_rename import any_name

FORMATS = ["zstd", "gzip", "bzip2", "zip"]
MIB = 1 << 20


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def size_of(folder: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())


# -- there and back ---------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(FORMATS),
    any_name,
    st.one_of(st.binary(max_size=3000), st.binary(max_size=9).map(lambda b: b * 200_000)),
)
@example("zip", "a\\..\\b", b"x")
@example("zip", os.fsdecode(b"\xff\xfe"), b"")
@example("zip", "ünï\n", b"x")
@example("gzip", "clip.gz", b"")
@example("zip", "x/".strip("/") + ".zip", b"PK\x05\x06")
@settings(max_examples=150)
def test_any_bytes_come_back_under_any_name(form: str, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        (folder / "in").mkdir()
        source = put(folder / "in", name, content)
        steps = [Compress(format=form), Decompress(only=["*"])]  # type: ignore[arg-type]
        try:
            (out,) = run_steps(steps, [source], folder / "w", Ask(folder, 0))
        except BadName:
            assert len(os.fsencode(name)) > 255 - 4
            return
        assert kept_path(out, folder / "w") == name
        assert out.read_bytes() == content


@pytest.mark.parametrize("form", FORMATS)
def test_the_output_is_the_same_each_time(bench: Bench, tmp_path: Path, form: str) -> None:
    source = put(tmp_path, "data", os.urandom(300_000) + bytes(2_000_000))
    one, two = (bench.one(Compress(format=form, threads=n), source).read_bytes() for n in (1, 3))  # type: ignore[arg-type]
    assert one == two
    assert len(one) < 400_000
    assert bench.told == sorted(bench.told[: len(bench.told) // 2]) * 2


@pytest.mark.parametrize(("form", "tool"), [("zstd", "zstd"), ("gzip", "gzip"), ("bzip2", "bzip2"), ("zip", "python")])
def test_other_programs_read_it(bench: Bench, tmp_path: Path, form: str, tool: str) -> None:
    content = os.urandom(1000) * 3000
    out = bench.one(Compress(format=form, level=1), put(tmp_path, "data.bin", content))  # type: ignore[arg-type]
    if tool == "python":
        with zipfile.ZipFile(out) as archive:
            assert archive.testzip() is None
            assert archive.read("data.bin") == content
        return
    path = program(tool)
    assert path, f"{tool} is not installed: python -m tests.servers.install"
    assert subprocess.run([path, "-dc", str(out)], capture_output=True, check=True).stdout == content


def test_several_streams_in_one_file(bench: Bench, tmp_path: Path) -> None:
    parts = [b"one" * 50_000, b"", b"two" * 70_000]
    packers: dict[str, Callable[[bytes], bytes]] = {"zst": zstd.compress, "gz": gzip.compress, "bz2": bz2.compress}
    for ending, pack in packers.items():
        out = bench.one(Decompress(), put(tmp_path, f"data.{ending}", b"".join(map(pack, parts))))
        assert (out.name, out.read_bytes()) == ("data", b"".join(parts))
    padded = bench.one(Decompress(), put(tmp_path, "padded.gz", gzip.compress(b"x") + bytes(100_000)))
    assert padded.read_bytes() == b"x"
    skipped = bench.one(Decompress(), put(tmp_path, "s.zst", b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstd.compress(b"x")))
    assert skipped.read_bytes() == b"x"


def test_without_isal_pythons_gzip_does_it(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    for module in ("isal.igzip_threaded", "isal.igzip_lib", "isal"):
        monkeypatch.setitem(sys.modules, module, None)
    content = os.urandom(1000) * 3000
    source = put(tmp_path, "data", content)
    packed = bench.one(Compress(format="gzip"), source)
    assert gzip.decompress(packed.read_bytes()) == content
    assert bench.one(Decompress(), packed).read_bytes() == content
    with pytest.raises(Corrupt):
        bench.one(Decompress(), put(tmp_path, "short.gz", packed.read_bytes()[:-9]))
    with pytest.raises(Bomb):
        bench.one(Decompress(max_ratio=2), put(tmp_path, "b.gz", gzip.compress(bytes(80 * MIB), 1)))


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_or_short_data_is_corrupt(bench: Bench, tmp_path: Path, form: str) -> None:
    source = put(tmp_path, "data", os.urandom(200_000))
    packed = bench.one(Compress(format=form), source)  # type: ignore[arg-type]
    whole = packed.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    for content in (
        b"",
        whole[: len(whole) // 2],
        whole[:-3],
        bytes(flipped),
        whole[:5],
        b"no archive at all",
        whole + b"garbage",
    ):
        if form == "zip" and content.endswith(b"garbage"):
            continue  # a zip may have a comment behind it
        with pytest.raises(Corrupt) as caught:
            bench.one(Decompress(), put(tmp_path, packed.name, content))
        assert caught.value.path == packed.name
        assert bench.nothing_left()


# -- archives made to do harm -------------------------------------------------------------------------------------------


def archive(folder: Path, *members: tuple[str, bytes], mode: int = stat.S_IFREG | 0o644, system: int = 3) -> Path:
    path = folder / "bad.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system, info.external_attr = name, system, mode << 16
            out.writestr(info, content)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "a//b",
        "./a",
        "..",
        "a/..",
        "x" * 256,
        "a/" + "y" * 300,
        "nul\0byte",
        "//server/share",
    ],
)
def test_names_that_leave_the_folder(bench: Bench, tmp_path: Path, name: str) -> None:
    with pytest.raises(Corrupt, match="may not be unpacked"):
        bench.go(Decompress(), archive(tmp_path, ("good.txt", b"x"), (name, b"evil")))
    assert bench.nothing_left(), "nothing is written before all names are judged"


@pytest.mark.parametrize("name", ["..\\evil", "C:\\evil", "C:evil", "\\\\server\\share", "a\\..\\..\\evil"])
def test_names_that_leave_the_folder_on_windows(bench: Bench, tmp_path: Path, name: str) -> None:
    with pytest.raises(Corrupt):
        bench.go(Decompress(), archive(tmp_path, ("good.txt", b"x"), (name, b"evil"), system=0))
    assert bench.nothing_left()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices(bench: Bench, tmp_path: Path, kind: int) -> None:
    with pytest.raises(Corrupt, match="link or device"):
        bench.go(Decompress(), archive(tmp_path, ("link", b"/etc/hostname"), mode=kind | 0o777))
    assert bench.nothing_left()


@pytest.mark.parametrize(
    "members", [(("a", b"1"), ("a", b"2")), (("a", b"1"), ("a/b", b"2")), (("a/b", b"1"), ("a/b/c", b"2")), ()]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_in_each_others_way(
    bench: Bench, tmp_path: Path, members: tuple[tuple[str, bytes], ...]
) -> None:
    with pytest.raises(Corrupt):
        bench.go(Decompress(), archive(tmp_path, *members))
    assert bench.nothing_left()


def test_files_of_an_archive_come_in_a_folder_of_its_name(bench: Bench, tmp_path: Path) -> None:
    made = bench.go(Decompress(), archive(tmp_path, ("a/x", b"1"), ("a/y", b"2"), ("b", b"3")))
    assert {k: p.read_bytes() for k, p in made.items()} == {"bad/a/x": b"1", "bad/a/y": b"2", "bad/b": b"3"}
    alone = bench.go(Decompress(), archive(tmp_path, ("b", b"3")))
    assert set(alone) == {"bad/b"}, "two archives may hold files of one name"


def zeros(form: str, to: Path, gigabytes: int) -> Path:
    """A bomb: 64 MiB are packed, and stand there many times; streams that stand one after the other are one."""
    packers: dict[str, Callable[[bytes], bytes]] = {"zstd": zstd.compress, "gzip": gzip.compress, "bzip2": bz2.compress}
    packed = packers[form](bytes(64 * MIB))
    with to.open("wb") as file:
        for _ in range(gigabytes * 16):
            file.write(packed)
    return to


def zipped_zeros(folder: Path) -> Path:
    """100 MiB in 100 kB."""
    path = folder / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        out.writestr("z", bytes(100 * MIB))
    return path


@pytest.mark.parametrize(("form", "ending"), [("zstd", "zst"), ("gzip", "gz"), ("bzip2", "bz2")])
def test_ten_gigabytes_of_zeros_stop_early(bench: Bench, tmp_path: Path, form: str, ending: str) -> None:
    path = zeros(form, tmp_path / f"bomb.{ending}", 10)
    assert path.stat().st_size < 12e6
    work = bench.work()
    with pytest.raises(Bomb, match="max_ratio"):
        Decompress().run([path], work, bench.ask())
    assert size_of(work) <= 66 * MIB
    with pytest.raises(Bomb, match="max_size"):
        bench.go(Decompress(max_size="5 MB", max_ratio=10**6), path)  # type: ignore[arg-type]
    assert bench.nothing_left()


def test_a_zip_that_says_how_large_it_is_writes_nothing(bench: Bench, tmp_path: Path) -> None:
    path = zipped_zeros(tmp_path)
    work = bench.work()
    with pytest.raises(Bomb, match="max_ratio"):
        Decompress().run([path], work, bench.ask())
    assert not list(work.iterdir())


def test_a_zip_that_lies_about_its_sizes(bench: Bench, tmp_path: Path) -> None:
    path = zipped_zeros(tmp_path)
    raw = path.read_bytes()
    at = raw.rfind(b"PK\x01\x02")
    lying = bytearray(raw)
    struct.pack_into("<I", lying, at + 24, 1000)  # the uncompressed size in the list of members
    path.write_bytes(lying)
    with pytest.raises(Corrupt):
        bench.go(Decompress(), path)
    assert bench.nothing_left()


def test_members_that_lie_over_each_other(bench: Bench, tmp_path: Path) -> None:
    """As in David Fifield's zip bomb: one body, many members."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_STORED) as out:
        out.writestr("a", os.urandom(100_000))
    raw = body.getvalue()
    at, end = raw.rfind(b"PK\x01\x02"), raw.rfind(b"PK\x05\x06")
    entries = b"".join(raw[at : at + 46] + bytes([97 + n]) for n in range(20))
    tail = bytearray(raw[end:])
    struct.pack_into("<HHI", tail, 8, 20, 20, len(entries))
    path = put(tmp_path, "fifield.zip", raw[:at] + entries + bytes(tail))
    with pytest.raises(Corrupt, match="lie over each other"):
        bench.go(Decompress(), path)


def test_a_list_of_members_that_would_fill_the_memory(bench: Bench, tmp_path: Path) -> None:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a"
    entries = entry * 200_000
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, len(entries), 0, 0)
    with pytest.raises(Bomb, match="list of members"):
        bench.go(Decompress(), put(tmp_path, "many.zip", b"PK\x03\x04" + entries + end))


def test_locked_and_oddly_packed_archives(bench: Bench, tmp_path: Path) -> None:
    path = archive(tmp_path, ("a", b"secret"))
    raw = bytearray(path.read_bytes())
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.find(sign) + offset] |= 1
    path.write_bytes(raw)
    with pytest.raises(Corrupt, match="password"):
        bench.go(Decompress(), path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as out:
        out.writestr("a", b"x")
    with pytest.raises(Corrupt, match="method 14"):
        bench.go(Decompress(), path)


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_cancel_in_the_middle(bench: Bench, tmp_path: Path, form: str) -> None:
    source = put(tmp_path, "data", os.urandom(8 * MIB))
    step = Compress(format=form, threads=2)  # type: ignore[arg-type]
    bench.stop_after = 6
    with pytest.raises(Cancelled):
        bench.go(step, source)
    assert bench.nothing_left()
    bench.stop_after, bench.checks = None, 0
    packed = bench.one(step, source)
    bench.stop_after, bench.checks = 6, 0
    with pytest.raises(Cancelled):
        bench.go(Decompress(), packed)
    assert bench.nothing_left()


# -- memory -----------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from flows.transfer.steps import Ask, run_steps;"
        "from flows.transfer.steps.compress import Compress; from flows.transfer.steps.decompress import Decompress;"
        "steps = [Compress(format=sys.argv[1], threads=2), Decompress(max_ratio=10**6)];"
        "run_steps(steps, [Path(sys.argv[2])], Path(sys.argv[3]), Ask(Path(sys.argv[2]).parent, 0));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    block = os.urandom(MIB) + bytes(5 * MIB)
    peaks = []
    for times in (10, 40):
        source = tmp_path / f"data{times}"
        with source.open("wb") as file:
            for _ in range(times):
                file.write(block)
        argv = [sys.executable, "-c", code, "zstd", str(source), str(tmp_path / f"work{times}")]
        peaks.append(int(subprocess.run(argv, capture_output=True, check=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 40_000, f"{peaks} kB"
