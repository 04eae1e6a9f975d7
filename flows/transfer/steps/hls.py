"""The step `hls`: a clip as a playlist and segments that browsers play while they load."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Literal

from blocks import names
from blocks.errors import DiskFull, UnknownError
from flows.transfer.form import Duration
from flows.transfer.steps import video
from flows.transfer.steps.base import Ask, Step
from flows.transfer.steps.transcode import copy_all

NO_ROOM = 1 << 20
"""With less than this free, what is missing was not written for want of room."""
PLAYLIST, INIT, SEGMENT = "playlist.m3u8", "init.mp4", "segment_%05d.m4s"


class Hls(Step):
    """Cut a video for HTTP Live Streaming: `clip.mp4` becomes the folder `clip-mp4` with a playlist, an init file and
    fMP4 segments. Nothing is encoded: put a step `transcode` with `keyframe_every` before."""

    SUFFIXES = video.SUFFIXES

    WHOLE = True

    kind: Literal["hls"] = "hls"
    segment: Duration = timedelta(seconds=6)
    """Length of a segment; it ends at the next key frame after it."""

    def room(self, size: int) -> int:
        return size + size // 10 + (1 << 20)

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        source = inputs[0]
        stem, _, ending = source.name.rpartition(".")
        folder = work / names.check_path(f"{stem}-{ending}" if stem else source.name)
        made = work / "hls"  # FFmpeg reads `%` in names, and writes them into the playlist: it gets plain ones
        made.mkdir()
        options = {
            "hls_time": str(max(self.segment.total_seconds(), 0.1)), "hls_list_size": "0", "hls_playlist_type": "vod",
            "hls_segment_type": "fmp4", "hls_fmp4_init_filename": INIT, "hls_flags": "independent_segments",
            "hls_segment_filename": f"{str(made).replace('%', '%%')}/{SEGMENT}",
        }  # fmt: skip
        with video.opened(source) as clip, video.written(made / PLAYLIST, "hls", clip, options) as out:
            copy_all(clip, out, ask)
        if folder != made:
            made = made.rename(folder)
        return self._whole(made, ask)

    def _whole(self, made: Path, ask: Ask) -> list[Path]:
        """The files the playlist names. DiskFull or UnknownError where one is missing or empty, or the playlist has no end."""
        text = (made / PLAYLIST).read_text("utf-8")
        named = re.findall(r'^#EXT-X-MAP:URI="([^"]+)"', text, re.M) + re.findall(r"^[^#\s].*$", text, re.M)
        files = [made / PLAYLIST, *(made / name for name in named)]
        if "#EXT-X-ENDLIST" in text and len(named) > 1 and all(f.is_file() and f.stat().st_size for f in files):
            return files
        if ask.free() < NO_ROOM:  # FFmpeg's muxer goes on when a segment could not be written
            raise DiskFull("there was no room for the segments", remedy="make room where ONBLOCK_HOME is")
        raise UnknownError("the playlist or segments that were written are not whole")
