"""What cameras that are asked over HTTP share: an address, a serial number, a look, and files of a listing.

How a kind of camera lists its files, and says who it is, is in the file of its name; how bytes come in `camera_http.py`
and `camera_file.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

from pydantic import Field, field_validator

from blocks import names
from blocks.devices.base import Device, DeviceSession
from blocks.devices.camera_file import CameraReader
from blocks.devices.camera_http import Address, Wire, check_url
from blocks.devices.camera_listing import Folders
from blocks.errors import NetworkError, NotFound
from blocks.storage.base import FileInfo

LOOK_S = 3.0
"""How long a camera has to say that it is there."""
FRESH_S = 1.0
"""How old a listing may be by which a file is proven unchanged, where the file itself says its version too."""


class Camera(Device):
    """A camera with an address."""

    url: str = Field(description="The camera's address: http://HOST[:PORT].")
    serial: str = Field(
        default="", description="The camera's serial number. Cameras of a make share one address: with it, no other "
        "camera is taken for this one."
    )  # fmt: skip
    timeout_s: float = Field(default=20, gt=0, description="How long the camera may be silent, in seconds.")

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        return check_url(value)

    def address(self, timeout_s: float) -> Address:
        """Where it is and how to get in."""
        return Address(self.url, timeout_s)

    def look(self) -> None:
        wire = Wire(self.address(min(LOOK_S, self.timeout_s)))
        try:
            self.recognise(wire, within=LOOK_S)
        finally:
            wire.close()

    @abstractmethod
    def recognise(self, wire: Wire, within: float | None = None) -> None:
        """Ask who is there. Raises NetworkError, ConfigError if it is no such camera, or not this one."""

    def expect(self, serial: str) -> None:
        """The camera that answers has this serial number. Raises NetworkError if it is not this one."""
        if self.serial and serial != self.serial:
            raise NetworkError(
                f"another camera answers at {self.url}: {names.display(serial)[:50]!r}, not {self.serial!r}",
                remedy=f"switch {self.device} on, or join its network",
            )


class CameraSession(DeviceSession):
    """One connection for questions, one for each file that is read."""

    def __init__(self, camera: Camera):
        self.wire = Wire(camera.address(camera.timeout_s))

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        folders = Folders(names.check_path(path) if path else "", enter)
        found = False
        for info in self._list():
            if info.path.startswith(f"{path}/" if path else ""):
                found = True
                if not names.TEMPORARY.match(info.path.rpartition("/")[2]) and folders.passes(info.path):
                    yield self._sized(info)
        if path and not found:
            raise NotFound("no such folder on the camera", path=path)

    def stat(self, path: str) -> FileInfo:
        return self._stat(path)

    def read(self, path: str, offset: int = 0) -> CameraReader:
        names.check_path(path)
        reader = CameraReader(
            self.wire, path, self._target(path), offset,
            lambda path: self._stat(path, age_s=FRESH_S if reader.is_validated else 0.0),
        )  # fmt: skip
        return reader

    @abstractmethod
    def _list(self) -> Iterator[FileInfo]:
        """All files."""

    @abstractmethod
    def _stat(self, path: str, *, age_s: float = 0.0) -> FileInfo:
        """A file by a listing that is at most so old. Raises NotFound."""

    @abstractmethod
    def _target(self, path: str) -> str:
        """What to ask for to get the bytes of a file."""

    def _sized(self, info: FileInfo) -> FileInfo:
        """The same, with a size that the listing does not tell."""
        return info

    def close(self) -> None:
        self.wire.close()
