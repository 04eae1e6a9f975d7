"""Videos and pictures for the page of recordings: of what was delivered to a disk of this machine, and of what was recorded
on it. Only what the ledger or a manifest names is opened, only below the folder it belongs to, and only what a browser
shows: nothing is told to be HTML or a script, whatever it is called.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple, TypeVar

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, RedirectResponse, Response, StreamingResponse

from blocks import names
from blocks.errors import NotFound, OnblockError
from blocks.home import home
from blocks.storage.local import os_failure
from deployments.console.access import Person
from deployments.console.api import Number
from deployments.console.guard import whoever
from deployments.console.office import Office
from deployments.console.pictures import Picture, Pictures
from deployments.console.problems import Problem
from flows.ledger.looking import DELIVERED

Who = Annotated[Person, Depends(whoever)]
T = TypeVar("T")

PLAYLIST = "playlist.m3u8"
VIDEOS = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".mkv": "video/x-matroska", ".webm": "video/webm",
}  # fmt: skip
PICTURES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
KINDS = VIDEOS | PICTURES
OF_A_PLAYLIST = {
    r"playlist\.m3u8": "application/vnd.apple.mpegurl", r"init\.mp4": "video/mp4", r"segment_[0-9]{5,9}\.m4s": "video/mp4",
}  # fmt: skip
"""What the step `hls` writes into a folder of its own."""
CHUNK = 256 << 10
AT_A_TIME = 16
"""Threads that may wait for disks: one that hangs does not hold the rest of the console."""
NONE, LATER = "/static/no-picture.svg", "/static/picture-later.svg"
"""The second is 16 by 9, by which `app.js` knows it, and asks again."""
RANGE = re.compile(r"bytes=(?=[0-9]*-[0-9]|[0-9]+-)([0-9]{0,18})-([0-9]{0,18})")
"""One part; who asks for several, or in a way that is not understood, gets all."""


class Opened(NamedTuple):
    """A file that is open for reading."""

    fd: int
    stat: os.stat_result
    kind: str


def routes(office: Office, pictures: Pictures) -> APIRouter:
    """The paths. All that touches a disk is done in threads of their own."""
    media, limit = APIRouter(), anyio.CapacityLimiter(AT_A_TIME)

    async def threaded(do: Callable[[], T]) -> T:
        return await to_thread.run_sync(do, limiter=limit)

    def pictured(found: Opened) -> Picture:
        try:
            return pictures.frame(found.fd)
        finally:
            os.close(found.fd)

    @media.get("/media/{number}")
    async def delivered(request: Request, who: Who, number: Number) -> Response:
        """A video or picture as it lies at its destination."""
        found = await threaded(lambda: _delivered(office, number))
        return _answer(request, found, threaded)

    @media.get("/media/{number}/{name}")
    async def piece(request: Request, who: Who, number: Number, name: str) -> Response:
        """A playlist, or what it names, which lies beside it."""
        found = await threaded(lambda: _piece(office, number, name))
        return _answer(request, found, threaded)

    @media.get("/pictures/{number}")
    async def picture(request: Request, who: Who, number: Number) -> Response:
        """A frame of a video that was delivered."""
        try:
            made = await threaded(lambda: pictured(_delivered(office, number, VIDEOS)))
        except OnblockError:  # it has gone meanwhile
            made = Picture(None)
        return _picture(made, "image/jpeg")

    @media.get("/here/{recording}/{what}")
    async def here(request: Request, who: Who, recording: str, what: str) -> Response:
        """Of a recording on this machine: `video`, a `frame` of it, or its `timeline`."""
        if what == "video":
            return _answer(request, await threaded(lambda: _recorded(recording)), threaded)
        if what == "frame":
            try:
                made = await threaded(lambda: pictured(_recorded(recording, even_a_part=True)))
            except OnblockError:  # nothing is in it yet
                made = Picture(None)
            return _picture(made, "image/jpeg")
        if what == "timeline":
            return _picture(await threaded(partial(_timeline, pictures, recording)), "image/png")
        raise Problem(404, "there is no such picture")

    return media


# -- which file is meant ----------------------------------------------------------------------------------------------


def place_of(row: dict[str, Any]) -> tuple[str, str] | None:
    """The folder on this machine, and the path below it, where a row's file lies; None where that is elsewhere."""
    if row["dest_path"] is None or row["state"] not in DELIVERED or not row["destination"].startswith("local:"):
        return None
    return row["destination"].removeprefix("local:"), row["dest_path"]


def _delivered(office: Office, number: int, kinds: dict[str, str] = KINDS) -> Opened:
    row = office.row(number)
    kind = kinds.get(PurePosixPath(row["dest_path"] or "").suffix.lower())
    if (place := place_of(row)) is None or kind is None:
        raise NotFound(f"transfer {number} is nothing that can be shown from this machine", remedy="")
    found = opened(*place, kind)
    if found.stat.st_size != row["size"]:  # a later version took its name, or the folder is another machine's
        os.close(found.fd)
        raise NotFound(f"what transfer {number} delivered is not there any more", remedy="")
    return found


def _piece(office: Office, number: int, name: str) -> Opened:
    place = place_of(office.row(number))
    kind = next((k for pattern, k in OF_A_PLAYLIST.items() if re.fullmatch(pattern, name)), None)
    if place is None or kind is None or PurePosixPath(place[1]).name != PLAYLIST:
        raise NotFound(f"transfer {number} has nothing of that name", remedy="")
    return opened(place[0], str(PurePosixPath(place[1]).with_name(name)), kind)


def _folder(recording: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", recording):
        raise NotFound("there is no such recording", remedy="")
    return home() / "recordings" / recording


def _recorded(recording: str, even_a_part: bool = False) -> Opened:
    """The file of a recording; while there is none, its first part that is whole, if that will do."""
    from flows.capture.manifest import load

    folder = _folder(recording)
    try:
        manifest = load(folder)
    except OSError as error:
        raise os_failure(error, "there is no recording to be read", recording) from error
    parts = [s.video for e in manifest.streams.values() for s in e.segments[:1] if s.video is not None]
    if manifest.final is None and not (even_a_part and parts):
        raise NotFound("it is not merged: there is nothing to play yet", path=recording, remedy="")
    return opened(str(folder), manifest.final.file if manifest.final else parts[0], VIDEOS[".mkv"])


def _timeline(pictures: Pictures, recording: str) -> Picture:
    from flows.capture.manifest import NAME

    folder = _folder(recording)
    try:
        return pictures.timeline(folder, (folder / NAME).stat().st_mtime_ns)
    except OSError as error:
        raise os_failure(error, "there is no timeline of it", recording) from error


def opened(root: str, path: str, kind: str) -> Opened:
    """A file below a folder, not by a link that leads out of it. Raises OnblockError."""
    full = os.path.join(root, names.check_path(path))
    try:
        fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            st, there = os.fstat(fd), os.readlink(f"/proc/self/fd/{fd}")
            inside = there.startswith(os.path.realpath(root).rstrip("/") + "/")
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise os_failure(error, "it cannot be shown", names.display(path)) from error
    if not inside or not stat.S_ISREG(st.st_mode):
        os.close(fd)
        raise NotFound("it is no file below its folder", path=names.display(path), remedy="")
    return Opened(fd, st, kind)


# -- how it is sent ---------------------------------------------------------------------------------------------------


def _picture(made: Picture, kind: str) -> Response:
    if made.path is None:
        return RedirectResponse(LATER if made.later else NONE, 303)
    return FileResponse(made.path, media_type=kind, headers={"Cache-Control": "private, max-age=600"})


def _answer(request: Request, found: Opened, threaded: Callable[[Callable[[], Any]], Any]) -> Response:
    """All of a file, or the part that is asked for. Closes it in the end."""
    size, tag = found.stat.st_size, f'"{found.stat.st_mtime_ns:x}-{found.stat.st_size:x}"'
    head = {"Accept-Ranges": "bytes", "ETag": tag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        os.close(found.fd)
        return Response(status_code=304, headers=head)
    asked = RANGE.fullmatch(request.headers.get("range", "").strip())
    if asked is None or request.headers.get("if-range", tag) != tag:
        status, part = 200, (0, size - 1)
    else:
        status, part = 206, part_of(asked[1], asked[2], size)
    if part is None:
        os.close(found.fd)
        return Response(status_code=416, headers=head | {"Content-Range": f"bytes */{size}"})
    if status == 206:
        head["Content-Range"] = f"bytes {part[0]}-{part[1]}/{size}"
    length = part[1] + 1 - part[0]
    body = _Sent(found.fd, part[0], length, threaded)
    return StreamingResponse(body, status, head | {"Content-Length": str(length)}, media_type=found.kind)


def part_of(first: str, last: str, size: int) -> tuple[int, int] | None:
    """The first and the last byte of what `bytes=first-last` asks for of a file of so many; None where there are none."""
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) and size else None
    end = min(int(last), size - 1) if last else size - 1
    return (int(first), end) if int(first) <= end else None


class _Sent:
    """Bytes of a file that is open, which is closed with this: also where nobody ever asks for the first of them."""

    def __init__(self, fd: int, first: int, left: int, threaded: Callable[[Callable[[], Any]], Any]):
        self._fd, self._at, self._left, self._threaded = fd, first, left, threaded

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._left <= 0:
            raise StopAsyncIteration
        chunk: bytes = await self._threaded(lambda: os.pread(self._fd, min(CHUNK, self._left), self._at))
        if not chunk:  # it has become shorter: the browser is told by the connection's end
            raise StopAsyncIteration
        self._at, self._left = self._at + len(chunk), self._left - len(chunk)
        return chunk

    def __del__(self) -> None:
        os.close(self._fd)
