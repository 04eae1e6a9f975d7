"""Hosts on one machine: network namespaces at one bridge, whose cables are cut, slowed and put back. Linux, as root.

    with Network("server", "worker-a") as hosts:
        host = hosts["worker-a"]            # host.address
        with host.inside(): ...             # what this thread opens and starts meanwhile is on the host's network
        host.start("name", argv, env, log)  # a process of the host, that sees no other one but its own
        host.cut(); host.mend()             # its cable: nothing comes, nothing goes, and nobody is told
        host.slow(1_000_000)                # bytes/s, each way; `slow(None)` is as fast as it goes
        host.power_cut()                    # all its processes, at once, and its cable
        host.sent()                         # bytes that it has sent, as its network card counts them

The bridge is in a namespace of its own: nothing of the machine's network is touched or reached. Names carry the pid of
who made them; what a dead one left behind is removed by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.servers.base import program

NETWORK = "10.88.0"
"""Of all addresses here; as every network is apart, they may all be the same."""
MADE = Path("/run/netns")
CLONE_NEWNET = 0x40000000
"""Of setns(2)."""
_NAME = re.compile(r"onb(\d+)-.+")


class CannotBeMade(Exception):
    """This machine, or this account, has no network namespaces."""


def ip(*argv: str) -> str:
    """iproute2's `ip`. Raises CannotBeMade."""
    tool = program(argv[0] if argv[0] == "tc" else "ip")
    if tool is None:
        raise CannotBeMade("`ip` or `tc` is not installed: python -m tests.servers.install")
    command = [tool, *(argv[1:] if argv[0] == "tc" else argv)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise CannotBeMade(f"{' '.join(command)} exited {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Host:
    """See the module. Made by `Network`."""

    def __init__(self, name: str, number: int, bridge: str):
        self.name, self.address = name, f"{NETWORK}.{number}"
        self.space, self._bridge, self._port = f"onb{os.getpid()}-{name}", bridge, f"port{number}"
        self._processes: list[subprocess.Popen[bytes]] = []
        ip("netns", "add", self.space)
        ip("-n", bridge, "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        ip("-n", bridge, "link", "set", self._port, "master", "bridge", "up")
        ip("-n", self.space, "link", "set", "lo", "up")
        ip("-n", self.space, "link", "set", "eth0", "up")
        ip("-n", self.space, "address", "add", f"{self.address}/24", "dev", "eth0")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is on the host's network, with the sockets that it opens and the processes that it starts. The
        threads that others begin are not."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(MADE / self.space, os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(here)
        finally:
            os.close(here)

    def start(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """A process of this host: it has the host's name, and sees no process but its own, so nobody elsewhere can tell
        whether it is alive. All that it starts ends with it, and it ends with us."""
        command = [
            program("setpriv") or "setpriv", "--pdeathsig", "KILL", "--", program("unshare") or "unshare", "--pid",
            "--fork", "--kill-child=KILL", "--mount-proc", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"',
            self.name, *argv,
        ]  # fmt: skip
        with log.open("ab") as out, self.inside():
            process = subprocess.Popen(
                command,
                env=dict(env),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def running(self) -> list[subprocess.Popen[bytes]]:
        """Those that were started and have not ended."""
        return [p for p in self._processes if p.poll() is None]

    def cut(self) -> None:
        """Nothing comes and nothing goes any more. Nobody is told: connections stay open."""
        ip("-n", self._bridge, "link", "set", self._port, "down")

    def mend(self) -> None:
        """Undo `cut`."""
        ip("-n", self._bridge, "link", "set", self._port, "up")

    def slow(self, rate: int | None) -> None:
        """So many bytes a second, each way, for all connections together."""
        for space, card in ((self._bridge, self._port), (self.space, "eth0")):
            if rate is None:
                with contextlib.suppress(CannotBeMade):  # there was no limit
                    ip("tc", "-n", space, "qdisc", "del", "dev", card, "root")
            else:
                how = ("rate", f"{rate * 8}bit", "burst", "64kb", "latency", "200ms")
                ip("tc", "-n", space, "qdisc", "replace", "dev", card, "root", "tbf", *how)

    def sent(self) -> int:
        """Bytes that went out by the cable since the host was made."""
        (card,) = json.loads(ip("-n", self.space, "-s", "-j", "link", "show", "dev", "eth0"))
        return card["stats64"]["tx"]["bytes"]

    def power_cut(self) -> None:
        """All processes are gone, unasked, and the cable is dead."""
        self.cut()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # `unshare` takes its namespace along
            process.wait()
        self._processes.clear()


class Network(dict[str, Host]):
    """Hosts by their names; a context manager. Raises CannotBeMade."""

    def __init__(self, *names: str):
        super().__init__()
        self._names, self._bridge = names, f"onb{os.getpid()}-bridge"

    def __enter__(self) -> Self:
        if os.geteuid():
            raise CannotBeMade("only root may make network namespaces")
        _sweep()
        try:
            ip("netns", "add", self._bridge)
            ip("-n", self._bridge, "link", "add", "bridge", "type", "bridge")
            ip("-n", self._bridge, "link", "set", "bridge", "up")
            for number, name in enumerate(self._names, 1):
                self[name] = Host(name, number, self._bridge)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for host in self.values():
            with contextlib.suppress(CannotBeMade):
                host.power_cut()
        for space in MADE.glob(f"onb{os.getpid()}-*"):
            with contextlib.suppress(CannotBeMade):
                ip("netns", "delete", space.name)


def _sweep() -> None:
    """Remove what is left of those who were killed."""
    for space in MADE.glob("onb*"):
        owner = _NAME.fullmatch(space.name)
        if owner and not Path("/proc", owner[1]).exists():
            with contextlib.suppress(CannotBeMade):
                ip("netns", "delete", space.name)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
