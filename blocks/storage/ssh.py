"""One SSH connection: reaching the host, knowing it by its key, logging in, running commands in its shell.

What is said over it is in `sftp.py` and `scp.py`. paramiko is imported here and nowhere else, and this file is imported
when a storage is opened. Every failure of sockets and of paramiko becomes one of `blocks.errors` in `FAILURES`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import logging
import os
import re
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Protocol

import paramiko
from paramiko.hostkeys import HostKeyEntry, InvalidHostKey
from paramiko.ssh_exception import IncompatiblePeer

from blocks import names
from blocks.errors import AuthError, ConfigError, NetworkError, OnblockError, UnknownError
from blocks.storage.ssh_login import SshStorage

WINDOW = 8 << 20
"""Bytes the server may send before we have read them: bounds the memory of a connection."""
PACKET = 1 << 18

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
"""AES-GCM first: one pass of the processor's AES unit, and no separate MAC."""

FAILURES: list[tuple[type[BaseException], type[OnblockError], str]] = [
    (paramiko.PasswordRequiredException, ConfigError, "give its `passphrase`"),
    (paramiko.BadAuthenticationType, AuthError, "give what the server asks for: `password`, or a key"),
    (paramiko.AuthenticationException, AuthError, AuthError.remedy),
    (IncompatiblePeer, ConfigError, "the server offers only outdated methods; update it"),
    (paramiko.ChannelException, NetworkError, "the server opens no more channels; raise its MaxSessions"),
    (paramiko.SSHException, NetworkError, NetworkError.remedy),
    (socket.gaierror, NetworkError, "check `host`, and that the name service knows it"),
    (ConnectionRefusedError, NetworkError, "check `host` and `port`, and that the SSH server runs"),
    (TimeoutError, NetworkError, NetworkError.remedy),
    (EOFError, NetworkError, NetworkError.remedy),
    (OSError, NetworkError, NetworkError.remedy),
]
"""The one table for the connection; the first line that fits counts. What is not here is UNKNOWN."""

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it logs what it raises, with a traceback


def failure(error: BaseException, doing: str, path: str = "") -> OnblockError:
    """The class of the taxonomy for what a socket or paramiko raised, by `FAILURES`; `error` is its cause."""
    if isinstance(error, OnblockError):
        return error
    kind, remedy = next(((k, r) for c, k, r in FAILURES if isinstance(error, c)), (UnknownError, UnknownError.remedy))
    said = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, TimeoutError) and "timed out" not in said:
        said = "no answer in time"
    if isinstance(error, EOFError):
        said = "the connection was closed"
    made = kind(f"{doing}: {said or type(error).__name__}", path=path, remedy=remedy)
    made.__cause__ = error
    return made


class Closes(Protocol):
    """A channel of ours, or a lane beside it."""

    def close(self) -> None: ...


class Connection:
    """A transport that is logged in. Not shared between threads."""

    def __init__(self, storage: SshStorage):
        self.storage, self.address = storage, storage.address
        deadline = time.monotonic() + storage.connect_timeout
        keys = _keys(storage)
        raw = self._raw = self._dial()
        try:
            self.transport = paramiko.Transport(raw, default_window_size=WINDOW, default_max_packet_size=PACKET)
        except BaseException as error:
            raw.close()
            raise failure(error, f"cannot talk SSH to {self.address}") from error
        try:
            self._hello(deadline)
            self._log_in(keys, deadline)
        except BaseException:
            self.close()
            raise
        if storage.keepalive:
            self.transport.set_keepalive(max(1, round(storage.keepalive)))

    @property
    def openssh(self) -> bool:
        """Whether the server says it is OpenSSH's."""
        return "OpenSSH" in self.transport.remote_version

    # -- reaching it ------------------------------------------------------------------------------------------------

    def _dial(self) -> socket.socket:
        storage = self.storage
        try:
            raw = socket.create_connection((storage.host, storage.port), storage.connect_timeout)
        except OSError as error:
            raise failure(error, f"cannot connect to {self.address}") from error
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # also ends a send that a half-open peer never takes
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(storage.io_timeout * 1000))
        return raw

    def _hello(self, deadline: float) -> None:
        """Exchange keys and know the server by its own."""
        storage, transport = self.storage, self.transport
        options = transport.get_security_options()
        options.ciphers = CIPHERS
        transport.banner_timeout = transport.handshake_timeout = storage.connect_timeout
        transport.auth_timeout = storage.connect_timeout
        known = _known_keys(storage)
        if known:  # ask for a key of a kind that we know, where the server has several
            mine = {kind for key in known for kind in _algorithms(key.get_name())}
            options.key_types = sorted(options.key_types, key=lambda kind: kind not in mine)
        done = threading.Event()
        try:
            transport.start_client(event=done)
            if not done.wait(max(0.1, deadline - time.monotonic())):
                raise TimeoutError("no SSH server answered in time")
            if not transport.is_active():
                raise transport.get_exception() or EOFError()
            presented = transport.get_remote_server_key()
        except BaseException as error:
            raise failure(error, f"cannot talk SSH to {self.address}") from error
        _check_host_key(storage, presented, known)

    # -- logging in -------------------------------------------------------------------------------------------------

    def _log_in(self, keys: list[paramiko.PKey], deadline: float) -> None:
        """Try each way that the block gives, until the server says it is enough."""
        storage, transport, user = self.storage, self.transport, self.storage.user
        ways: list[tuple[str, Callable[[], list[str]]]] = []
        for key in keys:
            ways.append(("key", lambda key=key: transport.auth_publickey(user, key)))
        if storage.use_agent:
            for key in _agent_keys():
                ways.append(("agent key", lambda key=key: transport.auth_publickey(user, key)))
        if storage.password is not None:
            secret = storage.password.get_secret_value()  # falls back to keyboard-interactive by itself
            ways.append(("password", lambda: transport.auth_password(user, secret)))
        tried: list[str] = []
        last: Exception | None = None
        for name, way in ways:
            try:
                if not way():
                    return
                tried.append(f"{name} (accepted, but more is asked for)")
            except paramiko.AuthenticationException as error:
                if time.monotonic() > deadline or not transport.is_active():
                    raise failure(TimeoutError(), f"cannot log in to {self.address}") from error
                tried.append(name)
                last = error
            except Exception as error:
                raise failure(error, f"cannot log in to {self.address}") from error
        asked = ", ".join(getattr(last, "allowed_types", []))
        raise AuthError(
            f"the login to {self.address} was refused; tried: {', '.join(tried) or 'nothing: the agent has no key'}"
            + (f"; the server takes: {asked}" if asked else ""),
            remedy="check `user` and the password or key in the storage's block, and that the account may log in",
        ) from last

    def hasten(self) -> None:
        """Acknowledge at once what comes next. sshd sends two short answers with Nagle's algorithm: the second waits until
        the first is acknowledged, which Linux puts off by 40 ms. Holds until we send again."""
        with contextlib.suppress(OSError, AttributeError):
            self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    # -- using it ---------------------------------------------------------------------------------------------------

    def channel(self) -> paramiko.Channel:
        """A new channel; what is done on it fails when the far side is silent for `io_timeout`."""
        self.hasten()
        try:
            channel = self.transport.open_session(WINDOW, PACKET, timeout=self.storage.io_timeout)
        except BaseException as error:
            raise failure(error, f"cannot open a channel to {self.address}") from error
        channel.settimeout(self.storage.io_timeout)
        return channel

    def execute(self, command: bytes) -> paramiko.Channel:
        """Start a command: for the login's shell, so with quoted words."""
        channel = self.channel()
        with self._in_time("cannot run a command"):
            channel.exec_command(command)  # type: ignore[arg-type]  # bytes pass, for names that are no UTF-8
        return channel

    def subsystem(self, name: str) -> paramiko.Channel:
        """Start a subsystem. Raises ConfigError if the server has none of that name for this account."""
        channel = self.channel()
        with self._in_time(f"cannot begin {name}"):
            try:
                channel.invoke_subsystem(name)
            except paramiko.SSHException as error:
                if not self.transport.is_active():
                    raise
                raise ConfigError(f"{self.address} offers this account no {name}") from error
        return channel

    @contextlib.contextmanager
    def _in_time(self, doing: str) -> Iterator[None]:
        """For what paramiko waits for without an end: after `io_timeout` the connection is ended, and with it the wait."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self.close()

        timer = threading.Timer(self.storage.io_timeout, end)
        timer.daemon = True
        timer.start()
        self.hasten()
        try:
            yield
        except Exception as error:
            raise failure(TimeoutError() if late.is_set() else error, f"{doing} at {self.address}") from error
        finally:
            timer.cancel()

    @staticmethod
    def drop(channel: Closes) -> None:
        """Nobody needs this channel any more; whether the other side learns of it does not matter."""
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            channel.close()

    def close(self) -> None:
        """End the connection; never waits for the other side."""
        with contextlib.suppress(OSError):
            self.transport.sock.shutdown(socket.SHUT_RDWR)  # wakes whoever reads or writes
        self.transport.close()


HASHER = rb"""
if [ "$(openssl dgst -sha256 -r </dev/null 2>/dev/null | cut -c1-8)" = e3b0c442 ]
then onblock_sha256() { openssl dgst -sha256 -r; }
else onblock_sha256() { sha256sum; }
fi
"""
"""For the prelude of a shell: `onblock_sha256` hashes its standard input. OpenSSL uses the processor's own SHA-256, which
coreutils 9.1 does not: 1.0 s against 3.9 s for 1 GiB here."""
LARGE = 4 << 20
"""Bytes from which that outweighs the longer start of OpenSSL."""


def hashing(name: bytes, size: int, *, fresh: bool) -> bytes:
    """The script that hashes a file of `size` bytes where HASHER was said; `name` as a word of `sh`. The file is its
    standard input: then no name is in what it prints."""
    script = (b"onblock_sha256 < " if size >= LARGE else b"sha256sum < ") + name
    if fresh:  # asks the kernel to forget what it has cached, without reading
        script = b"dd if=" + name + b" iflag=nocache count=0 2>/dev/null\n" + script
    return script


def hashed(out: bytes) -> str | None:
    """The digest that such a script printed."""
    return out[:64].decode() if re.fullmatch(rb"[0-9a-f]{64} [ *].*\n", out) else None


class Failed(Exception):
    """A script ended with a status other than 0; `said` on its error output."""

    def __init__(self, status: int, said: str):
        self.status, self.said = status, said
        super().__init__(f"status {status}: {said}")


class Shell:
    """The `sh` of a login, kept open, for one script after the other. Scripts go in by its standard input, so that no name
    is ever on a command line; what they run reads nothing. Raises what the channel raises, and Failed.

    An answer that was not read to its end would be taken for the next script's: that shell is ended, and the next script
    has a new one."""

    def __init__(self, connection: Connection, prelude: bytes = b""):
        self._mark = b"\0onblock-" + secrets.token_hex(16).encode() + b" "
        self._connection = connection
        self._prelude = b"LC_ALL=C; export LC_ALL\n" + prelude + b"\n"
        self._channel: paramiko.Channel | None = None

    def run(self, script: bytes, timeout: float | None = None) -> bytes:
        """The output of a script. `timeout`: seconds that it may be silent, where that is longer than usual."""
        return b"".join(self.stream(script, timeout))

    def stream(self, script: bytes, timeout: float | None = None) -> Iterator[bytes]:
        """The output of a script as it comes; read it to its end before the next."""
        try:
            status, said = yield from self._answer(script, timeout)
        except BaseException:  # also of whoever reads no further
            self.close()
            raise
        if status:
            raise Failed(status, told(said))

    def _answer(self, script: bytes, timeout: float | None) -> Generator[bytes, None, tuple[int, bytes]]:
        """The output of a script as it comes; its status, and what it said on its error output."""
        mark = self._mark
        printed = mark.replace(b"\0", b"\\000")
        prelude = b""
        if self._channel is None:
            self._channel, prelude = self._connection.execute(b"sh -s"), self._prelude
        channel = self._channel
        self._send(
            channel,
            prelude + b"(:\n" + script + b"\n) </dev/null\nonblock_status=$?\n"
            b"printf '" + printed + b"' >&2\nprintf '" + printed + b"%d\\n' $onblock_status\n",
        )  # fmt: skip
        usual = channel.gettimeout()
        if timeout is not None:
            channel.settimeout(timeout)
        held = b""
        while (at := held.find(mark)) < 0:
            safe = len(held) - len(mark)
            if safe > 0:
                yield held[:safe]
                held = held[safe:]
            if not channel.recv_ready():
                self._connection.hasten()
            held += self._more(channel.recv)
        yield held[:at]
        held = held[at + len(mark) :]
        while not held.endswith(b"\n"):
            held += self._more(channel.recv)
        said = b""
        while mark not in said[-len(mark) :]:
            said += self._more(channel.recv_stderr)
        channel.settimeout(usual)
        return int(held), said[: -len(mark)]

    @staticmethod
    def _send(channel: paramiko.Channel, script: bytes) -> None:
        try:
            channel.sendall(script)
        except OSError as error:
            if not channel.closed:
                raise
            raise EOFError from error  # the other side ended the shell before it was read from, or after: the same to us

    @staticmethod
    def _more(receive: Callable[[int], bytes]) -> bytes:
        data = receive(1 << 16)
        if not data:
            raise EOFError
        return data

    def close(self) -> None:
        """End the shell, and what it runs."""
        channel, self._channel = self._channel, None
        if channel is not None:
            Connection.drop(channel)


def exit_status(channel: paramiko.Channel) -> int:
    """The status of a command whose output has ended. Raises TimeoutError, EOFError."""
    if not channel.status_event.wait(channel.gettimeout()):
        raise TimeoutError("no exit status came")
    if channel.exit_status < 0:
        raise EOFError
    return channel.exit_status


def told(said: bytes) -> str:
    """What a program said on its error output, in one printable line."""
    return "; ".join(map(names.display, said.decode("utf-8", "replace").strip().splitlines()))


def quote(path: str) -> bytes:
    """A path as one word of `sh`, whatever its bytes; never taken for an option."""
    return os.fsencode(shlex.quote(path if path.startswith("/") else f"./{path}"))


# -- keys of the server -----------------------------------------------------------------------------------------------


def _algorithms(kind: str) -> tuple[str, ...]:
    """The signature algorithms of a kind of key."""
    return ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa") if kind == "ssh-rsa" else (kind,)


def _known_keys(storage: SshStorage) -> list[paramiko.PKey]:
    if storage.host_key:
        found = []
        for line in filter(None, map(str.strip, storage.host_key.splitlines())):
            entry = None
            with contextlib.suppress(Exception):  # told below, with the line
                entry = HostKeyEntry.from_line(f"pinned {line}")
            if entry is None or entry.key is None:
                raise ConfigError(f"`host_key` {line.split()[0]} ... is no public key", path=storage.host)
            found.append(entry.key)
        return found
    path = Path(storage.known_hosts).expanduser()
    name = storage.host if storage.port == 22 else f"[{storage.host}]:{storage.port}"
    try:
        entries = paramiko.HostKeys(str(path)).lookup(name) if path.exists() else None
    except InvalidHostKey as error:
        with path.open(errors="replace") as lines:
            number = next((n for n, line in enumerate(lines, 1) if line.strip() == error.line), 0)
        raise ConfigError(
            f"the key in line {number} of known_hosts {path} is damaged", remedy=f"correct or remove it in {path}"
        ) from error
    except (OSError, UnicodeDecodeError, paramiko.SSHException) as error:
        raise ConfigError(f"cannot read known_hosts {path}: {error}", remedy="correct `known_hosts`") from error
    return [entries[kind] for kind in entries.keys()] if entries else []  # noqa: SIM118  it is no dict


def fingerprint(key: paramiko.PKey) -> str:
    """`SHA256:...`, as OpenSSH prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _check_host_key(storage: SshStorage, presented: paramiko.PKey, known: list[paramiko.PKey]) -> None:
    kind, print_ = presented.get_name(), fingerprint(presented)
    if any(key.asbytes() == presented.asbytes() for key in known):
        return
    where = "`host_key`" if storage.host_key else storage.known_hosts
    if known:
        raise AuthError(
            f"the host key of {storage.address} is not the one in {where}: the server shows {kind} {print_}",
            remedy="somebody may be in between. Ask who runs the server whether its key was changed; only then correct "
            f"{where}",
        )
    if not storage.accept_new_host_key:
        raise AuthError(
            f"{storage.address} is not known: its host key ({kind} {print_}) is not in {where}",
            remedy="compare the fingerprint with the server's, then set `host_key`, or add it to the known_hosts file "
            "(`ssh-keyscan`), or set `accept_new_host_key: true`",
        )
    path = Path(storage.known_hosts).expanduser()
    name = storage.host if storage.port == 22 else f"[{storage.host}]:{storage.port}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:  # one write: other processes append to the file too
            size = os.fstat(fd).st_size
            begin = b"\n" if size and os.pread(fd, 1, size - 1) != b"\n" else b""  # editors may leave it out
            os.write(fd, begin + f"{name} {kind} {presented.get_base64()}\n".encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"cannot write the new host key to {path}: {error.strerror}") from error


# -- keys of the user ---------------------------------------------------------------------------------------------------


def _keys(storage: SshStorage) -> list[paramiko.PKey]:
    """The private keys that the block gives. Raises ConfigError."""
    phrase = storage.passphrase.get_secret_value() if storage.passphrase else None
    texts: Iterator[tuple[str, str]] = iter(())
    if storage.key_file:
        path = Path(storage.key_file).expanduser()
        try:
            texts = iter([(f"key file {path}", path.read_text("utf-8", "replace"))])
        except OSError as error:
            raise ConfigError(
                f"cannot read the key file {path}: {error.strerror}", remedy="correct `key_file`"
            ) from error
    found = [_load(text, phrase, what) for what, text in texts]
    if storage.private_key:
        found.append(_load(storage.private_key.get_secret_value(), phrase, "`private_key`"))
    return found


def _load(text: str, phrase: str | None, what: str) -> paramiko.PKey:
    text = text.strip() + "\n"  # a form may have eaten the last newline, which the format wants
    locked = False
    for cls in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return cls.from_private_key(io.StringIO(text), phrase)
        except paramiko.PasswordRequiredException:
            locked = True
        except Exception:  # noqa: BLE001, S112  each kind of key refuses the others in its own way: the last word is below
            continue
    if locked:
        raise ConfigError(f"{what} is locked", remedy="give its `passphrase`")
    raise ConfigError(
        f"{what} is no private key that can be read" + (" with this `passphrase`" if phrase else ""),
        remedy="give an Ed25519, ECDSA or RSA key in OpenSSH or PEM format"
        + (", and the passphrase that unlocks it" if phrase else ""),
    )


def _agent_keys() -> list[paramiko.PKey]:
    try:
        return list(paramiko.Agent().get_keys())
    except (paramiko.SSHException, OSError) as error:
        raise AuthError(f"the ssh-agent does not answer: {error}", remedy="start it, or set SSH_AUTH_SOCK") from error
