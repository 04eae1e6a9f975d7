"""How a camera is asked over HTTP: one address, bounded answers, and what its refusals mean.

What is asked of which camera is in `osc_camera.py` and `http_camera.py`; files are read in `camera_file.py`. Nothing is
ever fetched from another address than the block's, whatever a listing says.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import json
import os
import socket
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from blocks import names
from blocks.errors import (
    AuthError,
    ConfigError,
    Corrupt,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    UnknownError,
)

if TYPE_CHECKING:
    pass

ANSWER_MOST = 64 << 20
"""Bytes of an answer that is no file: a listing of 300,000 files."""
KEPT = 4
"""Idle connections of a session."""

CODES: dict[str, type[OnblockError]] = {
    # Open Spherical Camera, level 2
    "unknownCommand": ConfigError, "missingParameter": ConfigError, "invalidParameterName": ConfigError,
    "invalidParameterValue": ConfigError, "tooManyParameters": ConfigError,
    "cameraInExclusiveUse": NetworkError, "disabledCommand": NetworkError, "serverError": UnknownError,
    # Ricoh's and Insta360's own
    "canceledShooting": NetworkError, "powerOffSequenceRunning": NetworkError, "serviceUnavailable": NetworkError,
    "deviceBusy": NetworkError, "processing": NetworkError, "noSdCard": NotFound, "noCard": NotFound,
    "corruptedFile": Corrupt, "invalidFileFormat": Corrupt, "unexpected": UnknownError,
}  # fmt: skip
"""The one table for cameras, by the error code in the answer; then comes `STATUS`."""

STATUS: dict[int, type[OnblockError]] = {
    400: ConfigError, 401: AuthError, 403: PermissionRefused, 404: NotFound, 405: ConfigError, 408: NetworkError,
    409: NetworkError, 410: NotFound, 423: NetworkError, 429: NetworkError, 500: UnknownError, 501: ConfigError,
    502: NetworkError, 503: NetworkError, 504: NetworkError,
}  # fmt: skip
"""By the status of an answer without a code that we know. A redirect is CONFIG: a camera sends nobody elsewhere."""

BUSY = "tried again by itself; let the camera finish what it is doing"
REMEDY: dict[str, str] = {
    "disabledCommand": BUSY, "cameraInExclusiveUse": "tried again by itself; close the app that holds the camera",
    "deviceBusy": BUSY, "processing": BUSY, "noSdCard": "put a card into the camera", "noCard": "put a card in",
}  # fmt: skip


def classify(code: str, status: int) -> type[OnblockError]:
    """The class of the taxonomy for an answer that is no success: its error code, if it has one, and its status."""
    if code in CODES:
        return CODES[code]
    if 300 <= status < 400:
        return ConfigError
    return STATUS.get(status, UnknownError)


def unreachable(error: Exception, where: str, path: str = "") -> OnblockError:
    """The failure for a connection that did not come about, or broke."""
    if isinstance(error, ssl.SSLCertVerificationError):
        failure: OnblockError = AuthError(
            f"{where} shows a certificate that cannot be verified: {getattr(error, 'verify_message', error)}", path=path,
            remedy="give the camera's own certificate as `ca_file`",
        )  # fmt: skip
    elif isinstance(error, TimeoutError):
        failure = NetworkError(f"{where} does not answer in time", path=path)
    elif isinstance(error, socket.gaierror):
        failure = NetworkError(f"{where} is not known to the name server", path=path)
    elif isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        failure = UnknownError(f"no connection to {where}: {os.strerror(error.errno)}", path=path)
    elif isinstance(error, (OSError, http.client.IncompleteRead, http.client.RemoteDisconnected)):
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "the connection was cut"
        failure = NetworkError(f"{where}: {why}", path=path)
    else:
        failure = UnknownError(f"{where} does not speak HTTP: {type(error).__name__}", path=path)
    failure.__cause__ = error
    return failure


@dataclass(frozen=True)
class Address:
    """Where a camera is, as its block says, and how long to wait for it."""

    url: str  # http://HOST[:PORT]
    timeout_s: float
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""

    @property
    def host(self) -> str:
        return str(urlsplit(self.url).hostname)

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """Not yet connected."""
        if self.url.startswith("https:"):
            try:
                context = ssl.create_default_context(cafile=self.ca_file or None)
            except (OSError, ValueError) as error:
                raise ConfigError(f"`ca_file` {self.ca_file!r} cannot be used: {error}") from error
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)

    def is_meant(self, url: str, others: list[str]) -> bool:
        """Whether a URL in a listing points at this camera: a listing may send nobody anywhere else."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            return False
        if (parts.hostname, port) == (self.host, self.port):
            return True
        return any(one in (parts.hostname, f"{parts.hostname}:{port}") for one in others)


def check_url(value: str) -> str:
    """`value` as http://HOST[:PORT]; ValueError for anything else."""
    parts = None
    try:
        parts = urlsplit(value)
        fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine or parts is None or parts.path.strip("/") or parts.query or parts.fragment or not value.isprintable():
        raise ValueError(f"{names.display(value)!r} is not http://HOST or http://HOST:PORT")
    if parts.username or parts.password:
        raise ValueError("an address holds no user name or password")
    return value.rstrip("/")


class Wire:
    """Connections to one camera, of one session. Not shared between threads."""

    def __init__(self, address: Address):
        self.address = address
        self.where = f"the camera at {address.url}"
        self._idle: list[http.client.HTTPConnection] = []
        self.headers = {"Accept-Encoding": "identity", "User-Agent": "onblock"}
        if address.user:
            login = base64.b64encode(f"{address.user}:{address.password}".encode()).decode()
            self.headers["Authorization"] = f"Basic {login}"

    # -- asking ---------------------------------------------------------------------------------------------------

    def ask(
        self, target: str, body: dict[str, Any] | None = None, *, path: str = "", within: float | None = None
    ) -> dict[str, Any]:
        """A question with a JSON answer: POST with a `body`, else GET. Answered whole `within` seconds."""
        headers = {"Accept": "application/json", "X-XSRF-Protected": "1"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json; charset=utf-8"
        seconds = within or max(60.0, self.address.timeout_s)
        timer = _Timer(seconds)
        try:
            connection, answer = self.request("GET" if body is None else "POST", target, headers, data, path, timer)
            try:
                text = answer.read(ANSWER_MOST + 1)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise unreachable(TimeoutError() if timer.struck else error, self.where, path) from error
        finally:
            timer.cancel()
        if answer.length or len(text) > ANSWER_MOST or timer.struck:
            connection.close()
            raise NetworkError(f"{self.where} broke off in its answer", path=path)
        self.put_back(connection, answer)
        return self._judge(answer.status, text, path)

    def _judge(self, status: int, text: bytes, path: str) -> dict[str, Any]:
        try:
            found = json.loads(text) if text else {}
        except (ValueError, RecursionError) as error:
            if 200 <= status < 300 and text.lstrip()[:1] == b"{":
                raise NetworkError(f"{self.where} broke off in its answer", path=path) from error
            if 200 <= status < 300:
                raise self.stranger() from error
            raise self.refusal(status, {}, path) from error
        if not isinstance(found, dict):
            raise UnknownError(f"{self.where} answers with no object", path=path)
        if not 200 <= status < 300 or found.get("state") == "error" or isinstance(found.get("error"), dict):
            raise self.refusal(status, found, path)
        return found

    def stranger(self) -> ConfigError:
        """The failure for something else that answers there: a router, another make."""
        return ConfigError(
            f"something answers at {self.address.url} that is not this kind of camera",
            remedy="check the address, and that this machine is in the camera's network",
        )

    def refusal(self, status: int, found: dict[str, Any], path: str) -> OnblockError:
        """The failure for an answer that is no success."""
        told = found.get("error")
        told = told if isinstance(told, dict) else {}
        code, message = str(told.get("code") or ""), str(told.get("message") or "")
        said = names.display(": ".join(filter(None, (code or f"status {status}", message)))[:300])
        return classify(code, status)(f"{self.where} says {said}", path=path, remedy=REMEDY.get(code))

    # -- connections ----------------------------------------------------------------------------------------------

    def request(
        self,
        verb: str,
        target: str,
        headers: dict[str, str],
        data: bytes | None,
        path: str,
        timer: _Timer | None = None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send, and read the answer's head. A kept connection that the camera has closed meanwhile is replaced once."""
        patience = min(self.address.timeout_s, timer.seconds) if timer else self.address.timeout_s
        while True:
            kept = bool(self._idle)
            connection = self._idle.pop() if kept else self.address.connect(patience)
            try:
                if connection.sock is None:
                    connection.connect()
                sock: socket.socket = connection.sock  # pyright: ignore[reportAssignmentType]
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(patience)
                if timer is not None:
                    timer.watch(sock)
                connection.request(verb, target, data, {**self.headers, **headers})
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                late = timer is not None and timer.struck
                if kept and not late and not isinstance(error, TimeoutError):
                    continue
                raise unreachable(TimeoutError() if late else error, self.where, path) from error

    def put_back(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
        """Keep a connection whose answer was read to its end, for the next question."""
        if answer.will_close or len(self._idle) >= KEPT or not answer.isclosed():
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """End all connections."""
        while self._idle:
            self._idle.pop().close()


class _Timer(threading.Thread):
    """Ends a connection that takes too long altogether: a timeout for each byte would let one byte a minute pass."""

    def __init__(self, seconds: float):
        super().__init__(daemon=True, name="onblock-camera-timer")
        self.seconds, self.struck = seconds, False
        self._sock: socket.socket | None = None
        self._done = threading.Event()

    def watch(self, sock: socket.socket) -> None:
        """This is the connection; the clock runs from the first one."""
        self._sock = sock
        if not self.is_alive():
            self.start()

    def run(self) -> None:
        if not self._done.wait(self.seconds):
            self.struck = True
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)

    def cancel(self) -> None:
        """It answered."""
        self._done.set()
