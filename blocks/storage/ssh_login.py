"""What it takes to log in over SSH: the fields that `SftpStorage` and `ScpStorage` have in common.

Connecting is in `ssh.py`, which imports paramiko and is imported when a storage is opened.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import Field, SecretStr, field_validator, model_validator

from blocks.storage.base import Storage

if TYPE_CHECKING:
    from typing import Self


HASH_RATE = 10e6
"""Bytes/s that the slowest server hashes, or syncs: how long it may be silent."""


class SshStorage(Storage):
    """A folder on a host that is reached by SSH."""

    host: str = Field(description="Name or address of the server.")
    root: str = Field(
        description="The folder on the server; a path that does not begin with / is below the login's home."
    )
    user: str = Field(description="The account to log in as.")
    create_root: bool = Field(
        default=False, description="Make the folder if it is missing. Off, a missing folder is an error."
    )
    port: int = Field(default=22, ge=1, le=65535, description="TCP port of the SSH server.")
    password: SecretStr | None = Field(default=None, description="Password of the account, if it has no key.")
    private_key: SecretStr | None = Field(default=None, description="The text of a private key (OpenSSH or PEM).")
    key_file: str | None = Field(
        default=None, description="A private key file on the machine where the job runs; ~ is the home."
    )
    passphrase: SecretStr | None = Field(default=None, description="What unlocks the private key.")
    use_agent: bool = Field(default=False, description="Also try the keys of a running ssh-agent (SSH_AUTH_SOCK).")
    host_key: str | None = Field(
        default=None,
        description="The server's public key, as `ssh-keyscan` prints it without the host: `ssh-ed25519 AAAA...`. Several, "
        "one a line. Only these are accepted then, and `known_hosts` is not read.",
    )
    known_hosts: str = Field(
        default="~/.ssh/known_hosts", description="The file of known server keys on the machine where the job runs."
    )
    accept_new_host_key: bool = Field(
        default=False,
        description="Trust a server that is not in `known_hosts` at the first connection and write its key there. A key "
        "that differs from a known one is refused all the same.",
    )
    connect_timeout: float = Field(default=20, gt=0, le=600, description="Seconds to connect and log in.")
    io_timeout: float = Field(
        default=60, gt=0, le=3600, description="Seconds without an answer after which the connection counts as lost."
    )
    keepalive: float = Field(
        default=15, ge=0, le=3600, description="Seconds of silence after which a sign of life is sent; 0 sends none."
    )

    @field_validator("host", "user")
    @classmethod
    def _word(cls, value: str) -> str:
        if not value or not value.isprintable() or any(c.isspace() for c in value):
            raise ValueError("must not be empty nor hold spaces or control characters")
        return value

    @field_validator("root")
    @classmethod
    def _folder(cls, value: str) -> str:
        if not value or "\0" in value:
            raise ValueError("give a folder; `.` is the home of the login")
        return value.rstrip("/") or "/"

    @field_validator("host_key")
    @classmethod
    def _pinned(cls, value: str | None) -> str | None:
        for line in (value or "").splitlines():
            if line.strip() and not re.fullmatch(r"(ssh|ecdsa|sk)-\S+ [A-Za-z0-9+/=]{32,}( .*)?", line.strip()):
                raise ValueError(
                    "write `ssh-ed25519 AAAA...`, one key a line, as `ssh-keyscan` prints it without the host"
                )
        return value

    @model_validator(mode="after")
    def _some_way_in(self) -> Self:
        if not (self.password or self.private_key or self.key_file or self.use_agent):
            raise ValueError("give `password`, `private_key`, `key_file` or `use_agent: true`: one way to log in")
        return self

    @property
    def address(self) -> str:
        """`user@host`, with the port where it is another than 22: for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" + (f":{self.port}" if self.port != 22 else "")

    def place(self) -> str:
        kind = (self._block_type_slug or "ssh").removesuffix("-storage")
        return f"{kind}://{self.address}/{self.root.lstrip('/') if self.root.startswith('/') else '~/' + self.root}"
