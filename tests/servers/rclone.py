"""Configurations of rclone's for the tests, `rclone serve`, and fixtures of both.

A fixture of a configuration keeps one daemon running, which all tests that use the configuration share.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from pydantic import SecretStr

from blocks.storage.rclone import RcloneStorage
from tests.servers.base import LOOPBACK, Server, free_port
from tests.servers.sshd import Sshd

BINARY = str(Path(sys.executable).parent / "rclone")


class RcloneServe(Server):
    """`rclone serve KIND` of a folder. Options: `kind` (webdav, s3, sftp, http). `info`: host, port, url, folder."""

    def launch(self) -> dict[str, Any]:
        port, kind = free_port(), self.options.get("kind", "webdav")
        served = self.folder / "served"
        served.mkdir(exist_ok=True)
        more = ["--auth-key", "key,secret"] if kind == "s3" else []
        self.spawn(BINARY, "serve", kind, "--addr", f"{LOOPBACK}:{port}", *more, str(served))
        self.wait(lambda: socket.create_connection((LOOPBACK, port), 1).close() is None)
        return {"host": LOOPBACK, "port": port, "url": f"http://{LOOPBACK}:{port}", "folder": str(served)}


def sftp_section(info: dict[str, Any], **changes: object) -> SecretStr:
    """A section for an sshd's `info`."""
    options = {
        "type": "sftp", "host": info["host"], "port": info["port"], "user": info["user"], "key_file": info["key"],
        "known_hosts_file": info["known_hosts"],
    } | changes  # fmt: skip
    return SecretStr("".join(f"{key} = {value}\n" for key, value in options.items()))


def _kept(remote: str, config: SecretStr) -> Iterator[SecretStr]:
    with RcloneStorage(remote=remote, root="/", config=config).open():
        yield config


@pytest.fixture(scope="session")
def rclone_disk() -> Iterator[SecretStr]:
    """The section of a remote `disk`: this machine."""
    yield from _kept("disk", SecretStr("type = local"))


@pytest.fixture(scope="session")
def rclone_nas(sshd: Sshd) -> Iterator[SecretStr]:
    """The section of a remote `nas`: the test session's sshd."""
    yield from _kept("nas", sftp_section(sshd.info))


@pytest.fixture(scope="session")
def rclone_webdav() -> Iterator[RcloneServe]:
    """`rclone serve webdav`."""
    with TemporaryDirectory(prefix="onblock-webdav-") as folder, RcloneServe(Path(folder), kind="webdav") as server:
        yield server


@pytest.fixture(scope="session")
def rclone_s3() -> Iterator[RcloneServe]:
    """`rclone serve s3`, keys `key` and `secret`."""
    with TemporaryDirectory(prefix="onblock-rclone-s3-") as folder, RcloneServe(Path(folder), kind="s3") as server:
        yield server
