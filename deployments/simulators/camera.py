"""What every simulated camera does: it serves the files of a folder by ranges, counts what it sends, and misbehaves.

Standard library only. The protocol of each make is in a file of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import unquote, urlsplit

PIECE = 64 << 10


class File(NamedTuple):
    """A file on the camera's card."""

    path: str  # below the card
    full: str
    size: int
    mtime: float


class Faults:
    """What goes wrong. Each is off until it is set."""

    def __init__(self) -> None:
        self.cut_after: int | None = None  # end the connection after so many bytes of a file
        self.cuts = 1 << 30  # ... so often
        self.ignore_range = False  # answer 200 with the whole file
        self.length_off = 0  # added to the Content-Length of files, while all bytes are sent
        self.no_validators = False  # no ETag, no Last-Modified
        self.busy = 0  # so many questions are answered "not now"
        self.answer: tuple[int, bytes] | None = None  # to every question
        self.delay_s = 0.0  # before every answer
        self.piece_delay_s = 0.0  # between two pieces of 64 KiB of a file
        self.trickle_s = 0.0  # between two bytes of an answer
        self.hang = threading.Event()  # set: nothing is answered
        self.at: dict[int, Callable[[], object]] = {}  # when so many bytes of files were sent in all


class Camera:
    """A context manager. `url` is where it is; `sent` counts the bytes of each file, `asked` the questions."""

    serial = "SIM0001"
    handler: ClassVar[type[CameraHandler]]
    files_at = "/"
    """What URLs of files begin with."""

    def __init__(self, folder: Path | str, host: str = "127.0.0.1", port: int = 0):
        self.folder, self.host, self.port = str(folder), host, port
        self.faults = Faults()
        self.sent: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.connections = 0
        self.tls: ssl.SSLContext | None = None
        self.login = ""  # `Basic ...` that each question must bring
        self.lock = threading.Lock()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Its address; the same after it was away."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    # -- life -------------------------------------------------------------------------------------------------------

    def on(self) -> Self:
        """Answer, from now on."""
        if self._server is None:
            self._server = _Server((self.host, self.port), type(self).handler, self)
            self.port = self._server.server_address[1]
            if self.tls is not None:
                self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def off(self) -> None:
        """Refuse connections, and break those there are, as a camera that is switched off."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.socket.close()
            server.break_all()

    def __enter__(self) -> Self:
        return self.on()

    def __exit__(self, *exc: object) -> None:
        self.off()

    # -- the card ---------------------------------------------------------------------------------------------------

    def files(self) -> list[File]:
        """What is on the card, newest first."""
        found, folders, top = [], [self.folder], len(self.folder.rstrip("/")) + 1
        while folders:
            for entry in os.scandir(folders.pop()):
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_dir():
                        folders.append(entry.path)
                    else:
                        st = entry.stat()
                        found.append(File(entry.path[top:], entry.path, st.st_size, st.st_mtime))
        return sorted(found, key=lambda f: (-f.mtime, f.path))

    def at(self, path: str) -> str | None:
        """The file of a path; None if there is none, or it lies elsewhere."""
        full = os.path.join(self.folder, path)
        inside = "\0" not in path and ".." not in path.split("/") and not path.startswith("/")
        return full if inside and os.path.isfile(full) else None

    def count(self, path: str, n: int) -> None:
        """Bytes of a file that went out."""
        with self.lock:
            before = self.sent.total()
            self.sent[path] += n
            due = [mark for mark in self.faults.at if before < mark <= before + n]
            calls = [self.faults.at.pop(mark) for mark in due]
        for call in calls:
            call()

    def strike(self) -> bool:
        """Whether a connection is to be cut once more."""
        with self.lock:
            due = self.faults.cuts > 0
            self.faults.cuts -= due
            return due


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[CameraHandler], camera: Camera):
        self.camera = camera
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        self.camera.connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def break_all(self) -> None:
        for one in tuple(self._open):
            reset(one)


def reset(one: socket.socket) -> None:
    """End a connection as a device does that loses its power."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RDWR)


class CameraHandler(BaseHTTPRequestHandler):
    """One connection. Subclasses answer questions in `question`; files are served here."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def camera(self) -> Camera:
        """Whose connection it is."""
        return self.server.camera

    def question(self, path: str, query: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """Status and answer; None if the protocol knows no such question."""
        raise NotImplementedError

    def refuse(self, why: str) -> tuple[int, dict[str, Any]]:
        """How the protocol says "not now"."""
        return 503, {"error": 1, "message": why}

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        """A question with a body."""
        length = int(self.headers.get("Content-Length") or 0)
        try:
            body = json.loads(self.rfile.read(length) or b"{}")
        except ValueError:
            body = {}
        self._ask(body if isinstance(body, dict) else {})

    def do_GET(self) -> None:
        """A question, or a file."""
        self._ask({})

    def _ask(self, body: dict[str, Any]) -> None:
        camera, faults = self.camera, self.camera.faults
        while faults.hang.is_set():
            time.sleep(0.01)
        time.sleep(faults.delay_s)
        parts = urlsplit(self.path)
        path = unquote(parts.path, errors="surrogateescape")
        if camera.login and self.headers.get("Authorization") != camera.login:
            self.send(401, b"{}")
            return
        if faults.answer is not None:
            self.send(*faults.answer)
            return
        busy = False
        with camera.lock:
            if faults.busy > 0:
                faults.busy -= 1
                busy = True
        found = self.refuse("not now") if busy else self.question(path, parts.query, body)
        if found is not None:
            with camera.lock:
                camera.asked[str(body.get("name") or path)] += 1
            self.send(found[0], json.dumps(found[1]).encode())
        elif path.startswith(camera.files_at) and (full := camera.at(path.removeprefix(camera.files_at))):
            self._file(path.removeprefix(camera.files_at), full)
        else:
            self.send(404, b'{"error": {"code": "notFound", "message": "no such thing"}}')

    def send(self, status: int, body: bytes) -> None:
        """An answer that is no file."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        trickle = self.camera.faults.trickle_s
        for start in range(0, len(body), 1 if trickle else max(1, len(body))):
            self.wfile.write(body[start : start + 1] if trickle else body)
            time.sleep(trickle)

    def _file(self, path: str, full: str) -> None:
        faults = self.camera.faults
        with open(full, "rb") as file:  # noqa: PTH123 - the name may be no UTF-8
            st = os.fstat(file.fileno())
            first, last, status = 0, st.st_size - 1, 200
            asked = re.match(r"bytes=(\d+)-(\d*)\Z", self.headers.get("Range") or "")
            if asked and not faults.ignore_range:
                first, status = int(asked[1]), 206
                last = min(last, int(asked[2])) if asked[2] else last
                if first >= st.st_size:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{st.st_size}")
                    self._validators(st)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(last + 1 - first + faults.length_off))
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{st.st_size}")
            self._validators(st)
            self.end_headers()
            self._body(path, file, first, last)

    def _validators(self, st: os.stat_result) -> None:
        if not self.camera.faults.no_validators:
            self.send_header("Last-Modified", self.date_time_string(int(st.st_mtime)))
            self.send_header("ETag", f'"{st.st_ino:x}-{st.st_mtime_ns:x}-{st.st_size:x}"')

    def _body(self, path: str, file: Any, first: int, last: int) -> None:
        camera, faults = self.camera, self.camera.faults
        file.seek(first)
        left, done = last + 1 - first, 0
        while left:
            n = min(left, PIECE)
            cut = faults.cut_after
            ends = cut is not None and done + n > cut and camera.strike()
            data = file.read(max(0, (cut or 0) - done) if ends else n)
            if data:
                camera.count(path, len(data))  # before the client can have it
                self.wfile.write(data)
            if ends or not data:
                self.close_connection = True
                reset(self.connection) if ends else None
                return
            left, done = left - len(data), done + len(data)
            if faults.piece_delay_s:
                time.sleep(faults.piece_delay_s)
        if faults.length_off:
            self.close_connection = True
