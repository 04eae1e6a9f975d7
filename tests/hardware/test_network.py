from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.hardware.network import Network, NetworkMonitor, Pace, Probe, Prober, Reach, Verdict, addresses

OFF, NEAR, ON = Reach.OFFLINE, Reach.NETWORK_ONLY, Reach.ONLINE


@pytest.mark.parametrize(
    ("seen", "holds"),
    [
        ([ON], [ON]),
        ([ON, OFF, OFF, OFF], [ON, ON, ON, OFF]),
        ([ON, NEAR, NEAR, NEAR], [ON, ON, ON, NEAR]),
        ([ON, OFF, OFF, ON, OFF, OFF], [ON, ON, ON, ON, ON, ON]),
        ([ON, OFF, NEAR, OFF], [ON, ON, ON, NEAR]),  # two bad states in turn
        ([ON, OFF, NEAR, OFF, NEAR, OFF, OFF, OFF], [ON, ON, ON, NEAR, NEAR, NEAR, NEAR, OFF]),
        ([NEAR, ON], [NEAR, ON]),
    ],
)
def test_what_holds(seen: list[Reach], holds: list[Reach]):
    verdict = Verdict()
    assert [verdict.judge(s) for s in seen] == holds


@given(st.lists(st.sampled_from(Reach)))
def test_it_is_never_better_than_the_last_three_tries_nor_worse_than_the_last(seen: list[Reach]):
    verdict = Verdict()
    for n, one in enumerate(seen, 1):
        holds = verdict.judge(one)
        assert holds >= one
        assert n < 3 or holds <= max(seen[n - 3 : n])


def test_tries_become_rarer_until_20_s_and_often_again_once_online():
    pace = Pace(chance=lambda: 0.0)
    assert [pace.after(OFF) for _ in range(8)] == [1, 2, 4, 8, 16, 20, 20, 20]
    assert pace.after(ON) == 5
    assert [pace.after(s) for s in (NEAR, OFF, NEAR, OFF)] == [1, 2, 4, 8]
    assert [Pace(chance=lambda: 0.0).after(OFF) for _ in range(3)] == [1, 1, 1]


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 5000))
def test_jitter_adds_at_most_a_tenth(chance: float, failures: int):
    plain, jittered = Pace(chance=lambda: 0.0), Pace(chance=lambda: chance)
    for _ in range(min(failures, 20)):
        a, b = plain.after(OFF), jittered.after(OFF)
        assert a <= b <= a * 1.1


def test_a_monitor_tells_of_changes_once():
    tries = iter([ON, ON, OFF, OFF, OFF, OFF, NEAR])
    told: list[Network] = []
    now = itertools.count(1.0)
    monitor = NetworkMonitor(
        lambda: Probe(next(tries), "found"), told.append, pace=Pace(chance=lambda: 0.0), clock=lambda: next(now)
    )
    waits = [monitor.once() for _ in range(7)]
    assert [n.reach for n in told] == [ON, OFF, NEAR]
    assert waits == [5, 5, 1, 2, 4, 8, 1]
    assert monitor.now.reach is NEAR and monitor.now.changed_at == told[-1].changed_at


def test_a_monitor_in_its_thread_is_woken_and_stopped():
    tried = threading.Semaphore(0)

    def probe() -> Probe:
        tried.release()
        raise OSError("the machine is busy")

    monitor = NetworkMonitor(probe, pace=Pace(least_s=3600, most_s=3600))
    monitor.start()
    for _ in range(3):
        assert tried.acquire(timeout=30)
        monitor.wake()
    monitor.stop()
    assert not monitor._thread.is_alive()
    assert monitor.now == Network(OFF, "the machine is busy", monitor.now.changed_at)


# -- tries on real sockets --------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def here() -> list[str]:
    return ["192.168.1.7"]


def test_something_that_answers_is_online(listener: int):
    assert Prober("127.0.0.1", listener, 10, here)() == Probe(ON, f"127.0.0.1 port {listener} answers")


def test_nothing_that_answers_is_the_network_only():
    with socket.socket() as bound:  # nobody listens
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        probe = Prober("127.0.0.1", port, 10, here)()
    assert probe == Probe(NEAR, f"192.168.1.7, but 127.0.0.1 port {port}: Connection refused")


def test_a_name_that_is_not_known_is_the_network_only():
    probe = Prober("no-such-host.invalid", 443, 30, here)()
    assert probe.reach is NEAR and "no-such-host.invalid is not resolved" in probe.detail


def test_a_resolver_that_hangs_is_asked_only_once(monkeypatch: pytest.MonkeyPatch):
    answer, asked = threading.Event(), []

    def hang(*_: object, **__: object) -> list[object]:
        asked.append(1)
        answer.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    prober = Prober("example.org", 443, 0.01, here)
    assert "not resolved within" in prober().detail
    assert [prober().detail for _ in range(3)] == ["192.168.1.7, but the resolver hangs"] * 3
    assert len(asked) == 1
    answer.set()


def test_without_an_address_it_is_offline():
    assert Prober(addresses=list)() == Probe(OFF, "no interface has an address")


def test_the_addresses_of_this_machine_are_no_loopback():
    assert not [a for a in addresses() if a.startswith("127.") or a == "::1"]
