"""What may pass: findings about a file before it is delivered. Each rule looks at values only.

A finding keeps a file from being delivered (BLOCKED) until it is cured; what cannot be read at all FAILED at the scan.
"""

from __future__ import annotations

from typing import NamedTuple

from blocks import names
from blocks.errors import ConfigError, OnblockError
from blocks.storage.base import Features, FileInfo
from flows.ledger.states import State
from flows.transfer.job import Target


class Passage(NamedTuple):
    """A file and where it goes, or why it does not."""

    file: FileInfo
    dest_path: str | None
    state: State = State.QUEUED
    failure: OnblockError | None = None
    stage: str | None = None


def gate(file: FileInfo, target: Target, features: Features) -> Passage:
    """Judge one file for one destination."""
    if file.problem is not None:
        if isinstance(file.problem, ConfigError):
            return Passage(file, None, State.BLOCKED, file.problem, "gate")
        return Passage(file, None, State.FAILED, file.problem, "scan")
    try:
        dest_path = target.path_of(file)
        if dest_path == target.manifest:
            raise names.BadName(f"{names.display(dest_path)!r} is where the manifest of this job goes")
        if not features.byte_names and names.to_text(dest_path) != dest_path:
            raise names.BadName(f"{names.display(dest_path)!r} is no UTF-8, which this destination asks for")
    except names.BadName as error:
        error.path = file.path
        error.todo = "rename it with the job's `path` template, or `exclude` it"
        return Passage(file, None, State.BLOCKED, error, "gate")
    return Passage(file, dest_path)
