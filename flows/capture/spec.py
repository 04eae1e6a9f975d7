"""`CaptureSpec`: what to record and how, the parameter of the flow `capture` and a form in Prefect's UI.

What the fields do is in `sources.py` (inputs), `lane.py` (encoding) and `guards.py` (limits).
"""

from __future__ import annotations

import re
import stat
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from blocks import names
from flows.transfer.form import Duration, Form

Label = Annotated[str, StringConstraints(min_length=1, max_length=100)]
FILE_FORMATS = frozenset({"lavfi"})
"""Inputs that come to an end of their own, besides files."""


class StreamSpec(Form):
    """One camera: an input of FFmpeg, and what is kept of it."""

    name: Label
    """Its name in the recording: letters, digits, '.', '-', '_'."""
    input: str = Field(min_length=1)
    """What FFmpeg opens: /dev/video0, rtsp://camera/stream, a file, or the graph of a test camera. No password: see `login_file`."""
    format: str | None = None
    """FFmpeg's input format, such as v4l2 or lavfi; found out if it is not given."""
    options: dict[str, str] = Field(default_factory=dict)
    """Further options of the input, such as rtsp_transport: tcp."""
    size: str | None = None
    """Width and height asked of the camera, such as 1280x720."""
    fps: float | None = Field(default=None, gt=0, le=1000)
    """Frames per second asked of the camera."""
    pixel_format: str | None = None
    """What the camera is asked to send, such as mjpeg or yuyv422."""
    codec: Literal["h264", "hevc", "mjpeg", "copy"] = "h264"
    """What is kept: encoded here, or `copy`, as the camera sends it (cheap, and without loss)."""
    encoder: str | None = None
    """Another encoder of that codec, such as h264_v4l2m2m."""
    preset: str = "ultrafast"
    """How much the encoder (x264, x265) works."""
    bitrate: int | None = Field(default=None, ge=10_000)
    """Bits per second; by quality if it is not given."""
    crf: int = Field(default=23, ge=0, le=51)
    """Quality where there is no bitrate: lower is better and larger."""
    timestamps: Literal["arrival", "device"] = "arrival"
    """Times of frames: when each arrived here, or when the first arrived plus what the camera counts from there."""
    at_end: Literal["auto", "reconnect", "finish"] = "auto"
    """When the input ends: files and test cameras are finished then, cameras are opened again."""
    stalled_after: Duration = timedelta(seconds=2)
    """A camera that gave nothing for so long is opened again."""
    queue_mib: int = Field(default=16, ge=1, le=1024)
    """Memory for what waits for the encoder, and as much again for what waits for the disk."""
    login_file: Path | None = None
    """A file that only its owner may read, holding USER:PASSWORD for the camera."""

    @field_validator("name")
    @classmethod
    def _label(cls, value: str) -> str:
        return _label(value, "stream")

    @field_validator("size")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", value):
            raise ValueError(f"size {value!r} is no WIDTHxHEIGHT, such as 1280x720")
        return value

    @field_validator("input")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("the input holds a NUL byte")
        if "://" in value and urlsplit(value).password:
            raise ValueError("the input holds a password, which would be seen by all; put it in a `login_file`")
        return value

    @field_validator("stalled_after")
    @classmethod
    def _some_time(cls, value: timedelta) -> timedelta:
        if value < timedelta(milliseconds=100):
            raise ValueError("stalled_after is at least 100 ms")
        return value

    def ends(self) -> bool:
        """Whether the end of the input is the end of the stream."""
        if self.at_end != "auto":
            return self.at_end == "finish"
        if self.format in FILE_FORMATS:
            return True
        try:
            return stat.S_ISREG(Path(self.input).stat().st_mode)
        except (OSError, ValueError):
            return False

    def waits(self) -> bool:
        """Whether the input can wait until there is room, as a file can; what a camera sends then is dropped."""
        return self.ends() and "realtime" not in self.input


class SensorSpec(Form):
    """One sensor: samples with a time each."""

    name: Label
    """Its name in the recording: letters, digits, '.', '-', '_'."""
    kind: Literal["simulated-imu", "lines"] = "lines"
    """`lines`: each line of `path` is a sample. `simulated-imu`: six axes made up, for trials."""
    path: Path | None = None
    """Of `lines`: a serial port that is set up, or a pipe."""
    rate: float = Field(default=200, gt=0, le=10_000)
    """Of `simulated-imu`: samples per second."""
    count: int | None = Field(default=None, ge=0)
    """Of `simulated-imu`: so many samples at once, without waiting between them, and then its end."""

    @field_validator("name")
    @classmethod
    def _label(cls, value: str) -> str:
        return _label(value, "sensor")

    @model_validator(mode="after")
    def _has_path(self) -> SensorSpec:
        if (self.kind == "lines") != (self.path is not None):
            raise ValueError("a sensor of kind `lines` needs a `path`, the simulated one has none")
        return self


class LimitsSpec(Form):
    """When to stop before something else does."""

    disk_left: Duration = timedelta(minutes=2)
    """Stop when the disk is full in less than this, at the rate of the last minute."""
    disk_mib: int = Field(default=64, ge=0)
    """Stop when less than this is free on the disk."""
    battery_percent: float = Field(default=10, ge=0, le=100)
    """Stop when the battery has less, and is not being charged."""


class CaptureSpec(Form):
    """A recording: streams, sensors, how it is cut, and when it ends."""

    device: Label
    """The device it is made on: letters, digits, '.', '-', '_'. One recording at a time."""
    flight: str | None = None
    """The flight it belongs to."""
    streams: list[StreamSpec] = Field(default_factory=list)
    """Cameras."""
    sensors: list[SensorSpec] = Field(default_factory=list)
    """Sensors."""
    segment: Duration = timedelta(seconds=60)
    """Length of the files in which it is kept until it is merged."""
    duration: Duration | None = None
    """Stop after this; by hand, event or cancellation if it is not given."""
    ready_within: Duration = timedelta(seconds=7.5)
    """A stream that gives nothing for so long after the start is reported; the others go on."""
    merge: bool = True
    """Make one file of it at the end."""
    keep_segments: bool = False
    """Keep the segments when they are merged and the result was read back."""
    sync_every: Duration = timedelta(seconds=1)
    """How often what is written is forced to the disk: what a power cut may cost."""
    limits: LimitsSpec = Field(default_factory=LimitsSpec)
    """When to stop by itself."""

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        return _label(value, "device")

    @field_validator("flight")
    @classmethod
    def _flight(cls, value: str | None) -> str | None:
        return value if value is None else _label(value, "flight")

    @model_validator(mode="after")
    def _together(self) -> CaptureSpec:
        lanes = [s.name for s in self.streams] + [s.name for s in self.sensors]
        if not lanes:
            raise ValueError("there is nothing to record: give `streams`, `sensors` or both")
        if twice := sorted({n for n in lanes if lanes.count(n) > 1}):
            raise ValueError(f"two streams or sensors have the name {twice[0]!r}")
        if self.segment < timedelta(milliseconds=100):
            raise ValueError("a segment is at least 100 ms long")
        return self


def _label(value: str, what: str) -> str:
    try:
        names.check_label(value, what)
    except names.BadName as error:
        raise ValueError(error.what) from None
    if value in ("quarantine",):
        raise ValueError(f"{what} {value!r} has that name for itself in every recording")
    return value
