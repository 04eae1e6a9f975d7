"""A camera with the Open Spherical Camera API, level 2, that serves the files of a folder.

    python -m deployments.simulators.osc FOLDER --port 8192

Written from the protocol text at developers.google.com/streetview/open-spherical-camera: /osc/info, /osc/state,
/osc/commands/execute and /osc/commands/status with camera.listFiles and camera.delete. Serving files, and what goes
wrong, is in `camera.py`.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from deployments.simulators.camera import Camera, CameraHandler, File

Answer = tuple[int, dict[str, Any]]


def error(name: str, code: str, message: str, status: int = 400) -> Answer:
    """How the protocol says no."""
    return status, {"name": name, "state": "error", "error": {"code": code, "message": message}}


class OscHandler(CameraHandler):
    """The questions of the protocol."""

    camera: OscSimulator  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]

    def refuse(self, why: str) -> Answer:
        """As a camera that is shooting."""
        return error("camera.commands.execute", "disabledCommand", why, 403)

    def question(self, path: str, query: str, body: dict[str, Any]) -> Answer | None:
        """See the module."""
        if path == "/osc/info" and self.command == "GET":
            return 200, {
                "manufacturer": "onblock", "model": "simulator", "serialNumber": self.camera.serial,
                "firmwareVersion": "1", "supportUrl": "", "gps": False, "gyro": False, "uptime": 1, "apiLevel": [2],
                "endpoints": {"httpPort": self.camera.port, "httpUpdatesPort": self.camera.port},
                "api": ["/osc/info", "/osc/state", "/osc/commands/execute", "/osc/commands/status"],
            }  # fmt: skip
        if self.command != "POST":
            return None
        if path == "/osc/state":
            return 200, {"fingerprint": str(len(self.camera.files())), "state": {"batteryLevel": 0.75}}
        if path == "/osc/commands/status":
            return 200, self.camera.pending.pop(str(body.get("id")))
        if path == "/osc/commands/execute":
            return self._execute(str(body.get("name")), body.get("parameters") or {})
        return None

    def _execute(self, name: str, given: dict[str, Any]) -> Answer:
        if name == "camera.listFiles":
            return self._list(name, given)
        if name == "camera.delete":
            return self._delete(name, given)
        return error(name, "unknownCommand", f"{name} is unknown")

    def _list(self, name: str, given: dict[str, Any]) -> Answer:
        camera = self.camera
        count = given.get("entryCount")
        if count is None or "fileType" not in given:
            return error(name, "missingParameter", "entryCount or fileType")
        start = given.get("startPosition", 0)
        if camera.tokens and "continuationToken" in given:
            start = int(given["continuationToken"])
        if not isinstance(count, int) or count < 1 or not isinstance(start, int) or start < 0:
            return error(name, "invalidParameterValue", "entryCount or startPosition")
        if camera.ignore_start:
            start = 0
        entries = [*camera.extra, *(f for f in camera.files() if f.path not in camera.unlisted)]
        page = [self._entry(e) if isinstance(e, File) else e for e in entries[start : start + min(count, camera.most)]]
        results: dict[str, Any] = {"entries": page, "totalEntries": len(entries)}
        if camera.tokens and start + len(page) < len(entries):
            results["continuationToken"] = str(start + len(page))
        if camera.after_page is not None:
            camera.after_page(start)
        return 200, {"name": name, "state": "done", "results": results}

    def _entry(self, file: File) -> dict[str, Any]:
        zone = timezone(timedelta(hours=8))
        when = datetime.fromtimestamp(int(file.mtime), zone).strftime("%Y:%m:%d %H:%M:%S%z")
        return {
            "name": os.fsencode(os.path.basename(file.path)).decode("utf-8", "replace"),
            "fileUrl": f"{self.camera.url}/{quote(os.fsencode(file.path))}", "size": file.size,
            "dateTimeZone": f"{when[:-2]}:{when[-2:]}", "width": 5760, "height": 2880, "isProcessed": True,
            "previewUrl": "",
        }  # fmt: skip

    def _delete(self, name: str, given: dict[str, Any]) -> Answer:
        camera, full = self.camera, []
        for url in given.get("fileUrls") or []:
            path = unquote(str(url).removeprefix(camera.url), errors="surrogateescape").removeprefix("/")
            if not str(url).startswith(camera.url) or (found := camera.at(path)) is None:
                return error(name, "invalidParameterValue", f"{url} does not exist")
            full.append((url, path, found))
        if not full:
            return error(name, "missingParameter", "fileUrls")
        for _, path, found in full:
            if path not in camera.protected:
                os.unlink(found)
        done = {
            "name": name,
            "state": "done",
            "results": {"fileUrls": [u for u, p, _ in full if p in camera.protected]},
        }
        if not camera.slow_commands:
            return 200, done
        number = str(time.monotonic_ns())
        camera.pending[number] = done
        return 200, {"name": name, "state": "inProgress", "id": number, "progress": {"completion": 0.5}}


class OscSimulator(Camera):
    """`extra` entries come first in the listing, as they are; the rest tells how a camera may be odd."""

    handler = OscHandler

    def __init__(self, folder: Path | str, host: str = "127.0.0.1", port: int = 0):
        super().__init__(folder, host, port)
        self.extra: list[Any] = []
        self.most = 1000  # entries in a page, whatever is asked for
        self.tokens = False  # pages by continuationToken
        self.ignore_start = False  # always the first page
        self.slow_commands = False  # deleting takes its time
        self.protected: set[str] = set()  # paths that cannot be deleted
        self.unlisted: set[str] = set()  # there, and in no listing
        self.after_page: Any = None  # called with the start position
        self.pending: dict[str, dict[str, Any]] = {}


def main() -> None:
    """Serve a folder until somebody ends it."""
    parser = argparse.ArgumentParser(description="A simulated camera with the Open Spherical Camera API.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--serial", default=OscSimulator.serial)
    given = parser.parse_args()
    camera = OscSimulator(given.folder, given.host, given.port)
    camera.serial = given.serial
    with camera:
        print(camera.url, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
