"""Hashing a large file at the far side while it is still being sent: a shell of the login's follows what the server has
confirmed, and begins to write it to the disk. Then little is left to prove, and to make durable, after the last byte. For
logins that have no Python; with one, `sftp_far.py` does it.

What is read is what lies there under the temporary name, as the digest at the end would read it; `fresh` digests
(`verify: readback`) and resumed files don't ask here. Whoever gets another digest than expected looks again at the end.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from blocks.errors import OnblockError
from blocks.storage.ssh import HASHER, Connection, exit_status, hashed

if TYPE_CHECKING:
    import paramiko

log = logging.getLogger("onblock.storage")

STEP = 32 << 20
"""Bytes that are followed at a time; a multiple of 1 MiB."""
_COMMAND = b"""exec sh -c 'LC_ALL=C; export LC_ALL; read -r n; s=$(head -c "$n"; echo .); eval "${s%.}"'"""
"""Takes a script after its length, then runs it: what follows in its standard input is the script's."""


class Follower:
    """Follows one file, `name` as a word of `sh`. `sync`: whether the far side can sync single files."""

    def __init__(self, connection: Connection, name: bytes, *, sync: bool):
        after = b"sync -d -- " + name + b" 2>/dev/null\n" if sync else b""
        script = (
            HASHER + b"exec 3< " + name + b" || exit 1\n"
            b'{ while read -r n; do dd bs=131072 count="$((n * 8))" <&3 2>/dev/null\n' + after + b"done; cat <&3; } | onblock_sha256\n"
        )  # fmt: skip
        self._followed = 0
        self._channel: paramiko.Channel | None = connection.execute(_COMMAND)
        self._send(b"%d\n%b" % (len(script), script))

    def reached(self, offset: int) -> None:
        """The server has confirmed all bytes before `offset`."""
        if (count := (offset - self._followed) // STEP) > 0:
            self._send((b"%d\n" % (STEP >> 20)) * count)
            self._followed += count * STEP

    def _send(self, data: bytes) -> None:
        if self._channel is None:
            return
        try:
            self._channel.sendall(data)
        except (OSError, EOFError) as error:
            log.debug("nobody follows any more: %s", error)
            self.drop()

    def finish(self, patience: float) -> str | None:
        """The SHA-256 of the whole file, which is complete now; None if it went wrong. `patience` in seconds."""
        channel = self._channel
        if channel is None:
            return None
        try:
            channel.settimeout(patience)
            channel.shutdown_write()
            said = b""
            while data := channel.recv(1 << 10):
                said += data
            return hashed(said) if exit_status(channel) == 0 else None
        except (OSError, EOFError, OnblockError) as error:
            log.debug("what was followed is looked at again: %s", error)
            return None
        finally:
            self.drop()

    def drop(self) -> None:
        """Nobody wants to know."""
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(OnblockError):
                Connection.drop(channel)
