"""`python -m tests.servers.install`: the Debian packages the tests need. Silent and instant where all is there.

`python -m tests.servers.install bench` brings what only the benchmark runs as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.servers import hadoop
from tests.servers.base import program
from tests.servers.postgres import DEBIAN

PACKAGES = {
    "postgres": "postgresql",
    "pg_dump": "postgresql-client",
    "redis-server": "redis-server",
    "nginx": "nginx-light",
    "rsync": "rsync",
    "curl": "curl",
    "mount": "mount",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "ip": "iproute2",
    "tc": "iproute2",
    "hostname": "hostname",
    "sha256sum": "coreutils",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "openssl": "openssl",
    "java": "openjdk-17-jre-headless",
    "krb5kdc": "krb5-kdc",
    "kadmin.local": "krb5-admin-server",
    "kinit": "krb5-user",
    "krb5-config": "libkrb5-dev",
    "gcc": "gcc",
    "libnss_wrapper.so": "libnss-wrapper",
    "zstd": "zstd",
    "bzip2": "bzip2",
    "systemd-analyze": "systemd",
    "chromium": "chromium",
}
"""A program or library (`.so`) the tests run, and the package it comes in."""
BENCH = {"ffmpeg": "ffmpeg"}
"""What only the benchmark runs, and large."""

POLICY = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    """The packages of programs that are not there."""
    wanted = PACKAGES | (BENCH if "bench" in sys.argv[1:] else {})
    return sorted({package for name, package in wanted.items() if not there(name)})


def there(name: str) -> bool:
    """Whether a program, or a library of the system, is installed."""
    if name.endswith(".so"):
        return any(Path("/usr/lib").glob(f"*/{name}*"))
    return program(name, DEBIAN) is not None


def apt(*packages: str) -> list[list[str]]:
    """The commands that install `packages`."""
    return [["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]]


@contextlib.contextmanager
def nothing_starts() -> Iterator[None]:
    """While packages are installed, no service of theirs is started (Debian's policy-rc.d)."""
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)


def main() -> int:
    return _debian() or _hdfs()


def _hdfs() -> int:
    """What no Debian package brings: Hadoop, and Python's GSSAPI, compiled in a minute or two."""
    try:
        if importlib.util.find_spec("gssapi") is None:
            hadoop.run(Path.cwd(), sys.executable, "-m", "pip", "install", "-q", "-c", "constraints.txt", "gssapi")
        hadoop.prepare()
    except RuntimeError as error:
        print(error)
        return 1
    return 0


def _debian() -> int:
    packages = missing()
    if not packages:
        return 0
    if os.geteuid():
        print("the tests need packages; run\n  sudo sh -c", shlex.quote(" && ".join(map(shlex.join, apt(*packages)))))
        return 1
    with nothing_starts():
        for command in apt(*packages):
            done = subprocess.run(
                command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
            if done.returncode:
                print(f"{shlex.join(command)} exited {done.returncode}:\n{done.stdout[-3000:]}")
                return 1
    if still := missing():
        print(f"installed, but their programs are not found: {' '.join(still)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
