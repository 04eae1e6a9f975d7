"""The step `compress`: one file in, one compressed file out. The way back is in `decompress.py`.

Outputs are the same for the same input, on however many processors: no times in gzip headers, the source's time in zip.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal, Protocol

from pydantic import Field, model_validator

from blocks import names
from flows.transfer.steps.base import CHUNK, Ask, Step

ENDINGS = {"zstd": ".zst", "gzip": ".gz", "bzip2": ".bz2", "zip": ".zip"}
LEVELS = {"zstd": (3, range(1, 20)), "gzip": (1, range(4)), "bzip2": (9, range(1, 10)), "zip": (6, range(1, 10))}
"""The level without one given, and those there are. For gzip they are those of ISA-L."""
SLICE = 1 << 18
"""Bytes that are handed to a slow compressor between two looks at whether the run was stopped."""


class Compress(Step):
    """Compress files, each by itself; the ending is added to the name."""

    kind: Literal["compress"] = "compress"
    format: Literal["zstd", "gzip", "bzip2", "zip"] = "zstd"
    """zstd is fast and small; the others are for who cannot read it."""
    level: int | None = None
    """Higher is smaller and slower: zstd 1 to 19 (3), gzip 0 to 3 (1), bzip2 1 to 9 (9), zip 1 to 9 (6)."""
    threads: int = Field(default=0, ge=0, le=64)
    """Processors that zstd and gzip use; 0 for all there are."""

    @model_validator(mode="after")
    def _level(self) -> Compress:
        allowed = LEVELS[self.format][1]
        if self.level is not None and self.level not in allowed:
            raise ValueError(f"{self.format} has the levels {allowed[0]} to {allowed[-1]}")
        return self

    def room(self, size: int) -> int:
        return size + size // 50 + (1 << 20)  # what cannot be compressed grows by less than 2 %

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        source = inputs[0]
        to = work / names.check_path(source.name + ENDINGS[self.format])
        level = LEVELS[self.format][0] if self.level is None else self.level
        threads = self.threads or len(os.sched_getaffinity(0))
        with source.open("rb", buffering=0) as read, to.open("xb", buffering=CHUNK) as raw:
            size = os.fstat(read.fileno()).st_size
            opened = _zip(raw, source.name, size, level, ask) if self.format == "zip" else _stream(
                self.format, raw, level, threads, size
            )  # fmt: skip
            with opened as target:
                fast = self.format in ("zstd", "gzip") and level <= 9
                _pump(read, target.write, size, CHUNK if fast else SLICE, ask)
        return [to]


def zstd_module() -> ModuleType:
    """Python's own from 3.14 on, and before it the package that is the same."""
    from importlib import import_module

    return import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


class _Target(Protocol):
    def write(self, data: memoryview, /) -> object: ...


def _pump(read: IO[bytes], write: Callable[[memoryview], object], size: int, portion: int, ask: Ask) -> None:
    buffer, done = memoryview(bytearray(CHUNK)), 0
    while count := read.readinto(buffer):  # type: ignore[attr-defined]
        for begin in range(0, count, portion):
            ask.check()
            write(buffer[begin : min(begin + portion, count)])
        done += count
        ask.progress(done / max(size, done))


@contextmanager
def _stream(kind: str, raw: IO[bytes], level: int, threads: int, size: int) -> Iterator[_Target]:
    """What is written to it comes out compressed in `raw`, whole once it was left without an exception."""
    if kind == "bzip2":
        import bz2

        with bz2.BZ2File(raw, "wb", compresslevel=level) as target:
            yield target
    elif kind == "zstd":
        zstd = zstd_module()
        options: dict[int, int] = {
            zstd.CompressionParameter.compression_level: level, zstd.CompressionParameter.checksum_flag: 1,
            # one more than processors: one waits until its output is taken. The output is the same for any number but 0
            zstd.CompressionParameter.nb_workers: threads + 1 if size > CHUNK else 0,
        }  # fmt: skip
        compressor = zstd.ZstdCompressor(options=options)  # ZstdFile makes of nothing nothing, not an empty frame
        yield _Frame(compressor, raw)
        raw.write(compressor.flush())
    else:
        yield from _gzip(raw, level, threads)


class _Frame:
    """What is written to it is compressed into `raw`."""

    def __init__(self, compressor: Any, raw: IO[bytes]):
        self._compress, self._raw = compressor.compress, raw

    def write(self, data: memoryview) -> None:
        if made := self._compress(data):
            self._raw.write(made)


def _gzip(raw: IO[bytes], level: int, threads: int) -> Iterator[_Target]:
    """By ISA-L where it is installed (x86-64, ARM64), by Python's module elsewhere."""
    try:
        from isal import igzip_threaded
    except ImportError:
        import gzip

        with gzip.GzipFile("", "wb", compresslevel=(1, 3, 6, 9)[level], fileobj=raw, mtime=0) as slow:
            yield slow
        return
    target: Any = igzip_threaded.open(raw, "wb", compresslevel=level, threads=threads)
    try:
        yield target
    except BaseException:
        _stop(target)
        raise
    target.close()


def _stop(target: Any) -> None:
    """End the threads of a writer whose output nobody wants."""
    with suppress(Exception):
        target.close()


@contextmanager
def _zip(raw: IO[bytes], name: str, size: int, level: int, ask: Ask) -> Iterator[_Target]:
    """An archive with one member. Sizes beyond 4 GiB are written as zip64."""
    import zipfile

    try:
        time = datetime.fromtimestamp(ask.mtime_ns // 1_000_000_000, UTC)
    except (ValueError, OverflowError, OSError):  # zip knows 1980 to 2107 only, and takes the nearest
        time = datetime(1980, 1, 1) if ask.mtime_ns < 0 else datetime(2107, 12, 31)
    time = min(max(time.replace(tzinfo=None), datetime(1980, 1, 1)), datetime(2107, 12, 31, 23, 59, 58))

    class Member(zipfile.ZipInfo):
        """Bytes that are no UTF-8 are written as they are, without the flag that says UTF-8, as Info-ZIP does."""

        def _encodeFilenameFlags(self) -> tuple[bytes, int]:
            try:
                return self.filename.encode("ascii"), self.flag_bits & ~0x800
            except UnicodeEncodeError:
                pass
            try:
                return self.filename.encode("utf-8"), self.flag_bits | 0x800
            except UnicodeEncodeError:
                return os.fsencode(self.filename), self.flag_bits & ~0x800

    member = Member(name, (time.year, time.month, time.day, time.hour, time.minute, time.second))
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system, member.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    member.file_size = size
    member._compresslevel = level  # type: ignore[attr-defined]  # `compress_level` from Python 3.13 on
    with zipfile.ZipFile(raw, "w") as archive, archive.open(member, "w", force_zip64=size > 1 << 31) as target:
        yield target
