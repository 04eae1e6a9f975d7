"""What a job says about its files after they are delivered: cleanup of the source, retention, scrub. Forms only.

What they do is in `flows/upkeep`.
"""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from typing import Any

from pydantic import ByteSize, Field, field_validator, model_validator

from blocks import names
from blocks.errors import OnblockError
from flows.transfer.form import Duration, Form
from flows.transfer.patterns import compile_pattern
from flows.transfer.schedule import Schedule


class Action(StrEnum):
    """What is done with a file at the source."""

    OFF = "off"
    DELETE = "delete"
    BACKUP = "backup"


class Cleanup(Form):
    """When a file at the source has served its purpose, and what is done with it then."""

    action: Action = Action.OFF
    """`delete` removes them, `backup` moves them into a folder of the source; nothing is done until you say so."""
    min_verify_passes: int = Field(default=2, ge=1, le=100)
    """So many times a file must have been read back from every destination since it was delivered."""
    passes_apart: Duration = Field(default=timedelta(hours=1), ge=timedelta(minutes=1))
    """Two of these are at least so far apart: a second look in the same minute sees the same cache, and the same disk
    before it fails."""
    min_age: Duration = timedelta(hours=24)
    """So long ago it must have been delivered, by the clock of the ledger."""
    backup_folder: str | None = None
    """Where `backup` moves files: a folder below the root of the source. The job never takes files from it."""
    keep: list[str] = Field(default=["*.sha256", "*.md5", "*.mhl", "metadata.json", "manifest.json"])
    """Patterns of files that stay at the source whatever happens: what describes others."""
    schedule: Schedule | None = None
    """When cleanup runs by itself, once deployed."""

    @field_validator("action", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return Action.OFF if value is False else value  # `off` is false in YAML

    @field_validator("keep")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        for pattern in value:
            compile_pattern(pattern)
        return value

    @field_validator("backup_folder")
    @classmethod
    def _folder(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            return names.check_path(value.strip("/"))
        except OnblockError as error:
            raise ValueError(error.what) from None

    @model_validator(mode="after")
    def _sense(self) -> Cleanup:
        if self.action is Action.BACKUP and self.backup_folder is None:
            raise ValueError("`action: backup` needs a `backup_folder`, such as `backup_folder: delivered`")
        return self

    def refusal(self, verify: str, manifest: str | None) -> str | None:
        """Why this does not go with how the job verifies; None if it does."""
        if self.action is Action.OFF:
            return None
        if verify in ("exists", "size"):
            return (
                f"cleanup enabled without verification: `verify: {verify}` proves no content; "
                "write `verify: checksum`, or `cleanup: {action: off}`"
            )
        if manifest is None:
            return (
                "cleanup enabled without verification: only what stands in a manifest is cleaned up; name a `manifest`"
            )
        return None

    def keeps(self, path: str) -> bool:
        """Whether a file is never cleaned up. `path` is relative to the job's folder."""
        return any(compile_pattern(p).fullmatch(path) for p in self.keep)


class Limits(Form):
    """What may stay. Whatever goes beyond one of these is removed, the oldest first."""

    max_age: Duration | None = None
    """Not longer than this after delivery, such as 30 d."""
    max_files: int | None = Field(default=None, ge=0)
    """Not more files than this."""
    max_size: ByteSize | None = None
    """Not more bytes than this, such as 2 TB."""

    @model_validator(mode="after")
    def _sense(self) -> Limits:
        if self.max_age is None and self.max_files is None and self.max_size is None:
            raise ValueError("says nothing: give `max_age`, `max_files` or `max_size`")
        return self


class Retention(Form):
    """When files are removed for good: backups of what was cleaned up, and what was delivered. Nothing that is not
    verified is ever removed."""

    backup: Limits | None = None
    """What may stay in `cleanup.backup_folder`. A backup is removed only while every destination has the file."""
    delivered: Limits | None = None
    """What may stay at each destination, of what this job has delivered there. The copy there is the last to go: what
    the source still has, or its backup folder, stays. What was removed is not delivered again."""
    schedule: Schedule | None = None
    """When this runs by itself, once deployed."""

    @model_validator(mode="after")
    def _sense(self) -> Retention:
        if self.backup is None and self.delivered is None:
            raise ValueError("says nothing: give `backup`, `delivered`, or both")
        return self

    def refusal(self, verify: str, cleanup: Cleanup) -> str | None:
        """Why this does not go with the rest of the job; None if it does."""
        if verify in ("exists", "size"):
            return f"retention would delete unverified files: `verify: {verify}` proves no content; write `verify: checksum`"
        if self.backup is not None and cleanup.backup_folder is None:
            return "retention has no folder to look after: name a `cleanup.backup_folder`"
        return None


class Scrub(Form):
    """How delivered files are looked at again, a part at a time."""

    part: str = "1/30"
    """How much each time: `1/30` goes once around in 30 times. What was not looked at for longest comes first."""
    schedule: Schedule | None = None
    """When this runs by itself, once deployed."""

    @field_validator("part")
    @classmethod
    def _part(cls, value: str) -> str:
        parse_part(value)
        return value


def parse_part(value: str) -> tuple[int, int]:
    """`1/30` as numbers. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", value, re.ASCII)
    if not match or not 0 < int(match[1]) <= int(match[2]):
        raise ValueError(f"{value!r} is no part, such as 1/30 (or 1/1 for everything)")
    return int(match[1]), int(match[2])
