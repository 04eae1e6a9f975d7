"""A program of its own that fetches small objects for a session, over several connections at once and without threads,
so that Python's lock is no limit. Plain HTTP only.

Started by `s3_session.py` as `python -I -S s3_fetcher.py` and fed through its standard input; imports little, to start at
once. It decides nothing: what does not go as usual, or has no MD5 or SHA-256 that the bytes can be held against, is left
to the session, which reads it again and tells why. It stops as soon as its parent is gone.

A frame is 4 bytes of length and a marshalled value, as in `copier.py`. A page is (server, files): `server` as `Place`
takes it, `files` as (quoted path of the object, local file to make). The answers to it are frames (number of the file,
its size or -1), in any order, and one None at the end.
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import marshal
import os
import re
import select
import socket
import sys
import time
from typing import IO, Any, NamedTuple

CONNECTIONS = 4
HEAD_MAX = 64 << 10
"""Bytes of the headers of an answer."""
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
EMPTY = hashlib.sha256(b"").hexdigest()
STRIKES = 3
"""Connections that fail one after the other, after which the rest of a page is left to the session."""
UNPROVEN = 8
"""Objects without evidence, after which it is."""

_MD5 = re.compile(rb'"?([0-9a-f]{32})"?\Z')
_DATE = re.compile(rb"\w{3}, (\d{2}) (\w{3}) (\d{4}) (\d{2}):(\d{2}):(\d{2}) GMT\Z")
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


class Place(NamedTuple):
    """Where objects are asked for, and how. `size_max`: bytes of the largest object that is fetched here."""

    host: str
    port: int
    netloc: str
    region: str
    access_key: str
    secret_key: str
    token: str
    timeout: float
    etags_are_md5: bool
    size_max: int

    def __repr__(self) -> str:
        return "Place(...)"


def send(pipe: IO[bytes], what: Any) -> None:
    """Write one frame."""
    data = marshal.dumps(what)
    pipe.write(len(data).to_bytes(4, "little") + data)


def receive(pipe: IO[bytes]) -> Any:
    """Read one frame. EOFError if the other side is gone."""
    head = pipe.read(4)
    data = pipe.read(int.from_bytes(head, "little")) if len(head) == 4 else b""
    if not data:
        raise EOFError("the other side is gone")
    return marshal.loads(data)


def split(held: bytes) -> tuple[bytes, list[Any]]:
    """The whole frames at the front of what came, and what is left of it."""
    found, at = [], 0
    while len(held) - at >= 4:
        end = at + 4 + int.from_bytes(held[at : at + 4], "little")
        if len(held) < end:
            break
        found.append(marshal.loads(held[at + 4 : end]))
        at = end
    return held[at:], found


class Unusual(Exception):
    """An answer that is left to the session; the connection has lost its place."""


class Signer:
    """Requests, signed as `s3_wire.py` does it (Signature Version 4)."""

    def __init__(self, place: Place):
        self._place = place
        self._day, self._key = "", b""

    def request(self, path: str) -> bytes:
        """A GET of the whole object."""
        p = self._place
        headers = f"host:{p.netloc}\nx-amz-content-sha256:{EMPTY}\n"
        lines = f"GET {path} HTTP/1.1\r\nhost: {p.netloc}\r\nx-amz-content-sha256: {EMPTY}\r\n"
        if not p.access_key:
            return f"{lines}\r\n".encode()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        signed = "host;x-amz-content-sha256;x-amz-date"
        headers += f"x-amz-date:{stamp}\n"
        lines += f"x-amz-date: {stamp}\r\n"
        if p.token:
            signed += ";x-amz-security-token"
            headers += f"x-amz-security-token:{p.token}\n"
            lines += f"x-amz-security-token: {p.token}\r\n"
        day = stamp[:8]
        if day != self._day:
            key = b"AWS4" + p.secret_key.encode()
            for part in (day, p.region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._day, self._key = day, key
        scope = f"{day}/{p.region}/s3/aws4_request"
        digest = hashlib.sha256(f"GET\n{path}\n\n{headers}\n{signed}\n{EMPTY}".encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        return (
            f"{lines}authorization: AWS4-HMAC-SHA256 Credential={p.access_key}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}\r\n\r\n"
        ).encode()


class Line:
    """One connection, and the object that is asked for on it."""

    def __init__(self, place: Place):
        self.sock = socket.create_connection((place.host, place.port), min(place.timeout, 10))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(place.timeout)
        self._size_max = place.size_max
        self.number = -1
        self.began = 0.0
        self.ends = False  # after this answer
        self._held = b""
        self.fields: dict[bytes, bytes] | None = None
        self._size = 0

    def ask(self, number: int, request: bytes) -> None:
        """Send a request; its answer is `number`'s."""
        self.number, self.began, self.fields, self._held = number, time.monotonic(), None, b""
        self.sock.sendall(request)  # less than any buffer

    def take(self) -> bytes | None:
        """What has come: the body once it is whole. Raises OSError, Unusual."""
        data = self.sock.recv(1 << 18)
        if not data:
            raise ConnectionResetError("the server ended the connection")
        self.began = time.monotonic()
        held = self._held = self._held + data if self._held else data
        if self.fields is None:
            end = held.find(b"\r\n\r\n")
            if end < 0:
                if len(held) > HEAD_MAX:
                    raise Unusual("headers without an end")
                return None
            first, *lines = held[:end].split(b"\r\n")
            fields = {}
            for line in lines:
                name, _, value = line.partition(b":")
                fields[name.strip().lower()] = value.strip()
            size = fields.get(b"content-length", b"")
            if first[:12] != b"HTTP/1.1 200" or not size.isdigit() or b"transfer-encoding" in fields:
                raise Unusual(first.decode("latin-1"))
            self._size = int(size)
            if self._size > self._size_max:
                raise Unusual("larger than was said")
            self.ends = fields.get(b"connection", b"").lower() == b"close"
            self.fields = fields
            held = self._held = held[end + 4 :]
        if len(held) < self._size:
            return None
        if len(held) > self._size:
            raise Unusual("more than the answer")
        return held


def proven(body: bytes, fields: dict[bytes, bytes], *, etags_are_md5: bool) -> bool | None:
    """Whether the bytes are those the server keeps; None if it does not say."""
    kept = fields.get(b"x-amz-checksum-sha256", b"")
    if kept and b"-" not in kept:
        import base64

        return base64.b64encode(hashlib.sha256(body).digest()) == kept
    encrypted = fields.get(b"x-amz-server-side-encryption", b"").startswith(b"aws:")
    encrypted = encrypted or b"x-amz-server-side-encryption-customer-algorithm" in fields
    found = _MD5.match(fields.get(b"etag", b""))
    if found is None or encrypted or not etags_are_md5:
        return None
    return hashlib.md5(body, usedforsecurity=False).hexdigest().encode() == found[1]


class Times:
    """Dates of HTTP in seconds since the epoch. Many objects have the same."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def seconds(self, date: bytes) -> int:
        """Raises Unusual for what is none."""
        if (known := self._known.get(date)) is not None:
            return known
        found = _DATE.match(date)
        if found is None or found[2] not in _MONTHS:
            raise Unusual("no date")
        day, month, year, hour, minute, second = found.groups()
        value = calendar.timegm(
            (int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second), 0, 0, 0)
        )
        if len(self._known) > 4096:
            self._known.clear()
        self._known[date] = value
        return value


def keep(local: str, body: bytes, seconds: int) -> None:
    """Make the local file. Raises OSError."""
    fd = os.open(local, WRITE, 0o600)
    try:
        if os.write(fd, body) != len(body):
            raise OSError("short write")
        os.utime(fd, ns=(seconds * 10**9, seconds * 10**9))
    except OSError:
        os.unlink(local)
        raise
    finally:
        os.close(fd)


class Page:
    """The files of one page, being fetched."""

    def __init__(self, place: Place, files: list[tuple[str, str]], out: IO[bytes]):
        self._place, self._files, self._out = place, files, out
        self._signer, self._times = Signer(place), Times()
        self._next = self._strikes = self._unproven = 0
        self._lines: dict[int, Line] = {}
        self._poll = select.epoll()

    def fetch(self, parent: int) -> None:
        """All of them, or as far as it goes."""
        for _ in range(min(CONNECTIONS, len(self._files))):
            self._open()
        while self._lines and os.getppid() == parent:
            for fd, _ in self._poll.poll(1.0):
                self._hear(self._lines[fd])
            self._out.flush()
            late = time.monotonic() - self._place.timeout
            for line in [one for one in self._lines.values() if one.began < late]:
                self._lose(line)
        self._poll.close()
        for number in range(self._next, len(self._files)):
            send(self._out, (number, -1))

    def _open(self) -> None:
        """One more connection, if anything is left for it."""
        while self._next < len(self._files) and self._strikes < STRIKES and self._unproven < UNPROVEN:
            try:
                line = Line(self._place)
            except OSError:
                self._strikes += 1
                continue
            fd = line.sock.fileno()
            self._lines[fd] = line
            self._poll.register(fd, select.EPOLLIN)
            self._ask(line)
            return

    def _ask(self, line: Line) -> None:
        """The next object, on a connection that is free."""
        if self._next == len(self._files) or self._strikes >= STRIKES or self._unproven >= UNPROVEN:
            self._drop(line)
            return
        number = self._next
        self._next += 1
        try:
            line.ask(number, self._signer.request(self._files[number][0]))
        except OSError:
            self._lose(line)

    def _hear(self, line: Line) -> None:
        try:
            body = line.take()
        except OSError:
            self._lose(line)
            return
        except Unusual:
            self._strikes = 0  # it lives
            send(self._out, (line.number, -1))
            self._drop(line)
            self._open()
            return
        if body is None:
            return
        self._strikes = 0
        send(self._out, (line.number, self._done(line, body)))
        if line.ends:
            self._drop(line)
            self._open()
        else:
            self._ask(line)

    def _done(self, line: Line, body: bytes) -> int:
        fields = line.fields or {}
        good = proven(body, fields, etags_are_md5=self._place.etags_are_md5)
        self._unproven = self._unproven + 1 if good is None else 0
        if not good:
            return -1
        try:
            keep(self._files[line.number][1], body, self._times.seconds(fields.get(b"last-modified", b"")))
        except (OSError, Unusual):
            return -1
        return len(body)

    def _lose(self, line: Line) -> None:
        """The connection failed, and with it what was asked for on it."""
        self._strikes += 1
        send(self._out, (line.number, -1))
        self._drop(line)
        self._open()

    def _drop(self, line: Line) -> None:
        del self._lines[line.sock.fileno()]
        line.sock.close()  # which takes it out of the poll


def main() -> None:
    """Serve until the input ends or the parent is gone."""
    parent = os.getppid()
    out = sys.stdout.buffer
    while True:
        try:
            place, files = receive(sys.stdin.buffer)
        except EOFError:
            return
        Page(Place(*place), files, out).fetch(parent)
        if os.getppid() != parent:
            return
        send(out, None)
        out.flush()


if __name__ == "__main__":
    main()
