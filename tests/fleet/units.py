"""The units and environment files of `deployments/systemd`, read as systemd would."""

from __future__ import annotations

import shlex
import string
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "deployments" / "systemd"
PROGRAMS = {
    "/opt/onblock/.venv/bin/onblock": [sys.executable, "-P", "-m", "deployments.cli"],
    "/opt/onblock/.venv/bin/prefect": [sys.executable, "-P", "-m", "prefect"],
}
"""What runs them here, where nothing is installed in /opt."""


def settings(file: str) -> dict[str, str]:
    """Of an environment file."""
    lines = (line for line in (FOLDER / file).read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def values(unit: str, key: str) -> list[str]:
    """Of a key of a unit, such as ExecStart."""
    lines = (FOLDER / unit).read_text().splitlines()
    return [line.removeprefix(f"{key}=") for line in lines if line.startswith(f"{key}=")]


def environment_file(unit: str) -> str:
    (path,) = values(unit, "EnvironmentFile")
    return Path(path.removeprefix("-")).name


def command(unit: str, env: dict[str, str]) -> list[str]:
    """Of ExecStart, as it runs here."""
    (line,) = values(unit, "ExecStart")
    program, *arguments = shlex.split(string.Template(line).substitute(env))
    return [*PROGRAMS[program], *arguments]
