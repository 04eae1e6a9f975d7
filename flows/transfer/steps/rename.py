"""The steps that give a file another name and leave its bytes alone: `rename` and `timestamp`."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from blocks import names
from blocks.errors import ConfigError
from flows.transfer.steps import tokens
from flows.transfer.steps.base import CHUNK, Ask, Step


class Rename(Step):
    """Give files another name, by a prefix or a template."""

    kind: Literal["rename"] = "rename"
    prefix: str = ""
    """Put in front of the name as it stands, such as `cam1_`."""
    template: str = ""
    """The new name, such as `{flight}_{stem}.{ext}`. Tokens: {name} {stem} {ext} {flight} {device} {job} {date} {time}
    {year} {month} {day} {hour}; dates are those of the file's time, in the job's zone."""

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        return value and tokens.check_name(value + "x")[:-1]

    @field_validator("template")
    @classmethod
    def _template(cls, value: str) -> str:
        return value and tokens.check_template(value, {"name", "stem"})

    @model_validator(mode="after")
    def _one(self) -> Rename:
        if bool(self.prefix) == bool(self.template):
            raise ValueError("give `prefix` or `template`")
        return self

    def room(self, size: int) -> int:
        return size  # where it can be linked, nothing

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        name = inputs[0].name
        new = self.prefix + name if self.prefix else tokens.fill(self.template, name, ask)
        if not tokens.split(name)[1] and "{ext}" in self.template:
            new = new.rstrip(".")
        return [called(inputs[0], new, work, ask)]


DIRECTIVES = re.compile(r"(?:%[YmdHMSjyz]|[\w+ ().-])+\Z", re.ASCII)


class Timestamp(Step):
    """Add the file's time to its name, in the job's time zone: `clip.mp4` -> `20260717-142530_clip.mp4`."""

    kind: Literal["timestamp"] = "timestamp"
    format: str = "%Y%m%d-%H%M%S"
    """How the time is written, as for `date`: %Y %m %d %H %M %S %j %y %z with letters, digits and `_ - . + ( )`."""
    place: Literal["prefix", "suffix"] = "prefix"
    """In front of the name, or between the name and its ending."""
    separator: str = "_"
    """Between time and name."""

    @field_validator("format")
    @classmethod
    def _format(cls, value: str) -> str:
        if not DIRECTIVES.match(value) or "%" not in value:
            raise ValueError("write the time with %Y %m %d %H %M %S %j %y %z, letters, digits and _ - . + ( )")
        tokens.check_name(value)
        return value

    @field_validator("separator")
    @classmethod
    def _separator(cls, value: str) -> str:
        return value and tokens.check_name(f"x{value}x")[1:-1]

    def room(self, size: int) -> int:
        return size

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        name = inputs[0].name
        time = tokens.when(ask, name).strftime(self.format)
        if self.place == "prefix":
            new = f"{time}{self.separator}{name}"
        else:
            stem, ext = tokens.split(name)
            new = f"{stem}{self.separator}{time}" + (f".{ext}" if ext else "")
        return [called(inputs[0], new, work, ask)]


def called(path: Path, name: str, work: Path, ask: Ask) -> Path:
    """The same bytes under another name: a hard link, or a copy where there can be none. The name may be the same."""
    if "/" in names.check_path(name):
        raise ConfigError("the new name is a path", path=names.display(name))
    to = work / name
    try:
        os.link(path, to)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
    else:
        if path.stat().st_mtime_ns == ask.mtime_ns:
            return to
        to.unlink()  # it gets another time, which is not to be seen at the input
    size, done = path.stat().st_size, 0
    with path.open("rb") as source, to.open("xb") as target:
        while chunk := source.read(CHUNK):
            ask.check()
            target.write(chunk)
            done += len(chunk)
            ask.progress(done / max(size, 1))
    return to
