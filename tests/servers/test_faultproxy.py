"""The proxy does to a connection what it says, and counts right: other tests stand on it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.servers.base import LOOPBACK
from tests.servers.faultproxy import FaultProxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""

    def serve(one: socket.socket) -> None:
        with one:
            try:
                while data := one.recv(65536):
                    one.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                one, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(one,), daemon=True).start()

    with socket.create_server((LOOPBACK, 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: int, fault_proxy: Callable[[int], FaultProxy]) -> FaultProxy:
    return fault_proxy(echo)


def call(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection((LOOPBACK, proxy.port), 5)


def receive(one: socket.socket, count: int) -> bytes:
    """Up to `count` bytes: fewer where the stream ends."""
    out = b""
    while len(out) < count and (data := one.recv(count - len(out))):
        out += data
    return out


def test_everything_passes_and_is_counted(proxy: FaultProxy) -> None:
    with call(proxy) as one:
        for _ in range(3):
            one.sendall(b"x" * 100_000)
            assert receive(one, 100_000) == b"x" * 100_000
    assert (proxy.bytes_up, proxy.bytes_down, proxy.connections) == (300_000, 300_000, 1)


def test_reset_after_so_many_bytes(proxy: FaultProxy) -> None:
    proxy.cut_after, proxy.only_first = (5_000, "down"), 1
    with call(proxy) as one, pytest.raises(ConnectionResetError):
        one.sendall(b"x" * 10_000)
        while receive(one, 10_000):
            pass
    assert proxy.bytes_down == 5_000
    with call(proxy) as one:
        one.sendall(b"x" * 10_000)
        assert len(receive(one, 10_000)) == 10_000


def test_a_clean_close_cuts_short(proxy: FaultProxy) -> None:
    proxy.cut_after, proxy.cut_how = (5_000, "down"), "fin"
    with call(proxy) as one:
        one.sendall(b"x" * 10_000)
        assert len(receive(one, 10_000)) == 5_000


def test_a_bit_is_flipped(proxy: FaultProxy) -> None:
    proxy.corrupt_at = (1_234, "up")
    with call(proxy) as one:
        one.sendall(bytes(3_000))
        assert [n for n, byte in enumerate(receive(one, 3_000)) if byte] == [1_234]


def test_half_open_and_frozen(proxy: FaultProxy) -> None:
    proxy.cut_after, proxy.cut_how = (4, "up"), "hang"
    with call(proxy) as one:
        one.sendall(b"abcdefgh")
        assert receive(one, 4) == b"abcd"
        one.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.recv(1)
    proxy.heal()
    with call(proxy) as one:
        proxy.freeze = True
        one.sendall(b"abc")
        one.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.recv(1)
        proxy.freeze = False
        one.settimeout(5)
        assert receive(one, 3) == b"abc"


def test_refused_while_down(proxy: FaultProxy) -> None:
    port = proxy.port
    with call(proxy) as one:
        one.sendall(b"abc")
        assert receive(one, 3) == b"abc"
        proxy.down()
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    with pytest.raises(ConnectionRefusedError):
        call(proxy)
    assert proxy.up().port == port
    with call(proxy) as one:
        one.sendall(b"abc")
        assert receive(one, 3) == b"abc"


def test_nothing_is_left_of_connections_that_ended(echo: int) -> None:
    """Whoever makes thousands of them through it would have no descriptors left, and `select` takes those below 1024."""
    with FaultProxy(echo) as proxy:
        for _ in range(50):
            with socket.create_connection((LOOPBACK, proxy.port), 20) as one:
                one.sendall(b"x")
                assert one.recv(1) == b"x"
        deadline = time.monotonic() + 20
        while proxy.pairs and time.monotonic() < deadline:
            time.sleep(0.02)
        assert proxy.pairs == 0
