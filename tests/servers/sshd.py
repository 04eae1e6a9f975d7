"""OpenSSH's sshd as Debian packages it, on loopback: SFTP, scp, a shell; keys and a password.

Its accounts are invented and known to it alone, through nss_wrapper: nothing in /etc changes. All have the password
and the keys of `info`:

    xfer        everything; the user who runs the tests, so that files of both are each other's
    plain       everything; no privileges (where the tests run as root, else the same user again)
    sftponly    SFTP whatever is asked for
    noshell     SFTP; its login shell is nologin
    bare        SFTP without OpenSSH's extensions: as other vendors' servers
    lean        everything, but its shell finds no Python
    spare       everything, but its shell finds neither Python nor OpenSSL
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from tests.servers.base import LOOPBACK, Server, free_port, program

PLAIN_UID = 20022
EXTENSIONS = "posix-rename,hardlink,fsync,statvfs,fstatvfs,limits,lsetstat,copy-data,expand-path,users-groups-by-id"
_WRAPPER = "libnss_wrapper.so"
HIDDEN = {"lean": ("python3",), "spare": ("python3", "openssl")}
"""By account: the programs that its shell does not find."""


class Sshd(Server):
    """A server. `info`: host, port, user, plain, password, key, key_passphrase, passphrase, known_hosts, host_key.

    Options: `sftp="no"` (no such subsystem), `port`, `keys` (a folder of another Sshd whose keys it takes),
    `small="2m"` (`info["small"]` is a tmpfs of that size, which only the server sees), `address` (where it listens).
    With `trail="yes"` it writes down which files are opened, closed and renamed by SFTP, in that order: `trail()`; and it
    gives up clients that are silent for 6 s.
    """

    stop_signal = signal.SIGKILL  # there is nothing it would have to save

    def launch(self) -> dict[str, Any]:
        root = os.geteuid() == 0
        if root:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # compiled-in privilege separation directory
        port, address = int(self.options.get("port") or free_port()), self.options.get("address", LOOPBACK)
        password = self._keys()
        uid, gid, plain = os.geteuid(), os.getegid(), PLAIN_UID if root else os.geteuid()
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        accounts = [("xfer", uid, gid, "/bin/sh"), ("plain", plain, plain if root else gid, "/bin/sh")]
        accounts += [("sftponly", uid, gid, "/bin/sh"), ("bare", uid, gid, "/bin/sh")]
        accounts += [("noshell", uid, gid, "/usr/sbin/nologin")]
        accounts += [(name, uid, gid, self._shell(name, *hidden)) for name, hidden in HIDDEN.items()]
        hashed = self.run(_tool("openssl"), "passwd", "-5", password).strip()
        files = {
            "passwd": "".join(f"{n}:x:{u}:{g}::{home}:{shell}\n" for n, u, g, shell in accounts)
            + "sshd:x:103:65534::/run/sshd:/usr/sbin/nologin\n",
            "group": f"staff:x:{gid}:\nplain:x:{PLAIN_UID}:\nnogroup:x:65534:\n",
            "shadow": "".join(f"{n}:{hashed}:19000:0:99999:7:::\n" for n, *_ in accounts),
            "sshd_config": self._config(port, [n for n, *_ in accounts]),
        }
        for name, text in files.items():
            self._write(name, text)
        wrapper = {f"NSS_WRAPPER_{n.upper()}": str(self.folder / n) for n in ("passwd", "group", "shadow")}
        environment = {"LD_PRELOAD": _WRAPPER, **wrapper}
        self.run(_tool("sshd"), "-t", "-f", "sshd_config", env=environment)
        command = [_tool("sshd"), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        small = self.folder / "small"
        if size := self.options.get("small"):
            small.mkdir(exist_ok=True)
            script = f'mount -t tmpfs -o size={size},mode=777 tmpfs "$0" && exec "$@"'
            command = ["unshare", "-m", "sh", "-c", script, str(small), *command]
        self.spawn(*command, env=environment)
        self.wait(lambda: socket.create_connection((address, port), 1).close() is None)
        host_key = (self.folder / "host.pub").read_text().rsplit(" ", 1)[0]
        self._write("known_hosts", f"[{address}]:{port} {host_key}\n")
        return {
            "host": address, "port": port, "user": "xfer", "plain": "plain", "password": password,
            "key": str(self.folder / "user"), "key_passphrase": str(self.folder / "locked"), "passphrase": password,
            "known_hosts": str(self.folder / "known_hosts"), "host_key": host_key, "home": str(home),
            "small": str(small), "folder": str(self.folder),
        }  # fmt: skip

    def _keys(self) -> str:
        """Keys of host and user, made once; the password."""
        if other := self.options.get("keys"):
            for name in ("host", "host.pub", "user", "user.pub", "locked", "locked.pub", "password"):
                shutil.copy2(Path(other, name), self.folder / name)
        if not (self.folder / "password").exists():
            password = secrets.token_hex(8)
            for name, kind, phrase in (("host", "ed25519", ""), ("user", "ed25519", ""), ("locked", "ecdsa", password)):
                self.run(_tool("ssh-keygen"), "-q", "-t", kind, "-N", phrase, "-C", name, "-f", str(self.folder / name))
            self._write("password", password)
            keys = [(self.folder / f"{name}.pub").read_text() for name in ("user", "locked")]
            self._write("authorized_keys", "".join(keys), 0o644)
        elif other := self.options.get("keys"):
            shutil.copy2(Path(other, "authorized_keys"), self.folder)
        return (self.folder / "password").read_text()

    def _config(self, port: int, users: list[str]) -> str:
        wrapper = " ".join(f"NSS_WRAPPER_{n.upper()}={self.folder / n}" for n in ("passwd", "group"))
        lines = [
            f"ListenAddress {self.options.get('address', LOOPBACK)}", f"Port {port}", f"HostKey {self.folder}/host", "PidFile none", "UsePAM no",
            f"AuthorizedKeysFile {self.folder}/authorized_keys", "StrictModes no", "UseDNS no", "PrintMotd no",
            "PasswordAuthentication yes", "KbdInteractiveAuthentication no", "PubkeyAuthentication yes",
            "PermitRootLogin yes", f"AllowUsers {' '.join(users)}", "MaxStartups 100", "MaxSessions 100",
            f"SetEnv LD_PRELOAD={_WRAPPER} {wrapper}",  # `scp -t` asks for the name of its own uid
        ]  # fmt: skip
        if self.options.get("sftp") != "no":
            # not internal-sftp where files are counted: the wrapper in it rewinds what has the number of a file it had open
            server = program("sftp-server", "/usr/lib/openssh")
            if self.options.get("trail") == "yes":
                server = f"{server} -e -l INFO 2>>{self.folder}/trail"
                lines += ["ClientAliveInterval 2", "ClientAliveCountMax 3"]
            lines += [f"Subsystem sftp {server}", f"Match User bare\nForceCommand {server} -P {EXTENSIONS}"]
            lines += ["Match User sftponly,noshell\nForceCommand internal-sftp"]
        return "\n".join(lines) + "\n"

    def _shell(self, account: str, *hidden: str) -> str:
        """A login shell that finds programs which fail in the place of those that are hidden."""
        folder = self.folder / account
        folder.mkdir(exist_ok=True)
        for name in hidden:
            self._write(f"{account}/{name}", "#!/bin/sh\nexit 127\n", 0o755)
        self._write(f"{account}/login", f'#!/bin/sh\nPATH="{folder}:$PATH"\nexport PATH\nexec /bin/sh "$@"\n', 0o755)
        return str(folder / "login")

    def kill(self) -> None:
        """As a power cut: the server and all its connections, at once. `start` brings it back at the same port."""
        self.options["port"] = str(self.info["port"])
        self.stop()

    def accept(self, kind: str, passphrase: str = "") -> Path:
        """A new key of the user's, of that kind, that the server accepts."""
        path = self.folder / f"extra-{kind}-{secrets.token_hex(4)}"
        self.run(_tool("ssh-keygen"), "-q", "-t", kind, "-N", passphrase, "-f", str(path))
        with (self.folder / "authorized_keys").open("a") as file:
            file.write(path.with_suffix(".pub").read_text())
        return path

    def trail(self) -> list[str]:
        """What was done by SFTP, one line each, as OpenSSH writes it."""
        path = self.folder / "trail"
        return path.read_text("utf-8", "replace").splitlines() if path.exists() else []

    def new_folder(self) -> Path:
        """An empty folder below the server's, that its accounts can reach."""
        folder = self.folder / f"root-{secrets.token_hex(6)}"
        folder.mkdir()
        return folder

    def _write(self, name: str, text: str, mode: int = 0o600) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o644 if name in ("passwd", "group") else mode)


def _tool(name: str) -> str:
    found = program(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: python -m tests.servers.install")
    return found


def installed() -> bool:
    """Whether this machine can run it."""
    return program("sshd") is not None and any(Path("/usr/lib").glob(f"*/{_WRAPPER}*"))
