"""What a camera may answer, and what is made of it; each failure is one of the taxonomy."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from blocks.devices import HttpCamera, MountedCard, OscCamera
from blocks.devices import base as devices_base
from blocks.devices.camera_file import Part, get
from blocks.devices.camera_http import Wire, classify, unreachable
from blocks.devices.camera_listing import whole_number
from blocks.errors import (
    AuthError,
    ConfigError,
    Corrupt,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceChanged,
    SourceVanished,
    UnknownError,
)
from deployments.simulators.camera import Camera
from tests.contract.data import fetch, payload
from tests.devices.conftest import MIB, device_of, put
from tests.servers.gopro import GoProSimulator

CODES = [
    ("disabledCommand", 403, NetworkError), ("cameraInExclusiveUse", 400, NetworkError),
    ("serverError", 500, UnknownError), ("unknownCommand", 400, ConfigError), ("missingParameter", 400, ConfigError),
    ("invalidParameterName", 400, ConfigError), ("invalidParameterValue", 400, ConfigError),
    ("corruptedFile", 400, Corrupt), ("noSdCard", 400, NotFound),
    ("", 400, ConfigError), ("", 401, AuthError), ("", 403, PermissionRefused), ("", 404, NotFound),
    ("", 408, NetworkError), ("", 429, NetworkError), ("", 500, UnknownError), ("", 502, NetworkError),
    ("", 503, NetworkError), ("", 504, NetworkError), ("", 301, ConfigError), ("", 307, ConfigError),
    ("neverHeardOf", 503, NetworkError), ("neverHeardOf", 418, UnknownError),
]  # fmt: skip
ERRORS = [
    (ConnectionRefusedError(errno.ECONNREFUSED, "x"), NetworkError), (TimeoutError(), NetworkError),
    (ConnectionResetError(errno.ECONNRESET, "x"), NetworkError), (BrokenPipeError(errno.EPIPE, "x"), NetworkError),
    (socket.gaierror(-2, "x"), NetworkError), (OSError(errno.EHOSTUNREACH, "x"), NetworkError),
    (OSError(errno.ENETUNREACH, "x"), NetworkError), (OSError(errno.EMFILE, "x"), UnknownError),
    (http.client.RemoteDisconnected("x"), NetworkError), (http.client.IncompleteRead(b"x"), NetworkError),
    (http.client.BadStatusLine("SSH-2.0"), UnknownError), (ssl.SSLCertVerificationError("x"), AuthError),
]  # fmt: skip


@pytest.mark.parametrize(("code", "status", "kind"), CODES)
def test_the_table_of_answers(code: str, status: int, kind: type[OnblockError]) -> None:
    assert classify(code, status) is kind


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=lambda x: type(x).__name__ if isinstance(x, Exception) else "")
def test_the_table_of_connections(error: Exception, kind: type[OnblockError]) -> None:
    failure = unreachable(error, "the camera at http://x", "a")
    assert type(failure) is kind
    assert failure.__cause__ is error
    assert "http://x" in str(failure)


@pytest.mark.parametrize(
    ("value", "number"),
    [(5, 5), ("5", 5), (0, 0), (-1, None), ("-1", None), (1.5, None), (True, None), (None, None), ("", None),
     ("9" * 30, None), (1 << 80, None), ("٣", None), ([], None)],
)  # fmt: skip
def test_numbers_of_a_listing(value: object, number: int | None) -> None:
    assert whole_number(value) == number


# -- the block ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OscCamera, HttpCamera])
@pytest.mark.parametrize(
    "url",
    ["", "ftp://x", "http://", "http://u:p@x", "http://x/path", "http://x?q", "http://x:99999", "x", "http://x\n"],
)
def test_an_address_that_is_none(kind: type[OscCamera], url: str) -> None:
    with pytest.raises(ValidationError):
        kind(device="x", url=url)


@pytest.mark.parametrize("kind", [OscCamera, HttpCamera, MountedCard])
def test_a_device_has_a_name(kind: type[OscCamera]) -> None:
    keys = {"mount": "/media/x"} if kind is MountedCard else {}
    for name in ("", "-x", "a b", "../x", "x" * 101):
        with pytest.raises(ValidationError):
            kind(device=name, **keys)
    one = kind(device="cam-1", **keys)
    assert one.tag == "device:cam-1"
    assert one == one.model_copy(deep=True)
    with pytest.raises(ValidationError):
        kind(**keys)


def test_a_password_goes_over_https_only_and_is_never_shown() -> None:
    with pytest.raises(ValidationError):
        HttpCamera(device="x", url="http://x", user="u", password="secret-1")
    one = HttpCamera(device="x", url="https://x", user="u", password="secret-1")
    assert "secret-1" not in repr(one) + str(one.address(1)) + one.place() + str(one.model_dump())


def test_nothing_is_put_on_a_device(camera: Camera) -> None:
    with device_of(camera).open() as session:
        assert not session.features.writable
        with pytest.raises(ConfigError, match="only read"):
            session.upload("a", 1)
        with pytest.raises(ConfigError):
            session.move("a", "b")


# -- presence -------------------------------------------------------------------------------------------------------


def test_there_and_away(camera: Camera) -> None:
    device = device_of(camera)
    assert device.connected() and device.presence() == ""
    camera.off()
    assert not device.connected()
    assert "refused" in device.presence()
    with pytest.raises(NetworkError):
        device.open()
    camera.on()
    assert device.connected()


def test_another_camera_at_its_address(camera: Camera) -> None:
    assert device_of(camera, serial=camera.serial).connected()
    other = device_of(camera, serial="NOT-THIS-ONE")
    assert "another camera" in other.presence()
    with pytest.raises(NetworkError):
        other.open()


@pytest.mark.parametrize(
    "answer",
    [(200, b"<html>a router</html>"), (404, b"nothing here"), (404, b"{}"), (302, b""), (401, b""), (200, b"[1]"),
     (200, b'{"a": '), (500, b"\xff\xfe")],
)  # fmt: skip
def test_something_else_at_its_address(camera: Camera, answer: tuple[int, bytes]) -> None:
    camera.faults.answer = answer
    device = device_of(camera)
    assert device.presence()
    with pytest.raises(OnblockError) as caught:
        device.open()
    assert caught.value.kind.value in ("CONFIG", "AUTH", "UNKNOWN", "NETWORK")


def test_a_camera_that_does_not_answer(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent, or a byte now and then: there is an end to it, and no thread is left waiting for each look."""
    monkeypatch.setattr(devices_base, "PATIENCE_S", 30.0)
    device = device_of(camera, timeout_s=0.3)
    camera.faults.hang.set()
    began = time.monotonic()
    assert "in time" in device.presence()
    with pytest.raises(NetworkError):
        device.open()
    assert time.monotonic() - began < 10
    camera.faults.hang.clear()
    camera.faults.trickle_s = 0.2  # each byte within the timeout, the whole not
    assert device.presence()
    assert time.monotonic() - began < 20


def test_a_look_that_hangs(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a dead network mount does: no answer is no, and no second look is sent after the first."""
    device = device_of(camera)
    goes_on, looks = threading.Event(), []
    monkeypatch.setattr(type(device), "look", lambda self: (looks.append(1), goes_on.wait(60)))
    monkeypatch.setattr(devices_base, "PATIENCE_S", 0.05)
    assert not device.connected() and not device.connected()
    assert len(looks) == 1
    goes_on.set()
    monkeypatch.setattr(devices_base, "PATIENCE_S", 30.0)
    assert device.connected()


# -- busy, and answers that cannot be -------------------------------------------------------------------------------


def test_busy_is_tried_again(camera: Camera) -> None:
    with device_of(camera).open() as session:
        camera.faults.busy = 1
        with pytest.raises(NetworkError):
            list(session.scan())
        assert list(session.scan()) == []


def test_connections_are_kept_and_one_that_ended_is_replaced(camera: Camera, tmp_path: Path) -> None:
    put(tmp_path / "card", "a/b", payload(1000))
    with device_of(camera).open() as session:
        for _ in range(20):
            assert fetch(session, "a/b") == payload(1000)
        assert camera.connections <= 2
        camera.off()
        camera.on()  # the kept connection is dead, which nobody notices
        assert fetch(session, "a/b") == payload(1000)


def test_a_file_that_ends_too_early_is_a_failure(camera: Camera, tmp_path: Path) -> None:
    put(tmp_path / "card", "a/b", payload(3 * MIB))
    with device_of(camera).open() as session:
        camera.faults.cut_after = 700_000
        with pytest.raises(NetworkError):
            fetch(session, "a/b")
        with pytest.raises(NetworkError):
            fetch(session, "a/b", MIB)


def test_ranges_that_are_ignored(camera: Camera, tmp_path: Path) -> None:
    data = put(tmp_path / "card", "a/b", payload(3 * MIB))
    camera.faults.ignore_range = True
    with device_of(camera).open() as session:
        for offset in (0, 1, MIB, 3 * MIB - 1, 3 * MIB):
            assert fetch(session, "a/b", offset) == data[offset:]
        with pytest.raises(SourceChanged):
            fetch(session, "a/b", 3 * MIB + 1)


def test_a_file_that_is_swapped_between_two_requests(camera: Camera, tmp_path: Path) -> None:
    put(tmp_path / "card", "a/b", payload(MIB), 1_700_000_000)
    with device_of(camera).open() as session, session.read("a/b") as reader:
        assert reader.readinto(bytearray(1000)) == 1000
        put(tmp_path, "other", payload(MIB, 2), 1_700_000_060)
        (tmp_path / "other").replace(tmp_path / "card/a/b")  # at once: what is being sent is still of the first
        with pytest.raises(SourceChanged):
            reader.readinto(bytearray(MIB))


class Odd(BaseHTTPRequestHandler):
    """Answers with the head and body the test wants."""

    protocol_version = "HTTP/1.1"
    head: tuple[int, dict[str, str]]

    def do_GET(self) -> None:
        self.send_response(self.head[0])
        for name, value in self.head[1].items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"x" * 10)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[Callable[[int, dict[str, str]], Part]]:
    """`odd(status, headers)` is the answer to a GET for the bytes from 5 on."""
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (Odd,), {}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def ask(status: int, head: dict[str, str]) -> Part:
        server.RequestHandlerClass.head = (status, head)  # type: ignore[attr-defined]
        camera = HttpCamera(device="x", url=f"http://127.0.0.1:{server.server_address[1]}", timeout_s=5)
        return get(Wire(camera.address(5)), "/x", 5, 14, "x")

    yield ask
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "head", "kind"),
    [
        (206, {"Content-Range": "bytes 6-15/100"}, UnknownError),
        (206, {"Content-Range": "bytes 5-14/100", "Content-Length": "9"}, UnknownError),
        (206, {"Content-Range": "seats 5-14/100"}, UnknownError),
        (206, {}, UnknownError),
        (206, {"Content-Range": "bytes */100"}, UnknownError),
        (416, {"Content-Range": "bytes */100", "Content-Length": "0"}, UnknownError),
        (200, {"Content-Encoding": "gzip", "Content-Length": "10"}, UnknownError),
        (301, {"Location": "http://192.0.2.1/x", "Content-Length": "0"}, ConfigError),
        (404, {"Content-Length": "10"}, SourceVanished),
        (503, {"Content-Length": "10"}, NetworkError),
        (200, {"Content-Length": "4"}, SourceChanged),
    ],
)
def test_an_answer_that_cannot_be(
    odd: Callable[[int, dict[str, str]], Part], status: int, head: dict[str, str], kind: type[OnblockError]
) -> None:
    with pytest.raises(OnblockError) as caught:
        odd(status, head)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("status", "head", "total", "left"),
    [
        (206, {"Content-Range": "bytes 5-14/15", "Content-Length": "10"}, 15, 10),
        (206, {"Content-Range": "bytes 5-14/*", "Content-Length": "10"}, None, 10),
        (206, {"Content-Range": "bytes 5-9/100", "Content-Length": "5"}, 100, 5),
        (416, {"Content-Range": "bytes */5", "Content-Length": "0"}, 5, 0),
        (200, {"Content-Length": "10"}, 10, 5),
    ],
)
def test_an_answer_as_it_should_be(
    odd: Callable[[int, dict[str, str]], Part], status: int, head: dict[str, str], total: int | None, left: int
) -> None:
    part = odd(status, head)
    assert (part.total, part.left) == (total, left)
    part.close()


def test_the_simulator_as_a_program(tmp_path: Path) -> None:
    """As `onblock demo` runs it."""
    put(tmp_path, "DCIM/x.insv", b"data")
    argv = [sys.executable, "-m", "deployments.simulators.osc", str(tmp_path), "--serial", "DEMO1"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            device = OscCamera(device="demo", url=program.stdout.readline().strip(), serial="DEMO1")
            with device.open() as session:
                assert fetch(session, "DCIM/x.insv") == b"data"
        finally:
            program.terminate()


def test_a_camera_with_tls_and_a_password(tmp_path: Path) -> None:
    """As GoPro's COHN has it: a certificate of the camera's own, and a login."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    argv = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
        "-subj", "/CN=camera", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert),
    ]  # fmt: skip
    subprocess.run(argv, check=True, capture_output=True)
    data = put(tmp_path / "card", "100GOPRO/x.MP4", payload(MIB))
    simulator = GoProSimulator(tmp_path / "card")
    simulator.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    simulator.tls.load_cert_chain(cert, key)
    simulator.login = "Basic Z29wcm86c2VjcmV0LTE="
    with simulator:
        given = {"device": "camera", "url": simulator.url, "user": "gopro", "password": "secret-1"}
        with HttpCamera(**given, ca_file=str(cert)).open() as session:
            assert fetch(session, "100GOPRO/x.MP4") == data
        with pytest.raises(AuthError, match="certificate"):
            HttpCamera(**given).open()
        with pytest.raises(AuthError) as caught:
            HttpCamera(**given | {"password": "wrong-2"}, ca_file=str(cert)).open()
        assert "wrong-2" not in str(caught.value)
        with pytest.raises(ConfigError, match="ca_file"):
            HttpCamera(**given, ca_file=str(tmp_path / "none.pem")).open()
