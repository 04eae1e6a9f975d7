"""A workspace of FileFlow (0.5), as it is read: jobs.yaml in the form of FileFlow's own models, and `.env`.

Whatever FileFlow itself would refuse is refused here, and what would make a mess: two jobs of one name, names that are
paths, variables that are not set. What a job becomes is in `fileflow.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, ValidationError

from blocks import names
from blocks.errors import ConfigError
from deployments.imports.findings import VARIABLE, word
from flows.transfer.form import explain, read_yaml


class Kind(StrEnum):
    """FileFlow's connectors."""

    LOCAL = "local"
    SFTP = "sftp"
    S3 = "s3"
    SCP = "scp"
    HDFS = "hdfs"


class Method(StrEnum):
    """How FileFlow verifies."""

    EXISTS = "file_exists"
    SIZE = "size_match"
    CHECKSUM = "checksum_match"


class Part(BaseModel):
    """FileFlow skips keys it does not know; they are kept here to be told of."""

    model_config = ConfigDict(extra="allow")

    @property
    def unknown(self) -> list[str]:
        """Keys that FileFlow does not read."""
        return sorted(self.model_extra or {})


class Side(Part):
    """Where files come from, or go."""

    type: Kind
    config_ref: str | None = None
    path: str
    connection: dict[str, Any] | None = None


class Source(Side):
    """Where files come from."""

    file_pattern: str | None = None


class Destination(Side):
    """Where files go."""

    bucket: str | None = None


class Processing(Part):
    """Steps, by name."""

    enabled: bool = False
    steps: list[str] = []


class Backup(Part):
    """Where sources go once they are sent, and for how many days."""

    enabled: bool = False
    location: str | None = None
    retention_days: int | None = None


class Verification(Part):
    """How a delivery is looked at."""

    method: Method = Method.SIZE


class Job(Part):
    """One job of FileFlow."""

    job_id: str
    enabled: bool = True
    schedule: str
    source: Source
    destination: Destination
    processing: Processing | None = None
    backup: Backup | None = None
    verification: Verification | None = None


class _Jobs(BaseModel):
    jobs: list[Job]


def read_jobs(path: Path) -> list[Job]:
    """The jobs of a jobs.yaml (or jobs.json, which is YAML too). Raises ConfigError that names the file and the key."""
    data = read_yaml(path, "FileFlow's jobs")
    if not isinstance(data, dict) or "jobs" not in data:
        raise ConfigError("is not FileFlow's: it has a list `jobs:`", path=str(path))
    try:
        jobs = _Jobs.model_validate(data).jobs
    except ValidationError as error:
        raise ConfigError(f"FileFlow would not take it: {explain(error, 'jobs.yaml')}", path=str(path)) from None
    seen: set[str] = set()
    for job in jobs:
        _check(job, seen, path)
    return jobs


def _check(job: Job, seen: set[str], path: Path) -> None:
    shown = names.display(job.job_id)
    if (
        not job.job_id.strip()
        or job.job_id in (".", "..")
        or any(c in "/\\" or not c.isprintable() for c in job.job_id)
    ):
        raise ConfigError(f"job_id {shown!r} is no name of a job: no slashes or control characters", path=str(path))
    if job.job_id in seen:
        raise ConfigError(
            f"two jobs have the job_id {shown!r}: FileFlow ran only the last", path=str(path), remedy="rename one"
        )
    seen.add(job.job_id)
    for side in (job.source, job.destination):
        transport = (side.connection or {}).get("transport")
        if side.type is Kind.HDFS and transport and word(transport).lower() not in ("cli", "webhdfs"):
            raise ConfigError(
                f"job {shown!r}: connection.transport {names.display(word(transport))!r} is unknown; there are cli, webhdfs",
                path=str(path),
            )


def check_variables(jobs: list[Job], environment: Mapping[str, str], path: Path) -> None:
    """Every `${NAME}` must be set. FileFlow fills none in: they are for programs that write its jobs.yaml."""
    for job in jobs:
        for where, text in _texts(job):
            for match in VARIABLE.finditer(text):
                if not environment.get(match[1]):
                    raise ConfigError(
                        f"job {names.display(job.job_id)!r}: {where} asks for the variable {match[1]}, which is not set",
                        path=str(path), remedy="set it, or give the file that has it with --env",
                    )  # fmt: skip


def _texts(job: Job) -> Iterator[tuple[str, str]]:
    for side, of in (("source", job.source), ("destination", job.destination)):
        yield f"{side}.path", of.path
        for key, value in (of.connection or {}).items():
            if isinstance(value, str):
                yield f"{side}.connection.{key}", value
    yield "destination.bucket", job.destination.bucket or ""
    yield "backup.location", (job.backup and job.backup.location) or ""


def folder_of(jobs_file: Path) -> Path:
    """The workspace: the folder that has `configs/jobs.yaml`, or the one the file is in."""
    folder = jobs_file.absolute().parent
    return folder.parent if folder.name == "configs" else folder


def read_environment(env: Path | None, folder: Path) -> dict[str, str]:
    """The environment as FileFlow had it: `.env` of the workspace, or `env`, and over it that of this process."""
    path = env or folder / ".env"
    found: dict[str, str | None] = {}
    if env is not None or path.exists():
        try:
            with path.open(encoding="utf-8") as stream:
                found = dotenv_values(stream=stream)
        except OSError as error:
            raise ConfigError(
                f"cannot read the environment: {os.strerror(error.errno or 0)}", path=str(path)
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError("is no text in UTF-8", path=str(path)) from error
    return {k: v for k, v in found.items() if v} | dict(os.environ)
