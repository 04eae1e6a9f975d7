"""A POSIX shell on another host, by the OpenSSH client: one login, commands and bytes through their own channels.

Scripts go over standard input, each name quoted, so that no name is on a command line of this machine. The login is
described in a private ssh_config, which `rsync` uses too. What is asked of the shell is in `rsync.py`. Secrets are files
of mode 0600 in a folder of mode 0700; the host key is verified.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable
from pathlib import Path

from blocks.errors import (
    AuthError,
    ConfigError,
    Conflict,
    DiskFull,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceVanished,
    ToolMissing,
    UnknownError,
)  # fmt: skip
from blocks.storage.program import Program, find
from blocks.storage.ssh_login import SshStorage

HOST = "onblock"
"""What the private ssh_config calls the server."""
MASTER = 'exec /bin/sh -c \'export LC_ALL=C; while IFS= read -r n; do s=$(head -c "$n"; echo .); eval "${s%.}"; done\''
"""What runs at the far side: scripts, each after its length. `read` and `head -c` take no byte more than their own, so a
script may take bytes that follow it."""

SAID: list[tuple[str, type[OnblockError]]] = [
    (r"No space left on device|Disk quota exceeded", DiskFull),
    (r"Permission denied \([a-z,-]+\)|Host key verification failed|HOST IDENTIFICATION HAS CHANGED"
     r"|Too many authentication failures|@ERROR: auth failed|host key is known", AuthError),
    (r"bad permissions|UNPROTECTED PRIVATE KEY|error in libcrypto|invalid format|Load key|Bad configuration option"
     r"|account is (currently )?not available|File name too long|Invalid argument|unknown option|protocol version mismatch"
     r"|no matching (host key|cipher|key exchange)|Too many levels of symbolic links|Invalid cross-device", ConfigError),
    (r"file has vanished", SourceVanished),
    (r"command not found|rsync: not found|rsync: No such file|not found on the server", ToolMissing),
    (r"Permission denied|Operation not permitted|Read-only file system", PermissionRefused),
    (r"File exists|Is a directory|Not a directory|cannot overwrite|Directory not empty", Conflict),
    (r"Connection (refused|reset|closed|timed out|to .* closed)|Could not resolve|No route to host|Network is unreachable"
     r"|Broken pipe|unexpectedly closed|[Tt]imeout|kex_exchange|Operation timed out|not responding|session open refused"
     r"|Transport endpoint|Stale file handle|mux_client|Connection aborted", NetworkError),
    (r"No such file|[Dd]irectory nonexistent", NotFound),
]  # fmt: skip
"""What ssh, rsync and the far side's tools say under LC_ALL=C, in the order it is looked for. 'Permission denied' is a
failed login only where ssh names its methods."""
_SAID = [(re.compile(pattern), kind) for pattern, kind in SAID]


def classify(said: str, default: type[OnblockError] = UnknownError) -> type[OnblockError]:
    """The class for what was said."""
    return next((kind for pattern, kind in _SAID if pattern.search(said)), default)


def failure(
    doing: str, said: str, path: str = "", default: type[OnblockError] = UnknownError, remedy: str | None = None
) -> OnblockError:
    """`classify` made an error."""
    brief = " ".join(line.strip() for line in said.splitlines() if line.strip() and "@@@" not in line)[-300:]
    return classify(said, default)(f"{doing}: {brief}" if brief else doing, path=path, remedy=remedy)


def quote(path: str) -> str:
    """A path below the working folder as one word of a script; never taken for an option."""
    return "'./" + path.replace("'", "'\\''") + "'"


SLOW_S = 600.0
"""Seconds longer that a disk may take to make something durable."""


class Login:
    """The private folder with the ssh_config of a storage. `close` removes it."""

    def __init__(self, storage: SshStorage):
        self.storage = storage
        self.folder = tempfile.mkdtemp(prefix="onblock-ssh-")
        self.config = f"{self.folder}/config"
        try:
            self._write("config", "\n".join(self._lines()) + "\n")
        except BaseException:
            self.close()
            raise

    def _lines(self) -> Iterable[str]:
        s = self.storage
        alive = max(1, int(s.io_timeout / 4))
        yield f"Host {HOST}"
        yield f"HostName {_word(s.host)}"
        yield f"User {_word(s.user)}"
        yield f"Port {s.port}"
        yield f"ControlPath {self.folder}/mux"
        yield f"ConnectTimeout {max(1, round(s.connect_timeout))}"
        yield f"ServerAliveInterval {alive}"
        yield "ServerAliveCountMax 3"
        if s.private_key is not None:
            yield f"IdentityFile {self._write('key', s.private_key.get_secret_value().strip() + chr(10))}"
        if s.key_file is not None:
            path = os.path.expanduser(s.key_file)
            if not Path(path).is_file():
                raise ConfigError("there is no such key file", path=path)
            yield f"IdentityFile {_word(path)}"
        if s.use_agent:
            yield "IdentityAgent SSH_AUTH_SOCK"
        else:
            yield "IdentityAgent none"
            yield "IdentitiesOnly yes"
        yield "GlobalKnownHostsFile none"
        if s.host_key:
            keys = [line.strip() for line in s.host_key.splitlines() if line.strip()]
            yield f"HostKeyAlias {HOST}"
            yield f"UserKnownHostsFile {self._write('known', ''.join(f'{HOST} {key}{chr(10)}' for key in keys))}"
            yield "StrictHostKeyChecking yes"
        else:
            yield f"UserKnownHostsFile {_word(os.path.expanduser(s.known_hosts))}"
            yield f"StrictHostKeyChecking {'accept-new' if s.accept_new_host_key else 'yes'}"
        yield from (
            "BatchMode yes",
            "PreferredAuthentications publickey",
            "UpdateHostKeys no",
            "CheckHostIP no",
            "ClearAllForwardings yes",
            "RequestTTY no",
            "Compression no",
            "PermitLocalCommand no",
            "Ciphers ^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
        )

    def _write(self, name: str, text: str) -> str:
        path = f"{self.folder}/{name}"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        return path

    @property
    def argv(self) -> list[str]:
        """The client, for a program that appends host and command."""
        return [find("ssh"), "-F", self.config]

    def close(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _word(value: str) -> str:
    """One value of an ssh_config."""
    if '"' in value or not value.isprintable():
        raise ConfigError("cannot stand in an ssh_config", path=value)
    return '"' + value.replace("%", "%%") + '"'


class Channel:
    """One remote shell. The first of a login is the master, which logs in; the others go through it."""

    def __init__(self, login: Login, *, master: bool = False):
        self._login = login
        self._marker = secrets.token_hex(12).encode()
        self._program = Program(
            [*login.argv, "-o", f"ControlMaster={'yes' if master else 'no'}", HOST, MASTER],
            stdin=True,
            stdout=True,
            private=login.folder if master else "",
        )
        os.set_blocking(self._program.stdin.fileno(), False)  # `write` waits, and not without an end
        self._rest = b""
        self.patience = login.storage.io_timeout
        """Seconds that the far side may be silent. Its ssh may be well, and its disk hang."""
        self.durably = self.patience + SLOW_S
        """And so many while it makes something durable."""

    def send(self, script: str, payload: bytes | memoryview = b"") -> None:
        """Give the shell a script and the bytes it will take."""
        raw = os.fsencode(script)
        self.write(b"%d\n%b" % (len(raw), raw))
        if len(payload):
            self.write(payload)

    def write(self, data: bytes | memoryview) -> None:
        """Bytes for the script that runs."""
        view, fd = memoryview(data), self._program.stdin.fileno()
        try:
            while len(view):
                if not select.select([], [fd], [], self.patience)[1]:
                    raise self.silent("cannot send", "")
                view = view[os.write(fd, view) :]
        except (OSError, ValueError) as error:
            raise self.broken("cannot send", "") from error

    def run(self, doing: str, path: str, script: str, payload: bytes | memoryview = b"", *, within: float = 0) -> bytes:
        """What a script said and wrote. Raises by `classify` if it failed; NetworkError if the connection did, or if it
        does not end `within` so many seconds, by default `patience`."""
        code, said = self.ask(doing, path, script, payload, within=within)
        if code:
            raise failure(doing, said.decode("utf-8", "replace"), path)
        return said

    def ask(
        self, doing: str, path: str, script: str, payload: bytes | memoryview = b"", *, within: float = 0
    ) -> tuple[int, bytes]:
        """Exit code of a script, and what it said and wrote."""
        body = f"{{ {script}\n}} 2>&1" if len(payload) else f"{{ {script}\n}} </dev/null 2>&1"
        self.send(f"{body}; printf '\\n{self._marker.decode()} %d\\n' $?", payload)
        found, end = bytearray(self._rest), time.monotonic() + (within or self.patience)
        mark = b"\n" + self._marker + b" "
        at = found.find(mark)
        while at < 0 or b"\n" not in found[at + len(mark) :]:
            if not (data := self.read(1 << 16, doing, path, end - time.monotonic())):
                raise self.broken(doing, path)
            start = max(0, len(found) - len(mark))
            found += data
            if at < 0:
                at = found.find(mark, start)
        tail = found.index(b"\n", at + len(mark))
        self._rest = bytes(found[tail + 1 :])
        return int(found[at + len(mark) : tail]), bytes(found[:at])

    def entries(self, script: str) -> Generator[bytes, None, tuple[int, str]]:
        """What a script writes, ended by NUL each, as it comes; returns its exit code and what it said."""
        mark = self._marker.decode()
        self.send(
            f"{{ e=$( {{ {script}; }} 2>&1 >&3 3>&- ); r=$?; }} 3>&1 </dev/null\n"
            f'printf \'%s %d\\0%s\\0\' {mark} "$r" "$e"'
        )
        rest, code = b"", None
        while data := self.read(1 << 16, "the listing broke off", "", self.patience):
            *items, rest = (rest + data).split(b"\0")
            for item in items:
                if code is not None:
                    return code, item.decode("utf-8", "replace")
                if item.startswith(self._marker + b" "):
                    code = int(item.split()[1])
                else:
                    yield item
        raise self.broken("the listing broke off", "")

    def read(self, count: int, doing: str, path: str, within: float) -> bytes:
        """Some of what the script writes; nothing at its end. Raises NetworkError if nothing comes `within` seconds."""
        fd = self._program.stdout.fileno()
        if not select.select([fd], [], [], max(0.0, within))[0]:
            raise self.silent(doing, path)
        return os.read(fd, count)

    def readinto(self, view: memoryview, doing: str, path: str) -> int:
        """As `read`, into a buffer; 0 at the end."""
        fd = self._program.stdout.fileno()
        if not select.select([fd], [], [], self.patience)[0]:
            raise self.silent(doing, path)
        return os.readv(fd, [view])

    def finish(self, doing: str, path: str) -> None:
        """No more bytes come: wait for the script, which has replaced the shell. Raises if it failed."""
        self._program.stdin.close()
        if (code := self._program.wait(self.patience)) is None:
            raise self.silent(doing, path)
        said = self._program.said()
        self.close()
        if code:
            raise failure(doing, said, path, NetworkError if code == 255 else UnknownError)

    def silent(self, doing: str, path: str) -> OnblockError:
        """Nothing came, or was taken, for too long: the shell is ended."""
        said = self._program.said()
        self.close()
        return failure(f"{doing}: {self._login.storage.address} gave no answer in time", said, path, NetworkError)

    def broken(self, doing: str, path: str) -> OnblockError:
        """The connection ended: what ssh said of it."""
        self._program.wait(0.5)
        said, code = self._program.said(), self._program.poll()
        self.close()
        default = ConfigError if code not in (None, 255) else NetworkError
        where = self._login.storage.address
        remedy = "the account needs a shell; without one, use an SFTP storage" if default is ConfigError else None
        return failure(f"{doing}: the connection to {where} ended", said, path, default, remedy)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._program.poll() is None

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._program.stdin.close()
        self._program.end(0)
