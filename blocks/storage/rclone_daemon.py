"""One `rclone rcd` process, spoken to through a private Unix socket, and what its failures mean.

No name and no secret is on a command line: files are named in JSON, the configuration is a file of mode 0600 in a
folder of mode 0700, where the socket is too. What is asked for, and when, is in `rclone.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocks.errors import (
    AuthError,
    ConfigError,
    Conflict,
    DiskFull,
    HashMismatch,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceChanged,
    ToolMissing,
    UnknownError,
)  # fmt: skip
from blocks.storage.program import Program, find, without_names

log = logging.getLogger("onblock.rclone")

EXIT_CODES: dict[int, type[OnblockError]] = {
    1: UnknownError,  # not categorised (before 1.69: usage)
    2: ConfigError,  # syntax or usage (before 1.69: not categorised)
    3: NotFound,  # directory not found
    4: NotFound,  # file not found
    5: NetworkError,  # temporary: more retries might fix it
    6: UnknownError,  # less serious, such as 461 errors of a provider
    7: UnknownError,  # fatal: more retries won't fix it
    8: ConfigError,  # transfer limit set by --max-transfer
    9: UnknownError,  # nothing was transferred, though something was asked for
    10: ConfigError,  # duration limit set by --max-duration
}
"""rclone's documented exit codes. What it said goes before the number: see `SAID`."""


def _status(*numbers: int) -> str:
    """A pattern for an HTTP status where it is said to be one: a number alone is a port, or a part of a name."""
    any_of = "|".join(map(str, numbers))
    return rf"\b(?:status|code|error|response|http(?:/[\d.]+)?)(?:\W?code)?\W{{0,2}}(?:{any_of})\b|\((?:{any_of})[ )]"


SAID: list[tuple[str, type[OnblockError]]] = [
    (r"source file is being updated", SourceChanged),
    (r"no space left on device|insufficient storage|quota (was )?exceeded|quotaexceeded|not enough (free )?space"
     rf"|disk full|storage ?limit|{_status(507)}", DiskFull),
    (r"connection refused|connection reset|i/o timeout|no such host|no route to host|network is unreachable|broken pipe"
     r"|handshake timeout|server misbehaving", NetworkError),
    (rf"unable to authenticate|permission denied \(|{_status(401)}|unauthorized|invalidaccesskeyid|signaturedoesnotmatch"
     r"|invalid_grant|invalid_client|empty token|expiredtoken|token.*expired|authentication failed|login failed"
     r"|knownhosts|host key|x509|certificate|couldn't decrypt|password required", AuthError),
    (rf"permission denied|operation not permitted|access ?denied|forbidden|{_status(403)}|read-only file system"
     r"|sftp: .*permission", PermissionRefused),
    (r"section in config file|didn't find backend|config file .* not found|unknown (flag|command|option)"
     r"|failed to (read|parse|load).*config|file name too long|name too long|illegal|invalid argument"
     r"|invalid (byte|utf|character)|missing required|need (url|user|host|endpoint)|not supported|can't (move|copy)"
     r"|couldn't parse|failed to make \S+ fs", ConfigError),
    (r"corrupted on transfer|hash(es)? differ|sizes differ|checksum.*(mismatch|differ)|bad ?digest", HashMismatch),
    (r"is a directory|is a file not a directory|not a directory|file exists|directory not empty", Conflict),
    (r"connection lost|timed? ?out|unexpected eof|\beof\b|deadline exceeded|closed network connection"
     r"|couldn't (connect|initiali[sz]e)|failed to dial|dial tcp|too many requests|slow ?down"
     r"|internal server error|bad gateway|service unavailable|connection closed|incomplete body|context canceled|stream error"
     rf"|{_status(429, 500, 502, 503, 504)}", NetworkError),
    (rf"not found|no such (file|bucket|key)|nosuchbucket|nosuchkey|doesn't exist|does not exist|{_status(404)}", NotFound),
]  # fmt: skip
"""What rclone and its providers say, in the order it is looked for. A local 'permission denied' is no failed login, nor
is a server that cannot be reached."""
_SAID = [(re.compile(pattern, re.IGNORECASE), kind) for pattern, kind in SAID]
_HTTP = {404: NotFound, 401: AuthError, 403: PermissionRefused}


def classify(
    said: str, code: int | None = None, status: int | None = None, known: Sequence[str] = ()
) -> type[OnblockError]:
    """The class for what rclone said, whatever the names in it (`known`: those it was given); then for the HTTP status of
    its daemon, then for its exit code."""
    said = without_names(said, *known)
    for pattern, kind in _SAID:
        if pattern.search(said):
            return kind
    if status in _HTTP:
        return _HTTP[status]
    if code is not None and code < 0:
        return NetworkError  # killed from outside: the next one may live
    return EXIT_CODES.get(code or 0, UnknownError)


def failure(
    doing: str, said: str, path: str = "", *, code: int | None = None, status: int | None = None,
    known: Sequence[str] = (),
) -> OnblockError:  # fmt: skip
    """`classify` made an error; the raw words go to the log."""
    kind = classify(said, code, status, (path, *known))
    for secret in tuple(_secrets):
        said = said.replace(secret, "***")  # rclone quotes values of its configuration
    level = logging.DEBUG if kind is NotFound else logging.WARNING  # often asked for, and answered by what follows
    log.log(level, "rclone: %s: %s (exit code %s, status %s): %s", path or "-", doing, code, status, said)
    brief = " ".join(said.split())[-300:]
    return kind(f"{doing}: rclone says: {brief}" if brief else doing, path=path)


_SECRET = re.compile(
    r"(?m)^\s*(?!(?:type|host|port|user|url|vendor|provider|endpoint|region|remote|location_constraint|env_auth|encoding"
    r"|key_file|known_hosts_file|account)\s*=)\w+\s*=(.+)$"
)
"""Values of a configuration, but for those that help to understand a message."""
_secrets: set[str] = set()
"""Those of every daemon there was."""


class Wire(http.client.HTTPConnection):
    """One connection to the daemon. `call` asks it something; uploads and readers use it for their bytes."""

    def __init__(self, daemon: Daemon, patience: float):
        super().__init__("rclone", timeout=patience, blocksize=1 << 20)
        self._daemon = daemon

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._daemon.socket)

    def call(self, command: str, doing: str, path: str = "", **parameters: Any) -> dict[str, Any]:
        """The answer of a remote-control command. Raises by `classify`; `path` is ours, for the message."""
        try:
            self.request("POST", f"/{command}", json.dumps(parameters), {"Content-Type": "application/json"})
            response = self.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self.broken(error, doing, path) from error
        return answer(response.status, body, doing, path)

    def broken(self, error: Exception, doing: str, path: str) -> OnblockError:
        """The daemon did not answer as it should: what it said of that, if anything."""
        self.close()
        if isinstance(error, TimeoutError):
            return NetworkError(f"{doing}: rclone was silent for {self.timeout:g} s", path=path)
        program = self._daemon.program
        program.wait(0.2 if isinstance(error, ConnectionError) else 0)
        if (code := program.poll()) is not None:
            return failure(f"{doing}: rclone ended with exit code {code}", program.said()[-500:], path, code=code)
        return NetworkError(f"{doing}: {type(error).__name__}: {error}", path=path)


def answer(status: int, body: bytes, doing: str, path: str) -> dict[str, Any]:
    """What the daemon answered. Raises by `classify`."""
    found: dict[str, Any]
    try:
        found = json.loads(body)
    except ValueError:
        found = {"error": body[:300].decode("utf-8", "replace")}
    if status != 200:
        asked: dict[str, Any] = found.get("input") or {}
        known = [str(asked[key]) for key in ("remote", "srcRemote", "dstRemote") if key in asked]
        known += [str(asked[key]).partition(":")[2] for key in ("fs", "srcFs", "dstFs") if key in asked]
        raise failure(doing, str(found.get("error", "")), path, status=status, known=known)
    return found


class Daemon:
    """A running `rclone rcd`. Shared by the sessions of one process with the same configuration; ends with the last."""

    running: dict[tuple[str, ...], Daemon] = {}  # noqa: RUF012  one registry, guarded by _guard
    _guard = threading.Lock()

    def __init__(self, binary: str, config: str, config_file: str, password: str, idle: float):
        self.users = 0
        self.locks = [threading.Lock() for _ in range(64)]  # no two threads decide about one final name at once
        self.roots: dict[str, bool] = {}  # seen to be there, and whether names are encoded there
        self._limits: dict[int, int] = {}  # bytes a second, by who asked
        self._limited = "off"
        _secrets.update(s for s in (password, *(m[1].strip() for m in _SECRET.finditer(config))) if len(s) > 3)
        self._folder = tempfile.mkdtemp(prefix="onblock-rclone-")  # mode 0700: who may enter it may command rclone
        self.socket = f"{self._folder}/rc"
        try:
            if config:
                config_file = f"{self._folder}/rclone.conf"
                fd = os.open(config_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(fd, "w", encoding="utf-8") as file:
                    file.write(config)
            elif not Path(config_file).is_file():
                raise ConfigError("there is no such rclone.conf", path=config_file, remedy="correct `config_file`")
            self.program = Program(
                [find(binary), "rcd"], env=self._environment(config_file, password, idle), private=self._folder
            )
            try:
                self._wait()
            except BaseException:
                self.program.end(0)
                raise
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _environment(self, config_file: str, password: str, idle: float) -> dict[str, str]:
        options = {
            "CONFIG": config_file, "RC_ADDR": f"unix://{self.socket}", "RC_NO_AUTH": "true", "RC_SERVE": "true",
            "RC_SERVER_READ_TIMEOUT": "8760h", "RC_SERVER_WRITE_TIMEOUT": "8760h",  # of a whole transfer
            "ASK_PASSWORD": "false", "STATS": "0", "LOG_LEVEL": "NOTICE", "LOW_LEVEL_RETRIES": "3",
            "TIMEOUT": f"{idle:g}s", "CONTIMEOUT": "15s",
            "INPLACE": "true",  # the temporary name is ours, and its final name comes from `movefile`
            "USE_SERVER_MODTIME": "true",  # object stores keep another time in metadata, at one more request per file
        }  # fmt: skip
        if password:
            options["CONFIG_PASS"] = password
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
        return kept | {f"RCLONE_{name}": value for name, value in options.items()}

    def _wait(self) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if (code := self.program.poll()) is not None:
                raise failure(f"rclone did not start: exit code {code}", self.program.said(), code=code)
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.socket)
                return
            time.sleep(0.005)  # it answers within 50-300 ms
        raise ToolMissing("rclone does not answer on a Unix socket", remedy="install rclone 1.65 or newer")

    def slow_down(self, who: int, rate: int | None) -> str | None:
        """What to tell it, now that somebody asks for at most so many bytes a second, or for nothing any more; None if
        that is what it does. It has one limit for all: the strictest."""
        with self._guard:
            if rate is None:
                self._limits.pop(who, None)
            else:
                self._limits[who] = rate
            told, self._limited = self._limited, f"{min(self._limits.values())}B" if self._limits else "off"
            return None if told == self._limited else self._limited

    def close(self) -> None:
        """End it. Nothing is under way then, so there is nothing to wait for."""
        self.program.end(0)
        shutil.rmtree(self._folder, ignore_errors=True)

    @classmethod
    def borrow(cls, binary: str, config: str, config_file: str, password: str, idle: float) -> Daemon:
        """The daemon for a configuration, started if there is none."""
        key = (binary, config, config_file, password, str(idle))
        with cls._guard:
            daemon = cls.running.get(key)
            if daemon is None or daemon.program.poll() is not None:
                daemon = cls.running[key] = cls(binary, config, config_file, password, idle)
            daemon.users += 1
            return daemon

    def give_back(self) -> None:
        """The last one to do so ends it."""
        with self._guard:
            self.users -= 1
            if self.users:
                return
            for key in [k for k, daemon in self.running.items() if daemon is self]:
                del self.running[key]
        self.close()


# -- names ------------------------------------------------------------------------------------------------------------

_SHOWN = {chr(c): chr(0x2400 + c) for c in range(1, 32)} | {"\x7f": "\u2421"}
"""rclone shows control characters as the pictures Unicode has of them, but for storages it hands names to as they are ..."""
_HIDDEN = {picture: control for control, picture in _SHOWN.items()}
_QUOTE = "\u201b"
"""... and puts this before a character that would be taken for such a picture."""
_ENCODE = str.maketrans(_SHOWN | {c: _QUOTE + c for c in (*_HIDDEN, _QUOTE)})
_DECODE = re.compile(f"{_QUOTE}(.)|([{''.join(_HIDDEN)}])", re.DOTALL)


def encode(path: str, shown: bool = True) -> str:
    """A path as rclone writes it, where control characters are `shown`. Raises ConfigError for what is no UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            "rclone takes only names in UTF-8", path=path, remedy="rename it with the job's `path` template"
        ) from error
    return path.translate(_ENCODE) if shown and not (path.isascii() and path.isprintable()) else path


def decode(path: str, shown: bool = True) -> str:
    """The path that `encode` wrote."""
    return path if path.isascii() or not shown else _DECODE.sub(lambda m: m[1] or _HIDDEN[m[2]], path)
