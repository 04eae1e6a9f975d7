"""Tokens in the names that steps make: which a template holds, and what they stand for.

They are those of a job's `path`, less the folders: a step names files, the job says where they go.
"""

from __future__ import annotations

import string
from datetime import datetime

from blocks import names
from blocks.errors import ConfigError, OnblockError
from flows.transfer.steps.base import Ask

TOKENS = {
    "name", "stem", "ext", "flight", "device", "job", "date", "time", "year", "month", "day", "hour",
}  # fmt: skip
"""{name} is the file's name, {stem} and {ext} its parts. Dates are those of the source's mtime in the job's zone."""


def check_template(template: str, needed: set[str]) -> str:
    """`template` if it gives file names and holds one of `needed`. Raises ValueError."""
    held: set[str] = set()
    try:
        for _, field, spec, conversion in string.Formatter().parse(template):
            if field is not None:
                if spec or conversion or field not in TOKENS:
                    known = ", ".join(f"{{{t}}}" for t in sorted(TOKENS))
                    raise ValueError(f"{{{field}}} is no token; there are {known}, written plainly")
                held.add(field)
    except ValueError as error:
        raise ValueError(f"bad template {template!r}: {error}") from None
    if needed and not held & needed:
        raise ValueError(f"the template must hold {' or '.join(f'{{{t}}}' for t in sorted(needed))}")
    check_name(template.format_map(dict.fromkeys(TOKENS, "x")))
    return template


def check_name(name: str) -> str:
    """`name` if it can be the name of a file, no path. Raises ValueError."""
    try:
        if "/" in names.check_path(name):
            raise ValueError(f"{name!r} is a path; a step gives names, the job's `path` says where files go")
    except OnblockError as error:
        raise ValueError(error.what) from None
    return name


def split(name: str) -> tuple[str, str]:
    """Stem and ending of a name, without the dot; `.profile` is all stem."""
    stem, _, ext = name.rpartition(".")
    return (stem, ext) if stem else (name, "")


def when(ask: Ask, name: str) -> datetime:
    """The time of the source, in the job's zone. ConfigError for a time that is in no calendar."""
    try:
        return datetime.fromtimestamp(ask.mtime_ns // 1_000_000_000, ask.zone)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"its time, {ask.mtime_ns} ns since 1970, is in no calendar", path=names.display(name),
            remedy="set the file's time, or use no dates in names",
        ) from None  # fmt: skip


def fill(template: str, name: str, ask: Ask) -> str:
    """The template for one file. Raises ConfigError where a token has no value, BadName for a name that cannot be."""
    stem, ext = split(name)
    values = {"name": name, "stem": stem, "ext": ext}
    for token, value in (("flight", ask.flight), ("device", ask.device), ("job", ask.job)):
        if value is not None:
            values[token] = value
        elif f"{{{token}}}" in template:
            raise ConfigError(f"the template {template!r} needs {{{token}}}, and none was given")
    if {f for _, f, _, _ in string.Formatter().parse(template)} & {"date", "time", "year", "month", "day", "hour"}:
        t = when(ask, name)
        values |= {
            "date": f"{t:%Y-%m-%d}", "time": f"{t:%H%M%S}", "year": f"{t:%Y}", "month": f"{t:%m}", "day": f"{t:%d}",
            "hour": f"{t:%H}",
        }  # fmt: skip
    return template.format_map(values)
