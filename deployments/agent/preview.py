"""Preview: the newest picture of each camera as a JPEG, renewed each second, to see what the cameras see.

`python -m deployments.agent.preview FOLDER` has a `CaptureSpec` as the first line of its standard input, and ends when that
ends. It says `{"state": "preview"}` once the first picture is there, or `{"state": "failed", ...}`. `Preview` starts and ends
it for the panel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.errors import NetworkError, NotFound, OnblockError
from deployments.agent.record import say
from deployments.agent.recording import as_error, failed

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from flows.capture.spec import StreamSpec

EVERY_S = 1.0
BEGINS_WITHIN_S = 60.0
MODULE = (sys.executable, "-P", "-m", "deployments.agent.preview")


class Preview:
    """The preview of a device; `ended` is told when it ends without having been asked. Of one thread."""

    def __init__(
        self,
        spec: str,
        folder: Path,
        log_file: Path,
        ended: Callable[[], None] = lambda: None,
        argv: Sequence[str] = MODULE,
    ):
        self._spec, self._folder, self._log, self._ended, self._argv = spec, folder, log_file, ended, argv
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin; returns with the first picture. Raises an OnblockError where there is none."""
        self.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob("*.jpg"):
            old.unlink(missing_ok=True)
        with self._log.open("ab") as out:
            process = self._process = subprocess.Popen(
                [*self._argv, str(self._folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True,
                start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        try:
            process.stdin.write(self._spec.replace("\n", " ") + "\n")
            process.stdin.flush()
        except OSError:
            pass  # it has ended, and is heard below
        told: list[dict[str, Any]] = []
        begun = threading.Event()
        threading.Thread(target=self._hear, args=(process, told, begun), name="onblock-preview", daemon=True).start()
        in_time = begun.wait(BEGINS_WITHIN_S)
        if told and told[0].get("state") == "preview":
            return
        self.stop()
        if not in_time:
            raise NetworkError(f"no camera gave a picture within {BEGINS_WITHIN_S:g} s", remedy="look at its log")
        raise (
            as_error(told[0])
            if told
            else NotFound("the preview ended before its first picture", remedy="look at its log")
        )

    def stop(self) -> None:
        """End it, if it runs."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        try:
            process.stdin.close()
            process.wait(5)
        except (OSError, subprocess.TimeoutExpired):  # a driver that hangs
            process.kill()
            process.wait()

    def _hear(self, process: subprocess.Popen[str], told: list[dict[str, Any]], begun: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout as out:
            for line in out:
                try:
                    told.append(json.loads(line))
                except ValueError:
                    continue  # a library said something
                begun.set()
        process.wait()
        shown = bool(told) and told[0].get("state") == "preview"
        begun.set()
        if shown and self._process is process:
            self._ended()


# -- the process -----------------------------------------------------------------------------------------------------


def show(stream: StreamSpec, folder: Path, shown: Callable[[], None]) -> None:
    """Renew the picture of one camera for as long as it gives some. Raises an OnblockError where it fails."""
    from flows.capture.sources import failure, open_input

    due = 0.0
    try:
        container, video = open_input(stream)
        with container:
            for frame in container.decode(video):
                if time.monotonic() >= due:
                    due = time.monotonic() + EVERY_S
                    part = folder / f".{stream.name}.part"
                    part.write_bytes(jpeg(frame))
                    part.rename(folder / f"{stream.name}.jpg")
                    shown()
    except OnblockError:
        raise
    except Exception as error:
        raise failure(error, stream) from error


def jpeg(frame: VideoFrame) -> bytes:
    """A frame as a JPEG."""
    import av

    encoder = av.CodecContext.create("mjpeg", "w")
    picture = frame.reformat(format="yuvj420p")
    picture.pts, picture.pict_type = None, 0
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
    encoder.framerate = Fraction(1)
    return b"".join(bytes(packet) for packet in (*encoder.encode(picture), *encoder.encode(None)))


def main() -> None:
    """See the top."""
    from flows.capture.spec import CaptureSpec

    folder, spec = Path(sys.argv[1]), CaptureSpec.model_validate_json(sys.stdin.readline())
    begun, over = threading.Event(), threading.Semaphore(0)
    failures: list[OnblockError] = []

    def shown() -> None:
        if not begun.is_set():
            begun.set()
            say(state="preview")

    def one(stream: StreamSpec) -> None:
        try:
            show(stream, folder, shown)
        except OnblockError as error:
            print(error, file=sys.stderr, flush=True)
            failures.append(error)
        finally:
            over.release()

    def asked() -> None:
        sys.stdin.read()
        os._exit(0)  # readers may hang in their drivers

    threading.Thread(target=asked, daemon=True).start()
    for stream in spec.streams:
        threading.Thread(target=one, args=(stream,), daemon=True).start()
    for _ in spec.streams:
        over.acquire()
    if not begun.is_set():
        none = NotFound("there is no camera to show", remedy="write `capture:` in agent.yaml")
        say(**failed(failures[0] if failures else none))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
