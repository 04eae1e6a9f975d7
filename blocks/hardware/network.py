"""How far the network reaches: not at all, to something near, or to where recordings go. Judged slowly, tried calmly.

Three failures in a row take it down, one success brings it up; while it is not well it is tried less and less often.
Judging (`Verdict`) and pacing (`Pace`) are pure; `NetworkMonitor` is the thread that tries.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, NamedTuple

from blocks.errors import ToolMissing

log = logging.getLogger("onblock.network")


class Reach(IntEnum):
    """How far it goes, the least first."""

    OFFLINE = 0
    NETWORK_ONLY = 1
    ONLINE = 2


class Probe(NamedTuple):
    """What one try found, and how, for people."""

    reach: Reach
    detail: str


class Network(NamedTuple):
    """What holds: `changed_at` is when it began, on the monotonic clock in s."""

    reach: Reach
    detail: str
    changed_at: float


class Verdict:
    """What holds, after a row of tries.

    Down after `down_after` tries in a row that reached less, and then as far as the best of them did: two bad states
    that alternate are bad too. Up after `up_after` tries in a row that reached more.
    """

    def __init__(self, down_after: int = 3, up_after: int = 1, reach: Reach = Reach.OFFLINE):
        self.reach, self._down, self._up = reach, down_after, up_after
        self._last: list[Reach] = []

    def judge(self, seen: Reach) -> Reach:
        """Take one more try into account."""
        self._last = [*self._last, seen][-max(self._down, self._up) :]
        worse, better = self._last[-self._down :], self._last[-self._up :]
        if len(better) == self._up and min(better) > self.reach:
            self.reach = min(better)
        elif len(worse) == self._down and max(worse) < self.reach:
            self.reach = max(worse)
        return self.reach


class Pace:
    """How long until the next try: `well_s` while it is online; else from `least_s` on twice as long each time, up to
    `most_s`. Up to `jitter` of it is added, so that a fleet does not ask in step. A change of verdict begins anew only
    if it is for the better."""

    def __init__(
        self, well_s: float = 5.0, least_s: float = 1.0, most_s: float = 20.0, jitter: float = 0.1,
        chance: Callable[[], float] = random.random,
    ):  # fmt: skip
        self._well, self._least, self._most, self._jitter, self._chance = well_s, least_s, most_s, jitter, chance
        self._failures = 0

    def after(self, seen: Reach) -> float:
        """Seconds to wait after a try that reached so far."""
        if seen is Reach.ONLINE:
            self._failures, wait = 0, self._well
        else:
            wait = min(self._most, self._least * 2.0 ** min(self._failures, 30))
            self._failures += 1
        return wait * (1 + self._jitter * self._chance())

    def anew(self) -> None:
        """Something has changed: try often again."""
        self._failures = 0


# -- trying -------------------------------------------------------------------------------------------------------


def addresses() -> list[str]:
    """The addresses of this machine's interfaces that are up, without loopback and those that only reach a cable."""
    try:
        import psutil
    except ImportError as error:
        raise ToolMissing("psutil is not installed", remedy="`pip install onblock[device]` brings it") from error
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return [
        one.address.partition("%")[0]
        for name, several in psutil.net_if_addrs().items() if name in up
        for one in several
        if one.family in (socket.AF_INET, socket.AF_INET6) and not one.address.startswith(("127.", "169.254.", "fe80:"))
        and one.address != "::1"
    ]  # fmt: skip


class Prober:
    """Tries: an interface with an address, then the name of `host`, then a connection to it.

    The resolver has no time limit of its own: it is asked in a thread that is left behind, one at a time.
    """

    def __init__(
        self, host: str = "dns.google", port: int = 443, timeout_s: float = 1.0,
        addresses: Callable[[], Iterable[str]] = addresses,
    ):  # fmt: skip
        self._host, self._port, self._timeout, self._addresses = host, port, timeout_s, addresses
        self._resolving: threading.Thread | None = None

    def __call__(self) -> Probe:
        """One try."""
        own = list(self._addresses())
        if not own:
            return Probe(Reach.OFFLINE, "no interface has an address")
        found, trouble = self._resolve()
        for family, address in found:
            try:
                with socket.socket(family, socket.SOCK_STREAM) as connection:
                    connection.settimeout(self._timeout)
                    connection.connect(address)
                return Probe(Reach.ONLINE, f"{self._host} port {self._port} answers")
            except OSError as error:
                trouble = f"{self._host} port {self._port}: {error.strerror or error}"
        return Probe(Reach.NETWORK_ONLY, f"{own[0]}, but {trouble}")

    def _resolve(self) -> tuple[list[tuple[int, Any]], str]:
        if self._resolving is not None and self._resolving.is_alive():
            return [], "the resolver hangs"
        answers: list[list[tuple[int, Any]]] = []
        said: list[str] = []

        def ask() -> None:
            try:
                found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                answers.append([(family, address) for family, *_, address in found])
            except OSError as error:
                said.append(f"{self._host} is not resolved: {error.strerror or error}")

        self._resolving = threading.Thread(target=ask, name="onblock-resolver", daemon=True)
        self._resolving.start()
        self._resolving.join(self._timeout)
        if answers:
            return answers[0], ""
        return [], said[0] if said else f"{self._host} is not resolved within {self._timeout:g} s"


class NetworkMonitor:
    """Tries in a thread of its own, and tells `on_change` (from that thread) when what holds has changed."""

    def __init__(
        self, probe: Callable[[], Probe], on_change: Callable[[Network], None] = lambda network: None, *,
        verdict: Verdict | None = None, pace: Pace | None = None, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self._probe, self._on_change, self._clock = probe, on_change, clock
        self._verdict, self._pace = verdict or Verdict(), pace or Pace()
        self._network = Network(self._verdict.reach, "not tried yet", clock())
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="onblock-network", daemon=True)

    @property
    def now(self) -> Network:
        """What holds."""
        return self._network

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Try now, and often again: something has changed."""
        self._wake.set()

    def stop(self) -> None:
        """End. A try that hangs is left behind."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(5)

    def once(self) -> float:
        """One try; how long to wait for the next."""
        try:
            seen = self._probe()
        except (ToolMissing, OSError, RuntimeError) as error:
            seen = Probe(Reach.OFFLINE, str(error))
        before = self._network
        reach = self._verdict.judge(seen.reach)
        if reach > before.reach:
            self._pace.anew()
        changed = reach != before.reach
        self._network = Network(reach, seen.detail, self._clock() if changed else before.changed_at)
        if changed:
            log.info("network: %s, was %s (%s)", reach.name, before.reach.name, seen.detail)
            self._on_change(self._network)
        return self._pace.after(seen.reach)

    def _run(self) -> None:
        while not self._stopped.is_set():
            wait = self.once()
            if self._wake.wait(wait) and not self._stopped.is_set():
                self._wake.clear()
                self._pace.anew()
