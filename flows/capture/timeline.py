"""What happened in a recording, over time: rates, gaps, drops, segments, battery. Read from sidecars and the log.

How it is shown is in `deployments/timeline.py`.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from flows.capture import sidecar
from flows.capture.manifest import Manifest
from flows.capture.recorder import EVENTS
from flows.capture.sidecar import DropRecord, PacketRecord

S = 1_000_000_000
GAP = 2.5
"""Times the usual distance between two pictures: from there on it is a gap."""
SHORTEST_GAP_S = 0.1


@dataclass
class Track:
    """One stream. Seconds after the start of the recording."""

    kind: str
    count: int = 0
    rates: list[float] = field(default_factory=list)
    """Pictures or samples per second, in each bin."""
    drops: list[int] = field(default_factory=list)
    """In each bin."""
    gaps: list[tuple[float, float]] = field(default_factory=list)
    cuts: list[float] = field(default_factory=list)
    """Where segments begin."""
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def usual(self) -> float:
        """The median rate of bins that have any."""
        return median([r for r in self.rates if r] or [0.0])


@dataclass
class Timeline:
    """A recording."""

    seconds: float
    bin_s: float
    tracks: dict[str, Track]
    battery: list[tuple[float, float]]
    """(s, percent)."""


def timeline(folder: Path, manifest: Manifest, bins: int = 60) -> Timeline:
    """Of a recording, also while it is being made; in at most `bins` bins, of a second or more each."""
    found = {name: _read(folder, name, entry.kind) for name, entry in manifest.streams.items()}
    last = max([manifest.ended_ns or 0, *(t for times, *_ in found.values() for t in times[-1:])])
    seconds = last / S
    bin_s = max(1.0, float(-(-seconds // bins)))
    count = max(1, int(-(-seconds // bin_s)))
    tracks = {}
    for name, (times, drops, cuts) in found.items():
        track = Track(manifest.streams[name].kind, len(times), [0.0] * count, [0] * count, cuts=cuts)
        for at in times:
            track.rates[min(int(at / S / bin_s), count - 1)] += 1
        for index in range(count):  # the last bin is shorter
            track.rates[index] /= max(0.001, min(bin_s, seconds - index * bin_s))
        for drop in drops:
            where = min(max(int(drop.first_ns / S / bin_s), 0), count - 1)
            track.drops[where] += drop.count
            track.dropped[drop.reason.name] = track.dropped.get(drop.reason.name, 0) + drop.count
        track.gaps = _gaps(times)
        tracks[name] = track
    return Timeline(seconds, bin_s, tracks, _battery(folder))


def _read(folder: Path, name: str, kind: str) -> tuple[list[int], list[DropRecord], list[float]]:
    """Times in order, drops, and where segments begin."""
    times: list[int] = []
    drops: list[DropRecord] = []
    cuts: list[float] = []
    for path in sorted((folder / name).glob("*.idx")):
        own: list[int] = []
        for record in sidecar.parse(path.read_bytes()).records:
            if isinstance(record, DropRecord):
                drops.append(record)
            else:
                own.append(record.pts_ns if isinstance(record, PacketRecord) else record.arrived_ns)
        if own:
            cuts.append(min(own) / S)
            times += own
    return sorted(times), drops, cuts


def _gaps(times: list[int]) -> list[tuple[float, float]]:
    steps = [b - a for a, b in itertools.pairwise(times)]
    if not steps:
        return []
    least = max(GAP * median(steps), SHORTEST_GAP_S * S)
    return [(a / S, b / S) for a, b in itertools.pairwise(times) if b - a > least]


def _battery(folder: Path) -> list[tuple[float, float]]:
    found = []
    try:
        lines = (folder / EVENTS).read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last one, where it was killed
        if isinstance(event, dict) and event.get("kind") == "battery" and "percent" in event:
            found.append((event["at_ns"] / S, float(event["percent"])))
    return found
