"""A local folder whose connection breaks on purpose, and that counts what passes: a real storage with a bad cable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from blocks.errors import NetworkError
from blocks.storage import LocalStorage
from blocks.storage.local import LocalReader, LocalSession, LocalUpload

if TYPE_CHECKING:
    from blocks.storage.base import Buffer


class Cable:
    """What both ends of the cable share: bytes that passed, and what happens when so many have."""

    def __init__(self) -> None:
        self.written = self.read = 0
        self.at: dict[int, Callable[[], None]] = {}  # when so many bytes in all have passed in one direction
        self.proving: list[Callable[[], None]] = []  # when what was written is read back

    def passed(self, before: int, after: int) -> None:
        for mark in [m for m in self.at if before < m <= after]:
            self.at.pop(mark)()


def broken() -> None:
    """The cable is pulled for a moment."""
    raise NetworkError("the cable was pulled")


class BreakingStorage(LocalStorage):
    """`cable` tells and decides what happens. `far` makes it look like a storage at the other end of a network."""

    _block_type_slug = "breaking-storage"
    _cable: Cable = PrivateAttr(default_factory=Cable)
    _far: bool = PrivateAttr(default=False)

    @classmethod
    def at(cls, folder: Path, *, far: bool = False) -> BreakingStorage:
        made = cls(root=str(folder), direct_io=False)
        made._far = far
        return made

    @property
    def cable(self) -> Cable:
        return self._cable

    def open(self) -> LocalSession:
        return BreakingSession(self.root, self._cable, far=self._far)


class BreakingSession(LocalSession):
    def __init__(self, root: str, cable: Cable, *, far: bool):
        super().__init__(root, direct=False)
        self.cable = cable
        self.features = dataclasses.replace(LocalSession.features, parallel=4 if far else 1, bulk_push=False)

    def read(self, path: str, offset: int = 0) -> LocalReader:
        reader = super().read(path, offset)
        return BreakingReader(reader, self.cable)

    def upload(self, path: str, size: int, **options: Any) -> LocalUpload:  # type: ignore[override]
        upload = super().upload(path, size, **options)
        return BreakingUpload(upload, self.cable)


class BreakingReader(LocalReader):
    def __init__(self, reader: LocalReader, cable: Cable):
        super().__init__(reader.path, reader.full, reader.fd, reader.inode)
        self.cable = cable

    def readinto(self, buffer: Buffer) -> int:
        n = super().readinto(buffer)
        before = self.cable.read
        self.cable.read += n
        self.cable.passed(before, self.cable.read)
        return n


class BreakingUpload(LocalUpload):
    def __init__(self, upload: LocalUpload, cable: Cable):
        self.__dict__.update(upload.__dict__)
        self.cable = cable

    def digest(self, *, fresh: bool = False) -> str | None:
        if self.cable.proving:
            self.cable.proving.pop()()
        return super().digest(fresh=fresh)

    def write(self, chunk: memoryview) -> None:
        super().write(chunk)
        before = self.cable.written
        self.cable.written += len(chunk)
        self.cable.passed(before, self.cable.written)
