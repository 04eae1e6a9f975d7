"""`onblock demo`: a flight in miniature, made on the spot, delivered by the same command a user types, and checked.

Here are the making of the flight (video, photos, telemetry) and the story told around three runs of `onblock run`.
How files are moved is not here: the demo starts the program as a child and believes its summary only where
`sha256sum` and its own look at the folders agree.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

if TYPE_CHECKING:
    import numpy as np

FLIGHT = "flight-0042"
CLIPS = {
    "DCIM/100MEDIA/DJI_0001.MP4": (0.55, 3.0),
    "DCIM/100MEDIA/DJI_0002.MP4": (0.33, 4.0),
    "Prüfflug Höhe 120 m, Kamera vorn.mp4": (0.08, 3.0),
}
"""Path on the card: tint (0 to 1) and length in seconds of a clip."""
PHOTOS = 300
TELEMETRY = "logs/telemetry.csv"
WIDTH, HEIGHT, RATE = 640, 360, 25
TIME_LIMIT = 120
"""Seconds after which a child counts as hung."""

HOW = {
    "checksum": "SHA-256 taken while reading, the copy read back and compared",
    "readback": "SHA-256 taken while reading, the copy read back from the medium and compared",
    "size": "size compared",
    "exists": "seen at the destination",
}


class DemoFailed(Exception):
    """Something was not as it must be; the message is the one line that says what."""


@dataclass(frozen=True)
class _Places:
    """Where one demo lives: all below one new folder."""

    root: Path

    @property
    def card(self) -> Path:
        return self.root / "card"

    @property
    def archive(self) -> Path:
        return self.root / "archive"

    @property
    def delivered(self) -> Path:
        return self.archive / FLIGHT

    @property
    def manifest(self) -> Path:
        return self.delivered / "checksums.sha256"

    @property
    def job(self) -> Path:
        return self.root / "job.yaml"

    @property
    def home(self) -> Path:
        return self.root / "onblock-home"


def demo(home: Path | None = None) -> int:
    """Run the demo below `home`/demo (default: below ONBLOCK_HOME). 0 if all was as it must be, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        _tell(console, _fresh_folder(home))
    except DemoFailed as failure:
        console.print(Text(f"\nThe demo FAILED: {failure}", "bold red"))
        return 1
    except OSError as error:
        console.print(Text(f"\nThe demo FAILED: {error.filename or 'a file'}: {error.strerror}", "bold red"))
        return 1
    return 0


def _fresh_folder(home: Path | None) -> _Places:
    """A new folder named by the time, so that the demo works twice."""
    base = (home or Path(os.environ.get("ONBLOCK_HOME") or "~/.onblock").expanduser()).absolute() / "demo"
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ["", *(f"-{n}" for n in range(2, 100))]:
        try:
            (base / (stamp + suffix)).mkdir(parents=True)
        except FileExistsError:
            continue
        return _Places(base / (stamp + suffix))
    raise DemoFailed(f"{base} has a hundred demos of this very second")


# -- the story --------------------------------------------------------------------------------------------------


def _tell(console: Console, at: _Places) -> None:
    def step(number: int, title: str) -> None:
        console.print(Text(f"\n{number}. {title}", "bold cyan"))

    def say(text: str) -> None:
        console.print(Text(f"   {text}"))

    step(1, "A flight has ended: its recordings are on a card")
    with console.status("encoding video and photos"):
        make_card(at.card)
    before = _files(at.card)
    count, size = len(before), sum(p.stat().st_size for p in before.values())
    say(f"{count} files, {decimal(size)}, in {at.card}")
    say(f"{len(CLIPS)} H.264 clips, {PHOTOS} photos, {TELEMETRY}; one name has spaces and umlauts: {list(CLIPS)[-1]!r}")

    step(2, "A job says what goes where")
    at.job.write_text(_job(at), "utf-8")
    say(f"{at.job} holds:")
    console.print(
        Text("".join(f"     {line}\n" for line in at.job.read_text("utf-8").splitlines()).rstrip("\n"), "dim")
    )

    step(3, "Deliver it. You would type:")
    first = _run(console, at)
    _expect("first run", first, scanned=count, delivered=count, duplicates=0)
    if first["bytes"] != size:
        raise DemoFailed(f"first run: {first['bytes']} bytes reported, the card holds {size}")
    console.print(_summary(first, at))
    if set(copies := _files(at.delivered)) - {at.manifest.name} != set(before):
        odd = sorted(set(before) ^ (set(copies) - {at.manifest.name}))
        raise DemoFailed(f"card and archive do not hold the same names, for example {odd[0]!r}")

    step(4, "Do not believe it: check with a program that knows nothing of onblock. You would type:")
    _sha256sum(console, at, at.delivered, count)
    say("The same list holds for the card, so what arrived is what was recorded:")
    _sha256sum(console, at, at.card, count)

    step(5, "Run the job again: there is nothing to do")
    again = _run(console, at)
    _expect("second run", again, scanned=count, delivered=0, duplicates=count)
    say(f"0 delivered, all {count} known (duplicates), {again['seconds']:.2f} s. Nothing was read or written twice.")

    step(6, f"Change one file, keeping its size ({TELEMETRY}), and run again")
    old = before[TELEMETRY].read_bytes()
    _edit(before[TELEMETRY])
    new = before[TELEMETRY].read_bytes()
    say(f"altitudes corrected: still {len(new)} bytes, other content, a new time of modification")
    third = _run(console, at)
    _expect("third run", third, scanned=count, delivered=1, duplicates=count - 1)
    after = _files(at.delivered)
    added = sorted(set(after) - set(copies))
    if len(added) != 1 or after[added[0]].read_bytes() != new:
        raise DemoFailed(f"the changed file should be the one new file in the archive; new there: {added}")
    if after[TELEMETRY].read_bytes() != old:
        raise DemoFailed(f"the older version of {TELEMETRY} is no longer what it was in the archive")
    say(f"1 delivered, {count - 1} known: just the changed file was sent, as {added[0]}")
    say(f"The older version is kept as well, as {TELEMETRY}, because the job says `on_conflict: rename`.")
    say("The manifest lists both:")
    _sha256sum(console, at, at.delivered, count + 1)

    console.print(Text("\nAll as it must be.", "bold green"))
    say(f"archive   {at.delivered}")
    say(f"manifest  {at.manifest}")
    say(f"Have a look, put a file of your own on the card and run the job again; then delete {at.root}")


def _job(at: _Places) -> str:
    job = {
        "name": "demo",
        "source": {"type": "local-storage", "root": str(at.card)},
        "destination": {"type": "local-storage", "root": str(at.archive), "create_root": True},
        "device": "card",
        "path": "{flight}/{path}",
        "verify": "checksum",
        "on_conflict": "rename",
        "settle": {"quiet": "200 ms"},
    }
    return yaml.safe_dump(job, sort_keys=False, allow_unicode=True)


def _run(console: Console, at: _Places) -> dict[str, Any]:
    """Run the job as a user does, in a process of its own; its summary."""
    words = ["run", str(at.job), "--flight", FLIGHT]
    _show(console, f"ONBLOCK_HOME={shlex.quote(str(at.home))} {shlex.join(['onblock', *words])}")
    env = {k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "ONBLOCK_LEDGER_URL")}
    env |= {"ONBLOCK_HOME": str(at.home), "PYTHONUTF8": "1"}
    with console.status("onblock run"):
        child = _child(
            [sys.executable, "-m", "deployments.cli", *words, "--json"],
            env=env,
            cwd=Path(__file__).resolve().parents[1],
        )
    if child.returncode:
        said = (child.stderr.strip() or child.stdout.strip()).splitlines()
        raise DemoFailed("\n".join([f"`onblock run` ended with exit code {child.returncode}:", *said[-15:]]))
    try:
        summary = json.loads(child.stdout)
    except ValueError:
        raise DemoFailed(f"`onblock run --json` printed something else than JSON: {child.stdout[:300]!r}") from None
    if not isinstance(summary, dict):
        raise DemoFailed(f"`onblock run --json` printed no object: {child.stdout[:300]!r}")
    return summary


def _child(argv: list[str], *, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
            errors="replace", timeout=TIME_LIMIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"`{shlex.join(argv)}` had not ended after {TIME_LIMIT} s") from None


def _expect(which: str, summary: dict[str, Any], **counts: int) -> None:
    """The counts of a summary are these, and nothing failed or waits."""
    for key, wanted in (counts | dict.fromkeys(("failed", "blocked", "deferred", "settling"), 0)).items():
        if (got := summary.get(key)) != wanted:
            raise DemoFailed(f"{which}: {key} is {got}, expected {wanted}")
    proven = sum((summary.get("verified_by") or {}).values())
    if proven != counts["delivered"]:
        raise DemoFailed(f"{which}: {proven} files verified, {counts['delivered']} delivered")


def _summary(summary: dict[str, Any], at: _Places) -> Text:
    """One fact a line, unwrapped: paths can be copied."""
    lines = Text()

    def row(name: str, value: str) -> None:
        lines.append(f"   {name:<10}", "bold").append(f"{value}\n")

    row("files", f"{summary['delivered']} delivered of {summary['scanned']} found, {summary['failed']} failed")
    row("bytes", f"{decimal(summary['bytes'])} ({summary['bytes']} bytes)")
    row("seconds", f"{summary['seconds']:.2f}, from the first listing to the last verified file")
    for how, files in summary["verified_by"].items():
        row("verified", f"{files} by {how}: {HOW.get(how, how)}")
    row("where", str(at.delivered))
    row("manifest", str(at.manifest))
    lines.rstrip()
    return lines


def _sha256sum(console: Console, at: _Places, folder: Path, expected: int) -> None:
    """`sha256sum -c` of the manifest in `folder`: all `expected` files are OK."""
    if not at.manifest.is_file():
        raise DemoFailed(f"there is no manifest at {at.manifest}")
    argv = ["sha256sum", "--check", "--strict", str(at.manifest)]
    _show(console, f"cd {shlex.quote(str(folder))} && {shlex.join(argv)}")
    if not shutil.which("sha256sum"):
        raise DemoFailed("the program sha256sum is missing; install coreutils")
    child = _child(argv, env={**os.environ, "LC_ALL": "C"}, cwd=folder)
    lines = child.stdout.splitlines()
    good = [line for line in lines if line.endswith(": OK")]
    if child.returncode or len(good) != len(lines):
        wrong = [line for line in lines if line not in good] + child.stderr.splitlines()
        raise DemoFailed(f"sha256sum -c in {folder} ended with {child.returncode}: {'; '.join(wrong[:5])}")
    if len(good) != expected:
        raise DemoFailed(f"the manifest lists {len(good)} files, expected {expected}")
    for line in sorted(good, key=str.isascii)[:2]:  # the one with umlauts first
        console.print(Text(f"     {line}", "dim"))
    console.print(Text(f"     ... sha256sum: {len(good)} of {expected} OK", "green"))


def _show(console: Console, command: str) -> None:
    console.print(Text(f"   $ {command}", "yellow"))


def _files(folder: Path) -> dict[str, Path]:
    """All files below a folder by relative path."""
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


# -- the flight -------------------------------------------------------------------------------------------------


def make_card(card: Path) -> None:
    """Write a flight's recordings below `card`: clips (H.264 in MP4), photos (JPEG) and telemetry (CSV)."""
    for name, (tint, seconds) in CLIPS.items():
        (card / name).parent.mkdir(parents=True, exist_ok=True)
        _clip(card / name, tint, seconds)
    photos = card / "DCIM/101PHOTO"
    photos.mkdir(parents=True)
    for number, jpeg in enumerate(_jpegs(PHOTOS), 1):
        (photos / f"IMG_{number:04}.JPG").write_bytes(jpeg)
    log = card / TELEMETRY
    log.parent.mkdir()
    log.write_text("".join(_telemetry(1800)), "utf-8")


class _Ground:
    """Fields from above, and a disc that circles over them: cheap pictures that move."""

    def __init__(self, width: int, height: int, tint: float):
        import numpy as np

        rng = np.random.default_rng(round(tint * 1000))
        fields = rng.integers(40, 200, (2 * height // 40, 2 * width // 40, 3)).repeat(40, 0).repeat(40, 1)
        grain = rng.integers(0, 40, fields.shape)
        weights = np.array([0.4 + 0.6 * tint, 0.9, 1.0 - 0.6 * tint])
        self._map = ((fields + grain) * weights).astype(np.uint8)
        radius = height // 8
        y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
        self._disc = x * x + y * y <= radius * radius
        self._width, self._height = width, height

    def picture(self, t: float) -> np.ndarray:
        """RGB, (height, width, 3) of uint8, at time t in s."""
        h, w = self._height, self._width
        top, left = int(h * (0.4 + 0.4 * math.sin(0.3 * t))), int(w * (0.4 + 0.4 * math.sin(0.5 * t)))
        image = self._map[top : top + h, left : left + w].copy()
        y, x = int(h * (0.4 + 0.2 * math.sin(2 * t))), int(w * (0.4 + 0.2 * math.cos(2 * t)))
        image[y : y + self._disc.shape[0], x : x + self._disc.shape[1]][self._disc] = (250, 240, 90)
        return image


def _clip(path: Path, tint: float, seconds: float) -> None:
    import av
    from av.video.frame import VideoFrame

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        ground = _Ground(WIDTH, HEIGHT, tint)
        for index in range(round(seconds * RATE)):
            frame = VideoFrame.from_ndarray(ground.picture(index / RATE), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _jpegs(count: int) -> Iterator[bytes]:
    """Photos: each packet of an MJPEG stream is a whole JPEG file."""
    from av.codec.context import CodecContext
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

    encoder = CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = 320, 240, "yuvj420p"
    encoder.time_base, encoder.options = Fraction(1, RATE), {"qmin": "2", "qmax": "4"}
    ground = _Ground(320, 240, 0.5)
    for index in range(count):
        frame = VideoFrame.from_ndarray(ground.picture(index / 5), format="rgb24")
        frame = frame.reformat(format="yuvj420p")
        frame.pts = index
        for packet in encoder.encode(frame):
            yield bytes(packet)
    for packet in encoder.encode(None):
        yield bytes(packet)


def _telemetry(rows: int) -> Iterator[str]:
    yield "t_s,latitude,longitude,altitude_m,battery_v\n"
    for i in range(rows):
        angle = i / 150
        yield (
            f"{i / 10:.1f},{50.94 + 0.002 * math.sin(angle):.6f},{6.96 + 0.003 * math.cos(angle):.6f},"
            f"{120 + 5 * math.sin(angle / 3):.2f},{16.8 - i * 0.001:.3f}\n"
        )


def _edit(log: Path) -> None:
    """Correct the altitudes in place, byte for byte the same size."""
    table = str.maketrans("123456789", "234567891")
    head, *rows = log.read_text("utf-8").splitlines(keepends=True)
    cells = (row.split(",") for row in rows)
    log.write_text(head + "".join(",".join([*c[:3], c[3].translate(table), c[4]]) for c in cells), "utf-8")
