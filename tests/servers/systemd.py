"""A host whose first process is systemd: units are started, watched and stopped there as on a machine. Linux, as root.

    with Systemd(folder, seen=[...], shared={folder: "/srv/files"}, users=["onblock"]) as host:
        host.write("etc/systemd/system/x.service", text)
        host.systemctl("start", "x")
        host.show("x", "NRestarts")
        host.stop(); host.start()       # a reboot: what is on its disk stays

It has processes, mounts, names, IPC and control groups of its own; the network is the machine's. Its disk is a folder: of the
machine's it sees /usr and what is `seen`, read-only, and what is `shared`, under another name. What systemd sets up, or clears away, at its start
is its own, too.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers.base import Server, program

INIT = Path("/usr/lib/systemd/systemd")
FIRST_UID = 20100
_BOOT = """
set -eu
cd "$1"; shift
mount --make-rprivate /
mount --bind . .; cd "$PWD"
mount --rbind /usr usr; mount -o remount,bind,ro usr
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp           # before what is seen, which may lie below it
while [ "$1" != -- ]; do mkdir -p ".$1"; mount --bind "$1" ".$1"; mount -o remount,bind,ro ".$1"; shift; done; shift
while [ $# -gt 0 ]; do mount --bind "$1" ".$2"; shift 2; done
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mkdir dev/shm dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
mount -t proc proc proc
mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
pivot_root . old
cd /
umount -l /old
exec env -i container=onblock PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \\
    /usr/lib/systemd/systemd --unit=multi-user.target --log-target=console --log-level=notice --show-status=no </dev/null
"""
"""Becomes the first process of the host. Arguments: its disk, what is seen, `--`, what is shared and where."""


class Systemd(Server):
    """See the module. `users` are made with the uids from FIRST_UID on."""

    stop_timeout = 90.0

    def __init__(self, folder: Path, seen: Sequence[Path], shared: Mapping[Path, str], users: Sequence[str]):
        super().__init__(folder)
        self._seen, self._shared, self._users = seen, shared, users
        self._group: Path | None = None
        self.disk = self.folder / "disk"

    def launch(self) -> dict[str, Any]:
        self._lay_out()
        self._group = _groups() / f"onblock-tests-{os.getpid()}-{self.folder.name}"
        self._group.mkdir(exist_ok=True)
        unshare = [
            program("unshare") or "unshare", "--fork", "--kill-child=KILL", "--pid", "--mount", "--uts", "--ipc", "--cgroup",
            "sh", "-c", _BOOT, "boot", str(self.disk), *map(str, self._seen), "--", *(str(place) for pair in self._shared.items() for place in pair),
        ]  # fmt: skip
        self.spawn("sh", "-c", f"echo $$ > {shlex.quote(str(self._group))}/cgroup.procs; exec {shlex.join(unshare)}")
        self.wait(lambda: self.tell("is-system-running") in ("running", "degraded"))
        return {}

    def stop(self) -> None:
        """As a shutdown: its services are stopped in order."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired, IndexError):
                self.systemctl("exit", "--no-block")
                self.process.wait(self.stop_timeout)
        super().stop()
        if self._group is not None:
            for folder, _, _ in os.walk(self._group, topdown=False):
                with contextlib.suppress(OSError):  # the next start takes it over
                    os.rmdir(folder)

    def _lay_out(self) -> None:
        """Its disk, unless it has been there before."""
        places = [*self._seen, *self._shared.values()]
        for name in (
            "usr", "dev", "proc", "sys", "run", "tmp", "old", "root", "etc/systemd/system", "var/tmp", "var/lib", "var/log",
            *(str(place).lstrip("/") for place in places),
        ):  # fmt: skip
            (self.disk / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/usr", name).is_dir() and not (self.disk / name).is_symlink():
                (self.disk / name).symlink_to(f"usr/{name}")
        if (self.disk / "etc/machine-id").exists():
            return
        self.write("etc/machine-id", os.urandom(16).hex() + "\n")  # without one it would enable all services there are
        users = {"root": 0, "nobody": 65534} | {name: FIRST_UID + n for n, name in enumerate(self._users)}
        self.write("etc/passwd", "".join(f"{n}:x:{u}:{u}::/var/lib/{n}:/usr/sbin/nologin\n" for n, u in users.items()))
        self.write("etc/group", "".join(f"{n}:x:{u}:\n" for n, u in users.items()) + "systemd-journal:x:999:\n")
        for name in ("ld.so.cache", "ssl"):
            source, target = Path("/etc", name), self.disk / "etc" / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("private"))
            elif source.exists():
                shutil.copy2(source, target)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of its disk."""
        target = self.disk / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def inside(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A command of the host's root."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        enter = [
            program("nsenter") or "nsenter",
            "--target",
            children[0],
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--cgroup",
        ]
        return subprocess.run(
            [*enter, "--", *argv], env={"PATH": "/usr/sbin:/usr/bin", "SYSTEMD_PAGER": "", "LC_ALL": "C.UTF-8"}, cwd="/",
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180,
        )  # fmt: skip

    def systemctl(self, *arguments: str) -> str:
        """What it says. AssertionError, with what the host has logged, if it fails."""
        done = self.inside("systemctl", *arguments)
        assert done.returncode == 0, f"systemctl {shlex.join(arguments)}: {done.stderr}\n{self.journal()}"
        return done.stdout.strip()

    def tell(self, *arguments: str) -> str:
        """As `systemctl`, of whatever exit code."""
        with contextlib.suppress(IndexError):
            return self.inside("systemctl", *arguments).stdout.strip()
        return ""

    def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", "--property", key, unit)

    def journal(self) -> str:
        """The last that its services said."""
        return self.inside("journalctl", "--no-pager", "--lines=120", "--output=short-monotonic").stdout


def python(*trees: Path) -> list[Path]:
    """What a host has to see to run this Python with these trees in it."""
    base = Path(sys.base_prefix).resolve()
    return [*([] if base.is_relative_to("/usr") else [base]), *trees]


def _groups() -> Path:
    """Where control groups of the second version are."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise FileNotFoundError("this machine has no control groups of version 2")


def cannot() -> str:
    """Why this machine, or this account, can have no such host; nothing where it can."""
    if os.geteuid():
        return "a host with systemd takes root"
    if not INIT.exists():
        return "systemd is not installed: python -m tests.servers.install"
    try:
        _groups()
    except FileNotFoundError as error:
        return str(error)
    return ""
