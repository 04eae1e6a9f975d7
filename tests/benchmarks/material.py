"""What is moved in the benchmarks: many small files, or one large one, of random bytes. Sizes in bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20


@dataclass(frozen=True)
class Material:
    """A folder with `files` files of `size` bytes each."""

    folder: Path
    files: int
    size: int

    @property
    def bytes(self) -> int:
        return self.files * self.size

    def warm(self) -> None:
        """Read all of it once, so that every program finds it in the page cache."""
        buffer = bytearray(CHUNK)
        for base, _, names in os.walk(self.folder):
            for name in names:
                with Path(base, name).open("rb", buffering=0) as file:
                    while file.readinto(buffer):
                        pass

    def is_at(self, folder: Path) -> bool:
        """Whether `folder` holds as many files of that size (a manifest is not counted)."""
        sizes = [
            os.stat(os.path.join(base, name)).st_size
            for base, _, names in os.walk(folder)
            for name in names
            if name != "checksums.sha256"
        ]
        return len(sizes) == self.files and set(sizes) <= {self.size}


def small(folder: Path, files: int, size: int, folders: int) -> Material:
    """`files` files of `size` bytes, spread evenly over `folders` folders."""
    each = -(-files // folders)
    for number in range(files):
        room = folder / f"d{number // each:04}"
        if number % each == 0:
            room.mkdir(parents=True)
        fd = os.open(room / f"f{number:06}.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, os.urandom(size))
        os.close(fd)
    return Material(folder, files, size)


def large(folder: Path, size: int) -> Material:
    """One file of `size` bytes."""
    folder.mkdir(parents=True)
    with (folder / "recording.bin").open("wb", buffering=0) as file:
        for _ in range(size // CHUNK):
            file.write(os.urandom(CHUNK))
    return Material(folder, 1, size)
