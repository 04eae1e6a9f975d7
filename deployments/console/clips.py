"""Rows that were delivered, as people think of them: one clip, with what was made of it, its picture, and what plays it. How
it is sent to a browser is in `media.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from blocks import names
from deployments.console.media import PICTURES, PLAYLIST, VIDEOS, place_of
from flows.ledger.listing import Listing

Row = dict[str, Any]


class Clip(NamedTuple):
    """One file of a device and what was made of it, the newest first; addresses are paths of the console."""

    name: str
    rows: list[Row]
    play: str | None
    is_playlist: bool
    picture: str | None
    timeline: str | None
    made_of: list[tuple[int, str]]
    steps: list[str]

    @property
    def main(self) -> Row:
        """The row that stands for it: what is played, else the first."""
        return min(self.rows, key=lambda r: (_rank(r), -r["id"]))

    @property
    def seen(self) -> bool:
        """Whether there is something to look at."""
        return bool(self.play or self.picture)


def clips(listing: Listing, rows: Sequence[Row]) -> list[Clip]:
    """The clips that rows of a page belong to, in their order; those that a page cuts in two are whole in both."""
    kin = listing.kin([r["id"] for r in rows])
    there = {r["id"]: r for r in rows}
    there |= {r["id"]: r for r in listing.rows([i for i in kin if i not in there]) if place_of(r) is not None}
    origins = sorted({o for made_of, _ in kin.values() for o in made_of})
    paths = {r["id"]: names.display(r["path"]) for r in listing.rows(origins)}
    timelines = {(r["destination"], str(_path(r).parent)): r["id"] for r in rows if _path(r).name == "timeline.png"}
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(there.values(), key=lambda r: -r["id"]):
        made_of, _ = kin.get(row["id"], ((row["id"],), None))
        found.setdefault((row["destination"], made_of), []).append(row)
    return [
        _clip(group, [(o, paths[o]) for o in made_of if o in paths], kin.get(group[0]["id"], ((), None))[1], timelines)
        for (_, made_of), group in found.items()
    ]


def _clip(rows: list[Row], made_of: list[tuple[int, str]], told: str | None, timelines: dict[Any, int]) -> Clip:
    here = [r for r in rows if place_of(r) is not None]
    played = min((r for r in here if _rank(r) < 2), key=_rank, default=None)
    shown = next((r for r in here if _path(r).suffix.lower() in PICTURES), None)
    video = next((r for r in here if _path(r).suffix.lower() in VIDEOS), None)
    is_playlist = played is not None and _rank(played) == 0
    timeline = timelines.get((rows[0]["destination"], str(_path(video).parent))) if video is not None else None
    return Clip(
        name=_named([path for _, path in made_of]) or names.display(rows[0]["dest_path"]), rows=rows,
        play=None if played is None else f"/media/{played['id']}" + (f"/{PLAYLIST}" if is_playlist else ""),
        is_playlist=is_playlist,
        picture=f"/media/{shown['id']}" if shown is not None else f"/pictures/{video['id']}" if video is not None else None,
        timeline=None if timeline is None else f"/media/{timeline}", made_of=made_of,
        steps=[str(step.get("kind")) for step in json.loads(told).get("steps", ())] if told else [],
    )  # fmt: skip


def _named(paths: list[str]) -> str:
    """What a clip is called after; "" for none."""
    more = len(paths) - 3
    return ", ".join(paths[:3]) + (f" and {more} more" if more > 0 else "")


def _rank(row: Row) -> int:
    """What is played rather: a playlist, then a video; nothing else is."""
    if _path(row).name == PLAYLIST:
        return 0
    return 1 if _path(row).suffix.lower() in VIDEOS else 2


def _path(row: Row) -> PurePosixPath:
    return PurePosixPath(row["dest_path"] or "")
