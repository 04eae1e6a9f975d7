"""Cameras that speak the Open Spherical Camera API (level 2): Insta360, Ricoh Theta and others.

What is asked: /osc/info (who is there), /osc/commands/execute with camera.listFiles (in pages) and camera.delete, and
ranged GETs of the files. A file's path is the path of its URL: two folders may hold one name. Protocol:
developers.google.com/streetview/open-spherical-camera. Connections and refusals are in `camera_http.py`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from threading import Lock
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from zoneinfo import ZoneInfo

from pydantic import Field, PrivateAttr, field_validator

from blocks import names
from blocks.devices.base import Live
from blocks.devices.camera import Camera, CameraSession
from blocks.devices.camera_http import Wire
from blocks.devices.camera_listing import unusable, whole_number
from blocks.errors import ConfigError, NetworkError, NotFound, OnblockError, PermissionRefused, UnknownError
from blocks.storage.base import Features, FileInfo

log = logging.getLogger("onblock.devices")

KNOWN_MOST = 50_000
"""Files whose place in the listing is remembered; what is beyond is looked for from the beginning."""
SHIFTED = object()
"""In place of an entry: the listing is no longer the one whose beginning was read."""
SHIFTS_MOST = 8
"""How often a listing may change under our reading before we give up on it."""


class OscCamera(Camera):
    """A camera with the Open Spherical Camera API, such as Insta360 or Ricoh Theta, over its Wi-Fi or a network."""

    _block_type_name = "OSC Camera"
    _block_type_slug = "osc-camera"
    _description = "A camera with the Open Spherical Camera API, such as Insta360 or Ricoh Theta."

    url: str = Field(
        default="http://192.168.42.1", description="The camera's address: http://HOST[:PORT]. Insta360: "
        "http://192.168.42.1, Ricoh Theta: http://192.168.1.1."
    )  # fmt: skip
    files: Literal["all", "video", "image"] = Field(default="all", description="Which files to list.")
    page: int = Field(default=100, ge=2, le=1000, description="Files asked for in one page of the listing.")
    also_as: list[str] = Field(
        default=[], description="Other addresses (HOST or HOST:PORT) by which the camera names itself in its listing, "
        "where it is reached through a forwarded port. Files are fetched from `url` all the same."
    )  # fmt: skip
    timezone: str = Field(default="UTC", description="Time zone of the camera's clock, where it does not tell.")

    _known: Known = PrivateAttr(default_factory=lambda: Known())

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone; write it as Europe/Berlin") from None
        return value

    def place(self) -> str:
        return f"osc:{self.url}"

    def recognise(self, wire: Wire, within: float | None = None) -> None:
        """Ask who is there. Raises NetworkError, ConfigError if it is no such camera, or not this one."""
        try:
            info = wire.ask("/osc/info", within=within)
        except NotFound as error:
            raise wire.stranger() from error
        if not isinstance(info.get("endpoints"), dict) and "serialNumber" not in info:
            raise wire.stranger()
        found = str(info.get("serialNumber", ""))
        self.expect(found)

    def open(self) -> OscSession:
        session = OscSession(self, self._known)
        try:
            self.recognise(session.wire)
        except OnblockError:
            session.close()
            raise
        return session


class Listed(NamedTuple):
    """What is remembered of a file: its URL as the camera writes it, what to ask for, and its place in the listing."""

    url: str
    target: str
    position: int
    info: FileInfo
    asked: float  # when the camera was asked for this, time.monotonic()


class Known(Live):
    """The newest files that were listed, for all sessions of a block. Thread-safe, bounded."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, Listed] = OrderedDict()
        self._lock = Lock()

    def get(self, path: str) -> Listed | None:
        """What is remembered of a path."""
        with self._lock:
            return self._files.get(path)

    def put(self, path: str, listed: Listed) -> None:
        """Remember it."""
        with self._lock:
            self._files[path] = listed
            if len(self._files) > KNOWN_MOST:
                self._files.popitem(last=False)


class OscSession(CameraSession):
    """One connection for questions, one for each file that is read."""

    features = Features(resume_read=True, byte_names=True, parallel=2, writable=False, renames=False)

    def __init__(self, camera: OscCamera, known: Known):
        self.camera, self._known = camera, known
        super().__init__(camera)
        self._address = camera.address(camera.timeout_s)
        self._zone = ZoneInfo(camera.timezone)

    # -- the listing ------------------------------------------------------------------------------------------------

    def _stat(self, path: str, *, age_s: float = 0.0) -> FileInfo:
        """A file by an entry of the listing that is at most so old."""
        names.check_path(path)
        known = self._known.get(path)
        if known is not None and time.monotonic() - known.asked < age_s:
            return known.info
        if known is not None:  # as a rule nothing has moved since; its neighbours are asked for next
            count = self.camera.page if age_s else 1
            asked = time.monotonic()
            entries, _ = self._page({"startPosition": known.position, "entryCount": count}, path)
            found = [self._info(e, known.position + n, asked) for n, e in enumerate(entries)][:1]
            if found and found[0] is not None and found[0].path == path and found[0].problem is None:
                return found[0]
        for info in self._list():
            if info.path == path and info.problem is None:
                return info
        raise NotFound("is not on the camera", path=path)

    def _list(self) -> Iterator[FileInfo]:
        """All files, in pages. Where the listing shifts while it is read (a file more, a file less), from its beginning
        again, without those that were told: nothing is left out."""
        told: set[int] = set()
        for _ in range(SHIFTS_MOST):
            shifted = False
            for position, entry, asked in self._pages():
                if entry is SHIFTED:
                    shifted = True
                    break
                info = self._info(entry, position, asked)
                if info is not None and hash(info.path) not in told:
                    told.add(hash(info.path))
                    yield info
            if not shifted:
                return
        raise NetworkError(f"{self.wire.where} changes its listing faster than it can be read, or repeats a page of it")

    def _pages(self) -> Iterator[tuple[int, object, float]]:
        """(position, entry, when it was asked for) of the listing, as it comes; SHIFTED for an entry where it has. Each
        page begins with the last file of the one before, which tells."""
        position, last, token = 0, None, None
        while True:
            where: dict[str, Any] = {"entryCount": self.camera.page}
            if token is not None:
                where["continuationToken"] = token
            else:
                where["startPosition"] = position - 1 if position else 0
            asked = time.monotonic()
            entries, results = self._page(where)
            if token is None and position:
                if not entries or _url(entries[0]) != last:
                    yield position, SHIFTED, asked
                    return
                del entries[0]
            if not entries:
                return
            for number, entry in enumerate(entries):
                yield position + number, entry, asked
            position += len(entries)
            last = _url(entries[-1])
            before, token = token, results.get("continuationToken") or None
            if before is not None and (token is None or token == before):
                if token is None:
                    return
                raise UnknownError(f"{self.wire.where} repeats a page of its listing")
            total = whole_number(results.get("totalEntries"))
            if token is None and total is not None and position >= total:
                return

    def _page(self, where: dict[str, Any], path: str = "") -> tuple[list[Any], dict[str, Any]]:
        parameters = {"fileType": self.camera.files, "maxThumbSize": None, **where}
        results = self._execute("camera.listFiles", parameters, path)
        entries = results.get("entries")
        if not isinstance(entries, list):
            raise UnknownError(f"{self.wire.where} lists no entries", path=path)
        return entries, results

    def _info(self, entry: object, position: int, asked: float) -> FileInfo | None:
        """One entry of the listing; None for one that the camera has not finished."""
        url, told = _url(entry), entry if isinstance(entry, dict) else {}
        if not url:
            return unusable(str(told.get("name", position)), ConfigError("is listed by the camera without a URL"))
        if told.get("isProcessed") is False:
            log.info("%s is still being processed by the camera", names.display(url))
            return None
        if not self._address.is_meant(url, self.camera.also_as):
            return unusable(url, ConfigError(
                f"the camera lists a file at another address: {names.display(url)[:200]!r}",
                remedy="if that is the camera too, add its HOST to `also_as`",
            ))  # fmt: skip
        parts = urlsplit(url)
        path = unquote(parts.path, errors="surrogateescape").removeprefix("/")
        try:
            names.check_path(path)
        except names.BadName as error:
            return unusable(path, error)
        size = whole_number(told.get("size"))
        if size is None:
            return FileInfo(path, 0, 0, "", ConfigError("is listed by the camera without a size", path=path))
        target = quote(os.fsencode(unquote(parts.path, errors="surrogateescape")), safe="/")
        if parts.query:
            target += "?" + quote(parts.query, safe="=&%+/:,;~")
        stamp = str(told.get("dateTimeZone") or told.get("dateTime") or "")
        when = moment(stamp, self._zone)
        info = FileInfo(path, size, when or 0, "" if when is not None else names.display(stamp)[:40])
        self._known.put(path, Listed(url, target, position, info, asked))
        return info

    # -- files ------------------------------------------------------------------------------------------------------

    def _target(self, path: str) -> str:
        known = self._known.get(path)
        return known.target if known is not None else "/" + quote(os.fsencode(path), safe="/")

    def delete(self, path: str) -> None:
        self.stat(path)
        known = self._known.get(path)
        url = known.url if known is not None else self.camera.url + self._target(path)
        try:
            left = self._execute("camera.delete", {"fileUrls": [url]}, path).get("fileUrls")
        except ConfigError as error:
            if "invalidParameterValue" in error.what:
                raise NotFound("is not on the camera", path=path) from error
            raise
        if left:
            raise PermissionRefused("the camera did not delete it", path=path, remedy="see whether it is protected")

    def _execute(self, name: str, parameters: dict[str, Any], path: str = "") -> dict[str, Any]:
        """A command's results. One that takes its time is asked after until it is done."""
        answer = self.wire.ask("/osc/commands/execute", {"name": name, "parameters": parameters}, path=path)
        end = time.monotonic() + max(60.0, self.camera.timeout_s)
        while answer.get("state") == "inProgress":
            if time.monotonic() > end:
                raise NetworkError(f"{self.wire.where} does not finish {name}", path=path)
            time.sleep(0.2)
            answer = self.wire.ask("/osc/commands/status", {"id": answer.get("id")}, path=path)
        results = answer.get("results")
        return results if isinstance(results, dict) else {}


def _url(entry: object) -> str:
    """The URL of an entry; empty if it has none."""
    found = entry.get("fileUrl") if isinstance(entry, dict) else None
    return found if isinstance(found, str) else ""


def moment(stamp: str, zone: ZoneInfo) -> int | None:
    """Nanoseconds since the epoch of `2014:12:11 15:47:12+08:00`, or without a zone in `zone`; None if it is neither."""
    for form in ("%Y:%m:%d %H:%M:%S%z", "%Y:%m:%d %H:%M:%S"):
        with contextlib.suppress(ValueError, OverflowError):
            when = datetime.strptime(stamp, form)
            when = when if when.tzinfo else when.replace(tzinfo=zone)
            return max(0, int(when.timestamp())) * 1_000_000_000
    return None
