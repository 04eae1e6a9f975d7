"""A fast lane for large files: SFTP through the OpenSSH client of this machine, which works on a processor of its own.

paramiko takes 60 us of Python for each packet of 32 KiB: 2 s of a processor per GiB, one at a time. Used beside the
connection of `ssh.py`, which logs in, lists, renames and tells what is wrong: where the client is not installed, or wants
a password, everything goes over that one.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
import struct
import termios
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.errors import OnblockError
from blocks.storage.program import Program
from blocks.storage.sftp_messages import Messages, Refused
from blocks.storage.ssh_login import SshStorage
from blocks.storage.ssh_shell import HOST, Login

if TYPE_CHECKING:
    import paramiko

    from blocks.storage.ssh import Connection

log = logging.getLogger("onblock.storage")

FAR = Path(__file__).with_name("sftp_far.py")
PIPE = 1 << 20
"""Bytes that may be on their way to or from the client."""


class Lane:
    """What `sftp_messages` needs of a channel, over `ssh`, to the server's SFTP or to a program there. Raises OSError, EOFError.

    The way to the client is a socket: a pipe tells of each page that is free, so that its two ends wake each other for a few
    KiB; a socket waits until most of it is (0.4 s of a processor less for a GiB). Its answers come by a pipe.
    """

    out_max_packet_size = 1 << 20

    def __init__(self, storage: SshStorage, *remote: str):
        self._patience, self._broken = storage.io_timeout, False
        self._login = Login(storage)
        self._socket, theirs = socket.socketpair()
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE)  # or as much as there may be here
            argv = [*self._login.argv, "-o", "ControlMaster=no", "-o", "ControlPath=none", *remote]
            self._program = Program(argv, stdin=theirs.fileno(), stdout=True, private=self._login.folder)
        except BaseException:
            self._socket.close()
            self._login.close()
            raise
        finally:
            theirs.close()
        self._in, self._out = self._socket.fileno(), self._program.stdout.fileno()
        os.set_blocking(self._out, False)
        with contextlib.suppress(OSError):  # a limit of this account: then it stays as it is
            fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, PIPE)

    def offer(self, data: bytes | bytearray) -> int:
        """Send as much as goes without waiting; how many bytes."""
        try:
            return os.write(self._in, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._over(error) from None

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
                self._until_writable()
                continue
            except OSError as error:
                raise self._over(error) from None
            first, view = first[n:], view[max(0, n - len(first)) :]

    def _until_writable(self) -> None:
        """Wait for the client to take something. A socket tells only once three quarters of it are free: on a slow link that
        may take longer than it may be silent."""
        before = self._unread()
        while not _ready(self._in, select.POLLOUT, self._patience):
            before, earlier = self._unread(), before
            if before >= earlier:
                raise self._over(TimeoutError("the server takes nothing any more"))

    def _unread(self) -> int:
        """What was sent to the client, in bytes of the kernel's, until it has taken it."""
        return struct.unpack("i", fcntl.ioctl(self._in, termios.TIOCOUTQ, b"\0" * 4))[0]

    def recv_ready(self) -> bool:
        """Whether `recv` would not wait."""
        return _ready(self._out, select.POLLIN, 0)

    def recv_all(self, *views: memoryview) -> None:
        """Fill them, one after the other; nothing is kept here, and nothing moved twice. EOFError at the end."""
        rest = [view for view in views if len(view)]
        while rest:
            try:
                n = os.readv(self._out, rest)
            except BlockingIOError:
                if not _ready(self._out, select.POLLIN, self._patience):
                    raise self._over(TimeoutError("no answer in time")) from None
                continue
            if not n:
                log.debug("the fast lane ended: %s", self._program.said())
                raise self._over(EOFError())
            while rest and n >= len(rest[0]):
                n -= len(rest.pop(0))
            if n:
                rest[0] = rest[0][n:]

    def settimeout(self, seconds: float) -> None:
        """The client, and who is behind it, may be silent for so long."""
        self._patience = seconds

    def _over(self, error: Exception) -> Exception:
        """After this nothing more is done here."""
        self._broken = True
        return error

    @property
    def closed(self) -> bool:
        """Whether nothing more can be done here."""
        return self._broken or self._program.poll() is not None

    def close(self) -> None:
        """End the client. Who still holds this gets EBADF, and never another file that has these numbers by then."""
        self._in = self._out = -1
        self._program.end(0)
        self._socket.close()
        self._login.close()


def _ready(fd: int, event: int, seconds: float) -> bool:
    """Whether a descriptor can be read or written, within so long. Raises OSError for one that is closed."""
    if fd < 0:
        raise OSError(errno.EBADF, "the lane is closed")
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(seconds * 1000))


def lane_for(
    storage: SshStorage, connection: Connection, *, shell: bool
) -> tuple[Lane | paramiko.Channel, Messages] | None:
    """The best lane that this machine and the login allow, if any. `shell`: whether the login has one."""
    by_client = storage.password is None and storage.passphrase is None  # the client would ask for it
    ways: list[tuple[str, Callable[[], Lane | paramiko.Channel]]] = []
    if shell and by_client:
        ways.append(("ssh and Python", lambda: Lane(storage, HOST, _by_python())))
    elif shell:
        ways.append(("Python", lambda: connection.execute(_by_python().encode())))
    if by_client:
        ways.append(("ssh", lambda: Lane(storage, "-s", HOST, "sftp")))
    for name, way in ways:
        lane = None
        try:
            lane = way()
            return lane, Messages(lane, (lambda: None) if isinstance(lane, Lane) else connection.hasten)
        except BaseException as error:
            if lane is not None:
                connection.drop(lane)
            if not isinstance(error, (OnblockError, OSError, EOFError, Refused, struct.error)):
                raise
            log.debug("no fast lane to %s by %s: %r", storage.address, name, error)
    if ways:
        log.info("large files go to %s like small ones", storage.address)
    return None


def _by_python() -> str:
    """The command that runs `sftp_far.py` at the far side, as one word that all shells read alike."""
    text = base64.b64encode(zlib.compress(FAR.read_bytes(), 9)).decode()
    code = f"import base64,sys,zlib;sys.version_info<(3,8) and sys.exit(1);exec(zlib.decompress(base64.b64decode('{text}')));main()"
    return f'exec python3 -I -S -c "{code}"'
