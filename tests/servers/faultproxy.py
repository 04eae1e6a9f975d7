"""A TCP proxy on loopback that breaks things on purpose: between a client and any server. Standard library only.

    with FaultProxy(server_port) as proxy:        # proxy.port listens; everything passes
        proxy.latency = 0.2                       # seconds added to each chunk, both ways
        proxy.rate = 1_000_000                    # bytes/s, each way of each connection
        proxy.cut_after = (10_000_000, "up")      # end each connection after so many bytes that way (or "down")
        proxy.cut_how = "fin"                     # "rst" (default), "fin" (a clean close: cut short), "hang" (half-open)
        proxy.corrupt_at = (5_000, "down")        # flip a bit in that byte of each connection
        proxy.only_first = 2                      # both strike so often, then all is well
        proxy.freeze = True                       # pass nothing, keep everything open
        proxy.reset_all()                         # reset the connections now open
        proxy.down(); proxy.up()                  # refuse connections; listen again on the same port
        proxy.connections, proxy.bytes_up, proxy.bytes_down, proxy.strikes     # what was seen
        proxy.heal()                              # no fault any more, and the counters at 0

"up" is from the client to the server. The fixture `fault_proxy` makes them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from typing import Literal, Self

from tests.servers.base import LOOPBACK

Way = Literal["up", "down"]
How = Literal["rst", "fin", "hang"]

_RST = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class FaultProxy:
    """See the module. A context manager."""

    latency: float
    rate: int
    cut_after: tuple[int, Way] | None
    cut_how: How
    corrupt_at: tuple[int, Way] | None
    only_first: int | None
    freeze: bool

    def __init__(self, target_port: int, target_host: str = LOOPBACK):
        self.target, self.port = (target_host, target_port), 0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._halves: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.heal()

    def heal(self) -> None:
        """All is well from now on; connections stay as they are."""
        self.latency, self.rate, self.freeze = 0.0, 0, False
        self.cut_after = self.corrupt_at = self.only_first = None
        self.cut_how = "rst"
        self.connections = self.bytes_up = self.bytes_down = self.strikes = 0

    # -- life -------------------------------------------------------------------------------------------------------

    def up(self) -> Self:
        if self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((LOOPBACK, self.port))
            listener.listen(128)
            self.port, self._listener = listener.getsockname()[1], listener
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return self

    def down(self) -> None:
        listener, self._listener = self._listener, None
        if listener:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            listener.close()
        self.reset_all()

    def reset_all(self) -> None:
        with self._lock:
            pairs, self._pairs, self._halves = self._pairs, set(), set()
        for pair in pairs:
            _kill(pair, "rst")

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(self, *exc: object) -> None:
        self.down()

    @property
    def pairs(self) -> int:
        """How many connections there are."""
        return len(self._pairs)

    # -- traffic ----------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target, 10)
                server.settimeout(None)
            except OSError:
                _close(client, "rst")
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
                self.connections += 1
            for pump in (("up", client, server, pair), ("down", server, client, pair)):
                threading.Thread(target=self._pump, args=pump, daemon=True).start()

    def _pump(
        self, way: Way, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        seen = 0
        try:
            while True:
                while self.freeze:
                    time.sleep(0.02)
                if not select.select([source], [], [], 0.1)[0] or self.freeze:
                    continue
                data = source.recv(1 << 18 if not self.rate else max(1, min(1 << 16, self.rate // 20)))
                if not data:
                    sink.shutdown(socket.SHUT_WR)  # a half-close is passed on
                    self._ended(pair)
                    return
                data, cut = self._spoil(way, seen, data)
                seen += len(data)
                if self.latency:
                    time.sleep(self.latency)
                if data:
                    with self._lock:  # before: whoever has received it finds it counted
                        if way == "up":
                            self.bytes_up += len(data)
                        else:
                            self.bytes_down += len(data)
                    sink.sendall(data)
                if cut == "hang":
                    return  # neither closed nor read any more
                if cut:
                    self._drop(pair, cut)
                    return
                if self.rate:
                    time.sleep(len(data) / self.rate)
        except (OSError, ValueError):  # reset by either end, or closed under us
            self._drop(pair, "rst")

    def _spoil(self, way: Way, seen: int, data: bytes) -> tuple[bytes, How | None]:
        if self.corrupt_at and self.corrupt_at[1] == way:
            at = self.corrupt_at[0] - seen
            if 0 <= at < len(data) and self._strike():
                data = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        cut = self.cut_after
        if cut and cut[1] == way and seen + len(data) >= cut[0] and self._strike():
            return data[: max(0, cut[0] - seen)], self.cut_how
        return data, None

    def _strike(self) -> bool:
        with self._lock:
            if self.only_first is not None and self.strikes >= self.only_first:
                return False
            self.strikes += 1
            return True

    def _ended(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """One of its ways; after both nothing is left of it: descriptors are finite."""
        with self._lock:
            both = pair in self._halves
            self._halves.add(pair)
        if both:
            self._drop(pair, "fin")

    def _drop(self, pair: tuple[socket.socket, socket.socket], how: How) -> None:
        with self._lock:
            self._pairs.discard(pair)
            self._halves.discard(pair)
        _kill(pair, how)


def _kill(pair: tuple[socket.socket, socket.socket], how: How) -> None:
    for one in pair:
        _close(one, how)


def _close(one: socket.socket, how: How) -> None:
    with contextlib.suppress(OSError):
        if how == "rst":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        else:
            one.shutdown(socket.SHUT_RDWR)
        one.close()
