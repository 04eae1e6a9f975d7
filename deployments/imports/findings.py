"""What became of each part of a job that is carried over, and what is gathered on the way: findings and secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from blocks.errors import ConfigError


class How(StrEnum):
    """What became of something."""

    CARRIED = "carried over"
    DIFFERENTLY = "differently"
    NOT = "not carried over"


class Finding(NamedTuple):
    """One part of a job (`source`, `backup`, ...), what became of it, and how or why."""

    about: str
    how: How
    text: str


class Beyond(ConfigError):
    """A job that onblock cannot carry out; says why."""


class Around(NamedTuple):
    """What a job means besides what it says: where FileFlow ran, as whom, in which time zone, with which environment."""

    folder: Path
    user: str
    timezone: str
    environment: Mapping[str, str]

    def setting(self, name: str) -> str:
        """One of FileFlow's own settings: it does not ask for capitals."""
        return next((v for k, v in self.environment.items() if k.lower() == name), "")

    def reference(self, name: str) -> str:
        """The same, as `${NAME}`; empty where it is not set."""
        return next((f"${{{k}}}" for k, v in self.environment.items() if k.lower() == name and v), "")


VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass
class Draft:
    """What is known of a job so far. `secrets` are the values of the environment variables that the YAML names."""

    job_id: str
    around: Around
    taken: dict[str, str] = field(default_factory=dict)
    """The variables of all jobs: no two secrets share one."""
    findings: list[Finding] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)

    def carried(self, about: str, text: str) -> None:
        """It is there as it was."""
        self.findings.append(Finding(about, How.CARRIED, text))

    def differs(self, about: str, text: str) -> None:
        """It is there, and does something else in some case."""
        self.findings.append(Finding(about, How.DIFFERENTLY, text))

    def lost(self, about: str, text: str) -> None:
        """It is not there."""
        self.findings.append(Finding(about, How.NOT, text))

    def filled(self, value: str) -> str:
        """`value` with each `${NAME}` as the environment has it; `workspace.py` has seen that it is there."""
        return VARIABLE.sub(lambda m: self.around.environment.get(m[1], ""), value)

    def secret(self, side: str, key: str, value: str) -> dict[str, str]:
        """How the YAML names a secret: by an environment variable, the one it came from or one of its own."""
        named, filled = VARIABLE.fullmatch(value), self.filled(value)
        if named:
            name = named[1]
        else:
            name = re.sub(r"\W", "_", f"{self.job_id}_{side}_{key}".upper(), flags=re.ASCII)
            name = f"_{name}" if name[0].isdigit() else name
            while any(there.get(name, filled) != filled for there in (self.taken, self.around.environment)):
                name += "_"
        self.taken[name] = self.secrets[name] = filled
        self.differs(f"{side}.{key}", f"is a secret: not written here, but taken from the environment variable {name}")
        return {"env": name}


def word(value: Any) -> str:
    """A scalar of a connection as text; empty for what is none. FileFlow takes anything here."""
    if isinstance(value, bool) or value is None or not isinstance(value, str | int | float):
        return ""
    return str(value)
