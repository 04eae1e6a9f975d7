"""Redis as Debian packages it, in a state folder, with a log of its writes as `docs/fleet.md` asks for."""

from __future__ import annotations

import os
import secrets
import socket
import ssl
from typing import Any

from tests.servers.base import LOOPBACK, Server, free_port, give, program


class Redis(Server):
    """A server with a password. `info`: host, port, password, url.

    Options: `port`, `password`; `config`, its `redis.conf` but for its folder, and `ca`, where that says to listen with TLS.
    """

    def launch(self) -> dict[str, Any]:
        user = "nobody" if os.geteuid() == 0 else None
        give(self.folder, user)
        # started again, it is the same server at the same address
        port = self.info.get("port") or int(self.options.get("port") or free_port())
        password = self.info.get("password") or self.options.get("password") or secrets.token_hex(8)
        plain = f"bind {LOOPBACK}\nport {port}\nrequirepass {password}\nappendonly yes\nsave ''\n"
        settings = self.folder / "redis.conf"
        settings.write_text(f"dir {self.folder}\n{self.options.get('config', plain)}")
        settings.chmod(0o644)
        self.spawn(_tool(), str(settings), user=user)
        self.wait(lambda: _answers(port, password, self.options.get("ca")), 15)
        url = f"redis://:{password}@{LOOPBACK}:{port}/0"
        return {"host": LOOPBACK, "port": port, "password": password, "url": url}


def _answers(port: int, password: str, ca: str | None) -> bool:
    with socket.create_connection((LOOPBACK, port), 1) as plain, _tls(plain, ca) as s:
        s.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        got = b""
        while b"+PONG" not in got and b"-LOADING" not in got and (part := s.recv(100)):
            got += part
        return b"+PONG" in got


def _tls(plain: socket.socket, ca: str | None) -> socket.socket:
    if ca is None:
        return plain
    return ssl.create_default_context(cafile=ca).wrap_socket(plain, server_hostname="localhost")


def _tool() -> str:
    found = program("redis-server")
    if found is None:
        raise FileNotFoundError("redis-server is not installed: python -m tests.servers.install")
    return found


def installed() -> bool:
    """Whether this machine has a Redis server."""
    return program("redis-server") is not None
