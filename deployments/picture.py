"""The timeline of a recording as a PNG: drawn by numpy, encoded by FFmpeg; no plotting library is needed on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from flows.capture.timeline import Timeline, Track

WIDTH, LEFT, RIGHT, TOP, ROW, BETWEEN = 1200, 150, 30, 40, 90, 26
PAPER, INK, GREY, BLUE, RED, GREEN, AMBER = (
    (255, 255, 255), (40, 40, 40), (225, 225, 225), (70, 120, 190), (205, 60, 50), (70, 150, 90), (235, 180, 60),
)  # fmt: skip

# 3 x 5 dots, a row of dots per octal digit from the top
_FONT = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717", "6": "74757", "7": "71222",
    "8": "75757", "9": "75717", "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644",
    "G": "34553", "H": "55755", "I": "72227", "J": "11152", "K": "55655", "L": "44447", "M": "57755", "N": "65555",
    "O": "25552", "P": "65644", "Q": "25563", "R": "65655", "S": "34216", "T": "72222", "U": "55557", "V": "55552",
    "W": "55775", "X": "55255", "Y": "55222", "Z": "71247", ".": "00002", ",": "00024", "-": "00700", "_": "00007",
    ":": "02020", "/": "11244", "%": "51245", "(": "12221", ")": "42224", "+": "02720", "=": "07070", "~": "00360",
}  # fmt: skip


def draw(line: Timeline, title: str) -> np.ndarray:
    """RGB, (height, width, 3) of uint8."""
    import numpy as np

    rows = len(line.tracks) + bool(line.battery)
    image = np.full((TOP + rows * (ROW + BETWEEN) + 20, WIDTH, 3), PAPER, np.uint8)
    _text(image, LEFT, 14, title, INK)
    top = TOP
    for name, track in line.tracks.items():
        _track(image, top, line, name, track)
        top += ROW + BETWEEN
    if line.battery:
        _battery(image, top, line)
    return image


def write(path: Path, image: np.ndarray) -> None:
    """Save as PNG. Raises OSError."""
    from av.codec.context import CodecContext
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

    encoder = CodecContext.create("png", "w")
    assert isinstance(encoder, VideoCodecContext)
    from fractions import Fraction

    encoder.height, encoder.width, encoder.pix_fmt = image.shape[0], image.shape[1], "rgb24"
    encoder.time_base = Fraction(1, 25)
    frame = VideoFrame.from_ndarray(image, format="rgb24")
    frame.pts = 0
    path.write_bytes(b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)]))


def _x(line: Timeline, at: float) -> int:
    return LEFT + int(min(max(at / max(line.seconds, 1e-9), 0.0), 1.0) * (WIDTH - LEFT - RIGHT))


def _track(image: np.ndarray, top: int, line: Timeline, name: str, track: Track) -> None:
    """Bars of rates, gaps in amber, drops in red, ticks where segments begin."""
    _frame(image, top, line)
    _text(image, 8, top, name[:17], INK)
    _text(image, 8, top + 16, f"{track.usual:.3g} {'FPS' if track.kind == 'video' else 'HZ'}", BLUE)
    _text(image, 8, top + 32, f"{track.count} KEPT", INK)
    dropped = sum(track.dropped.values())
    _text(image, 8, top + 48, f"{dropped} DROPPED", RED if dropped else INK)
    _text(image, 8, top + 64, f"{len(track.gaps)} GAPS", INK)
    most = max(max(track.rates, default=0.0), 1e-9)
    for begin, end in track.gaps:
        image[top : top + ROW, _x(line, begin) : max(_x(line, end), _x(line, begin) + 2)] = AMBER
    for index, rate in enumerate(track.rates):
        begin, end = _x(line, index * line.bin_s), _x(line, (index + 1) * line.bin_s)
        height = int(rate / most * (ROW - 10))
        image[top + ROW - height : top + ROW, begin : max(end - 1, begin + 1)] = BLUE
        if track.drops[index]:
            image[top : top + 8, begin : max(end - 1, begin + 2)] = RED
    for cut in track.cuts:
        image[top + ROW : top + ROW + 5, _x(line, cut)] = INK


def _battery(image: np.ndarray, top: int, line: Timeline) -> None:
    _frame(image, top, line)
    _text(image, 8, top, "BATTERY", INK)
    _text(image, 8, top + 16, f"{line.battery[0][1]:.0f} TO {line.battery[-1][1]:.0f} %", GREEN)
    for at, percent in line.battery:
        y = top + ROW - 1 - int(min(max(percent, 0.0), 100.0) / 100 * (ROW - 3))
        image[y - 1 : y + 2, _x(line, at) : _x(line, at) + 3] = GREEN


def _frame(image: np.ndarray, top: int, line: Timeline) -> None:
    """The field of a row, and its seconds."""
    image[top : top + ROW, LEFT : WIDTH - RIGHT] = GREY
    step = next(s for s in (1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600, 10**9) if line.seconds / s <= 12)
    at = 0
    while at <= line.seconds:
        _text(image, _x(line, at), top + ROW + 8, str(at), INK, scale=1)
        at += step


def _text(image: np.ndarray, x: int, y: int, text: str, color: tuple[int, int, int], scale: int = 2) -> None:
    for char in text.upper():
        for row, dots in enumerate(_FONT.get(char, "00000")):
            for column in range(3):
                if int(dots, 8) >> (2 - column) & 1:
                    image[y + row * scale : y + (row + 1) * scale, x + column * scale : x + (column + 1) * scale] = (
                        color
                    )
        x += 4 * scale
