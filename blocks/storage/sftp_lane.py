"""A fast lane for large files: SFTP through the OpenSSH client of this machine, which works on a processor of its own.

paramiko takes 60 us of Python for each packet of 32 KiB: 2 s of a processor per GiB, one at a time. Used beside the
connection of `ssh.py`, which logs in, lists, renames and tells what is wrong: where the client is not installed, or wants
a password, everything goes over that one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select

from blocks.errors import OnblockError
from blocks.storage.program import Program
from blocks.storage.ssh_login import SshStorage
from blocks.storage.ssh_shell import HOST, Login

log = logging.getLogger("onblock.storage")

PIPE = 1 << 20
"""Bytes that a pipe to the client holds."""


class Lane:
    """What `sftp_messages` needs of a channel, over the pipes of `ssh -s HOST sftp`. Raises OSError, EOFError."""

    out_max_packet_size = 1 << 20

    def __init__(self, storage: SshStorage):
        self._patience = storage.io_timeout
        self._login = Login(storage)
        try:
            argv = [*self._login.argv, "-o", "ControlMaster=no", "-o", "ControlPath=none", "-s", HOST, "sftp"]
            self._program = Program(argv, stdin=True, stdout=True, private=self._login.folder)
        except BaseException:
            self._login.close()
            raise
        self._in, self._out = self._program.stdin.fileno(), self._program.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        for fd in (self._in, self._out):
            with contextlib.suppress(OSError):  # a limit of this account: then it stays as it is
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE)

    def sendall(self, data: bytes) -> None:
        """All of it, or OSError; TimeoutError if the client takes nothing for `io_timeout`."""
        self.send_both(data, memoryview(b""))

    def send_both(self, head: bytes, body: memoryview) -> None:
        """One after the other, without putting them together first. Otherwise as `sendall`."""
        first, view = memoryview(head), body
        while len(first) or len(view):
            try:
                n = os.writev(self._in, [first, view])
            except BlockingIOError:
                if not select.select([], [self._in], [], self._patience)[1]:
                    raise TimeoutError("the server takes nothing any more") from None
                continue
            first, view = first[n:], view[max(0, n - len(first)) :]

    def recv_ready(self) -> bool:
        """Whether `recv` would not wait."""
        return bool(select.select([self._out], [], [], 0)[0])

    def recv_all(self, *views: memoryview) -> None:
        """Fill them, one after the other; nothing is kept here, and nothing moved twice. EOFError at the end."""
        rest = [view for view in views if len(view)]
        while rest:
            try:
                n = os.readv(self._out, rest)
            except BlockingIOError:
                if not select.select([self._out], [], [], self._patience)[0]:
                    raise TimeoutError("no answer in time") from None
                continue
            if not n:
                log.debug("the fast lane ended: %s", self._program.said())
                raise EOFError
            while rest and n >= len(rest[0]):
                n -= len(rest.pop(0))
            if n:
                rest[0] = rest[0][n:]

    @property
    def ended(self) -> bool:
        """Whether the client has ended."""
        return self._program.poll() is not None

    def close(self) -> None:
        """End the client."""
        self._program.end(0)
        self._login.close()


def lane_for(storage: SshStorage) -> Lane | None:
    """A lane, where this machine and the login allow it."""
    if storage.password is not None or storage.passphrase is not None:
        return None  # the client would ask for it
    try:
        return Lane(storage)
    except (OnblockError, OSError) as error:
        log.debug("no fast lane to %s: %s", storage.address, error)
        return None
