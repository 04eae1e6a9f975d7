"""The step `decompress`: zstd, gzip, bzip2 and zip, from whoever made them.

An archive is hostile until it is unpacked: its names are judged by `blocks.names`, only plain files come out of it, and
what it unpacks to is counted while it is written. Names and declared sizes of a zip are judged before anything is.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, cast

from pydantic import ByteSize, Field

from blocks import names
from blocks.errors import ConfigError, Corrupt, OnblockError
from flows.transfer.steps.base import Ask, Step
from flows.transfer.steps.compress import zstd_module

if TYPE_CHECKING:
    import zipfile

MAGIC = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip"}
READ, WRITE = 1 << 16, 1 << 20
FREE_OF_RATIO = 64 << 20
"""Bytes that may come out of anything before their ratio is looked at."""
DIRECTORY_MAX = 8 << 20
"""Bytes in the list of a zip's members: it is held in memory, at about ten times that."""


class Bomb(Corrupt):
    """An archive that unpacks to more than it may."""

    remedy = "if you trust it, raise `max_ratio` or `max_size` of the step, then `onblock transfers retry`"


class Decompress(Step):
    """Unpack what is compressed with zstd, gzip, bzip2 or zip. Files of a zip with several come in a folder of its name."""

    SUFFIXES = frozenset({".zst", ".zstd", ".gz", ".bz2", ".zip"})

    kind: Literal["decompress"] = "decompress"
    max_ratio: int = Field(default=500, ge=2)
    """Refuse what unpacks to more than so many times its size: nothing that was recorded compresses like that."""
    max_size: ByteSize = ByteSize(100 << 30)
    """Refuse what unpacks to more than this."""

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        source = inputs[0]
        stem, _, ending = source.name.rpartition(".")
        known = stem and f".{ending.lower()}" in self.SUFFIXES
        name = stem if known else source.name
        with source.open("rb", buffering=0) as read:
            form = _format(read.read(6), ending.lower() if known else "")
            read.seek(0)
            if form == "zip":
                return _Zip(self, source, name, ask).unpack(work)
            to = work / names.check_path(name)
            self._unpack(read, form, to, ask)
        return [to]

    def _unpack(self, read: IO[bytes], form: str, to: Path, ask: Ask) -> None:
        """One stream, which may be several written one after the other."""
        size, fed, written = os.fstat(read.fileno()).st_size, 0, 0
        count = self.limit(size)
        decoder, fresh = _decoder(form), True
        left = b""
        with to.open("xb", buffering=0) as target:
            while True:
                ask.check()
                if decoder.eof:
                    left = decoder.unused_data
                    decoder, fresh = _decoder(form), True
                if decoder.needs_input:
                    data = left + read.read(max(READ - len(left), 0))
                    left = b""
                    if fresh and form == "gzip" and not data.strip(b"\0"):
                        data = b""  # tapes and some tools pad with zeros
                    if not data:
                        if fresh and fed:
                            break
                        raise Corrupt(f"the {form} data ends before it should: the file is not whole")
                    fed, fresh = read.tell(), False
                else:
                    data = b""
                try:
                    out = decoder.decompress(data, WRITE)
                except OSError as error:
                    raise Corrupt(f"is no {form} data, or damaged: {error}") from error
                except (EOFError, ValueError, *_failures(form)) as error:
                    raise Corrupt(f"is no {form} data, or damaged: {error}") from error
                written += len(out)
                self.judge(written, fed, count)
                target.write(out)
                ask.progress(fed / max(size, 1))

    def limit(self, packed: int) -> int:
        """Bytes that may come out of `packed` bytes."""
        return min(self.max_size, max(packed * self.max_ratio, FREE_OF_RATIO))

    def judge(self, written: int, fed: int, most: int) -> None:
        """Raise Bomb when `written` bytes came out of the first `fed`."""
        if written > most or written > self.limit(fed):
            raise Bomb(
                f"unpacks to more than {'max_size' if written > self.max_size else 'max_ratio'} allows: "
                f"{written} bytes came out of {fed}"
            )


class _Decoder(Protocol):
    """As `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


def _decoder(form: str) -> Any:
    if form == "zstd":
        return zstd_module().ZstdDecompressor()
    if form == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    try:
        from isal import igzip_lib
    except ImportError:
        return _Zlib()
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def _failures(form: str) -> tuple[type[Exception], ...]:
    """What a decoder raises on bad data, besides OSError, EOFError and ValueError."""
    if form == "zstd":
        return (zstd_module().ZstdError,)
    if form == "bzip2":
        return ()
    import zlib

    try:
        from isal import igzip_lib
    except ImportError:
        return (zlib.error,)
    return (zlib.error, cast(type[Exception], igzip_lib.error))


class _Zlib:
    """zlib's gzip decoder with the interface of the others, where ISA-L is not."""

    def __init__(self) -> None:
        import zlib

        self._decoder = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max(max_length, 0))


def _format(head: bytes, ending: str) -> str:
    """By the first bytes; the ending may lie. Corrupt where they are none of ours."""
    for magic, form in MAGIC.items():
        if head.startswith(magic):
            return form
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return "zstd"  # a skippable frame comes first (RFC 8878, 3.1.2)
    if ending == "zip":
        return "zip"  # something may stand before the archive
    what = "is empty" if not head else "does not begin as zstd, gzip, bzip2 or zip do"
    raise Corrupt(f"{what}: there is nothing to unpack")


# -- zip ------------------------------------------------------------------------------------------------------------


class _Zip:
    """One archive that is unpacked."""

    def __init__(self, step: Decompress, path: Path, stem: str, ask: Ask):
        self.step, self.path, self.stem, self.ask = step, path, stem, ask

    def unpack(self, work: Path) -> list[Path]:
        import zipfile
        import zlib

        try:
            _check_directory(self.path)
            with zipfile.ZipFile(self.path) as archive:
                members = self._judged(archive)
                total, done = sum(i.file_size for i, _ in members), 0
                for info, name in members:
                    to = work / name
                    to.parent.mkdir(parents=True, exist_ok=True)
                    done = self._one(archive, info, to, done, total)
            return [work / name for _, name in members]
        except OnblockError:
            raise
        except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error, struct.error, ValueError) as error:
            raise Corrupt(f"is no zip archive, or damaged: {error}") from error
        except RuntimeError as error:  # what zipfile says of passwords
            raise Corrupt(f"cannot be unpacked: {error}") from error

    def _one(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, to: Path, done: int, total: int) -> int:
        with archive.open(info) as read, to.open("xb", buffering=0) as target:
            while data := read.read(WRITE):
                self.ask.check()
                done += len(data)
                self.step.judge(done, self._packed, self._most)
                target.write(data)
                self.ask.progress(done / max(total, 1))
        return done

    def _judged(self, archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, str]]:
        """The files in it, with the paths they get. Nothing was written yet."""
        import zipfile

        found: dict[str, zipfile.ZipInfo] = {}
        folders: set[str] = set()
        for info in archive.infolist():
            name = _member(info)
            kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Corrupt(f"holds {names.display(name)!r}, which is a link or device, not a file: not unpacked")
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                raise Corrupt("is locked with a password", remedy="unpack it by hand")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
                raise Corrupt(
                    f"is packed with method {info.compress_type}; stored, deflate and bzip2 are unpacked",
                    remedy="unpack it by hand, or pack it anew",
                )
            if name in found:
                raise Corrupt(f"holds two files named {names.display(name)!r}: which one is meant is not known")
            found[name] = info
            folders.update(str(p) for p in PurePosixPath(name).parents)
        if clash := folders & found.keys():
            raise Corrupt(f"holds {names.display(min(clash))!r} as a file and as a folder")
        if not found:
            raise Corrupt("holds no file")
        size = self.path.stat().st_size
        self._packed = sum(i.compress_size for i in found.values())
        if self._packed > size:
            raise Corrupt("its members lie over each other: made to unpack to more than it holds")
        self._most = self.step.limit(self._packed)
        self.step.judge(sum(i.file_size for i in found.values()), self._packed, self._most)
        alone = list(found) == [self.stem]
        return [(info, name if alone else names.check_path(f"{self.stem}/{name}")) for name, info in found.items()]


def _member(info: zipfile.ZipInfo) -> str:
    """The path of a member, checked. Raises Corrupt for what could leave the folder."""
    name = info.orig_filename
    if not info.flag_bits & 0x800:  # no UTF-8, says the archive: zipfile reads it as code page 437
        raw = name.encode("cp437")
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            name = os.fsdecode(raw) if info.create_system == 3 else name
    if info.create_system != 3:
        name = name.replace("\\", "/")
        if name[1:2] == ":":
            raise Corrupt(f"holds {names.display(name)!r}, which names a drive: not unpacked")
    try:
        return names.check_path(name[:-1] if info.is_dir() and name.endswith("/") else name)
    except ConfigError as error:
        raise Corrupt(f"holds a file that may not be unpacked: {error.what}") from error


def _check_directory(path: Path) -> None:
    """Refuse an archive whose list of members would fill the memory, before `zipfile` reads it. APPNOTE.TXT, 4.3.16."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 22 - 20))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + 22 > len(tail):
            raise Corrupt("is no zip archive, or its end is missing")
        length = struct.unpack_from("<I", tail, at + 12)[0]
        locator = at - 20
        if locator >= 0 and tail.startswith(b"PK\x06\x07", locator):
            file.seek(struct.unpack_from("<Q", tail, locator + 8)[0])
            record = file.read(56)
            if record.startswith(b"PK\x06\x06") and len(record) == 56:
                length = max(length if length != 0xFFFFFFFF else 0, struct.unpack_from("<Q", record, 40)[0])
    if length > DIRECTORY_MAX:
        raise Bomb(f"holds a list of members of {length} bytes", remedy="unpack it by hand")
