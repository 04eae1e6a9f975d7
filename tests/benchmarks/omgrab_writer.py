"""What omgrab 0.1.2 keeps of two cameras: run by the Python of its own environment, which has no onblock.

`python omgrab_writer.py CASE FOLDER`: `kill` ends itself by SIGKILL after 25 s of frames, `dead` stops the second camera
after a quarter, `steps` sets the date back 2 s and later forward an hour. Frames are fed five times as fast as they were.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from omgrab.recording.chunked_writer import ChunkedWriter
from omgrab.recording.stream_configs import VideoStreamConfig

RATE, SPEED, CHUNK_S = 30, 5, 10


def main(case: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    configs = {
        n: VideoStreamConfig(320, 240, RATE, stream_options={"preset": "ultrafast"}, metadata={"type": "rgb"})
        for n in "ab"
    }
    writer = ChunkedWriter("bench", folder, configs, chunk_length_s=CHUNK_S)
    writer.start()
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    grey = np.arange(320 * 240 * 3, dtype=np.uint32).reshape(240, 320, 3)
    stuck: set[str] = set()
    begin = time.monotonic()
    count = 25 * RATE if case == "kill" else 1000
    for n in range(count):
        step = 0 if case != "steps" or n < 300 else -2 if n < 600 else 3600
        at = start + datetime.timedelta(seconds=n / RATE + step)
        frame = ((grey + n * 3) % 251).astype(np.uint8)
        for name in "ab":
            if name in stuck or (case == "dead" and name == "b" and n >= 250):
                continue
            try:
                writer.get_encoder_queue(name).put((frame, at), timeout=10)
            except Exception:  # noqa: BLE001 - its encoder is gone, or waits for the other one's
                stuck.add(name)
        time.sleep(max(0.0, begin + n / RATE / SPEED - time.monotonic()))
    while case == "kill" and any(writer.get_encoder_queue(n).qsize() for n in "ab"):
        time.sleep(0.01)
    if case == "kill":
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    writer.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
