"""Files on their way over WebHDFS: a reader and an upload, each on a connection of its own to one DataNode.

The `hdfs` package wants a thread and a queue for each file that is written; here chunks go straight to the socket. What
was sent and what came is compared with HDFS' own checksum of what lies there (`hdfs_checksum.py`): nothing is read back
to prove it. Talking to nodes is in `webhdfs_wire.py`.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blocks.errors import ConfigError, HashMismatch, NetworkError, NotFound, OnblockError, SourceChanged, SourceVanished
from blocks.storage.base import FileInfo, Reader, Upload, aligned_buffer
from blocks.storage.hdfs_checksum import HdfsChecksum
from blocks.storage.webhdfs_wire import Wire, bad_answer

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

log = logging.getLogger("onblock.storage")

PIECE = 1 << 20
"""Bytes given to the network at a time: the timeout is for each, and the next is hashed meanwhile."""
SMALL = 64 << 10
"""Chunks below this size go to the network in one piece with what frames them."""
MIN_BLOCK = 1 << 20
"""No block is smaller, unless a cluster was told so (`dfs.namenode.fs-limits.min-block-size`)."""
RELEASE_S = 5.0
"""How long to wait for HDFS to close a file whose writer has just gone."""
RECOVERY_S = 30.0
"""How long to wait for HDFS to recover the last block of a file: some heartbeats of a DataNode."""
ABORT_S = 5.0
"""How long an upload that is given up waits for its DataNode."""
HELD_S = 180.0
"""A writer that is dead is given up by HDFS after 60 s; one that still holds its file after this time, by us."""


def file_info(path: str, status: dict[str, Any]) -> FileInfo:
    """What a FileStatus says of a file."""
    return FileInfo(path, status["length"], status["modificationTime"] * 1_000_000)


class WebHdfsReader(Reader):
    """One file from one DataNode. Read from its begin to its end, it is compared with the checksum HDFS has of it; what
    comes before `offset` may be shown first, and nothing is sent meanwhile."""

    def __init__(
        self, wire: Wire, path: str, full: str, status: dict[str, Any], offset: int = 0, *,
        compare: bool = True,
    ):  # fmt: skip
        self.path, self._wire, self._full = path, wire, full
        self._size, self._at, self._id = status["length"], offset, status.get("fileId")
        self._proof: HdfsChecksum | None = None
        self._waiting: HdfsChecksum | None = None  # for what comes before `offset`
        self._connection: http.client.HTTPConnection | None = None
        self._answer: http.client.HTTPResponse | None = None
        if compare and self._size:  # asked first: it says by which polynomial
            self._far = wire.far_checksum(full, path)
            self._waiting = HdfsChecksum(status["blockSize"], self._far.crc or wire.crc)
        if not offset and self._size:
            self._proof = self._waiting
            self._open(0)

    def _open(self, offset: int) -> None:
        wire, path, full = self._wire, self.path, self._full
        self._connection, target = wire.datanode(wire.ask("open", full, path, offset=offset), full, path)
        try:
            self._connection.request("GET", target)
            self._answer = self._connection.getresponse()
            failed = None
            if self._answer.status != 200:
                failed = bad_answer(self._answer.status, self._answer.read(4096), path)
        except (OSError, http.client.HTTPException) as error:
            failed = wire.unreachable(error, path, self._connection)
        if failed is not None:
            self.close()
            raise failed

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        if len(view) and self._connection is None:
            try:
                self._open(self._at)
            except NotFound as error:
                raise SourceVanished("is no longer there", path=self.path) from error
        got, proving = 0, None
        while got < len(view):
            piece = view[got : got + PIECE]
            n = self._receive(piece)
            if proving is not None:
                proving.result()
                proving = None
            if self._proof is not None:
                if len(view) > PIECE:
                    proving = self._wire.prover.submit(self._proof.update, piece[:n])
                else:
                    self._proof.update(piece[:n])
            got += n
            self._at += n
        if proving is not None:
            proving.result()
        if self._at == self._size:
            self._compare()
        return got

    def before(self, view: memoryview) -> None:
        self._proof = self._waiting
        if self._proof is not None:
            self._proof.update(view)

    def _receive(self, piece: memoryview) -> int:
        failed: OnblockError
        try:
            n = self._answer.readinto(piece) if self._answer is not None else 0
            if n:
                return n
            failed = NetworkError(f"the DataNode stopped at byte {self._at} of {self._size}", path=self.path)
        except (OSError, http.client.HTTPException) as error:
            failed = self._wire.unreachable(error, self.path, self._connection)
        raise failed

    def _compare(self) -> None:
        """Whether what came is what lies there: TCP alone lets a flipped bit through."""
        proof, self._proof = self._proof, None
        if proof is None:
            return
        same = proof.matches(self._far)
        if same is None:
            log.log(
                logging.DEBUG if isinstance(self._connection, http.client.HTTPSConnection) else logging.WARNING,
                "%s: HDFS has a checksum of it that its bytes cannot be held against: %s", self.path, self._far.algorithm,
            )  # fmt: skip
        elif not same and self.info().size == self._size:
            raise HashMismatch("arrived damaged", path=self.path)

    def info(self) -> FileInfo:
        try:
            status = self._wire.status(self.path, self._full)
        except NotFound as error:
            raise SourceVanished("was removed or renamed while it was read", path=self.path) from error
        if status.get("fileId") != self._id:
            raise SourceChanged("was replaced while it was read", path=self.path)
        return file_info(self.path, status)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = self._answer = None


class WebHdfsUpload(Upload):
    """One file under its temporary name. Between two writes it may be open at a DataNode, or closed to be appended to."""

    def __init__(self, wire: Wire, path: str, staged: str, mtime_ns: int | None):
        self.path, self.staged = path, staged
        self._wire, self._mtime = wire, mtime_ns
        self._begun = False  # something lies there
        self._size = 0
        self._checked = True  # all of it lies there
        self._stream: http.client.HTTPConnection | None = None
        self._proof: HdfsChecksum | None = self._new_proof()

    def _new_proof(self) -> HdfsChecksum:
        """What HDFS should have as the checksum of all that was sent."""
        return HdfsChecksum(self._wire.storage.block_size or 0, self._wire.crc)

    # -- beginning and going on -------------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Go on with what an earlier upload left, once HDFS has let go of its writer."""
        try:
            status = self._wire.status(self.path, self.staged)
        except NotFound:
            return
        if not self._settle(status):
            self._wire.ask("delete", self.staged, self.path, recursive="false")
            return
        status = self._wire.status(self.path, self.staged)
        self._begun, self._size = True, status["length"]
        self.offset = self._size
        if self._size:
            self._proof = None  # what lies there did not come by here; `replay` makes up for it

    def _settle(self, status: dict[str, Any]) -> bool:
        """Have the file closed, by appending nothing. False if it has been held for so long that it is given up."""
        begun = time.monotonic()
        while True:
            try:
                self._open("append")
                self._finish()
                return True
            except NetworkError as error:
                waited = time.monotonic() - begun
                if ("RecoveryInProgress" in error.what and waited < RECOVERY_S) or (
                    "AlreadyBeingCreated" in error.what and waited < RELEASE_S
                ):
                    time.sleep(0.1)
                elif "AlreadyBeingCreated" in error.what or "RecoveryInProgress" in error.what:
                    now = int(time.time() * 1000)
                    if status["modificationTime"] == 1:  # our mark, since when it is held
                        if now - status["accessTime"] > HELD_S * 1000:
                            return False
                    else:
                        self._wire.ask("set_times", self.staged, self.path, modificationtime=1, accesstime=now)
                    raise
                else:
                    raise

    def _open(self, operation: str) -> None:
        """Begin to send: the file, or what is appended to it."""
        wire, storage = self._wire, self._wire.storage
        options: dict[str, object] = {}
        if operation == "create":
            options = {"overwrite": "true", "permission": storage.permission}
            if storage.replication:
                options["replication"] = storage.replication
            if storage.block_size:
                options["blocksize"] = storage.block_size
        answer = wire.ask(operation, self.staged, self.path, **options)
        stream, target = wire.datanode(answer, self.staged, self.path)
        try:
            stream.putrequest("PUT" if operation == "create" else "POST", target)
            stream.putheader("Transfer-Encoding", "chunked")
            stream.putheader("Content-Type", "application/octet-stream")
            stream.endheaders()
            stream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, http.client.HTTPException) as error:
            stream.close()
            failed = wire.unreachable(error, self.path, stream)
        else:
            self._stream = stream
            return
        raise failed

    def write(self, chunk: memoryview) -> None:
        if not len(chunk):
            return
        if self._stream is None:
            self._open("append" if self._begun else "create")
            self._begun = True
        if self._proof is not None and self._size + len(chunk) > MIN_BLOCK and not self._proof.block_size:
            self._ask_block_size()
        proving = None
        if self._proof is not None and len(chunk) >= PIECE // 4:
            proving = self._wire.prover.submit(self._proof.update, chunk)
        elif self._proof is not None:
            self._proof.update(chunk)
        try:
            self._send(chunk)
        finally:
            if proving is not None:
                proving.result()  # the chunk is the caller's again
        self._size += len(chunk)

    def _ask_block_size(self) -> None:
        """The file may be there only a moment after its DataNode was asked to make it."""
        assert self._proof is not None
        for _ in range(50):
            try:
                self._proof.block_size = self._wire.status(self.path, self.staged)["blockSize"]
                return
            except NotFound:
                time.sleep(0.02)
        self._proof = None  # then the file is read back

    def _send(self, chunk: memoryview) -> None:
        stream = self._stream
        assert stream is not None
        failed: OnblockError
        try:
            sock: socket.socket = stream.sock
            if len(chunk) < SMALL:
                sock.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                return
            sock.sendall(b"%x\r\n" % len(chunk))
            for at in range(0, len(chunk), PIECE):
                sock.sendall(chunk[at : at + PIECE])
            sock.sendall(b"\r\n")
            return
        except OSError as error:
            failed = self._told(stream, error)
        self._drop()
        raise failed

    def _told(self, stream: http.client.HTTPConnection, error: OSError) -> OnblockError:
        """Why the DataNode stopped listening: often it has answered before it closed."""
        if isinstance(error, TimeoutError) or error.errno not in (errno.EPIPE, errno.ECONNRESET):
            return self._wire.unreachable(error, self.path, stream)
        try:
            stream.sock.settimeout(2.0)
            told = self._answer(stream)
        except (OSError, http.client.HTTPException):
            told = None
        return told or self._wire.over_quota(self.staged, self.path) or self._wire.unreachable(error, self.path, stream)

    def _answer(self, stream: http.client.HTTPConnection) -> OnblockError | None:
        """The failure the DataNode tells; None for success."""
        answer = stream.getresponse()
        body = answer.read()
        return None if answer.status in (200, 201) else bad_answer(answer.status, body, self.path)

    def _finish(self) -> None:
        """End the request under way: what was sent is in HDFS then, and the file closed."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        failed: OnblockError | None
        try:
            stream.sock.sendall(b"0\r\n\r\n")
            failed = self._answer(stream)
        except OSError as error:
            failed = self._told(stream, error)
        except http.client.HTTPException as error:
            failed = self._wire.unreachable(error, self.path, stream)
        finally:
            stream.close()
        if failed is not None:
            raise failed
        self._checked = False

    def _check_size(self) -> None:
        """Whether all that was written lies there: a DataNode of 2.7 says 201 to a file that its quota has cut off."""
        if self._checked:
            return
        length = self._wire.status(self.path, self.staged)["length"]
        if length != self._size:
            raise self._wire.over_quota(self.staged, self.path) or NetworkError(
                f"HDFS has {length} of the {self._size} bytes it took", path=self.path
            )
        self._checked = True

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    # -- what lies there --------------------------------------------------------------------------------------------

    def matches(self, sha256: str, *, fresh: bool = False) -> bool | None:
        """By HDFS' checksum where it can be compared; read back where it can't, or where `fresh` is asked for."""
        self._finish()
        known = self._proof if self._begun and not fresh else None
        if known is not None and known.matches(self._wire.far_checksum(self.staged, self.path)):
            self._checked = True
            return True
        return super().matches(sha256, fresh=fresh)

    def replay(self, update: Callable[[memoryview], object], *, fresh: bool = False) -> bool:
        self._finish()
        if not self._begun or not self._size:
            update(memoryview(b""))
            return True
        self._check_size()
        wire = self._wire
        status = wire.status(self.path, self.staged)
        proof = HdfsChecksum(status["blockSize"], wire.crc)
        view = memoryview(aligned_buffer(PIECE))
        with WebHdfsReader(wire, self.path, self.staged, status, compare=False) as reader:
            while n := reader.readinto(view):
                proof.update(view[:n])
                update(view[:n])
        if self._proof is None and proof.size == self._size:
            self._proof = proof
        return True

    def rewind(self, offset: int) -> int:
        self._finish()
        if offset < self._size:
            offset = self._truncate(offset) if offset else self._restart()
        self.offset = self._size = offset
        return offset

    def _restart(self) -> int:
        self._begun, self._proof = False, self._new_proof()  # CREATE overwrites
        return 0

    def _truncate(self, offset: int) -> int:
        wire = self._wire
        try:
            wire.ask("truncate", self.staged, self.path, newlength=offset)
            self._settle(wire.status(self.path, self.staged))  # the last block is cut by its DataNode, later
        except ConfigError:  # Hadoop before 2.7, or a gateway
            return self._restart()
        self._proof = None
        return offset

    # -- the end ----------------------------------------------------------------------------------------------------

    def seal(self) -> None:
        if not self._begun:
            self._open("create")
            self._begun = True
        self._finish()
        self._check_size()

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        wire = self._wire
        name = self.path if path is None else path
        final = wire.at(name)
        self.seal()
        if self._mtime is not None:
            wire.ask("set_times", self.staged, self.path, modificationtime=self._mtime // 1_000_000)
        wire.rename(self.staged, final, self.path, name, replace=replace, folders=True)
        self.path = name
        return name

    def keep(self) -> None:
        self._finish()
        self._check_size()

    def abort(self) -> None:
        if self._stream is not None:
            self._stream.sock.settimeout(ABORT_S)
            with contextlib.suppress(OnblockError):  # else its DataNode may make the file after we removed it
                self._finish()
        if self._begun:
            self._wire.ask("delete", self.staged, self.path, recursive="false")
