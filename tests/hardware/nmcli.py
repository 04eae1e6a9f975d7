"""A program `nmcli` for PATH, and the state of the NetworkManager behind it, which is a JSON file.

It takes the arguments that onblock gives as nmcli 1.42 takes them, with its exit codes, and refuses others (2). Each
call is written down, with its argument list and its standard input apart.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

PROGRAM = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.hardware.nmcli import main
sys.exit(main({state!r}, sys.argv[1:]))
"""


class NetworkManagerState:
    """What the simulated NetworkManager knows; written before it is asked, read after."""

    def __init__(self, folder: Path):
        self.file, self.program = folder / "networkmanager.json", folder / "bin" / "nmcli"
        self.program.parent.mkdir(parents=True)
        root = str(Path(__file__).parents[2])
        self.program.write_text(PROGRAM.format(python=f"{sys.executable} -S", root=root, state=str(self.file)))
        self.program.chmod(0o755)
        self.set(connections={"home": {"active": "yes", "ssid": "home"}}, interfaces=["wlan0"], calls=[], fails={})

    def set(self, **keys: Any) -> None:
        _write(self.file, {**(self.read() if self.file.exists() else {}), **keys})

    def read(self) -> dict[str, Any]:
        return json.loads(self.file.read_text())

    @property
    def calls(self) -> list[dict[str, Any]]:
        return self.read()["calls"]


def _write(file: Path, state: dict[str, Any]) -> None:
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(state))
    part.rename(file)


def main(file: str, argv: list[str]) -> int:
    given = sys.stdin.read()
    with Path(f"{file}.lock").open("w") as lock:  # there is one NetworkManager, whoever asks
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = json.loads(Path(file).read_text())
        state["calls"].append({"argv": argv, "stdin": given})
        code, said = _answer(state, argv, given)
        _write(Path(file), state)
    print(said, end="", file=sys.stderr if code else sys.stdout)
    return code


def _answer(state: dict[str, Any], argv: list[str], given: str) -> tuple[int, str]:
    connections: dict[str, dict[str, str]] = state["connections"]
    if argv[:1] != ["--terse"] or argv[1:2] != ["--wait"]:
        return 2, "Error: the options are others\n"
    words = argv[3:]
    for what, (code, said) in state["fails"].items():
        if what in " ".join(words):
            return code, said
    match words:
        case ["-f", "NAME", "connection", "show", *options]:
            wanted = [n for n, c in connections.items() if not options or c.get("active") == "yes"]
            return 0, "".join(_escaped(n) + "\n" for n in wanted)
        case ["connection", "add", "type", "wifi", "con-name", name, *pairs]:
            keys = dict(zip(pairs[::2], pairs[1::2], strict=True))
            if keys.get("ifname") not in ("*", *state["interfaces"]):
                return 10, "Error: Device not found.\n"
            connections[name] = keys
            return 0, f"Connection '{name}' (8d1a8ae1) successfully added.\n"
        case ["connection", "up", "id", name, "passwd-file", path]:
            if name not in connections:
                return 10, f"Error: unknown connection '{name}'.\n"
            secret = given if path == "/dev/stdin" else Path(path).read_text()
            key, _, password = secret.strip().partition(":")
            if key != "802-11-wireless-security.psk" or len(password) < 8:
                return 4, "Error: Connection activation failed: Secrets were required, but not provided.\n"
            for one in connections.values():
                one["active"] = "no"
            connections[name]["active"] = "yes"
            return 0, "Connection successfully activated\n"
        case ["connection", "delete", "id", name]:
            if connections.pop(name, None) is None:
                return 10, f"Error: unknown connection '{name}'.\n"
            for one in list(connections.values())[:1]:
                one["active"] = "yes"  # it goes back by itself
            return 0, ""
        case ["-f", "IN-USE,SSID,SIGNAL", "device", "wifi", "list", "--rescan", "no"]:
            lines = [("*" if c.get("active") == "yes" else " ", c["ssid"], "71") for c in connections.values()]
            return 0, "".join(":".join(map(_escaped, fields)) + "\n" for fields in lines)
    return 2, f"Error: argument '{words[0]}' not understood.\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(":", "\\:")


def on_path(program: Path) -> str:
    """PATH with the program first."""
    return f"{program.parent}{os.pathsep}{os.environ.get('PATH', '')}"
