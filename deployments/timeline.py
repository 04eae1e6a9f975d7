"""`onblock recording ...`: what was recorded on this machine: list, show, stop, recover; and record from a file."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.told import print_json

if TYPE_CHECKING:
    from flows.capture.manifest import Manifest
    from flows.capture.timeline import Timeline, Track

recording = typer.Typer(no_args_is_help=True, help="What is recorded on this machine: start, stop, show, recover.")

Folder = Annotated[
    Path | None, typer.Option("--in", metavar="FOLDER", help="Where recordings lie, if not in ONBLOCK_HOME.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")]
BARS = " ▁▂▃▄▅▆▇█"


def _root(folder: Path | None) -> Path:
    from blocks.home import home

    return folder if folder is not None else home() / "recordings"


@recording.command()
def start(
    spec_file: Annotated[Path, typer.Argument(metavar="CAPTURE.yaml", help="What to record: see the README.")],
    seconds: Annotated[float | None, typer.Option(help="Stop after so many seconds.")] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Record now, in this process, until Ctrl-C, `onblock recording stop` or a limit; then make one file of it."""
    from pydantic import ValidationError

    from blocks.errors import ConfigError
    from blocks.hardware.battery import ToldBattery
    from blocks.home import home
    from flows.capture.recorder import Recorder
    from flows.capture.recover import finished
    from flows.capture.spec import CaptureSpec
    from flows.transfer.form import explain, read_yaml

    given = read_yaml(spec_file, "what to record")
    if not isinstance(given, dict):
        raise ConfigError("is a mapping of keys, such as `device:` and `streams:`", path=str(spec_file))
    try:
        spec = CaptureSpec.model_validate(given | ({"duration": seconds} if seconds is not None else {}))
    except ValidationError as error:
        raise ConfigError(explain(error, "capture", CaptureSpec.model_fields), path=str(spec_file)) from error
    recorder = Recorder(spec, _root(folder), battery=ToldBattery(home() / "agent" / "status.json"))
    try:
        recorder.run(threading.Event())
    except SystemExit:  # Ctrl-C: sealed on the way here
        print(f"onblock: {recorder.id} is sealed; `onblock recording recover` merges it", file=sys.stderr)
        raise
    manifest = finished(recorder.folder)
    _tell(manifest, recorder.folder, as_json)


@recording.command()
def stop(
    device: Annotated[str | None, typer.Option(help="Only on this device.")] = None, folder: Folder = None
) -> None:
    """Ask what is being recorded to stop; it seals, and goes on to merge."""
    from flows.capture.at_work import request_stop

    asked = request_stop(_root(folder), device)
    print(f"asked {', '.join(asked)} to stop" if asked else "nothing is being recorded")


@recording.command()
def recover(folder: Folder = None, as_json: Json = False) -> None:
    """Put in order, and merge, what a kill or a power cut left."""
    from flows.capture.manifest import Manifest
    from flows.capture.recover import recover_all

    found = recover_all(_root(folder))
    good = [m for m in found if isinstance(m, Manifest)]
    bad = [str(e) for e in found if not isinstance(e, Manifest)]
    if as_json:
        print_json({"recovered": [m.model_dump(mode="json", exclude={"spec"}) for m in good], "failed": bad})
    else:
        for manifest in good:
            _tell(manifest, _root(folder) / manifest.id, as_json=False)
        for text in bad:
            print(f"onblock: {text}", file=sys.stderr)
        if not found:
            print("nothing to recover")
    raise typer.Exit(1 if bad else 0)


@recording.command("list")
def list_(folder: Folder = None, as_json: Json = False) -> None:
    """The recordings on this machine."""
    from blocks.errors import OnblockError
    from flows.capture.manifest import load

    found: list[dict[str, Any]] = []
    for path in sorted(p for p in _root(folder).glob("*/") if not p.name.startswith(".")):
        try:
            m = load(path)
        except OnblockError as error:
            found.append({"id": path.name, "state": "unreadable", "problem": str(error)})
            continue
        found.append({
            "id": m.id, "device": m.device, "flight": m.flight, "state": m.state, "seconds": (m.ended_ns or 0) / 1e9,
            "merged": m.final is not None, "bytes": m.final.bytes if m.final else
            sum(s.bytes for e in m.streams.values() for s in e.segments), "problems": m.problems,
        })  # fmt: skip
    if as_json:
        print_json({"recordings": found})
        return
    for r in found:
        merged = "merged" if r.get("merged") else "in segments"
        print(f"{r['id']}  {r['state']}, {r.get('seconds', 0):.1f} s, {r.get('bytes', 0):,} bytes, {merged}")
    if not found:
        print(f"there are no recordings in {_root(folder)}")


@recording.command()
def show(
    recording_id: Annotated[str, typer.Argument(metavar="ID", help="The recording, or the beginning of its name.")],
    png: Annotated[
        Path | None, typer.Option(help="Write the picture here; in the recording's folder otherwise.")
    ] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """A timeline of a recording: rates, gaps, drops, segments and battery; printed, and as a PNG."""
    from dataclasses import asdict

    from blocks.errors import ConfigError
    from deployments import picture
    from flows.capture.manifest import load
    from flows.capture.segment import disk_error
    from flows.capture.timeline import timeline

    root = _root(folder)
    found = [p for p in root.glob("*/") if p.name.startswith(recording_id) and not p.name.startswith(".")]
    exact = [p for p in found if p.name == recording_id] or found
    if len(exact) != 1:
        what = (
            f"{len(exact)} recordings begin with {recording_id!r}"
            if exact
            else f"there is no recording {recording_id!r}"
        )
        raise ConfigError(what, path=str(root), remedy="`onblock recording list` names them")
    manifest = load(exact[0])
    line = timeline(exact[0], manifest)
    to = png if png is not None else exact[0] / "timeline.png"
    try:
        title = f"{manifest.id}  {manifest.state}  {line.seconds:.1f} s"
        picture.write(to, picture.draw(timeline(exact[0], manifest, 600), title))
    except OSError as error:
        raise disk_error(error, to) from error
    if as_json:
        print_json({"id": manifest.id, "state": manifest.state, "picture": str(to), **asdict(line)})
        return
    print(f"{manifest.id}: {manifest.state}, {line.seconds:.1f} s, {manifest.stopped_because or 'still at work'}")
    for text in told(line):
        print(text)
    for problem in manifest.problems:
        print(f"  {problem}")
    print(f"picture: {to}")


def told(line: Timeline) -> list[str]:
    """A timeline as text: of each stream a row of bars, one per bin, and what is missing."""
    width = max([len(n) for n in line.tracks] + [7])
    out = []
    for name, track in line.tracks.items():
        unit = "fps" if track.kind == "video" else "Hz"
        missing = ", ".join([f"{n} {reason}" for reason, n in track.dropped.items()]) or "none"
        out.append(f"{name:>{width}} |{_bars(track)}| {track.usual:.1f} {unit}")
        out.append(
            f"{'':>{width}}  {track.count} kept, dropped: {missing}; {len(track.cuts)} segments, {len(track.gaps)} gaps"
        )
        for begin, end in track.gaps[:5]:
            out.append(f"{'':>{width}}  gap from {begin:.2f} s to {end:.2f} s")
        if len(track.gaps) > 5:
            out.append(f"{'':>{width}}  and {len(track.gaps) - 5} more gaps")
    if line.battery:
        out.append(f"{'battery':>{width}}  {line.battery[0][1]:.0f} % to {line.battery[-1][1]:.0f} %")
    out.append(f"{'':>{width}}  each bar is {line.bin_s:g} s; ! marks drops")
    return out


def _bars(track: Track) -> str:
    most = max(max(track.rates, default=0.0), 1e-9)
    return "".join(
        "!" if drops else BARS[min(8, -(-int(rate / most * 80) // 10))]
        for rate, drops in zip(track.rates, track.drops, strict=True)
    )


def _tell(manifest: Manifest, folder: Path, as_json: bool) -> None:
    from flows.capture.manifest import told as sentence

    if as_json:
        print_json(manifest.model_dump(mode="json", exclude={"spec"}) | {"folder": str(folder)})
        return
    print(sentence(manifest))
    print(f"  {folder / manifest.final.file if manifest.final else folder}")
