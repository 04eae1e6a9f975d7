"""What the bytes of an object must add up to: checksums as S3 servers keep them, taken while the object is read.

TCP's checksum lets a flipped bit through, and without TLS nothing else looks; S3 libraries check downloads of objects
that came by multipart only where the server sends a checksum with them. Here the evidence is asked for: a checksum
over the whole object, or one made of those of its parts (which an ETag of the form `...-N` is, too).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    Data = bytes | bytearray | memoryview

PART_SIZE = "x-amz-meta-onblock-part-size"
"""Our own note on an object of several parts, for servers that do not tell the size of a part. 0: it was copied inside the
server, and servers write ETags of such parts that are no MD5."""
KINDS = ("crc64nvme", "sha256", "crc32c", "sha1", "crc32")
"""Checksums of S3, the ones to be preferred first."""

_MD5 = re.compile(r"[0-9a-f]{32}\Z")
_MD5_OF_PARTS = re.compile(r"([0-9a-f]{32})-([0-9]+)\Z")
_OF_PARTS = re.compile(r"(.+)-([0-9]+)\Z")


class Digest(Protocol):
    """As hashlib's."""

    def update(self, data: Data, /) -> None: ...

    def digest(self) -> bytes: ...


class Crc:
    """A CRC in the manner of hashlib; big-endian, as S3 writes it."""

    def __init__(self, kind: str):
        import awscrt.checksums as crt  # only where objects are moved: loading it takes time

        self._take, self._size = {"crc64nvme": (crt.crc64nvme, 8), "crc32c": (crt.crc32c, 4), "crc32": (crt.crc32, 4)}[
            kind
        ]
        self._value = 0

    def update(self, data: Data) -> None:
        self._value = self._take(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def new(kind: str) -> Digest:
    """A digest of one of KINDS or md5."""
    return Crc(kind) if kind.startswith("crc") else getattr(hashlib, kind)(usedforsecurity=False)


def b64(digest: bytes) -> str:
    """As S3 writes checksums."""
    return base64.b64encode(digest).decode()


def crc64nvme(data: Data) -> bytes:
    """Of one part."""
    digest = Crc("crc64nvme")
    digest.update(data)
    return digest.digest()


def combined(parts: list[tuple[bytes, int]]) -> bytes:
    """CRC64NVME of the whole from (CRC64NVME, bytes) of each part in order."""
    import awscrt.checksums as crt

    value = 0
    for digest, size in parts:
        value = crt.combine_crc64nvme(value, int.from_bytes(digest, "big"), size)
    return value.to_bytes(8, "big")


class Proof:
    """Evidence about an object, held against its bytes. `of` says in words what it is."""

    def __init__(self, kind: str, expected: bytes, part_size: int = 0):
        self.of = f"{kind.upper()} of {'its parts' if part_size else 'the whole'}"
        self._kind, self._expected, self._part_size = kind, expected, part_size
        self._whole = new(kind)  # of the bytes, or of the digests of the parts
        self._part, self._left = (new(kind), part_size) if part_size else (None, 0)

    def update(self, data: memoryview) -> None:
        """The next bytes."""
        if self._part is None:
            self._whole.update(data)
            return
        while len(data):
            piece = data[: self._left]
            self._part.update(piece)
            self._left -= len(piece)
            data = data[len(piece) :]
            if not self._left:
                self._end_part()

    def _end_part(self) -> None:
        assert self._part is not None
        self._whole.update(self._part.digest())
        self._part, self._left = new(self._kind), self._part_size

    def holds(self) -> bool:
        """Whether all the bytes that were given are the object's. Asked once, at the end."""
        if self._part is not None and self._left < self._part_size:
            self._end_part()
        return self._whole.digest() == self._expected


class NeedsPartSize(Exception):
    """There is evidence, made of that of `parts` parts: how large are they?"""

    def __init__(self, parts: int):
        self.parts = parts
        super().__init__(f"{parts} parts")


def evidence(headers: Mapping[str, str], size: int, *, part_size: int = 0, etags_are_md5: bool = True) -> Proof | None:
    """The best evidence in the headers of an object of `size` bytes; None if there is none. Raises NeedsPartSize."""
    parts: list[tuple[str, bytes, int]] = []
    for kind in KINDS:
        value = headers.get(f"x-amz-checksum-{kind}", "")
        if found := _OF_PARTS.match(value):
            if (digest := _decoded(found[1])) is not None:
                parts.append((kind, digest, int(found[2])))
        elif value and (digest := _decoded(value)) is not None:
            return Proof(kind, digest)
    etag = headers.get("etag", "").strip('"')
    if etags_are_md5 and not _is_encrypted(headers):
        if _MD5.match(etag):
            return Proof("md5", bytes.fromhex(etag))
        if (found := _MD5_OF_PARTS.match(etag)) and headers.get(PART_SIZE) != "0":
            parts.append(("md5", bytes.fromhex(found[1]), int(found[2])))
    if not parts:
        return None
    kind, digest, count = parts[0]
    part_size = part_size or _noted(headers)
    if count == 1:
        part_size = max(size, 1)
    if not part_size:
        raise NeedsPartSize(count)
    if -(-size // part_size) != count:
        return None
    return Proof(kind, digest, part_size)


def is_md5(etag: str, headers: Mapping[str, str]) -> bool:
    """Whether an ETag of a single part may be compared with an MD5."""
    return bool(_MD5.match(etag)) and not _is_encrypted(headers)


def _is_encrypted(headers: Mapping[str, str]) -> bool:
    """With a key of one's own, or of KMS, an ETag is no MD5."""
    return headers.get("x-amz-server-side-encryption", "").startswith("aws:") or (
        "x-amz-server-side-encryption-customer-algorithm" in headers
    )


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _noted(headers: Mapping[str, str]) -> int:
    note = headers.get(PART_SIZE, "")
    return int(note) if note.isdecimal() and len(note) < 16 else 0
