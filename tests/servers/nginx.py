"""nginx as Debian packages it, in a state folder, with what a page says to put into its `http` block."""

from __future__ import annotations

import re
import socket
from typing import Any, NamedTuple

from tests.servers.base import LOOPBACK, Server, program


class Request(NamedTuple):
    """A line of the access log: what was asked, and which of the servers behind it answered."""

    status: int
    path: str
    behind: str


class Nginx(Server):
    """A proxy on loopback. `info`: host, port.

    Options: `config` (its `upstream` and `server` blocks), `port` (where these say that it listens).
    """

    def launch(self) -> dict[str, Any]:
        port, settings = int(self.options["port"]), self.folder / "nginx.conf"
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
        )
        settings.write_text(
            f"user nobody nogroup;\nworker_processes 1;\npid {self.folder}/pid;\nevents {{}}\nhttp {{\n"
            f"log_format short '$status $uri $upstream_addr';\naccess_log {self.folder}/access.log short;\n"
            f"{temporary}{self.options['config']}}}\n"
        )
        self.spawn(_tool(), "-e", "stderr", "-c", str(settings), "-g", "daemon off; error_log stderr;")
        self.wait(lambda: socket.create_connection((LOOPBACK, port), 1).close() is None, 15)
        return {"host": LOOPBACK, "port": port}

    def requests(self) -> list[Request]:
        """Those that are over, in that order. One that became a web socket is over when that is closed."""
        lines = (self.folder / "access.log").read_text("utf-8", "replace")
        found = re.findall(r"^(\d+) (\S+) (.*)$", lines, re.MULTILINE)
        return [Request(int(status), path, behind) for status, path, behind in found]


def _tool() -> str:
    found = program("nginx")
    if found is None:
        raise FileNotFoundError("nginx is not installed: python -m tests.servers.install")
    return found


def installed() -> bool:
    """Whether this machine has nginx."""
    return program("nginx") is not None
