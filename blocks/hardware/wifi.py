"""Setting up the WiFi of a device that has no screen: it opens a network of its own, over which people reach it.

`Wifi` is three operations: start, stop, is it running. `NetworkManager` does them with `nmcli`; the network's password goes
in by standard input, never on a command line.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pydantic import SecretStr

from blocks.errors import (
    ConfigError,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    ToolMissing,
    UnknownError,
)

PROFILE = "onblock-setup"
"""The connection of NetworkManager that is our own network. What people set up themselves has other names."""
PATIENCE_S = 45
"""nmcli ends by itself after so long (`--wait`)."""
LINK_S = 5
"""Asking what is so has to be over by then."""


class WifiLink(NamedTuple):
    """The network this machine is in: its name, and its signal in percent."""

    ssid: str
    signal_percent: int | None


class Wifi(Protocol):
    """Set-up of the WiFi. Each raises an OnblockError where it fails."""

    def start(self) -> None:
        """Open our own network."""
        ...

    def stop(self) -> None:
        """Close it. Nothing to do where it is not open."""
        ...

    def is_running(self) -> bool:
        """Whether it is open."""
        ...


NMCLI_ERRORS: dict[int, tuple[type[OnblockError], str]] = {
    2: (ConfigError, "nmcli does not take that"),
    3: (NetworkError, "NetworkManager did not do it in time"),
    4: (NetworkError, "the network could not be opened"),
    5: (NetworkError, "the network could not be closed"),
    6: (NetworkError, "the interface could not be disconnected"),
    7: (UnknownError, "the connection could not be deleted"),
    8: (ToolMissing, "NetworkManager does not run"),
    10: (NotFound, "NetworkManager knows no such connection or interface"),
}
"""By exit code: nmcli(1), EXIT STATUS."""
_REFUSED = re.compile(r"not authori[sz]ed|insufficient privileges|permission denied", re.IGNORECASE)
_REMEDY = {
    ToolMissing: "start it: `systemctl enable --now NetworkManager`",
    PermissionRefused: "let the account that runs onblock control the network (polkit, group netdev)",
    NotFound: "look at `nmcli device`, and name the interface in the agent's settings",
    NetworkError: "look at `nmcli device` and `journalctl -u NetworkManager`",
}


class NetworkManager:
    """WiFi by NetworkManager. `interface` is chosen by NetworkManager if it is empty."""

    def __init__(self, ssid: str, password: SecretStr, interface: str = "", nmcli: str = "nmcli"):
        if not 1 <= len(os.fsencode(ssid)) <= 32:
            raise ConfigError(f"the name of a WiFi network has 1 to 32 bytes, {ssid!r} has {len(os.fsencode(ssid))}")
        secret = password.get_secret_value()
        if not 8 <= len(secret) <= 63 or not (secret.isascii() and secret.isprintable()):
            raise ConfigError("the password of a WiFi network has 8 to 63 ASCII characters (IEEE 802.11, WPA2)")
        self._ssid, self._password, self._interface, self._nmcli = ssid, password, interface, nmcli

    def start(self) -> None:
        """See `Wifi`. A connection that was left behind is made anew: it may have another name or channel."""
        if PROFILE in self._connections():
            self._run("connection", "delete", "id", PROFILE)
        where = ["ifname", self._interface] if self._interface else ["ifname", "*"]
        self._run(
            "connection", "add", "type", "wifi", "con-name", PROFILE, *where, "autoconnect", "no", "ssid", self._ssid,
            "802-11-wireless.mode", "ap", "802-11-wireless.band", "bg", "ipv4.method", "shared", "ipv6.method", "disabled",
            "802-11-wireless-security.key-mgmt", "wpa-psk",
        )  # fmt: skip
        try:
            self._run(
                "connection", "up", "id", PROFILE, "passwd-file", "/dev/stdin",
                secret=f"802-11-wireless-security.psk:{self._password.get_secret_value()}\n",
            )  # fmt: skip
        except OnblockError:
            self._run("connection", "delete", "id", PROFILE)
            raise

    def stop(self) -> None:
        """See `Wifi`. NetworkManager goes back to a network that it knows by itself."""
        if PROFILE in self._connections():
            self._run("connection", "delete", "id", PROFILE)

    def is_running(self) -> bool:
        """See `Wifi`."""
        return PROFILE in self._connections("--active")

    def link(self) -> WifiLink | None:
        """The network it is in; None if in none. Asks NetworkManager, but nobody over the air."""
        argv = [self._nmcli, "--terse", "--wait", str(LINK_S), "-f", "IN-USE,SSID,SIGNAL"]
        said = run_nmcli([*argv, "device", "wifi", "list", "--rescan", "no"], within_s=LINK_S)
        for used, ssid, signal in (fields for line in said.splitlines() if len(fields := terse(line)) == 3):
            if used == "*":
                return WifiLink(ssid, int(signal) if signal.isdigit() else None)
        return None

    def _connections(self, *options: str) -> list[str]:
        said = self._run("-f", "NAME", "connection", "show", *options)
        return [terse(line)[0] for line in said.splitlines()]

    def _run(self, *arguments: str, secret: str = "") -> str:
        return run_nmcli([self._nmcli, "--terse", "--wait", str(PATIENCE_S), *arguments], secret)


def run_nmcli(argv: Sequence[str], secret: str = "", within_s: float = PATIENCE_S + 15) -> str:
    """Run it with `secret` as its standard input; what it said. Raises as `NMCLI_ERRORS` says."""
    try:
        done = subprocess.run(
            argv, input=os.fsencode(secret), capture_output=True, timeout=within_s,
            env={**os.environ, "LC_ALL": "C.UTF-8"}, process_group=0, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ToolMissing("is not installed", path=argv[0], remedy="install the package network-manager") from error
    except PermissionError as error:
        raise PermissionRefused("may not be run", path=argv[0]) from error
    except subprocess.TimeoutExpired as error:
        raise NetworkError(f"did not end within {error.timeout:g} s", path=argv[0]) from error
    if done.returncode:
        raise nmcli_failure(done.returncode, done.stderr.decode("utf-8", "replace").strip(), argv[0])
    return done.stdout.decode("utf-8", "surrogateescape")


def nmcli_failure(code: int, said: str, place: str = "nmcli") -> OnblockError:
    """What an exit code of nmcli means. Pure."""
    if _REFUSED.search(said):
        cls, what = PermissionRefused, "NetworkManager refuses it"
    else:
        cls, what = NMCLI_ERRORS.get(code, (UnknownError, f"exited {code}"))
    first = said.partition("\n")[0].removeprefix("Error: ")[:300]
    return cls(f"{what}: {first}" if first else what, path=place, remedy=_REMEDY.get(cls, _REMEDY[NetworkError]))


def terse(line: str) -> list[str]:
    """The fields of a line of `nmcli --terse`: separated by colons; a colon or backslash in them is escaped."""
    fields, escaped = [""], False
    for character in line:
        if escaped or character not in "\\:":
            fields[-1] += character
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            fields.append("")
    return fields
