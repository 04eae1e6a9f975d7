"""Where pictures and samples come from: any input of FFmpeg, and sensors. And what their failures mean.

A source may block for as long as its driver does; `lane.py` reads it in a thread that it can do without.
"""

from __future__ import annotations

import errno
import math
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from blocks.errors import (
    AuthError,
    ConfigError,
    Conflict,
    Corrupt,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    UnknownError,
)
from flows.capture.sidecar import NONE, SAMPLE_MAX
from flows.capture.spec import SensorSpec, StreamSpec

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

FRESH_NS = 5_000_000_000
"""A device's time that is less than this before now is taken for CLOCK_MONOTONIC."""


# -- failures -------------------------------------------------------------------------------------------------------

FAILURES: dict[int, tuple[type[OnblockError], str, str]] = {
    errno.ENOENT: (NotFound, "there is no such camera or file", "check that it is plugged in, and `input`"),
    errno.ENODEV: (NotFound, "the camera is gone", "check its cable; it is opened again by itself"),
    errno.ENXIO: (NotFound, "the camera is gone", "check its cable; it is opened again by itself"),
    errno.EBUSY: (Conflict, "the camera is busy", "another program has it: `fuser -v` on its device tells which"),
    errno.EACCES: (
        PermissionRefused,
        "the camera may not be opened",
        "add the account that records to the group video",
    ),
    errno.EPERM: (PermissionRefused, "the camera may not be opened", "add the account that records to the group video"),
    errno.EINVAL: (
        ConfigError,
        "the camera does not take these settings",
        "choose a `size`, `fps` and `pixel_format` that `v4l2-ctl --list-formats-ext` lists",
    ),
    errno.ENOTTY: (ConfigError, "is no camera", "check `input` and `format`"),
    errno.ETIMEDOUT: (NetworkError, "the camera does not answer", "it is opened again by itself"),
    errno.ECONNREFUSED: (NetworkError, "the camera refuses connections", "it is opened again by itself"),
    errno.ECONNRESET: (NetworkError, "the connection to the camera broke", "it is opened again by itself"),
    errno.EHOSTUNREACH: (NetworkError, "the camera cannot be reached", "it is opened again by itself"),
    errno.ENETUNREACH: (NetworkError, "the camera cannot be reached", "it is opened again by itself"),
    errno.EPIPE: (NetworkError, "the connection to the camera broke", "it is opened again by itself"),
    errno.EIO: (NetworkError, "the camera does not answer", "it is opened again by itself"),
}
"""By the errno that FFmpeg or the kernel gives."""
BY_NAME: dict[str, tuple[type[OnblockError], str, str]] = {
    "HTTPUnauthorizedError": (AuthError, "the camera refuses the login", "check `login_file`"),
    "HTTPForbiddenError": (AuthError, "the camera refuses the login", "check `login_file`"),
    "HTTPNotFoundError": (NotFound, "the camera has no such stream", "check `input`"),
    "ExitError": (NetworkError, "the camera does not answer", "it is opened again by itself"),
    "InvalidDataError": (
        Corrupt,
        "what the camera sends cannot be read",
        "check `format`, `pixel_format` and the line",
    ),
    "ProtocolNotFoundError": (ConfigError, "this FFmpeg has no such protocol", "check `input`"),
    "DemuxerNotFoundError": (ConfigError, "this FFmpeg has no such format", "check `format`"),
    "DecoderNotFoundError": (ConfigError, "this FFmpeg cannot decode it", "use `codec: copy`"),
    "OptionNotFoundError": (ConfigError, "the input has no such option", "check `options`"),
}
"""By the class of PyAV, for what has no errno."""


def failure(error: Exception, spec: StreamSpec | SensorSpec) -> OnblockError:
    """What an exception of a source means, with the name of its stream and no secret."""
    if isinstance(error, OnblockError):
        return error
    found = None
    for cls in type(error).__mro__:
        found = found or BY_NAME.get(cls.__name__)
    if found is None:  # PyAV's errors have an errno, whatever else they are
        found = FAILURES.get(getattr(error, "errno", None) or 0)
    said = getattr(error, "strerror", None) or type(error).__name__
    if found is None:
        if isinstance(error, ValueError):  # PyAV does not know the format
            found = (ConfigError, f"cannot be opened: {error}", "check `input`, `format` and `options`")
        else:
            found = (UnknownError, f"failed ({type(error).__name__}: {said})", "it is opened again by itself")
    kind, what, remedy = found
    where = spec.input if isinstance(spec, StreamSpec) else str(spec.path or spec.kind)
    made = kind(f"{spec.name}: {what}", path=where, remedy=remedy)
    made.__cause__ = error
    return made


# -- cameras --------------------------------------------------------------------------------------------------------


def input_options(spec: StreamSpec) -> dict[str, str]:
    """The options that FFmpeg's input is opened with."""
    options = {}
    if spec.size:
        options["video_size"] = spec.size
    if spec.fps:
        options["framerate"] = f"{spec.fps:g}"
    if spec.pixel_format:
        key = "input_format" if spec.format in ("v4l2", "video4linux2") else "pixel_format"
        options[key] = spec.pixel_format
    if spec.input.startswith("rtsp://"):
        options["rtsp_transport"] = "tcp"  # what UDP loses cannot be told from what the camera did not send
    return options | spec.options


def with_login(spec: StreamSpec) -> str:
    """The address to open. Raises ConfigError where the login file is unfit."""
    if spec.login_file is None:
        return spec.input
    try:
        if stat.S_IMODE(spec.login_file.stat().st_mode) & 0o077:
            raise ConfigError("can be read by others", path=str(spec.login_file), remedy="chmod 600 it")
        user, colon, password = spec.login_file.read_text("utf-8").strip().partition(":")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the login of {spec.name} cannot be read", path=str(spec.login_file)) from error
    if not colon:
        raise ConfigError("holds no USER:PASSWORD", path=str(spec.login_file))
    parts = urlsplit(spec.input)
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=login))


def open_input(spec: StreamSpec) -> tuple[InputContainer, VideoStream]:
    """Open a camera; its first video stream. Raises OnblockError."""
    import av

    still = spec.stalled_after.total_seconds()
    try:
        container = av.open(
            with_login(spec), "r", format=spec.format, options=input_options(spec), timeout=(7.5, still),
            metadata_errors="replace",
        )  # fmt: skip
    except (OSError, ValueError) as error:
        cause: Exception = error
        if spec.login_file is not None:  # PyAV's own error holds the address, and with it the password
            cause = OSError(getattr(error, "errno", None) or errno.EIO, getattr(error, "strerror", None) or "refused")
            cause = type(error)(cause.errno, cause.strerror) if isinstance(error, OSError) else ValueError("refused")
        raise failure(cause, spec) from None
    if not container.streams.video:
        container.close()
        raise ConfigError(f"{spec.name}: holds no video", path=spec.input, remedy="check `input` and `format`")
    return container, container.streams.video[0]


@dataclass(frozen=True)
class Times:
    """When a frame was, in ns after the start of the recording."""

    arrived: int
    device: int
    pts: int
    dts: int


class FrameClock:
    """Gives the frames of one connection their times.

    By arrival; but a V4L2 driver stamps frames with CLOCK_MONOTONIC as they are exposed, which is nearer to the truth.
    What the device says of the order of pictures (pts - dts) is kept. `device`: its own count, from the first arrival on,
    and anew from where it goes back. `last`: the time of decoding of the frame before; those of a stream never go back.
    """

    def __init__(self, start_ns: int, spec: StreamSpec, last: int | None = None):
        self._start_ns, self._by_device = start_ns, spec.timestamps == "device"
        self._kernel = spec.format in ("v4l2", "video4linux2")
        self._anchor: int | None = None
        self._last = last

    def times(self, now_ns: int, pts_ns: int | None, dts_ns: int | None) -> Times:
        """Of a frame that arrived at `now_ns` (CLOCK_MONOTONIC); `pts_ns` and `dts_ns` as the device counts."""
        arrived = now_ns - self._start_ns
        said = dts_ns if dts_ns is not None else pts_ns
        least = arrived if self._last is None else max(self._last + 1, arrived)
        if said is None:
            self._last = least
            return Times(arrived, NONE, least, least)
        later = max(pts_ns - said, 0) if pts_ns is not None else 0
        device = pts_ns if pts_ns is not None else said
        if self._by_device:
            if self._anchor is None or (self._last is not None and self._anchor + said <= self._last):
                self._anchor = least - said  # the first, or it counts anew
            at = self._anchor + said
        elif self._kernel and 0 <= now_ns - said < FRESH_NS and said >= self._start_ns:
            at = said - self._start_ns
        else:
            at = arrived
        if self._last is not None and at <= self._last:
            at = least
        self._last = at
        return Times(arrived, device, at + later, at)


# -- sensors --------------------------------------------------------------------------------------------------------


class Sample(Protocol):
    """One sample of a sensor."""

    device_ns: int
    payload: bytes


@dataclass(slots=True)
class Measured:
    """A sample: when the device says it was (ns, or NONE), and what it measured."""

    device_ns: int
    payload: bytes


class SensorSource(Protocol):
    """A sensor that is open."""

    header: dict[str, Any]
    """How its samples are to be read: `encoding` is `f8` (doubles, named by `fields`) or `text`."""

    def samples(self) -> Iterator[Measured]:
        """Each sample as it comes. Raises OnblockError or OSError. Ends with the sensor, or after `close`."""
        ...

    def close(self) -> None:
        """Let go of it; from any thread."""
        ...


class SimulatedImu:
    """Six axes that move like those of something that hovers. Samples at `rate`, or `count` of them at once."""

    FIELDS: ClassVar[list[str]] = ["ax", "ay", "az", "gx", "gy", "gz"]

    def __init__(self, spec: SensorSpec):
        self._rate, self._count = spec.rate, spec.count
        self.header = {"encoding": "f8", "fields": self.FIELDS, "units": ["m/s2"] * 3 + ["rad/s"] * 3}
        self._closed = threading.Event()

    def samples(self) -> Iterator[Measured]:
        """Each at its own time; device time counts from the first."""
        step, begin, n = 1 / self._rate, time.monotonic(), 0
        while self._count is None or n < self._count:
            if self._count is None and (early := begin + n * step - time.monotonic()) > 0:
                if step < 0.1:
                    time.sleep(early)  # a tenth of the cost of an Event
                else:
                    self._closed.wait(early)
            if self._closed.is_set():
                return
            t = n * step
            sway, turn = math.sin(t * 7), math.cos(t * 3)
            payload = struct.pack(
                "<6d", 0.2 * sway, 0.2 * turn, 9.81 + 0.05 * sway, 0.01 * turn, 0.01 * sway, 0.001 * t
            )
            yield Measured(round(t * 1e9), payload)
            n += 1

    def close(self) -> None:
        """The next sample is the end."""
        self._closed.set()


class Lines:
    """A serial port or pipe that sends a line per sample."""

    def __init__(self, spec: SensorSpec):
        assert spec.path is not None
        self.header: dict[str, Any] = {"encoding": "text"}
        self._spec = spec
        self._lock = threading.Lock()
        self._wake_read, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._fd = os.open(spec.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            os.close(self._wake_read)
            os.close(self._wake)
            raise

    def samples(self) -> Iterator[Measured]:
        """Each line without its end; what is too long to be a sample is an error."""
        rest = b""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        try:
            while True:
                ready = dict(poll.poll())
                if self._wake_read in ready:
                    return
                try:
                    chunk = os.read(self._fd, 65536)
                except BlockingIOError:
                    continue
                if not chunk:
                    if rest.strip():
                        yield Measured(NONE, rest.rstrip(b"\r\n"))
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                if max(map(len, (*lines, rest))) > SAMPLE_MAX:
                    raise Corrupt(f"{self._spec.name}: sends lines over {SAMPLE_MAX} bytes", path=str(self._spec.path))
                for line in lines:
                    yield Measured(NONE, line.rstrip(b"\r"))
        finally:
            os.close(self._fd)
            os.close(self._wake_read)

    def close(self) -> None:
        """`samples` ends."""
        with (
            self._lock
        ):  # the reader, the recorder and the watchdog may all close it, and a number is soon another file
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)  # its other end becomes ready


def open_sensor(spec: SensorSpec) -> SensorSource:
    """Open a sensor. Raises OnblockError."""
    if spec.kind == "simulated-imu":
        return SimulatedImu(spec)
    try:
        return Lines(spec)
    except OSError as error:
        raise failure(error, spec) from error
