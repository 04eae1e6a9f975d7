"""Who holds rows: a process, named so that others on its machine can tell at once whether it is still there."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_worker() -> str:
    """This process, so that others on this machine can tell whether it is still there."""
    return f"{_machine()}:{os.getpid()}:{_started(os.getpid())}"


def _machine() -> str:
    """Where process ids mean the same: this boot of this machine, and the container. Host names alone are not unique:
    devices are often all called the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> int:
    """Start tick of a process; 0 if it is gone or a zombie, -1 where /proc cannot tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0 if Path("/proc/self/stat").exists() else -1
    except OSError:
        return -1
    return 0 if fields[0] == "Z" else int(fields[19])


def is_alive(worker: str) -> bool | None:
    """Whether a process of this machine is there, stopped ones too; None of other machines, where nobody can tell."""
    machine, pid, started = worker.rsplit(":", 2)
    now = _started(int(pid)) if machine == _machine() else -1
    return None if -1 in (now, int(started)) else now == int(started)


def is_of_an_earlier_boot(worker: str) -> bool:
    """Whether a process was started before this machine was, if it is of this machine: of one that is not, too."""
    here, there = _machine().split("/"), worker.rsplit(":", 2)[0].split("/")
    return len(here) == len(there) == 3 and here[1] != there[1]
