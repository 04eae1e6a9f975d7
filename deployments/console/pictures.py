"""Pictures of recordings: a frame of a video, and the timeline of a recording on this machine. Each is made once, by a process
of its own (what is in a video comes from outside), and kept in `console/pictures` of ONBLOCK_HOME.

`python -m deployments.console.pictures frame FD OUT`, or `... timeline FOLDER OUT`, makes one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from blocks import names
from blocks.home import home

log = logging.getLogger("onblock.console")

WITHIN_S = 60.0
"""So long one may take."""
PATIENCE_S = 1.0
"""So long whoever asks waits for it: browsers have six connections, and the console is to end within two seconds."""
AT_A_TIME, MOST_MAKING = 2, 64
"""So many are made, and wait for their turn; who asks for more asks again."""
MOST = 2000
"""So many are kept: the oldest go."""
WIDTH = 480
"""Of a frame, in pixels."""


class Picture(NamedTuple):
    """Where it lies; None where there is none, or none yet: `later` then."""

    path: Path | None
    later: bool = False


class Pictures:
    """They, kept. Shared by threads. Whoever asks waits for a moment; then it is made all the same, for the next time."""

    def __init__(self) -> None:
        self._turn = threading.BoundedSemaphore(AT_A_TIME)
        self._lock = threading.Lock()
        self._making: dict[Path, threading.Event] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def frame(self, fd: int) -> Picture:
        """A JPEG of a video that is open; the descriptor stays the caller's."""
        st = os.fstat(fd)
        key = f"frame {st.st_dev} {st.st_ino} {st.st_size} {st.st_mtime_ns}"
        return self._made(key, "jpg", "frame", "", fd)

    def timeline(self, folder: Path, version: int) -> Picture:
        """A PNG of what happened in a recording over time; another `version` is another picture."""
        return self._made(f"timeline {folder} {version}", "png", "timeline", str(folder), None)

    def close(self) -> None:
        """No more of them; those that are being made are left."""
        self._closed = True
        for process in tuple(self._processes):
            _kill(process)

    def _made(self, key: str, ending: str, what: str, of: str, fd: int | None) -> Picture:
        to = home() / "console" / "pictures" / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.{ending}"
        if not to.exists():
            with self._lock:
                ready = self._making.get(to)
                if ready is None and len(self._making) < MOST_MAKING and not self._closed and not to.exists():
                    own = None if fd is None else os.dup(fd)
                    work = threading.Thread(
                        target=self._work, args=(to, what, of, own), name="onblock-picture", daemon=True
                    )
                    ready = self._making[to] = threading.Event()
                    try:
                        work.start()
                    except RuntimeError:  # no thread is to be had
                        del self._making[to]
                        if own is not None:
                            os.close(own)
                        return Picture(None, later=True)
            if ready is not None:
                ready.wait(PATIENCE_S)
        try:
            return Picture(to if to.stat().st_size else None)
        except FileNotFoundError:
            return Picture(None, later=True)

    def _work(self, to: Path, what: str, of: str, fd: int | None) -> None:
        try:
            with self._turn:
                if not self._closed:
                    self._make(to, what, of, fd)
        except OSError as error:  # no room, say: asked for again by whoever looks again
            log.warning("there is no picture (%s): %s", what, error)
        finally:
            if fd is not None:
                os.close(fd)
            with self._lock:
                self._making.pop(to).set()

    def _make(self, to: Path, what: str, of: str, fd: int | None) -> None:
        to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _forget(to.parent)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=to.parent) as work:
            made = Path(work, "picture")
            made.touch()  # an empty one: it cannot be made, and is not tried again and again
            argv = [sys.executable, "-P", "-m", "deployments.console.pictures", what, of or str(fd), str(made)]
            process = subprocess.Popen(
                argv, cwd=work, pass_fds=[] if fd is None else [fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            self._processes.add(process)
            try:
                told = process.communicate(timeout=WITHIN_S)[1]
                if process.returncode < 0:  # killed, as where memory is short: another time
                    return
                said = told.decode(errors="replace").strip().splitlines()
                if process.returncode and not self._closed:
                    last = said[-1] if said else f"exit code {process.returncode}"
                    log.info("there is no picture (%s): %s", what, names.display(last))
            except subprocess.TimeoutExpired:
                log.warning("there is no picture (%s): it was not made within %.0f s", what, WITHIN_S)
                return
            finally:
                _kill(process)
                process.communicate()
                self._processes.discard(process)
            if not self._closed:
                made.rename(to)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _forget(root: Path) -> None:
    kept = sorted(root.glob("[0-9a-f]*.*"), key=lambda p: p.stat().st_mtime_ns)
    for left in root.glob(".making-*"):  # by a console that was killed
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > 10 * WITHIN_S:
                shutil.rmtree(left, ignore_errors=True)
    for old in kept[: max(0, len(kept) - MOST + 1)]:
        old.unlink(missing_ok=True)


# -- the process -----------------------------------------------------------------------------------------------------


def frame(fd: str, to: Path) -> None:
    """A JPEG of an early frame of the video at a descriptor. Raises OnblockError."""
    from flows.transfer.steps.base import Ask
    from flows.transfer.steps.thumbnail import Thumbnail

    work = to.parent / "work"
    work.mkdir()
    _, picture = Thumbnail(width=WIDTH).run([Path("/proc/self/fd", fd)], work, Ask(work, 0))
    picture.rename(to)


def timeline(folder: str, to: Path) -> None:
    """A PNG of a recording's timeline. Raises OnblockError, OSError."""
    from deployments import picture
    from flows.capture.manifest import load
    from flows.capture.timeline import timeline as read

    manifest = load(Path(folder))
    line = read(Path(folder), manifest, 600)
    picture.write(to, picture.draw(line, f"{manifest.id}  {manifest.state}  {line.seconds:.1f} s"))


if __name__ == "__main__":
    signal.alarm(int(WITHIN_S) + 5)  # also where nobody is left to end it
    os.nice(10)
    {"frame": frame, "timeline": timeline}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
