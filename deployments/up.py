"""`onblock up`: a Prefect server, a worker and the console on this machine, set up for onblock, until Ctrl-C.

Starts `prefect server`, waits until it answers, runs `deployments.bootstrap`, starts a worker for the pool `onblock`
(`worker.py`) and the console (`console/`), says where everything is, and watches. What it starts it also ends: runs first, so that a mover can write
down how far it came, then the worker, then the server. What is registered is decided in `bootstrap.py`. `onblock demo`
starts and ends a server of its own with what is here.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from blocks.errors import OnblockError
from blocks.home import home
from deployments import fleet, interrupt
from deployments.console.access import People
from deployments.fleet import EMBEDDED, Profile
from deployments.server import POOL, RUNS_AT_ONCE
from deployments.server_settings import environment, reachable

HEALTHY_WITHIN = 120.0
"""Seconds a server may take to answer; a first start creates its database."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs, but never through a proxy: what we ask is on this machine."""
CONSOLE_PORT = 4280
"""Where the console listens for webhooks."""
WORKER = "the worker"
"""What workers are called; of several, each with its number."""
GRACE = 15.0
"""Seconds between SIGTERM and SIGKILL."""


class Child(NamedTuple):
    """A process started here, leader of its own process group; `log` where its output goes to a file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path | None


class Stop:
    """Whether somebody asked us to end. No `threading.Event`: its `set` in a signal handler can block on its `wait`."""

    asked = False

    def ask(self, *_: object) -> None:
        """The signal handler."""
        self.asked = True

    def wait(self, seconds: float) -> bool:
        """Wait, at most that long; whether to stop."""
        deadline = time.monotonic() + seconds
        while not self.asked and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return self.asked


def up(
    jobs: Sequence[Path], host: str = "127.0.0.1", port: int = 4200, console_port: int = CONSOLE_PORT,
    console_host: str | None = None, tls: tuple[Path, Path] | None = None, public_url: str | None = None,
    profile: Profile = EMBEDDED, limit: int = RUNS_AT_ONCE,
) -> int:  # fmt: skip
    """Run what `profile` says, and the console, until SIGINT or SIGTERM. `tls` is certificate and key of the console,
    `public_url` where a proxy has it; a worker has `limit` runs at a time. 0 then; 1 if something died; 2 if a port, a job or the environment is no good."""
    console_host = host if console_host is None else console_host
    for at, number, option in ((host, port, "--port"), (console_host, console_port, "--console-port")):
        if trouble := port_trouble(at, number, option):
            print(f"onblock up: {trouble}", file=sys.stderr)
            return 2
    url = f"http://{reachable(host)}:{port}"
    given = dict(os.environ)
    if profile.fleet:
        try:
            given = fleet.fleet_environment(given)
            for remark in fleet.reach(given):
                print(f"note: {remark}", flush=True)
        except OnblockError as error:
            print(f"onblock up: {error}", file=sys.stderr)
            return 2
    env = environment(given, host, port, url)
    logs = home() / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    stop = Stop()
    children: list[Child] = []
    with interrupt.heard_by(stop.ask, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), ExitStack() as at_the_end:
        at_the_end.callback(end, children)
        for name, module in profile.first:
            if code := _to_its_end(start(name, list(module), env, logs / "database.log"), children, stop):
                return code
        if stop.asked:
            return 0
        children.append(start_server(host, port, env, logs / "server.log", more=profile.server))
        print(f"starting the Prefect server on {url} ...", flush=True)
        if not wait_healthy(f"{url}/api/health", children[0], stop):
            return 0 if stop.asked else _report(children[0])
        for name, module in profile.beside:
            children.append(start(name, list(module), env, logs / "services.log"))
        bootstrap = start("bootstrap", ["deployments.bootstrap", *(str(j) for j in jobs)], env)
        if code := _to_its_end(bootstrap, children, stop):
            return code
        if stop.asked:
            return 0
        names = [WORKER] if profile.workers == 1 else [f"{WORKER} {n}" for n in range(1, profile.workers + 1)]
        children += [start(name, ["deployments.worker", POOL, str(limit)], env) for name in names]
        token = People().first_start()
        console = ["deployments.console", "--host", console_host, "--port", str(console_port), "--ui", url]
        if tls is not None:
            console += ["--tls-cert", str(tls[0].absolute()), "--tls-key", str(tls[1].absolute())]
        if public_url is not None:
            console += ["--public-url", public_url]
        children.append(start("the console", console, env, logs / "console.log"))
        where = f"http{'s' if tls else ''}://{reachable(console_host)}:{console_port}"
        if tls is None and not wait_healthy(f"{where}/health", children[-1], stop):
            return 0 if stop.asked else _report(children[-1])
        print(_welcome(url, public_url or where, logs, token), flush=True)
        while not stop.wait(0.5):
            for child in children:
                if child.process.poll() is not None:
                    return _report(child)
        return 0


def port_trouble(host: str, port: int, option: str = "--port") -> str | None:
    """Why nothing can listen there, in one line; None if it can."""
    if not 0 < port < 65536:  # the system would take it modulo 65536
        return f"{port} is no port; ports go from 1 to 65535"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is no hindrance
            probe.bind(address)
    except socket.gaierror as error:
        return f"host {host!r} is not known here: {error.strerror}"
    except OSError as error:
        return f"cannot listen on {host} port {port}: {error.strerror} (choose another with `{option}`, or end what uses it)"
    return None


def start_server(
    host: str, port: int, env: dict[str, str], log: Path, folder: Path | None = None, more: Iterable[str] = ()
) -> Child:
    """Start a Prefect server, in `folder` if it is given: Prefect reads settings from there. Its output goes to `log`."""
    command = ["prefect", "server", "start", "--host", host, "--port", str(port), *more]
    return start("the Prefect server", command, env, log, folder)


def start(
    name: str, module: list[str], env: dict[str, str], log: Path | None = None, folder: Path | None = None
) -> Child:
    """Start a module of this Python in a process group of its own: a Ctrl-C in the terminal reaches only us."""
    command = [sys.executable, "-P", "-m", *module]  # -P: a folder `flows` or `deployments` here is not ours
    if log is None:
        return Child(name, subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True), None)
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    return Child(name, process, log)


def wait_healthy(address: str, server: Child, stop: Stop, seconds: float = HEALTHY_WITHIN) -> bool:
    """Whether the server answers before it dies, the time is over, or we are asked to stop."""
    deadline = time.monotonic() + seconds
    while server.process.poll() is None and time.monotonic() < deadline and not stop.wait(0.2):
        try:
            with DIRECT.open(address, timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            continue
    return False


def _to_its_end(child: Child, children: list[Child], stop: Stop) -> int:
    """Wait until `child` is done: its exit code, 0 if we are asked to stop, 1 if one of the others died meanwhile."""
    children.append(child)
    while child.process.poll() is None and not stop.wait(0.1):
        for other in children[:-1]:
            if other.process.poll() is not None:
                return _report(other)
    if (code := child.process.poll()) is None:  # it is ended with the others
        return 0
    children.remove(child)
    return _report(child) if code and child.log else code


def _report(child: Child) -> int:
    """Say that a child ended or never came up, with the end of its log; the exit code for that."""
    what, *log = trouble(child)
    print("\n".join([f"onblock up: {what}; ending everything", *log]), file=sys.stderr)
    return 1


def trouble(child: Child, waited: float = HEALTHY_WITHIN) -> list[str]:
    """Lines that say that a child ended, or did not answer for so many seconds, and the end of its log."""
    code = child.process.poll()
    if code is None:
        what = f"does not answer after {waited:.0f} s"
    else:
        what = f"died of signal {-code}" if code < 0 else f"ended with exit code {code}"
    lines = [f"{child.name} (pid {child.process.pid}) {what}"]
    if child.log:
        tail = child.log.read_text(errors="replace").splitlines()[-15:]
        lines += [f"the end of {child.log}:", *(f"    {line}" for line in tail)]
    return lines


def _welcome(url: str, console: str, logs: Path, token: Path | None) -> str:
    prefect = "prefect" if shutil.which("prefect") else Path(sys.executable).with_name("prefect")
    return f"""
onblock is up.

    Console          {console}
    its admin token  {token or "is where you put it; `onblock access add NAME --role admin` makes another"}
    Prefect UI       {url}
    Prefect API      {url}/api
    Webhooks         {console}/hooks/flight-end
    logs             {logs}

In another terminal:

    export PREFECT_API_URL={url}/api
    {prefect} deployment run transfer/demo-flight --watch

Ctrl-C ends all of it."""


# -- ending what was started ------------------------------------------------------------------------------------


def end(children: list[Child]) -> None:
    """End all children, the last one first, each after its descendants: Prefect's worker runs flows in sessions of
    their own, which a signal to the worker's group does not reach, and which a worker that ends leaves behind."""
    for child in reversed(children):
        below = descendants(child.process.pid) if child.process.poll() is None else []
        if child.name.startswith(WORKER):
            # runs end while the worker is there to report them; what serves it lives in its own session
            _terminate([p for p in below if (stat := _stat(p[0])) and int(stat[3]) != child.process.pid])
        _terminate([*below, *_identified([child.process.pid])], child.process)
        _signal_group(child.process.pid, signal.SIGKILL)  # whoever of its group is left
        child.process.wait()


def descendants(pid: int) -> list[tuple[int, int]]:
    """Children of `pid` and theirs, as (pid, start time): the start time tells a process from a later one of that pid."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return _identified(found)


def _identified(pids: Sequence[int]) -> list[tuple[int, int]]:
    return [(pid, int(stat[19])) for pid in pids if (stat := _stat(pid))]


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on, proc(5): [0] state, [1] parent, [3] session, [19] start time in clock ticks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # it ended meanwhile
        return None


def _terminate(processes: list[tuple[int, int]], child: subprocess.Popen[bytes] | None = None) -> None:
    """SIGTERM to each, then, to those that are still there after the grace, SIGKILL."""
    for number, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
        for pid, _ in _living(processes):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + grace
        while _living(processes) and time.monotonic() < deadline:
            if child is not None:
                child.poll()  # reaps it
            time.sleep(0.05)
        if not _living(processes):
            return


def _living(processes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(p, t) for p, t in processes if (stat := _stat(p)) and int(stat[19]) == t and stat[0] != "Z"]


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(up([Path(a) for a in sys.argv[1:]]))
