"""Cameras with a media list and files over HTTP, as GoPro has opened them (Open GoPro; gopro.github.io/OpenGoPro/http).

What is asked: who is there, the media list (one JSON with all folders), ranged GETs of files, and to delete one. The
addresses of these are fields, for older models and other makes. A burst or time lapse is one item of the list; its
pictures are files here, each of which is asked for its size once. Previews (LRV, THM) are not taken.
Connections and refusals are in `camera_http.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from threading import Lock
from typing import Any
from urllib.parse import quote

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from blocks import names
from blocks.devices.base import Live
from blocks.devices.camera import Camera, CameraSession
from blocks.devices.camera_file import glance
from blocks.devices.camera_http import Address, Wire
from blocks.devices.camera_listing import unusable, whole_number
from blocks.errors import ConfigError, NotFound, OnblockError, UnknownError
from blocks.storage.base import Features, FileInfo

GROUP_MOST = 10_000
"""Pictures in one burst or time lapse."""
SIZES_MOST = 50_000
"""Pictures whose size is remembered."""


class HttpCamera(Camera):
    """A camera with a media list over HTTP, as Open GoPro describes it."""

    _block_type_name = "HTTP Camera"
    _block_type_slug = "http-camera"
    _description = "A camera with a media list and files over HTTP, such as GoPro."

    url: str = Field(
        default="http://10.5.5.9:8080", description="The camera's address: http://HOST[:PORT]. GoPro over Wi-Fi: "
        "http://10.5.5.9:8080; over USB: http://172.2X.1YZ.51:8080 with XYZ the last digits of its serial number."
    )  # fmt: skip
    info_at: str = Field(
        default="/gopro/camera/info", description="Where the camera says who it is; empty: ask for the list instead."
    )
    list_at: str = Field(default="/gopro/media/list", description="Where the media list is.")
    files_at: str = Field(default="/videos/DCIM", description="Where files are, as FOLDER/NAME below it.")
    delete_at: str = Field(
        default="/gopro/media/delete/file",
        description="What deletes the file `?path=FOLDER/NAME`; empty: nothing does.",
    )
    turbo_at: str = Field(
        default="", description="What switches fast transfers on (`?p=1`) and off, such as "
        "/gopro/media/turbo_transfer; empty: leave it."
    )  # fmt: skip
    user: str = Field(default="", description="User name, where the camera asks for one; over https only.")
    password: SecretStr | None = Field(default=None, description="Its password.")
    ca_file: str = Field(default="", description="The camera's own certificate, for https.")

    _listing: Listing = PrivateAttr(default_factory=lambda: Listing())

    @field_validator("info_at", "list_at", "files_at", "delete_at", "turbo_at")
    @classmethod
    def _target(cls, value: str) -> str:
        if value and not re.fullmatch(r"/[!-~]*", value):
            raise ValueError(f"{names.display(value)!r} is not a path such as /gopro/media/list")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _sense(self) -> HttpCamera:
        if not self.list_at:
            raise ValueError("`list_at` says where the media list is")
        if self.user and not self.url.startswith("https:"):
            raise ValueError("a password is sent over https only")
        if self.serial and not self.info_at:
            raise ValueError("`serial` is compared with what `info_at` says")
        return self

    def place(self) -> str:
        return f"http-camera:{self.url}"

    def address(self, timeout_s: float) -> Address:
        """Where it is and how to get in."""
        password = self.password.get_secret_value() if self.password else ""
        return Address(self.url, timeout_s, self.user, password, self.ca_file)

    def recognise(self, wire: Wire, within: float | None = None) -> None:
        """Ask who is there. Raises NetworkError, ConfigError if it is no such camera, or not this one."""
        try:
            info = wire.ask(self.info_at or self.list_at, within=within)
        except NotFound as error:
            raise wire.stranger() from error
        if not self.info_at:
            return
        told = info["info"] if isinstance(info.get("info"), dict) else info
        found = str(told.get("serial_number", ""))
        self.expect(found)

    def open(self) -> HttpCameraSession:
        session = HttpCameraSession(self, self._listing)
        try:
            self.recognise(session.wire)
            session.turbo(on=True)
        except OnblockError:
            session.close()
            raise
        return session


class Listing(Live):
    """The last media list, for all sessions of a block, and sizes that the list does not tell. Thread-safe."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.at = float("-inf")
        self.files: dict[str, FileInfo] = {}
        self.sizes: dict[tuple[str, int], int] = {}


class HttpCameraSession(CameraSession):
    """One connection for questions, one for each file that is read."""

    features = Features(resume_read=True, parallel=2, writable=False, renames=False)

    def __init__(self, camera: HttpCamera, listing: Listing):
        self.camera, self._listing = camera, listing
        super().__init__(camera)
        self._fast = False

    def turbo(self, *, on: bool) -> None:
        """Fast transfers; the camera's screen says so meanwhile."""
        if self.camera.turbo_at:
            self.wire.ask(f"{self.camera.turbo_at}?p={int(on)}")
            self._fast = on

    # -- the list ---------------------------------------------------------------------------------------------------

    def _stat(self, path: str, *, age_s: float = 0.0) -> FileInfo:
        """A file by a list that is at most so old."""
        names.check_path(path)
        listing = self._listing
        with listing.lock:
            if time.monotonic() - listing.at > age_s:
                asked = time.monotonic()
                listing.files = {info.path: info for info in self._list() if info.problem is None}
                listing.at = asked
            found = listing.files.get(path)
        if found is None:
            raise NotFound("is not on the camera", path=path)
        return self._sized(found)

    def _list(self) -> Iterator[FileInfo]:
        """All files; those of unknown size have -1."""
        media = self.wire.ask(self.camera.list_at).get("media")
        if not isinstance(media, list):
            raise UnknownError(f"{self.wire.where} lists no media")
        for folder in media:
            told = folder if isinstance(folder, dict) else {}
            name, items = told.get("d"), told.get("fs")
            if not isinstance(name, str) or not isinstance(items, list):
                yield unusable(repr(folder)[:50], ConfigError("the camera lists a folder without name or files"))
                continue
            for item in items:
                yield from self._item(name, item if isinstance(item, dict) else {})

    def _item(self, folder: str, item: dict[str, Any]) -> Iterator[FileInfo]:
        """The file of an item of the list; the files, of a group."""
        name = item.get("n")
        path = f"{folder}/{name}" if folder else f"{name}"
        try:
            names.check_path(path)
        except names.BadName as error:
            yield unusable(path, error)
            return
        stamp = whole_number(item.get("mod", item.get("cre")))
        size = whole_number(item.get("s"))
        if not isinstance(name, str) or stamp is None or size is None:
            yield FileInfo(path, 0, 0, "", ConfigError("is listed by the camera without size or time", path=path))
            return
        mtime = min(stamp, 1 << 33) * 1_000_000_000
        if "g" not in item and "b" not in item:
            yield FileInfo(path, size, mtime)
            return
        first, last = whole_number(item.get("b")), whole_number(item.get("l"))
        stem = re.fullmatch(r"(.*?)(\d{4})(\.\w+)", path, re.DOTALL)
        if stem is None or first is None or last is None or not first <= last < first + GROUP_MOST:
            yield FileInfo(path, 0, 0, "", ConfigError("is a group whose members the camera does not tell", path=path))
            return
        missing = {whole_number(m) for m in item["m"]} if isinstance(item.get("m"), list) else set()
        for number in range(first, last + 1):
            if number not in missing:
                yield FileInfo(f"{stem[1]}{number:04}{stem[3]}", -1, mtime)

    def _sized(self, info: FileInfo) -> FileInfo:
        """A picture of a group, with its size: the list knows only that of all."""
        if info.size >= 0:
            return info
        key, sizes = (info.path, info.mtime_ns), self._listing.sizes
        if key not in sizes:
            try:
                total = glance(self.wire, self._target(info.path), info.path).total
            except OnblockError as error:
                return info._replace(size=0, problem=error)
            if total is None:
                return info._replace(size=0, problem=UnknownError("the camera does not tell its size", path=info.path))
            if len(sizes) >= SIZES_MOST:
                sizes.clear()
            sizes[key] = total
        return info._replace(size=sizes[key])

    # -- files ------------------------------------------------------------------------------------------------------

    def _target(self, path: str) -> str:
        return f"{self.camera.files_at}/{quote(os.fsencode(path), safe='/')}"

    def delete(self, path: str) -> None:
        if not self.camera.delete_at:
            raise ConfigError("this camera deletes nothing", path=path, remedy="set `delete_at`, or no cleanup")
        self.stat(path)
        self.wire.ask(f"{self.camera.delete_at}?path={quote(os.fsencode(path), safe='/')}", path=path)
        try:
            self.stat(path)
        except NotFound:
            return
        raise UnknownError("the camera said that it deleted it, and lists it still", path=path)

    def close(self) -> None:
        if self._fast:
            with contextlib.suppress(OnblockError):  # it is away, or will switch it off by itself
                self.turbo(on=False)
        super().close()
