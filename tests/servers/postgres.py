"""PostgreSQL as Debian packages it, in a state folder. Quick, not durable: fsync is off, unless `durable` is asked for."""

from __future__ import annotations

import os
import secrets
import signal
from typing import Any

from tests.servers.base import LOOPBACK, Server, free_port, give, program

DEBIAN = "/usr/lib/postgresql/*/bin"


class Postgres(Server):
    """A server with the superuser `onblock`. `info`: host, port, user, password, url (of the database `postgres`).

    Options: `address`, where it listens; `config`, further lines of `postgresql.conf`; `who`, all of `pg_hba.conf`.
    """

    stop_signal = signal.SIGINT  # "fast" shutdown: does not wait for clients to leave

    def launch(self) -> dict[str, Any]:
        user = "postgres" if os.geteuid() == 0 else None  # the server refuses to be root
        give(self.folder, user)
        data, address = self.folder / "data", self.options.get("address", LOOPBACK)
        # started again, it is the same server at the same address
        port, password = self.info.get("port") or free_port(), self.info.get("password") or secrets.token_hex(8)
        if not data.exists():
            secret = self.folder / "password"
            secret.write_text(password)
            secret.chmod(0o644)
            self.run(
                _tool("initdb"), "-D", str(data), "-U", "onblock", "--pwfile", str(secret), "-A", "scram-sha-256",
                "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", user=user,
            )  # fmt: skip
            secret.unlink()
            with (data / "pg_hba.conf").open("w" if "who" in self.options else "a") as who:
                who.write(self.options.get("who", "host all all samenet scram-sha-256\n"))
            with (data / "postgresql.conf").open("a") as config:
                config.write(self.options.get("config", ""))
        settings = {
            "port": port, "listen_addresses": address, "unix_socket_directories": "", "max_connections": 200,
        }  # fmt: skip
        if not self.options.get("durable"):
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        self.spawn(_tool("postgres"), "-D", str(data), *flags, user=user)
        ready = [_tool("pg_isready"), "-q", "-h", address, "-p", str(port), "-U", "onblock"]
        self.wait(lambda: self.run(*ready) == "")
        return {
            "host": address, "port": port, "user": "onblock", "password": password,
            "url": f"postgresql+psycopg://onblock:{password}@{address}:{port}/postgres",
        }  # fmt: skip


def _tool(name: str) -> str:
    found = program(name, DEBIAN)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: python -m tests.servers.install")
    return found


def installed() -> bool:
    """Whether this machine has a PostgreSQL server."""
    return program("postgres", DEBIAN) is not None
