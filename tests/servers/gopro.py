"""A camera that speaks Open GoPro over HTTP and serves the files of a folder.

Written from the protocol text at gopro.github.io/OpenGoPro/http: media list, files, delete, turbo transfer, camera
info. Serving files, and what goes wrong, is in `deployments/simulators/camera.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from deployments.simulators.camera import Camera, CameraHandler, File

GROUPED = re.compile(r"G(\d{3})(\d{4})\.(JPG|GPR)\Z")
"""Pictures of bursts and time lapses: three digits of the group, four of the picture."""


class GoProHandler(CameraHandler):
    camera: GoProSimulator  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]

    def question(self, path: str, query: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        camera, given = self.camera, parse_qs(query, errors="surrogateescape")
        if path == "/gopro/camera/info":
            return 200, {"model_name": "HERO", "firmware_version": "1", "serial_number": camera.serial}
        if path == "/gopro/media/turbo_transfer":
            camera.turbo.append(given["p"][0])
            return 200, {}
        if path == "/gopro/media/list":
            return 200, {"id": "1", "media": [*camera.folders(), *camera.extra]}
        if path == "/gopro/media/delete/file":
            found = camera.at(given.get("path", [""])[0])
            if found is None:
                return 404, {"error": 1}
            if not camera.keeps:
                os.unlink(found)
            return 200, {}
        return None


class GoProSimulator(Camera):
    """`extra` folders come last in the list, as they are."""

    handler = GoProHandler
    files_at = "/videos/DCIM/"

    def __init__(self, folder: Path | str, host: str = "127.0.0.1", port: int = 0):
        super().__init__(folder, host, port)
        self.extra: list[Any] = []
        self.turbo: list[str] = []
        self.keeps = False  # says that it deletes, and does not

    def folders(self) -> Iterator[dict[str, Any]]:
        files = sorted(self.files(), key=lambda f: f.path.rpartition("/")[::2])
        for folder, found in groupby(files, key=lambda f: f.path.rpartition("/")[0]):
            yield {"d": folder, "fs": list(self._items(found))}

    def _items(self, files: Iterator[File]) -> Iterator[dict[str, Any]]:
        groups: dict[str, list[File]] = {}
        for file in files:
            name = file.path.rpartition("/")[2]
            if grouped := GROUPED.match(name):
                groups.setdefault(grouped[1], []).append(file)
            else:
                stamp = str(int(file.mtime))
                yield {"n": name, "cre": stamp, "mod": stamp, "s": str(file.size), "glrv": "1", "ls": "-1"}
        for number, members in groups.items():
            ids = [int(m.path[-8:-4]) for m in members]
            stamp = str(int(max(m.mtime for m in members)))
            yield {
                "n": members[0].path.rpartition("/")[2], "g": str(int(number)), "b": str(ids[0]), "l": str(ids[-1]),
                "m": [str(i) for i in range(ids[0], ids[-1]) if i not in ids], "t": "b", "cre": stamp, "mod": stamp,
                "s": str(sum(m.size for m in members)),
            }  # fmt: skip
