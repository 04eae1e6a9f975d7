"""Cards and cameras that are mounted like a disk: SD cards, USB sticks, cameras as mass storage, with a DCIM tree.

An empty mount point is no empty card: nothing is listed unless a file system is mounted there, and it is the one that
was there when the session began. Files are read by the session of `LocalStorage`; what is said here is whether the card
is there, whether it is still the same, and how it is let go of. Nothing is written on it, but what a cleanup of the job
deletes or moves.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field, PrivateAttr, field_validator, model_validator

from blocks import names
from blocks.devices.base import Device, DeviceSession, Live
from blocks.errors import ConfigError, NetworkError, NotFound, OnblockError, ToolMissing, UnknownError
from blocks.storage.base import Features, FileInfo, Reader
from blocks.storage.local import LocalSession, LocalStorage, os_failure

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

MOUNTS = "/proc/self/mountinfo"
DISKS = Path("/dev/disk")
"""`by-label` and `by-uuid` below it hold a link to each disk, as udev makes them."""
EJECT_S = 120.0
"""How long unmounting may take: what was deleted is written out."""


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo."""

    point: str
    number: int  # of the device, as st_dev
    kind: str
    source: str


class Card(NamedTuple):
    """What tells one card from another in the same slot."""

    number: int  # st_dev
    inode: int  # of its top folder
    blocks: int
    uuid: str

    def is_again(self, other: Card) -> bool:
        """Whether the other may be this card, put in once more."""
        if self.uuid and other.uuid:
            return (self.uuid, self.blocks) == (other.uuid, other.blocks)
        return self == other


class Hold:
    """Holds a mounted file system: while it does, no other gets its device number, and nobody unmounts it by mistake."""

    def __init__(self, point: str):
        try:
            self._fd = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NetworkError(f"the card does not answer: {os.strerror(error.errno or 0)}", path=point) from error

    def close(self) -> None:
        """Let go of it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


class Seen(Live):
    """The card that the first session of a run found. It is held, so that no other can look like it."""

    def __init__(self) -> None:
        self.card: Card | None = None
        self._hold: Hold | None = None

    def expect(self, card: Card, point: str) -> bool:
        """Whether it is the first card, or that one again."""
        if self.card is None:
            self._hold, self.card = Hold(point), card
        return self.card.is_again(card)

    def forget(self) -> None:
        """Any card will do."""
        if self._hold is not None:
            self._hold.close()
        self.card = self._hold = None


class MountedCard(Device):
    """A card or camera that is mounted like a disk, found by where it is mounted, by its label or by its UUID."""

    _block_type_name = "Mounted Card"
    _block_type_slug = "mounted-card"
    _description = "An SD card, USB stick or camera that is mounted like a disk."

    mount: str = Field(default="", description="Where it is mounted, as an absolute path, such as /media/card.")
    label: str = Field(default="", description="Or: the label of its file system, wherever it is mounted.")
    uuid: str = Field(default="", description="Or: the UUID of its file system (for a card, such as 1A2B-3C4D).")
    folder: str = Field(
        default="DCIM", description="The folder of the card that holds the recordings; empty for the whole card."
    )
    eject: bool = Field(
        default=False, description="Unmount it when a run is done with it, so that it may be taken out."
    )

    _seen: Seen = PrivateAttr(default_factory=Seen)

    @field_validator("mount")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and (not value.startswith("/") or "\0" in value):
            raise ValueError(f"{names.display(value)!r} is not an absolute path")
        value = os.path.normpath(value) if value else value
        if value.strip("/") == "" and value:
            raise ValueError("'/' is this machine's own disk, not a card")
        return value

    @field_validator("folder")
    @classmethod
    def _below(cls, value: str) -> str:
        value = value.strip("/")
        try:
            return names.check_path(value) if value else value
        except names.BadName as error:
            raise ValueError(error.what) from None

    @model_validator(mode="after")
    def _one_way(self) -> MountedCard:
        if sum(map(bool, (self.mount, self.label, self.uuid))) != 1:
            raise ValueError("give one of `mount`, `label` and `uuid`")
        return self

    def is_the_same_everywhere(self) -> bool:
        return False

    def place(self) -> str:
        if self.mount:
            return f"local:{self.mount}/{self.folder}".rstrip("/")
        return f"card:{f'label={self.label}' if self.label else f'uuid={self.uuid}'}/{self.folder}".rstrip("/")

    # -- where it is --------------------------------------------------------------------------------------------------

    def find(self) -> Mount:
        """Where the card is mounted now. Raises NetworkError if it is away."""
        if self.mount:
            point = os.path.realpath(self.mount)
            for one in reversed(mounts()):  # the last one covers those before
                if one.point == point:
                    return one
            raise NetworkError("nothing is mounted there", path=self.mount, remedy="put the card in, and mount it")
        link = DISKS / ("by-label" if self.label else "by-uuid") / _udev(self.label or self.uuid)
        what = f"label {self.label!r}" if self.label else f"UUID {self.uuid}"
        try:
            number = os.stat(link).st_rdev
        except FileNotFoundError as error:
            raise NetworkError(f"there is no disk with {what}", remedy="put the card in") from error
        except OSError as error:
            raise os_failure(error, "cannot look for the card", str(link)) from error
        for one in mounts():
            if one.number == number:
                return one
        raise NetworkError(f"the disk with {what} is there, and not mounted", remedy="mount it")

    def look(self) -> None:
        self.identify(self.find())

    def identify(self, at: Mount) -> Card:
        """Which card is mounted there. Raises NetworkError if it is away, NotFound if it has no such folder."""
        try:
            top, space = os.stat(at.point), os.statvfs(at.point)
        except OSError as error:
            raise NetworkError(f"the card does not answer: {os.strerror(error.errno or 0)}", path=at.point) from error
        if top.st_dev != at.number and at.kind not in ("btrfs", "overlay"):
            raise NetworkError("nothing is mounted there", path=at.point)
        return Card(top.st_dev, top.st_ino, space.f_blocks, _uuid(at.number))

    def open(self) -> CardSession:
        at = self.find()
        card = self.identify(at)
        if not self._seen.expect(card, at.point):
            raise NetworkError(
                "another card is there than the one this run began with", path=at.point,
                remedy="put the first card back; a new run takes what is on this one",
            )  # fmt: skip
        root = f"{at.point.rstrip('/')}/{self.folder}".rstrip("/") or "/"
        if os.path.realpath(root) != os.path.normpath(root):  # a link that the card brings leads to files of ours
            raise ConfigError(
                f"its folder {self.folder!r} is a link, or lies behind one: nothing is taken from there", path=at.point,
                remedy="give the real folder as `folder`, or empty it for the whole card",
            )  # fmt: skip
        try:
            return CardSession(at, card, LocalStorage(root=root).open())
        except OnblockError as error:
            if self.identify(self.find()) != card:
                raise NetworkError("the card is gone", path=at.point) from error
            if isinstance(error, NotFound):
                raise NotFound(
                    f"the card has no folder {self.folder!r}", path=at.point,
                    remedy="correct `folder`, or empty it for the whole card; a new card has none before its first recording",
                ) from error  # fmt: skip
            raise

    # -- letting go ---------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Forget which card it was, and unmount it if `eject` says so. Raises NetworkError if it is in use."""
        self._seen.forget()
        if not self.eject:
            return
        try:
            at = self.find()
        except NetworkError:
            return  # taken out already
        if os.geteuid() and at.source.startswith("/dev/") and (tool := shutil.which("udisksctl")):
            command = [tool, "unmount", "--no-user-interaction", "--block-device", at.source]
        elif tool := shutil.which("umount"):
            command = [tool, "--", at.point]
        else:
            raise ToolMissing("the program umount is not installed", path=at.point)
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=EJECT_S,
                start_new_session=True, env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise NetworkError(f"was not unmounted within {EJECT_S:g} s", path=at.point) from error
        except OSError as error:
            raise os_failure(error, "cannot unmount it", at.point) from error
        if done.returncode:
            raise unmount_failure(done.stderr, at.point)


def unmount_failure(said: str, point: str) -> OnblockError:
    """The failure for what umount or udisksctl says on its way out."""
    for pattern, kind, what in EJECT:
        if re.search(pattern, said):
            return kind(f"was not unmounted: {what}", path=point)
    return UnknownError(f"was not unmounted: {names.display(said.strip())[:200]}", path=point)


EJECT: tuple[tuple[str, type[OnblockError], str], ...] = (
    (r"busy", NetworkError, "some program still uses it"),
    (r"[Nn]ot authorized|must be superuser|permission denied|Permission denied|not permitted", ConfigError,
     "the account that runs onblock may not; give it the right (udisks2), or set `eject: false`"),
    (r"not mounted|no mount point|not found", NotFound, "it is not mounted"),
)  # fmt: skip
"""The one table for unmounting, by what the program says."""


class CardSession(DeviceSession):
    """A session of the card's folder, which trusts nothing that comes from a mount point without the card."""

    features = Features(resume_read=True, mtime_set=True, byte_names=True, writable=False)

    def __init__(self, at: Mount, card: Card, inner: LocalSession):
        self.at, self.card, self.inner = at, card, inner
        self._hold = Hold(at.point)
        self.check()

    @contextlib.contextmanager
    def there(self, path: str = "", *, always: bool = False) -> Iterator[None]:
        """A failure is the card's own only if the card is there; so is a success, where `always`."""
        try:
            yield
        except OnblockError as error:
            self.check(path, error)
            raise
        if always:
            self.check(path)

    def check(self, path: str = "", cause: OnblockError | None = None) -> None:
        """Raises NetworkError unless the same card is mounted where it was."""
        try:
            top = os.stat(self.at.point)
        except OSError:
            top = None
        if top is None or (top.st_dev, top.st_ino) != self.card[:2]:
            raise NetworkError("the card is gone, or another one is in its place", path=path) from cause

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        with self.there(path, always=True):  # a listing that ends because the card went would tell of lost files
            for found in self.inner.scan(path, enter):
                if found.problem is not None:
                    self.check(path, found.problem)
                yield found

    def stat(self, path: str) -> FileInfo:
        with self.there(path):
            return self.inner.stat(path)

    def read(self, path: str, offset: int = 0) -> CardReader:
        with self.there(path, always=True):
            return CardReader(self, self.inner.read(path, offset), path)

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        with self.there(path, always=True):
            return self.inner.checksum(path, kind, fresh=fresh)

    def local_path(self, path: str) -> str | None:
        self.check(path)
        return self.inner.local_path(path)

    def delete(self, path: str) -> None:
        self.check(path)
        with self.there(path):
            self.inner.delete(path)

    def move(self, path: str, to: str) -> None:
        self.check(path)
        with self.there(path):
            self.inner.move(path, to)

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def close(self) -> None:
        self.inner.close()
        self._hold.close()


class CardReader(Reader):
    """One open file; what its name says at the end is asked of the card, not of an empty mount point."""

    def __init__(self, session: CardSession, inner: Reader, path: str):
        self._session, self._inner, self._path = session, inner, path

    def readinto(self, buffer: Buffer) -> int:
        try:
            return self._inner.readinto(buffer)
        except OnblockError as error:
            self._session.check(self._path, error)
            raise

    def info(self) -> FileInfo:
        with self._session.there(self._path, always=True):
            return self._inner.info()

    def close(self) -> None:
        self._inner.close()


# -- what the system says -------------------------------------------------------------------------------------------


def mounts(table: str | None = None) -> list[Mount]:
    """All mounts of this process, in order. Raises OnblockError."""
    try:
        lines = Path(table or MOUNTS).read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except OSError as error:
        raise os_failure(error, "cannot read the table of mounts", table or MOUNTS) from error
    found = []
    for line in filter(None, lines):  # split at nothing else: names may hold what Python takes for the end of a line
        fields, _, rest = line.partition(" - ")
        parts, tail = fields.split(" "), rest.split(" ")
        major, _, minor = parts[2].partition(":")
        number = os.makedev(int(major), int(minor))
        found.append(Mount(_octal(parts[4]), number, tail[0], _octal(tail[1]) if len(tail) > 1 else ""))
    return found


def _octal(text: str) -> str:
    r"""A path as mountinfo writes it: space, tab, newline and backslash as `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _udev(text: str) -> str:
    r"""A label as udev names its link: what is not plain as `\x20`."""
    out = []
    for c in text:
        if c.isalnum() or c in "#+-.:=@_" or ord(c) > 127:
            out.append(c)
        else:
            out.append("".join(f"\\x{byte:02x}" for byte in c.encode()))
    return "".join(out)


def _uuid(number: int) -> str:
    """The UUID of a disk's file system, by udev's links; empty if it has none."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(DISKS / "by-uuid"):
            with contextlib.suppress(OSError):
                if entry.stat().st_rdev == number:
                    return entry.name
    return ""
