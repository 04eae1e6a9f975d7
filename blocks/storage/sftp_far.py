"""The far side of the fast lane, where the login finds a Python (3.8 or later): the part of SFTP version 3 that moves the bytes
of files that are there. `sftp_lane.py` sends this text; it runs as the login, and needs nothing else there.

OpenSSH's `sftp-server` and a program that hashes what it wrote take 2.8 s of a processor for a GiB, this takes half of it: it
reads what lies there soon after it was written, and has it written to the disk meanwhile. Files are made, named and removed by
the server's own SFTP, which knows its rules (umask, what it writes down).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import threading

BLOCK = 255 << 10
"""Bytes of a READ or WRITE."""
SYNC = 32 << 20
"""Bytes after which the disk is told to begin."""
STATUS, HANDLE, DATA, ATTRS, EXTENDED_REPLY = 101, 102, 103, 105, 201
OK, NO_SUCH_FILE, PERMISSION, FAILURE, BAD_MESSAGE, UNSUPPORTED, EOF = 0, 2, 3, 4, 5, 8, 1
CODES = {
    errno.ENOENT: NO_SUCH_FILE, errno.ENOTDIR: NO_SUCH_FILE, errno.ELOOP: NO_SUCH_FILE, errno.EBADF: NO_SUCH_FILE,
    errno.EPERM: PERMISSION, errno.EACCES: PERMISSION, errno.EFAULT: PERMISSION, errno.ENAMETOOLONG: BAD_MESSAGE,
    errno.EINVAL: BAD_MESSAGE, errno.ENOSYS: UNSUPPORTED,
}  # fmt: skip
"""As OpenSSH's server says it."""
FSYNC, LIMITS, DIGEST = b"fsync@openssh.com", b"limits@openssh.com", b"sha256@onblock"


class File:
    """One that is open; as long as it is written from its beginning to its end, a thread hashes what lies there."""

    def __init__(self, fd: int, follow: bool):
        self.fd, self.written = fd, 0
        self.end: int | None = None
        self.changed = threading.Condition()
        self.digest = hashlib.sha256()
        self.thread: threading.Thread | None = None
        self.error: OSError | None = None
        if follow and not os.fstat(fd).st_size:
            self.thread = threading.Thread(target=self.follow, daemon=True)
            try:
                self.thread.start()
            except RuntimeError:  # there may be no more of them: then whoever wants a digest reads the file
                self.thread = None

    def write(self, data: memoryview, at: int) -> None:
        """At an offset; the rest of the disk, if it does not all fit in, is the error of the second try."""
        done = 0
        while done < len(data):
            wrote = os.pwrite(self.fd, data[done:], at + done)
            if not wrote:
                raise OSError(errno.EIO, "nothing was written")
            done += wrote
        self.reached(at + done if at == self.written else -1)

    def reached(self, written: int) -> None:
        """So far it was written, from the beginning on; -1: it was not."""
        with self.changed:
            self.written = written
            self.changed.notify()

    def follow(self) -> None:
        """Hash as far as was written; `end` says how far, if it was all."""
        try:
            self.end = self.followed()
        except OSError as error:  # that the disk failed is told once, to whoever asked first: `sync` tells it again
            self.error = error

    def followed(self) -> int | None:
        """Where it ends that was written from the beginning on, when `end` is set; None if it was not."""
        view, at, synced = memoryview(bytearray(BLOCK)), 0, 0
        while True:
            with self.changed:
                while self.written == at and self.end is None:
                    self.changed.wait()
                written, whole = self.written, self.end
            if written < at:  # not one after the other
                return None
            if written == at:
                break
            got = os.preadv(self.fd, [view[: min(BLOCK, written - at)]], at)
            if not got:
                return None
            self.digest.update(view[:got])
            at += got
            if at - synced >= SYNC and whole is None:
                os.fdatasync(self.fd)
                synced = at
        while True:  # nothing is behind it
            got = os.preadv(self.fd, [view], at)
            if not got:
                return at
            self.digest.update(view[:got])
            at += got

    def finish(self) -> bytes | None:
        """The SHA-256 of all that lies there, or None: it was not followed."""
        if self.thread is None:
            return None
        with self.changed:
            self.end = -1
            self.changed.notify()
        self.thread.join()
        self.thread = None
        return self.digest.hexdigest().encode() if self.end is not None and self.end >= 0 else None

    def sync(self) -> None:
        """All of it is on the disk, or this says why not, also if only the thread was told. Nobody follows any more."""
        self.unfollow()
        if self.error is not None:
            raise self.error
        os.fsync(self.fd)

    def unfollow(self) -> None:
        """The thread has ended."""
        if self.thread is not None:
            self.reached(-1)
            self.thread.join()
            self.thread = None

    def close(self) -> None:
        """The thread's too."""
        self.unfollow()
        os.close(self.fd)


class Far:
    """Answers the messages of one connection, in their order."""

    def __init__(self, take: int, give: int):
        self.take, self.give = take, give
        self.files: dict[bytes, File] = {}
        self.last = 0
        self.answers = {
            3: self.open, 4: self.close, 5: self.read, 6: self.write, 7: self.lstat, 8: self.fstat, 10: self.fsetstat,
            17: self.stat, 200: self.extended,
        }  # fmt: skip

    def serve(self) -> None:
        """Until the other side ends."""
        room = memoryview(bytearray(4 << 20))
        begin = end = 0
        while True:
            got = os.readv(self.take, [room[end:]])
            if not got:
                return
            end += got
            while end - begin >= 4:
                (size,) = struct.unpack_from(">I", room, begin)
                if not 5 <= size <= len(room) // 4:  # this is not SFTP
                    return
                if end - begin < 4 + size:
                    break
                self.message(room[begin + 4 : begin + 4 + size])
                begin += 4 + size
            if begin == end:
                begin = end = 0
            elif len(room) - end < len(room) // 4:
                rest = bytes(room[begin:end])
                room[: len(rest)] = rest
                begin, end = 0, len(rest)

    def message(self, body: memoryview) -> None:
        """One of them."""
        if body[0] == 1:
            known = b"".join(string(s) for name in (FSYNC, LIMITS, DIGEST) for s in (name, b"1"))
            self.send(struct.pack(">BI", 2, 3) + known)
            return
        number = bytes(body[1:5])
        try:
            answer = self.answers.get(body[0])
            if answer is None:
                raise OSError(errno.ENOSYS, "not here")
            kind, parts = answer(Fields(body[5:]))
        except OSError as error:
            kind, parts = STATUS, [status(CODES.get(error.errno or 0, FAILURE), os.strerror(error.errno or 0))]
        except (struct.error, KeyError, ValueError, OverflowError) as error:
            kind, parts = STATUS, [status(BAD_MESSAGE, repr(error))]
        self.send(bytes((kind,)) + number, *parts)

    def send(self, *parts: bytes) -> None:
        """An answer."""
        left = [memoryview(part) for part in (struct.pack(">I", sum(map(len, parts))), *parts)]
        while left:
            done = os.writev(self.give, left)
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if done:
                left[0] = left[0][done:]

    def file(self, fields: Fields) -> File:
        """The one that a handle stands for."""
        return self.files[bytes(fields.string())]

    def open(self, fields: Fields) -> tuple[int, list[bytes]]:
        """Of a file that is there."""
        path, flags = bytes(fields.string()), fields.number()
        how = (os.O_RDWR if flags & 1 else os.O_WRONLY) if flags & 2 else os.O_RDONLY
        fd = os.open(path, how | os.O_CLOEXEC | (os.O_NOFOLLOW if flags & 2 else 0))
        self.last += 1
        name = b"%d" % self.last
        self.files[name] = File(fd, bool(flags & 2))
        return HANDLE, [string(name)]

    def close(self, fields: Fields) -> tuple[int, list[bytes]]:
        """And what it still reads is not read."""
        self.files.pop(bytes(fields.string())).close()
        return STATUS, [status()]

    def read(self, fields: Fields) -> tuple[int, list[bytes]]:
        """One answer of as much as was asked for, or up to the end."""
        file, at, size = self.file(fields), fields.number(">Q"), fields.number()
        data = os.pread(file.fd, min(size, BLOCK), at)
        return (DATA, [struct.pack(">I", len(data)), data]) if data else (STATUS, [status(EOF, "end of file")])

    def write(self, fields: Fields) -> tuple[int, list[bytes]]:
        """At an offset."""
        file, at = self.file(fields), fields.number(">Q")
        file.write(fields.string(), at)
        return STATUS, [status()]

    def lstat(self, fields: Fields) -> tuple[int, list[bytes]]:
        """Of a path."""
        return ATTRS, [attributes(os.lstat(bytes(fields.string())))]

    def stat(self, fields: Fields) -> tuple[int, list[bytes]]:
        """Of what a path leads to."""
        return ATTRS, [attributes(os.stat(bytes(fields.string())))]

    def fstat(self, fields: Fields) -> tuple[int, list[bytes]]:
        """Of an open file."""
        return ATTRS, [attributes(os.fstat(self.file(fields).fd))]

    def fsetstat(self, fields: Fields) -> tuple[int, list[bytes]]:
        """Its length, mode, times."""
        file, flags = self.file(fields), fields.number()
        if flags & 1:
            file.reached(-1)
            os.ftruncate(file.fd, fields.number(">Q"))
        if flags & 2:
            os.fchown(file.fd, fields.number(), fields.number())
        if flags & 4:
            os.fchmod(file.fd, fields.number() & 0o7777)
        if flags & 8:
            os.utime(file.fd, (fields.number(), fields.number()))
        return STATUS, [status()]

    def extended(self, fields: Fields) -> tuple[int, list[bytes]]:
        """What OpenSSH has beside the protocol, and the digest of a file that was followed."""
        what = bytes(fields.string())
        if what == LIMITS:
            return EXTENDED_REPLY, [struct.pack(">QQQQ", 1 << 18, BLOCK, BLOCK, 0)]
        if what == FSYNC:
            self.file(fields).sync()
            return STATUS, [status()]
        found = self.file(fields).finish() if what == DIGEST else None
        return (EXTENDED_REPLY, [string(found)]) if found else (STATUS, [status(UNSUPPORTED, "not here")])


class Fields:
    """Of a message, front to back."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0

    def number(self, form: str = ">I") -> int:
        """Of 32 bits, or as it is said."""
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self) -> memoryview:
        """Bytes that are led by their length; a view."""
        size = self.number()
        if self.at + size > len(self.data):
            raise ValueError("cut short")
        self.at += size
        return self.data[self.at - size : self.at]


def string(value: bytes) -> bytes:
    """Bytes, led by their length."""
    return struct.pack(">I", len(value)) + value


def status(code: int = OK, said: str = "") -> bytes:
    """An answer that says only how it went."""
    return struct.pack(">I", code) + string(said.encode()) + string(b"")


def attributes(found: os.stat_result) -> bytes:
    """Size, owner, mode, times."""
    times = (int(t) & 0xFFFFFFFF for t in (found.st_atime, found.st_mtime))
    return struct.pack(">IQIIIII", 15, found.st_size, found.st_uid, found.st_gid, found.st_mode, *times)


def main() -> None:
    """Serve who has started this; fewer and larger steps between him and the server where the pipe may be larger."""
    for fd in (0, 1):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, 1031, 1 << 20)  # F_SETPIPE_SZ
    Far(0, 1).serve()
