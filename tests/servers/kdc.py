"""MIT Kerberos KDC on a loopback port, no root needed. Clients need `info["env"]`, which holds KRB5_CONFIG."""

from __future__ import annotations

import socket
from typing import Any

from tests.servers.base import LOOPBACK, Server, free_port, program

REALM = "ONBLOCK.TEST"


class Kdc(Server):
    """A realm with the user `pilot` in the keytab `info["keytab"]`. `info`: realm, port, keytab, env."""

    def launch(self) -> dict[str, Any]:
        port = free_port()
        self.env = {"KRB5_CONFIG": str(self.folder / "krb5.conf"), "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf")}
        (self.folder / "krb5.conf").write_text(f"""\
[libdefaults]
  default_realm = {REALM}
  dns_lookup_kdc = false
  dns_lookup_realm = false
  dns_canonicalize_hostname = false
  rdns = false
  udp_preference_limit = 1
  forwardable = true
  clockskew = 2
  default_ccache_name = FILE:{self.folder}/nobody-uses-this
[realms]
  {REALM} = {{
    kdc = {LOOPBACK}:{port}
  }}
[domain_realm]
  localhost = {REALM}
""")
        (self.folder / "kdc.conf").write_text(f"""\
[kdcdefaults]
  kdc_listen = {LOOPBACK}:{port}
  kdc_tcp_listen = {LOOPBACK}:{port}
[realms]
  {REALM} = {{
    database_name = {self.folder}/principal
    key_stash_file = {self.folder}/stash
    acl_file = {self.folder}/acl
    max_life = 10h
    max_renewable_life = 7d
    supported_enctypes = aes256-cts-hmac-sha1-96:normal aes128-cts-hmac-sha1-96:normal
  }}
""")
        if not (self.folder / "principal").exists():
            self.run(_tool("kdb5_util"), "-r", REALM, "create", "-s", "-P", "master-for-tests", env=self.env)
        pid = str(self.folder / "krb5kdc.pid")
        self.spawn(_tool("krb5kdc"), "-n", "-r", REALM, "-P", pid, env=self.env)
        keytab = str(self.folder / "pilot.keytab")
        self.add("pilot", keytab)
        self.wait(lambda: socket.create_connection((LOOPBACK, port), 1).close() is None, 15)
        return {"realm": REALM, "port": port, "keytab": keytab, "env": self.env}

    def add(self, principal: str, keytab: str, **limits: str) -> None:
        """A new principal (`maxlife="5 seconds"` and the like) whose key is added to `keytab`."""
        options = " ".join(f'-{name} "{value}"' for name, value in limits.items())
        self.admin(f"addprinc -randkey {options} {principal}")
        self.admin(f"ktadd -k {keytab} -norandkey {principal}")

    def admin(self, query: str) -> str:
        """One command of kadmin."""
        return self.run(_tool("kadmin.local"), "-r", REALM, "-q", query, env=self.env)


def _tool(name: str) -> str:
    found = program(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: python -m tests.servers.install")
    return found


def installed() -> bool:
    """Whether this machine has a KDC and its clients."""
    return all(program(name) for name in ("krb5kdc", "kadmin.local", "kdb5_util", "kinit", "klist"))
