"""A session's end of `s3_fetcher.py`: one such program, started when it is first needed, killed with the session."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from threading import Event

from blocks.errors import Cancelled, OnblockError, UnknownError
from blocks.storage import s3_fetcher
from blocks.storage.s3_bucket import Bucket
from blocks.storage.s3_fetcher import Place
from blocks.storage.s3_wire import quoted

PAGE = 1024
"""Files that the program is told of at a time: so many answers fit into a pipe that nobody reads."""


class Fetcher:
    """For one thread at a time."""

    def __init__(self, bucket: Bucket, size_max: int):
        self._bucket, self._size_max = bucket, size_max
        self._process: subprocess.Popen[bytes] | None = None

    def pull(
        self, files: Sequence[tuple[str, str]], moved: Callable[[int], object], stop: Event
    ) -> list[OnblockError | None]:
        """As `Session.pull`. Raises Cancelled."""
        results: list[OnblockError | None] = [None] * len(files)
        asked: list[tuple[int, tuple[str, str]]] = []
        for number, (path, local) in enumerate(files):
            try:
                asked.append((number, (quoted(f"{self._bucket.server.base}/{self._bucket.key(path)}"), local)))
            except OnblockError as error:
                results[number] = error
        for start in range(0, len(asked), PAGE):
            page = asked[start : start + PAGE]
            came = self._page([file for _, file in page], moved, stop)
            for (number, _), size in zip(page, came, strict=True):
                if size < 0:
                    results[number] = UnknownError("was not fetched with the others", path=files[number][0])
        return results

    def _page(self, files: list[tuple[str, str]], moved: Callable[[int], object], stop: Event) -> list[int]:
        """The size of each, -1 for what did not come."""
        sizes = [-1] * len(files)
        ended = False
        try:
            process = self._process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            s3_fetcher.send(process.stdin, (tuple(self._place()), files))
            process.stdin.flush()
            fd, held = process.stdout.fileno(), b""
            while not ended:
                while not select.select([fd], [], [], 0.5)[0]:
                    if stop.is_set():
                        raise Cancelled("the run was stopped")
                data = os.read(fd, 1 << 16)
                if not data:
                    break  # it died: what it had not told of is read in the usual way
                held, answers = s3_fetcher.split(held + data)
                for answer in answers:
                    if answer is None:
                        ended = True
                    else:
                        number, sizes[number] = answer
                        moved(max(0, sizes[number]))
                if stop.is_set():
                    raise Cancelled("the run was stopped")
        except BrokenPipeError:
            ended = False
        finally:
            if not ended:
                self.close()
        return sizes

    def _place(self) -> Place:
        server = self._bucket.server
        keys = server.keys()
        return Place(
            server.host, server.port, server.netloc, server.region, keys.access_key, keys.secret_key, keys.token,
            server.timeout, self._bucket.rules.etags_are_md5, self._size_max,
        )  # fmt: skip

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", s3_fetcher.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0,
        )  # fmt: skip

    def close(self) -> None:
        """End the program."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # nobody takes what was not sent
                        pipe.close()
