"""The checksums HDFS keeps of a file, computed from the bytes that were sent: then nothing need be read back.

HDFS keeps a CRC of every 512 bytes. `MD5-of-<n>MD5-of-512CRC32C` is the MD5 of the MD5s of the CRCs of each block
(`MD5MD5CRC32FileChecksum`); `COMPOSITE-CRC32C` (Hadoop 3.1) is the CRC of the whole file. Asking for them is in
`webhdfs.py` and `hadoop_cli.py`.
"""

from __future__ import annotations

import hashlib
import re
import struct
import sys
import zlib
from array import array
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from crc32c import crc32c

if TYPE_CHECKING:
    from hashlib import _Hash

CRC: dict[str, Callable[..., int]] = {"CRC32C": crc32c, "CRC32": zlib.crc32}
"""The polynomials of `dfs.checksum.type`: Castagnoli (the default) and that of gzip."""
KINDS = ("MD5-of-MD5-of-CRC", "COMPOSITE-CRC")
"""What `Features.server_checksums` calls them."""

TURN = 512 << 10
"""Bytes after which other threads get a turn: Python's lock is held while the CRCs of so many are taken, 0.2 ms."""

_MD5 = re.compile(r"MD5-of-(\d+)MD5-of-(\d+)(CRC32C?)\Z")
_COMPOSITE = re.compile(r"COMPOSITE-(CRC32C?)\Z")


class FarChecksum(NamedTuple):
    """What the far side says: the algorithm with its parameters, and its bytes (hex), as GETFILECHECKSUM gives them."""

    algorithm: str
    value: str

    @property
    def kind(self) -> str:
        """Which of `KINDS`; "" for another."""
        if _MD5.match(self.algorithm):
            return KINDS[0]
        return KINDS[1] if _COMPOSITE.match(self.algorithm) else ""

    @property
    def crc(self) -> str:
        """The polynomial of its CRCs, as `CRC` names it; "" where that can't be told, as of an empty file."""
        found = _COMPOSITE.match(self.algorithm)
        if found:
            return found[1]
        found = _MD5.match(self.algorithm)
        return found[3] if found and int(found[2]) else ""

    @property
    def digest(self) -> str:
        """The digest itself (hex), without the parameters that go before it and the padding that follows."""
        return self.value[24:56] if _MD5.match(self.algorithm) else self.value


class HdfsChecksum:
    """The running checksums of one file that is written front to back in blocks of `block_size` bytes.

    `block_size` may be told late (0 until then), at the latest before the first block is full.
    """

    def __init__(self, block_size: int = 0, crc: str = "CRC32C", step: int = 512):
        self.block_size = block_size
        self.crc, self.step, self.size = crc, step, 0
        self._crc = CRC[crc]
        self._whole = 0  # the CRC of all
        self._tail = bytearray()  # less than `step` bytes
        self._block: _Hash = hashlib.md5(usedforsecurity=False)
        self._blocks: _Hash = hashlib.md5(usedforsecurity=False)
        self._steps = struct.Struct(f"{step}s" * 64)  # slices of a buffer, without a turn of Python's loop for each

    def update(self, data: memoryview) -> None:
        """The next bytes of the file."""
        view = data.cast("B") if data.format != "B" else data
        self._whole = self._crc(view, self._whole)
        while len(view):
            n = min(len(view), TURN)
            if self.block_size:
                n = min(n, self.block_size - self.size % self.block_size)
            self._feed(view[:n])
            self.size += n
            view = view[n:]
            if self.block_size and self.size % self.block_size == 0:
                self._end_block(self._block, self._blocks)
                self._block, self._tail = hashlib.md5(usedforsecurity=False), bytearray()

    def _feed(self, view: memoryview) -> None:
        step, tail = self.step, self._tail
        if tail:
            n = min(step - len(tail), len(view))
            tail += view[:n]
            view = view[n:]
            if len(tail) == step:
                self._block.update(self._crc(bytes(tail)).to_bytes(4, "big"))
                tail.clear()
        many = len(view) - len(view) % self._steps.size
        whole = len(view) - len(view) % step
        crcs = array("I", map(self._crc, chain.from_iterable(self._steps.iter_unpack(view[:many]))))
        crcs.extend(self._crc(view[at : at + step]) for at in range(many, whole, step))
        if sys.byteorder == "little":
            crcs.byteswap()
        self._block.update(crcs)
        tail += view[whole:]

    def _end_block(self, block: _Hash, blocks: _Hash) -> None:
        if self._tail:
            block.update(self._crc(bytes(self._tail)).to_bytes(4, "big"))
        blocks.update(block.digest())

    def matches(self, far: FarChecksum) -> bool | None:
        """Whether the far side holds the bytes that came by here; None if its checksum is of another kind than ours."""
        if found := _COMPOSITE.match(far.algorithm):
            return self._whole == int(far.value, 16) if found[1] == self.crc else None
        found = _MD5.match(far.algorithm)
        if found is None:
            return None
        if self.size == 0:
            return int(found[2]) == 0  # the far side knows of no block, and says so
        blocks_crcs = int(found[1])  # CRCs in a block; 0 where there is one block only
        if found[3] != self.crc or int(found[2]) != self.step:
            return None
        if self.block_size and self.size > self.block_size and blocks_crcs * self.step != self.block_size:
            return None
        if blocks_crcs and not self.block_size:
            return None
        block, blocks = self._block.copy(), self._blocks.copy()
        if not self.block_size or self.size % self.block_size:
            self._end_block(block, blocks)
        # HDFS hashes its buffer, not what is in it: 32 bytes, doubled as need be, and zeros after the MD5s
        held = 16 * -(-self.size // (self.block_size or self.size))
        room = 32
        while room < held:
            room *= 2
        blocks.update(bytes(room - held))
        return blocks.hexdigest() == far.digest
