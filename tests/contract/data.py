"""Bytes to send, names nobody wants to send, and sending them in one call."""

from __future__ import annotations

import random
from collections.abc import Iterator

from blocks.storage.base import Session, Upload, aligned_buffer

KIB, MIB = 1 << 10, 1 << 20

SIZES = [
    0, 1, 4095, 4096, 4097, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 20 * MIB + 7,
]  # fmt: skip
"""Around a page, the buffer for small files, and the size from which the page cache is passed by."""

HOSTILE = [
    "line\nbreak.mp4", "carriage\rreturn", "-rf", "--help", "-", "--", "-oProxyCommand=x", " leading", "trailing ",
    " ", "two  spaces", "tab\there", "ä ö ü ß.wav", "\u0061\u0308 decomposed", "日本語.mov", "🎥.mp4", "back\\slash", "\\",
    "\\n", "C:\\x", "'single'", '"double"', "a'; rm -rf x; '", "$(id)", "`id`", "$HOME", "%s%n", "%2e%2e", "a%00b", "*",
    "?", "[a]", "{a,b}", "~", "~root", "#", "!", "&", "|", ">x", "<x", ";", "@eaDir", "host:path", "s3:bucket", "...",
    "..x", ".hidden", "CON", "nul.txt", "dot.", "a" * 255, "ü" * 127, "🎥" * 63, "\x01\x1b[31m\x7f", "\u202egpj.exe",
    "\u2028", "\ufeffbom", "x.part", ".onblock-", ".onblock-0123.part", ".onblock-0123456789abcdef.partial",
    "x.onblock-0123456789abcdef.part", "folder-\n/-file", "x / y", "-a/-b/-c", "ü/ö/ä", "deep/" * 30 + "file",
]  # fmt: skip
"""Legal names that have broken programs. All go everywhere a storage can keep them."""

BYTES = ["\udcff\udcfe.mp4", "latin1-\udce4", "half-\udcf0\udc9f", "\udcff/\udcfe", "\udced\udca0\udc80"]
"""Names that are no UTF-8, where `features.byte_names`."""

ILLEGAL = [
    "", "/", "/etc/passwd", "//x", "..", "../x", "a/../b", "a/..", ".", "./x", "a/.", "a//b", "a/", "nul\0byte", "\0",
    "b" * 256, "ü" * 128, "a/" + "b" * 256, "\ud800", "a/\udfff", "../" * 9 + "tmp/x",
]  # fmt: skip
"""Names no storage may touch."""


def payload(size: int, seed: int = 0) -> bytes:
    """`size` bytes that look like nothing and are the same for the same seed."""
    return random.Random(f"{size} {seed}").randbytes(size)


def chunks(data: bytes, step: int) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(data), step):
        yield view[start : start + step]


def aligned_chunks(data: bytes, step: int) -> Iterator[memoryview]:
    """As the mover sends them: views of one page-aligned buffer that is filled again and again."""
    buffer = aligned_buffer(step)
    for start in range(0, len(data), step):
        n = len(part := data[start : start + step])
        buffer[:n] = part
        with memoryview(buffer) as whole, whole[:n] as view:
            yield view


def begin(session: Session, path: str, data: bytes, **options: object) -> Upload:
    """An upload with all of `data` written and nothing decided."""
    upload = session.upload(path, len(data), **options)  # type: ignore[arg-type]
    for chunk in chunks(data, MIB):
        upload.write(chunk)
    return upload


def send(session: Session, path: str, data: bytes, **options: object) -> str:
    return begin(session, path, data, **options).commit()


def fetch(session: Session, path: str, offset: int = 0, step: int = 64 * KIB) -> bytes:
    """The file through our reader, with its promise on short reads checked."""
    out, buffer = bytearray(), aligned_buffer(step)
    with session.read(path, offset) as reader:
        while True:
            n = reader.readinto(buffer)
            out += buffer[:n]
            if n < step:
                assert reader.readinto(buffer) == 0, "a short read that was not the end"
                return bytes(out)


def listing(session: Session, path: str = "") -> set[str]:
    """Paths a scan finds, each once, none with a problem."""
    found = list(session.scan(path))
    assert not [f for f in found if f.problem]
    assert len({f.path for f in found}) == len(found)
    return {f.path for f in found}
