"""What forms in files share, of jobs and of others: how they are read, how they refuse what is wrong, and durations as
people write them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from blocks.errors import ConfigError

_UNITS = {"ms": 0.001, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)")


def _duration(value: Any) -> Any:
    """Durations as people write them: 30s, 10 min, 1h 30min, 7d; numbers are seconds; ISO 8601 is left to pydantic."""
    if isinstance(value, str) and re.fullmatch(rf"(?:{_DURATION.pattern}\s*)+", value.strip()):
        try:
            return timedelta(seconds=sum(float(n) * _UNITS[u] for n, u in _DURATION.findall(value)))
        except OverflowError:
            raise ValueError("the duration is longer than anything can be") from None
    return value


Duration = Annotated[timedelta, BeforeValidator(_duration), Field(ge=timedelta(0))]


class Form(BaseModel):
    """A part of the form: unknown keys are refused, by name."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def read_yaml(path: Path | str, what: str) -> Any:
    """What a YAML file holds. Raises ConfigError, in one line, that names the file, and `what` it should be."""
    try:
        return yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {what}: {os.strerror(error.errno or 0)}", path=str(path)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date that is none
        raise ConfigError(f"is not YAML: {_said_by_yaml(error)}", path=str(path)) from error


def _said_by_yaml(error: Exception) -> str:
    """What is wrong and where, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    tab = "; indent with spaces, not with tabs" if "'\\t'" in problem else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{tab}"


_PLAIN = {
    "bool_parsing": "is not true or false", "bool_type": "is not true or false",
    "byte_size": "is no size, such as 500 KB or 1 MiB", "byte_size_unit": "has no unit of a size; write such as 500 KB or 1 MiB",
    "time_delta_parsing": "is no duration, such as 30s, 10 min or 7d", "time_delta_type": "is no duration, such as 30s, 10 min or 7d",
}  # fmt: skip
"""Kinds of pydantic errors that say more about pydantic than about the form."""


def explain(error: ValidationError, whole: str, keys: Iterable[str] = (), under: str = "") -> str:
    """What pydantic found, in one line and without the values: where (`whole` where it is the form itself; below the key
    `under`), what, and the `keys` there are."""
    return "; ".join(f"{where or whole}: {what}" for where, what in found(error, keys, under))


def found(error: ValidationError, keys: Iterable[str] = (), under: str = "") -> list[tuple[str, str]]:
    """The same one by one: where, empty for the form itself, and what."""
    told = []
    for e in error.errors(include_url=False, include_input=False):
        message = _PLAIN.get(e["type"], e["msg"].removeprefix("Value error, "))
        if e["type"] == "extra_forbidden":
            there = ", ".join(keys) if len(e["loc"]) == 1 else ""
            message = "there is no such key" + (f"; there are {there}" if there else "")
        told.append((".".join(str(p) for p in ((under, *e["loc"]) if under else e["loc"])), message))
    return told
