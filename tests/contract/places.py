"""The storages under test. A new one joins here: a factory that yields a `Place`, under a name.

    @place("sftp")
    def sftp(request):
        server = request.getfixturevalue("sshd")          # a session fixture with a real server
        folder = server.new_folder()
        yield FolderPlace(SftpStorage(host=..., root=str(folder)), folder)

A storage whose server keeps its files in a folder of this machine is a `FolderPlace`; another (S3) writes the five
methods of `Place` with its server's own client, never with our code.
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blocks.storage import LocalStorage, ScpStorage, SftpStorage
from blocks.storage.base import Storage
from blocks.storage.rclone import RcloneStorage
from blocks.storage.rsync import RsyncStorage


class Place(ABC):
    """A storage, empty at first, and a look behind its back. Paths are relative, as in the contract."""

    many = 1200
    """Files in a listing that should not fit one page of it; fewer where `put` is dear."""
    sequences = 60
    """Runs of the test of any sequence; fewer where a request is dear."""
    dear = False
    """Whether each call is so slow that of many names one must do."""
    puts_mtime = False
    """Whether `put` can set the time that a scan shows."""

    def __init__(self, storage: Storage):
        self.storage = storage

    @abstractmethod
    def put(self, path: str, data: bytes, mtime_ns: int | None = None) -> None:
        """Lay a file there, or over what is there, as some other program would."""

    @abstractmethod
    def get(self, path: str) -> bytes | None:
        """What lies there under exactly this name; None if nothing does."""

    @abstractmethod
    def everything(self) -> set[str]:
        """The path of every file there is, with those a scan does not list."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Take a file away."""

    def some(self, paths: list[str]) -> list[str]:
        """All of them; the one in the middle where calls are dear."""
        return paths[len(paths) // 2 : len(paths) // 2 + 1] if self.dear else paths

    def holds(self, path: str) -> bool:
        """Whether the far side can hold a file of this legal name; if not, ConfigError says so."""
        return True

    def flip(self, path: str, position: int) -> None:
        """Change one byte of a file where it lies, as a bad disk does."""
        data = self.get(path)
        assert data is not None
        self.put(path, data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


class FolderPlace(Place):
    """A storage whose files lie in a folder of this machine."""

    puts_mtime = True

    def __init__(self, storage: Storage, folder: Path):
        super().__init__(storage)
        self.folder = folder

    def put(self, path: str, data: bytes, mtime_ns: int | None = None) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        if mtime_ns is not None:
            os.utime(target, ns=(mtime_ns, mtime_ns))

    def get(self, path: str) -> bytes | None:
        try:
            return (self.folder / path).read_bytes()
        except FileNotFoundError:
            return None

    def everything(self) -> set[str]:
        return {
            os.path.relpath(os.path.join(base, name), self.folder)
            for base, _, found in os.walk(self.folder)
            for name in found
        }

    def remove(self, path: str) -> None:
        (self.folder / path).unlink()

    def flip(self, path: str, position: int) -> None:
        with (self.folder / path).open("r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1]))
            file.flush()
            os.fsync(file.fileno())


Factory = Callable[[pytest.FixtureRequest], Iterator[Place]]
PLACES: dict[str, Factory] = {}
SAMPLES: dict[str, set[str]] = {}
"""Places where each call is dear run these tests alone, each with one of its parameters."""


READ_ONLY: set[str] = set()
"""Places that are only read: of the suite, what says `reading` runs with them."""


def place(name: str) -> Callable[[Factory], Factory]:
    """Register a factory; the whole suite runs with each."""

    def register(factory: Factory) -> Factory:
        PLACES[name] = factory
        return factory

    return register


@place("local")
def local(request: pytest.FixtureRequest) -> Iterator[Place]:
    folder = request.getfixturevalue("tmp_path") / "root"
    folder.mkdir()
    yield FolderPlace(LocalStorage(root=str(folder)), folder)


@place("local-cached")
def local_cached(request: pytest.FixtureRequest) -> Iterator[Place]:
    folder = request.getfixturevalue("tmp_path") / "root"
    folder.mkdir()
    yield FolderPlace(LocalStorage(root=str(folder), direct_io=False), folder)


@place("local-tmpfs")
def local_tmpfs(request: pytest.FixtureRequest) -> Iterator[Place]:
    if not os.path.ismount("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="onblock-test-") as name:
        yield FolderPlace(LocalStorage(root=name), Path(name))


def _sftp(request: pytest.FixtureRequest, **options: object) -> Iterator[Place]:
    server = request.getfixturevalue("sshd")
    folder, info = server.new_folder() / "root", server.info
    folder.mkdir()
    fields = {"user": info["user"], "key_file": info["key"], "known_hosts": info["known_hosts"], **options}
    yield FolderPlace(SftpStorage(host=info["host"], port=info["port"], root=str(folder), **fields), folder)


@place("sftp")
def sftp(request: pytest.FixtureRequest) -> Iterator[Place]:
    yield from _sftp(request)


@place("sftp-only")
def sftp_only(request: pytest.FixtureRequest) -> Iterator[Place]:
    """No shell, and none of OpenSSH's extensions: as other vendors' servers."""
    yield from _sftp(request, user="bare")


@place("scp")
def scp(request: pytest.FixtureRequest) -> Iterator[Place]:
    server = request.getfixturevalue("sshd_without_sftp")
    folder, info = server.new_folder() / "root", server.info
    folder.mkdir()
    login = {"user": info["user"], "password": info["password"], "known_hosts": info["known_hosts"]}
    yield FolderPlace(ScpStorage(host=info["host"], port=info["port"], root=str(folder), **login), folder)


@place("rclone-local")
def rclone_local(request: pytest.FixtureRequest) -> Iterator[Place]:
    config = request.getfixturevalue("rclone_disk")
    folder = request.getfixturevalue("tmp_path") / "root"
    folder.mkdir()
    yield FolderPlace(RcloneStorage(remote="disk", root=str(folder), config=config), folder)


@place("rclone-sftp")
def rclone_sftp(request: pytest.FixtureRequest) -> Iterator[Place]:
    config = request.getfixturevalue("rclone_nas")
    folder = request.getfixturevalue("sshd").new_folder() / "root"
    folder.mkdir()
    one = FolderPlace(RcloneStorage(remote="nas", root=str(folder), config=config), folder)
    one.sequences = 20
    yield one


@place("rsync")
def rsync(request: pytest.FixtureRequest) -> Iterator[Place]:
    server = request.getfixturevalue("sshd")
    folder = server.new_folder() / "root"
    folder.mkdir()
    info = server.info
    one = FolderPlace(
        RsyncStorage(
            host=info["host"], port=info["port"], user=info["user"], key_file=info["key"],
            known_hosts=info["known_hosts"], root=str(folder),
        ),
        folder,
    )  # fmt: skip
    one.sequences = 15
    yield one
