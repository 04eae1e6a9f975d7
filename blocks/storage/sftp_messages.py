"""The messages of SFTP version 3 over one channel: many requests under way at once, answers in any order.

Written because paramiko's own client takes names for UTF-8, sends 32 KiB at a time, reads a whole file ahead and lacks
OpenSSH's extensions. With messages of 255 KiB, paramiko's transport moved 200 MB/s where its client moved 30.
What the answers mean for a file is in `sftp.py`. Source of the format: draft-ietf-secsh-filexfer-02 and OpenSSH's
PROTOCOL. Names are bytes. Not shared between threads.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, cast

from blocks.errors import NetworkError

if TYPE_CHECKING:
    import paramiko


class Ask(IntEnum):
    """Requests."""

    OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR = range(3, 13)
    REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME = range(13, 19)
    EXTENDED = 200


INIT, VERSION = 1, 2
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED_REPLY = 101, 102, 103, 104, 105, 201

READ, WRITE, CREATE, TRUNCATE, EXCLUSIVE = 0x01, 0x02, 0x08, 0x10, 0x20
"""Flags of OPEN."""

POSIX_RENAME, HARDLINK, FSYNC, STATVFS, LIMITS = (
    b"posix-rename@openssh.com", b"hardlink@openssh.com", b"fsync@openssh.com", b"statvfs@openssh.com",
    b"limits@openssh.com",
)  # fmt: skip
"""Extensions we use where the server offers them."""
DIGEST = b"sha256@onblock"
"""... and one of `sftp_far.py`: the SHA-256 of a file that was written from its beginning to its end."""

BLOCK = 255 << 10
"""Bytes of one READ or WRITE where the server takes so many (OpenSSH does since 8.5)."""
SMALL_BLOCK = 32 << 10
"""... and what every server must take."""
SMALL_REQUEST = 16 << 10
"""Requests up to this size wait for others: what an SSH packet costs is not for its bytes."""
WINDOW = 8 << 20
"""Bytes taken from the channel at once, at most; it never holds more."""
MESSAGE_MAX = 1 << 20
"""An answer longer than this is not SFTP."""


class Refused(Exception):
    """A request was answered by a status other than OK: `code` as the protocol numbers them, `said` in the server's words."""

    def __init__(self, code: int, said: str):
        self.code, self.said = code, said
        super().__init__(f"status {code}: {said}")


@dataclass(frozen=True)
class Attributes:
    """What is known of a file. `mtime` in seconds since the epoch."""

    size: int = 0
    mode: int = 0
    mtime: int = 0
    owner: tuple[int, int] = (0, 0)

    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode) or not stat.S_IFMT(self.mode)  # some servers send no type

    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


def string(value: bytes) -> bytes:
    """A field of bytes, led by its length."""
    return struct.pack(">I", len(value)) + value


def attributes(*, size: int | None = None, mtime: int | None = None, mode: int | None = None) -> bytes:
    """For requests: only what is given is set."""
    flags = (size is not None) | (mode is not None) << 2 | (mtime is not None) << 3
    out = struct.pack(">I", flags)
    if size is not None:
        out += struct.pack(">Q", size)
    if mode is not None:
        out += struct.pack(">I", mode)
    if mtime is not None:
        out += struct.pack(">II", mtime, mtime)
    return out


class Fields:
    """Reads the fields of an answer, front to back."""

    def __init__(self, data: memoryview | bytes, at: int = 0):
        self._data, self._at = data, at

    def number(self, form: str = ">I") -> int:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def view(self) -> memoryview | bytes:
        size = self.number()
        value = self._data[self._at : self._at + size]
        if len(value) != size:
            raise struct.error("a string is cut short")
        self._at += size
        return value

    def string(self) -> bytes:
        return bytes(self.view())

    def rest(self) -> bool:
        return self._at < len(self._data)

    def attributes(self) -> Attributes:
        flags = self.number()
        size = self.number(">Q") if flags & 1 else 0
        owner = (self.number(), self.number()) if flags & 2 else (0, 0)
        mode = self.number() if flags & 4 else 0
        mtime = (self.number(), self.number())[1] if flags & 8 else 0
        if flags & 0x80000000:
            for _ in range(self.number()):
                self.string()
                self.string()
        return Attributes(size, mode, mtime, owner)


class Channel(Protocol):
    """What carries the messages: paramiko's, or a `Lane`, which can do more."""

    out_max_packet_size: int

    def sendall(self, data: bytes, /) -> object: ...

    def recv_ready(self) -> bool: ...


class Messages:
    """The client's end. Raises what the channel raises, and NetworkError where the far side does not speak SFTP."""

    def __init__(self, channel: Channel, hasten: Callable[[], object]):
        self._channel, self._hasten = channel, hasten
        self._last = 0
        self._unsent = bytearray()  # requests
        self._held = memoryview(b"")  # bytes that came and are not taken yet
        self._answers: dict[int, memoryview | bytes] = {}
        self._nobodys: set[int] = set()  # requests whose answer nobody waits for
        self._packet = max(1024, channel.out_max_packet_size - 64)  # as much as one SSH packet takes
        self._receive_all: Callable[..., None] | None = getattr(channel, "recv_all", None)
        """Where the channel is a lane: what comes goes where it is wanted, at once."""
        self._send_both: Callable[[bytes, memoryview], None] | None = getattr(channel, "send_both", None)
        self._offer: Callable[[bytes | bytearray], int] | None = getattr(channel, "offer", None)
        self._channel.sendall(struct.pack(">IBI", 5, INIT, 3))
        kind, body = self._receive()
        if kind != VERSION:
            raise self._nonsense()
        fields = Fields(body, 1)
        self.version = fields.number()
        self.extensions: dict[bytes, bytes] = {}
        while fields.rest():
            name = fields.string()
            self.extensions[name] = fields.string()
        self.read_max = self.write_max = SMALL_BLOCK
        if LIMITS in self.extensions:
            fields = self.answer(self.send(Ask.EXTENDED, string(LIMITS)), EXTENDED_REPLY)
            fields.number(">Q")
            self.read_max = min(BLOCK, fields.number(">Q") or SMALL_BLOCK)
            self.write_max = min(BLOCK, fields.number(">Q") or SMALL_BLOCK)

    # -- requests ---------------------------------------------------------------------------------------------------

    def send(self, kind: Ask, head: bytes, body: memoryview | bytes = b"") -> int:
        """Send a request, without waiting; what to ask `answer` for. Small ones go together, once an answer is asked for."""
        self._last = number = (self._last + 1) & 0xFFFFFFFF
        start = struct.pack(">IBI", 5 + len(head) + len(body), kind, number) + head
        size = len(start) + len(body)
        if len(self._unsent) + size > self._packet:
            self._flush()
        if size <= SMALL_REQUEST:
            self._unsent += start
            self._unsent += body
            return number
        self._flush()
        if self._send_both is not None:
            self._send_both(start, memoryview(body))
            return number
        with memoryview(body) as rest:
            first = max(0, self._packet - len(start))
            self._channel.sendall(start + bytes(rest[:first]))
            for at in range(first, len(rest), self._packet):
                self._channel.sendall(bytes(rest[at : at + self._packet]))
        return number

    def _flush(self) -> None:
        """Send what was kept to go together. What has come meanwhile stays where it is, if that can be: it may be wanted
        straight from the channel."""
        if self._unsent and self._offer is not None:
            del self._unsent[: self._offer(self._unsent)]
            if not self._unsent:
                return
        while len(self._held) > 4 or self._channel.recv_ready():  # or both sides may wait for each other to read
            self._take()
        if self._unsent:
            self._channel.sendall(bytes(self._unsent))
            self._unsent.clear()

    def hurry(self) -> None:
        """Send what was kept to go with others: who asked may not come back soon."""
        if self._offer is None:
            self._flush()
        elif self._unsent:
            del self._unsent[: self._offer(self._unsent)]

    def answer(self, number: int, kind: int = STATUS) -> Fields:
        """Wait for the answer to a request; what follows its number. Raises Refused unless it is of `kind`, or OK."""
        if self._unsent:
            self._flush()
        while number not in self._answers:
            if not self._held and not self._channel.recv_ready():
                self._hasten()
            self._take()
        body = self._answers.pop(number)
        fields = Fields(body, 5)
        if body[0] == STATUS:
            code = fields.number()
            if kind != STATUS or code:
                raise Refused(code, fields.string().decode("utf-8", "replace") if fields.rest() else "")
        elif body[0] != kind:
            raise self._nonsense()
        return fields

    def outcome(self, number: int) -> Refused | None:
        """Wait for a status; None if it is OK."""
        try:
            self.answer(number)
        except Refused as refused:
            return refused
        return None

    def forget(self, number: int) -> None:
        """Nobody will ask for this answer."""
        if self._answers.pop(number, None) is None:
            self._nobodys.add(number)

    def answered(self, number: int) -> bool:
        """Whether the answer is there already."""
        return number in self._answers

    # -- the usual ones, waited for -----------------------------------------------------------------------------------

    def handle(self, number: int) -> bytes:
        return self.answer(number, HANDLE).string()

    def attributes(self, number: int) -> Attributes:
        return self.answer(number, ATTRS).attributes()

    def data(self, number: int) -> memoryview | bytes:
        return self.answer(number, DATA).view()

    def data_into(self, number: int, view: memoryview) -> int:
        """As `data`, straight from the channel into `view`; 0 where that can't be, and then `data` has it."""
        fill = self._receive_all
        if self._unsent:
            self._flush()
        if fill is None or number in self._answers:
            return 0
        head = bytearray(9)
        while number not in self._answers:
            fill(memoryview(head))
            size, kind, of = struct.unpack(">IBI", head)
            if of != number or kind != DATA or not 0 < size - 9 <= len(view):
                self._held = memoryview(bytes(head))
                self._take()
                continue
            length, view = bytearray(4), view[: size - 9]
            fill(memoryview(length), view)
            if length != (size - 9).to_bytes(4, "big"):
                raise self._nonsense()
            return len(view)
        return 0

    def names(self, number: int) -> Sequence[tuple[bytes, Attributes]]:
        fields, found = self.answer(number, NAME), []
        for _ in range(fields.number()):
            name = fields.string()
            fields.string()  # as `ls -l` would print it
            found.append((name, fields.attributes()))
        return found

    # -- the channel ------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Read one answer and keep it for whoever asks."""
        _, body = self._receive()
        if len(body) < 5:
            raise self._nonsense()
        (number,) = struct.unpack_from(">I", body, 1)
        if number in self._nobodys:
            self._nobodys.discard(number)
        else:
            # a short answer must not keep alive all that came with it
            self._answers[number] = body if len(body) > SMALL_BLOCK // 2 else bytes(body)

    def _receive(self) -> tuple[int, memoryview]:
        (size,) = struct.unpack(">I", self._exactly(4))
        if not 1 <= size <= MESSAGE_MAX:
            raise self._nonsense()
        body = self._exactly(size)
        return body[0], body

    def _exactly(self, size: int) -> memoryview:
        if self._receive_all is not None:
            whole = bytearray(size)
            had = min(size, len(self._held))
            whole[:had], self._held = self._held[:had], self._held[had:]
            self._receive_all(memoryview(whole)[had:])
            return memoryview(whole)
        if len(self._held) < size:
            parts, missing = [self._held], size - len(self._held)
            while missing > 0:
                # all there is: paramiko would move what it keeps, for every piece taken from its front
                part = cast("paramiko.Channel", self._channel).recv(WINDOW)
                if not part:
                    raise EOFError
                parts.append(memoryview(part))
                missing -= len(part)
            self._held = memoryview(b"".join(parts)) if len(parts) > 2 or parts[0] else parts[1]
        taken, self._held = self._held[:size], self._held[size:]
        return taken

    @staticmethod
    def _nonsense() -> NetworkError:
        return NetworkError(
            "what came back is not SFTP", remedy="a start-up file of the account may print something; make it silent"
        )
