"""From pictures to packets: one encoder per stream, and the Matroska header that goes with its packets.

Every picture that goes in is paired with the packet that comes out, by a count that only the encoder sees: the times of a
recording are never bent to please an encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from blocks.errors import ConfigError, ToolMissing, UnknownError
from flows.capture.matroska import Sink, header_container, length_prefixed
from flows.capture.sources import Times
from flows.capture.spec import StreamSpec

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

ENCODERS = {"h264": "libx264", "hevc": "libx265", "mjpeg": "mjpeg"}
NAL_CODECS = {"h264", "hevc"}
MICRO = Fraction(1, 1_000_000)

Header = tuple[bytes, dict[str, Any]]
"""The Matroska header of a segment, and what its sidecar says of the stream."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A packet on its way to the disk."""

    sequence: int
    times: Times
    payload: bytes
    key: bool
    header: Header


class StreamEncoder:
    """An encoder for pictures of one size and format, in so many threads (0: as it likes). Raises ConfigError, ToolMissing,
    UnknownError."""

    def __init__(self, spec: StreamSpec, like: VideoFrame, threads: int = 0):
        import av
        from av.error import FFmpegError
        from av.video.frame import PictureType

        self.spec = spec
        self._key, self._any, self._failures = PictureType.I, PictureType.NONE, (FFmpegError, ValueError)
        self._like = (like.width, like.height, like.format.name)
        self._ticks = 0
        self._rate = Fraction(spec.fps or 30).limit_denominator(1001)
        self._waiting: dict[int, tuple[int, Times]] = {}
        name = spec.encoder or ENCODERS[spec.codec]
        try:
            av.Codec(name, "w")
        except ValueError as error:
            raise ToolMissing(f"{spec.name}: this PyAV has no encoder {name}", path=spec.input) from error
        self._container, sink = header_container()
        try:
            stream = self._container.add_stream(name, rate=self._rate, options=self._options(name))
            context: Any = stream.codec_context
            self._pixels = "yuvj420p" if spec.codec == "mjpeg" else "yuv420p"
            context.width, context.height, context.pix_fmt = like.width, like.height, self._pixels
            context.time_base = MICRO
            context.gop_size = max(1, round(self._rate))
            context.thread_count = threads
            if spec.bitrate:
                context.bit_rate = spec.bitrate
            for key in ("color_primaries", "color_trc", "colorspace"):
                setattr(context, key, getattr(like, key))
            self._stream: Any = stream
            self._container.start_encoding()
        except (FFmpegError, ValueError) as error:
            raise ConfigError(
                f"{spec.name}: {name} does not take {like.width}x{like.height} with these settings: {error}",
                path=spec.input, remedy="check `codec`, `preset`, `bitrate` and `size`",
            ) from error  # fmt: skip
        info = {"codec": context.codec.canonical_name, "width": like.width, "height": like.height, "encoder": name}
        self.header: Header = (_header(sink), info | _private(info["codec"], context.extradata))

    def _options(self, name: str) -> dict[str, str]:
        if name == "libx264":
            found = {"preset": self.spec.preset, "tune": "zerolatency", "forced-idr": "1"}
        elif name == "libx265":
            found = {
                "preset": self.spec.preset,
                "tune": "zerolatency",
                "forced-idr": "1",
                "x265-params": "log-level=error",
            }
        else:
            return {}
        return found if self.spec.bitrate else found | {"crf": str(self.spec.crf)}

    def fits(self, picture: VideoFrame) -> bool:
        """Whether it is of the size and format that this encoder is for."""
        return (picture.width, picture.height, picture.format.name) == self._like

    def encode(self, sequence: int, times: Times, picture: VideoFrame, *, key: bool) -> list[Packed]:
        """What comes out after this picture. A `key` picture is one that players can begin at."""
        try:
            if self._like[2] != self._pixels:
                picture = picture.reformat(format=self._pixels)
            # else a test camera's I on every frame is forced on the encoder
            picture.pict_type = self._key if key else self._any
            tick = max(times.pts // 1000, self._ticks + 1)
            self._ticks = picture.pts = tick
            picture.time_base = MICRO
            self._waiting[tick] = (sequence, times)
            return list(self._paired(self._stream.encode(picture)))
        except self._failures as error:
            raise UnknownError(f"{self.spec.name}: the encoder failed: {error}", path=self.spec.input) from error

    def flush(self) -> list[Packed]:
        """What is still in it. What does not come out any more is `waiting`."""
        try:
            return list(self._paired(self._stream.encode(None)))
        except self._failures:
            return []  # they are waiting, and are accounted for

    def waiting(self) -> list[tuple[int, Times]]:
        """Sequence and times of the pictures that went in and did not come out."""
        return list(self._waiting.values())

    def _paired(self, packets: list[Any]) -> Iterator[Packed]:
        for packet in packets:
            found = self._waiting.pop(packet.pts, None)
            if found is None:
                raise UnknownError(f"{self.spec.name}: the encoder made up a packet", path=self.spec.input)
            yield Packed(*found, payload_of(packet, self.header[1]), bool(packet.is_keyframe), self.header)


def copied_header(stream: VideoStream, spec: StreamSpec) -> Header:
    """The header for packets that are kept as the camera sends them. Raises ConfigError."""
    from av.error import FFmpegError

    context: Any = stream.codec_context
    codec = context.codec.canonical_name
    container, sink = header_container()
    try:
        container.add_stream_from_template(stream, opaque=True)
        container.start_encoding()
    except (FFmpegError, ValueError) as error:
        raise ConfigError(
            f"{spec.name}: {codec} cannot be kept as it comes: {error}", path=spec.input, remedy="use `codec: h264`"
        ) from error
    info = {"codec": codec, "width": context.width, "height": context.height, "encoder": "copy"}
    return _header(sink), info | _private(codec, context.extradata)


def payload_of(packet: Any, info: dict[str, Any]) -> bytes:
    """A packet's bytes as Matroska holds them."""
    return length_prefixed(bytes(packet)) if info["nal"] else bytes(packet)


def _private(codec: str, extradata: bytes | None) -> dict[str, Any]:
    """What tells two settings of a codec apart; and whether its packets have start codes (those with avcC or hvcC have
    none), which in Matroska they must not have."""
    private = bytes(extradata or b"")
    return {"private": private.hex(), "nal": codec in NAL_CODECS and private[:1] != b"\x01"}


def _header(sink: Sink) -> bytes:
    return bytes(sink.data)
