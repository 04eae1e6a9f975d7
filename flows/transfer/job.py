"""What a transfer job is: the form people fill in, checked as far as it can be without touching a file.

A `TransferJob` is the parameter of the flow `transfer` (the Prefect UI shows it as a form) and the content of a
JOB.yaml. Reading YAML and finding storages by name is here too. Nothing here opens a storage.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_origin
from zoneinfo import ZoneInfo

import httpx
from pydantic import (
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from blocks import names
from blocks.devices import DEVICES, AnySource, Device
from blocks.errors import ConfigError, OnblockError
from blocks.storage import STORAGES, AnyStorage
from blocks.storage.base import FileInfo, Storage
from flows.transfer import form
from flows.transfer.aftercare import Cleanup, Retention, Scrub
from flows.transfer.bandwidth import Timetable
from flows.transfer.form import Duration, Form, read_yaml
from flows.transfer.gate_settings import GateSettings
from flows.transfer.patterns import compile_pattern
from flows.transfer.schedule import Schedule
from flows.transfer.steps import AnyStep


class Dedup(StrEnum):
    """What makes a file known: its version (path, size, mtime or etag), or its content wherever it lies."""

    VERSION = "version"
    CONTENT = "content"


class Verify(StrEnum):
    """How a delivery is proven, weakest first. `checksum` reads back what was written; `readback` from the medium."""

    EXISTS = "exists"
    SIZE = "size"
    CHECKSUM = "checksum"
    READBACK = "readback"


class OnConflict(StrEnum):
    """What to do where something else is at the final name. The same content is never a conflict."""

    SKIP = "skip"
    REPLACE = "replace"
    RENAME = "rename"
    FAIL = "fail"


class Settle(Form):
    """When a file counts as finished by whoever writes it."""

    quiet: Duration = timedelta(seconds=2)
    """Size and mtime have not changed for this long. Younger files are looked at twice, this far apart."""
    sentinel: str | None = None
    """A file that must be in the same folder first, such as `DONE` or `*.complete` (a glob on its name)."""
    ignore_suffixes: list[str] = Field(default=[".part", ".partial", ".tmp", ".crdownload", ".filepart"])
    """Names with these endings are still being written: never taken."""


class Shipping(Form):
    """How files are gathered into the shipments that one task moves."""

    large: ByteSize = ByteSize(32 << 20)
    """Files of this size and more travel alone; with steps, those of 1 MiB and more."""
    max_files: int = Field(default=4096, ge=1, le=16384)
    """At most so many small files together."""
    max_bytes: ByteSize = ByteSize(256 << 20)
    """At most so many bytes of small files together."""
    at_once: int = Field(default=2, ge=1, le=16)
    """Shipments of one run that are moved at the same time; with steps, that are fetched, and that are delivered."""
    processing_at_once: int = Field(default=2, ge=1, le=16)
    """With steps: shipments of one run that are processed at the same time."""
    workers: int = Field(default=1, ge=1, le=64)
    """A run of a deployment that has more shipments than it moves itself has others help it: so many runs move them at
    most, itself included, on whichever workers of the pool are free. Limits hold for all of them together."""


RUN_TOKENS = {"flight", "device", "job"}
"""Tokens of a path template that are the same for all files of a run."""
TOKENS = RUN_TOKENS | {"path", "folder", "name", "stem", "ext", "date", "time", "year", "month", "day", "hour"}
"""All tokens. Dates and times are those of the file's mtime, in the job's time zone."""


class TransferJob(Form):
    """One configured movement of files: from a source, verified, to one or several destinations."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, title="Transfer job")

    name: str
    """Names the job in the ledger, which remembers by this name what was delivered: keep it."""
    source: AnySource
    """Where the files are: a storage, or a device that comes and goes."""
    destination: AnyStorage
    """Where they go."""
    more_destinations: list[AnyStorage] = Field(default=[], max_length=7)
    """Further places that get the same files, each of which is read once for all of them. Written here as
    `{"$ref": {"block_document_slug": "TYPE/NAME"}}`; a JOB.yaml may say `destinations:` with all of them."""
    device: str | None = None
    """The device the files come from: its name limits how many tasks read from it at a time (tag `device:<name>`). Of a
    source that is a device it is known."""
    folder: str = ""
    """Take only what is below this folder of the source; patterns and {path} begin below it."""
    include: list[str] = Field(default=[])
    """Patterns of paths to take; empty takes all. Globs (`*.mp4`, `DCIM/**`), or `re:` and a regular expression."""
    exclude: list[str] = Field(default=[])
    """Patterns of paths to leave, in the same form; stronger than `include`."""
    recursive: bool = True
    """Look into folders."""
    min_size: ByteSize | None = None
    """Take only files of at least this size, such as 1 MiB."""
    max_size: ByteSize | None = None
    """Take only files of at most this size."""
    min_age: Duration | None = None
    """Take only files whose mtime is at least this long ago, such as 10 min."""
    max_age: Duration | None = None
    """Take only files whose mtime is at most this long ago, such as 30 d."""
    settle: Settle = Settle()
    """When a file counts as finished."""
    dedup: Dedup = Dedup.VERSION
    """What makes a file known, so that it is not sent again."""
    verify: Verify = Verify.CHECKSUM
    """How each delivery is proven."""
    on_conflict: OnConflict = OnConflict.RENAME
    """What to do where another file has the final name. `rename` keeps both (`clip~2.mp4`)."""
    steps: list[AnyStep] = Field(default=[], max_length=16)
    """What is done with each file between fetching and delivering it, in this order. Without steps, files go straight from
    source to destination, and nothing is put down in between."""
    lineage: bool = False
    """Deliver beside each file a `NAME.onblock.json` that tells where it comes from, and what was done with it."""
    path: str = "{path}"
    """Where a file goes below the destination. Tokens: {path} {folder} {name} {stem} {ext} {flight} {device} {job}
    {date} {time} {year} {month} {day} {hour}."""
    manifest: str | None = "checksums.sha256"
    """Name of the list of delivered files and their SHA-256, in the destination, or in the folder that the `path`
    template begins with if that is the same for the whole run, such as `{flight}/`. None (`null` in YAML) writes none."""
    gate: GateSettings = GateSettings()
    """What a file has to be like before it is delivered."""
    schedule: Schedule | None = None
    """When the job runs by itself, once deployed."""
    priority: Literal["urgent", "high", "normal", "low"] = "normal"
    """Where runs of several deployed jobs wait for their turn, because workers have as many as they may: who is first."""
    shipping: Shipping = Shipping()
    """How files are gathered into tasks."""
    bandwidth: Timetable | None = None
    """How much may be moved a second, when; without it, as fast as it goes."""
    unknown_size: ByteSize = ByteSize(1 << 30)
    """Room that is reserved at a destination for a file whose size nobody knows yet."""
    cleanup: Cleanup = Cleanup()
    """What becomes of files at the source once they are proven at every destination."""
    retention: Retention | None = None
    """When backups and deliveries are removed for good."""
    scrub: Scrub = Scrub()
    """How delivered files are looked at again."""

    @model_validator(mode="before")
    @classmethod
    def _all_destinations(cls, data: Any) -> Any:
        """`destinations` as the two fields of the form, which shows a list of storages as JSON and one storage as tabs."""
        if isinstance(data, dict) and "destinations" in data:
            data = dict(data)
            if {"destination", "more_destinations"} & set(data):
                raise ValueError("give `destination` or `destinations`, not both")
            places = data.pop("destinations")
            if not isinstance(places, list | tuple) or not places:
                raise ValueError("`destinations` is a list of one or more storages")
            data["destination"], data["more_destinations"] = places[0], list(places[1:])
        return data

    @property
    def two_phases(self) -> bool:
        """Whether files are fetched into the spool, processed there, and delivered from it."""
        return bool(self.steps) or self.lineage

    @property
    def destinations(self) -> list[AnyStorage]:
        """Where the files go, all of them."""
        return [self.destination, *self.more_destinations]

    @field_validator("name", "device")
    @classmethod
    def _label(cls, value: str | None) -> str | None:
        return value if value is None else _or_value_error(names.check_label, value)

    @field_validator("folder")
    @classmethod
    def _folder(cls, value: str) -> str:
        value = value.strip("/")
        return _or_value_error(names.check_path, value) if value else value

    @field_validator("include", "exclude")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        for pattern in value:
            compile_pattern(pattern)
        return value

    @field_validator("path")
    @classmethod
    def _template(cls, value: str) -> str:
        fields = _template_fields(value)
        if unknown := sorted(fields - TOKENS):
            raise ValueError(
                f"unknown token {{{unknown[0]}}}; there are {', '.join(f'{{{t}}}' for t in sorted(TOKENS))}"
            )
        if not fields & {"path", "name", "stem"}:
            raise ValueError("the template must hold {path}, {name} or {stem}: else all files get one name")
        _or_value_error(names.check_path, value.format_map(dict.fromkeys(TOKENS, "x")))
        return value

    @field_validator("manifest")
    @classmethod
    def _manifest(cls, value: str | None) -> str | None:
        if value is not None and "/" in _or_value_error(names.check_path, value):
            raise ValueError("the manifest is a file name, not a path: it lies in the destination's folder")
        return value

    @model_validator(mode="after")
    def _device_of_the_source(self) -> TransferJob:
        if isinstance(self.source, Device):
            if self.device is not None and self.device != self.source.device:
                raise ValueError(f"device is {self.device!r}, and the source is the device {self.source.device!r}")
            self.device = self.source.device
        return self

    @model_validator(mode="after")
    def _sense(self) -> TransferJob:
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ValueError("min_size is larger than max_size: no file could pass")
        if self.min_age is not None and self.max_age is not None and self.min_age > self.max_age:
            raise ValueError("min_age is longer than max_age: no file could pass")
        for refusal in (
            self.cleanup.refusal(self.verify, self.manifest),
            self.retention and self.retention.refusal(self.verify, self.cleanup),
        ):
            if refusal:
                raise ValueError(refusal)
        places = [d.place() for d in self.destinations]
        if len(set(places)) < len(places):
            raise ValueError("two destinations are the same place")
        if self.source.place() in places:
            raise ValueError("source and destination are the same place: nothing would be moved")
        taken = "/".join(filter(None, (self.source.place().rstrip("/"), self.folder))) + "/"
        # without `recursive`, what lies in a folder of the source is not taken
        if inside := [p for p in places if f"{p}/".startswith(taken) and (self.recursive or f"{p}/" == taken)]:
            raise ValueError(
                f"the destination {inside[0]} lies in the source: each run would take what the last brought"
            )
        return self

    def zone(self) -> ZoneInfo:
        """The time zone of the schedule, for dates in the path template."""
        return ZoneInfo(self.schedule.timezone if self.schedule else "UTC")

    def needs(self) -> set[str]:
        """Which of flight and device the path template asks for."""
        return _template_fields(self.path) & {"flight", "device"}


def _or_value_error(check: Any, value: str) -> str:
    """Run a check of `blocks.names`; pydantic wants its refusal as a ValueError."""
    try:
        return check(value)
    except OnblockError as error:
        raise ValueError(error.what) from None


def _template_fields(template: str) -> set[str]:
    fields = set()
    try:
        for _, field, spec, conversion in string.Formatter().parse(template):
            if field is not None:
                if spec or conversion or not field.isidentifier():
                    raise ValueError(f"{{{field}}} is no token; write tokens plainly, such as {{name}}")
                fields.add(field)
    except ValueError as error:
        raise ValueError(f"bad path template {template!r}: {error}") from None
    return fields


class Target:
    """The path template of a job, filled for one run: `path_of(file)` and `manifest`."""

    def __init__(self, job: TransferJob, flight: str | None = None, device: str | None = None):
        given = {"flight": flight, "device": device or job.device, "job": job.name}
        for token in ("flight", "device"):
            if (value := given[token]) is not None:
                names.check_label(value, token)
            elif token in job.needs():
                raise ConfigError(
                    f"the path template {job.path!r} needs {{{token}}}, and none was given",
                    remedy=f"run with --{token} NAME" + (", or set `device` in the job" if token == "device" else ""),
                )
        self._skip = len(job.folder) + 1 if job.folder else 0
        self._plain = job.path == "{path}"
        self._template = job.path
        self._dated = bool(_template_fields(job.path) & {"date", "time", "year", "month", "day", "hour"})
        self._zone = job.zone()
        self._run = {k: v or "" for k, v in given.items()}
        fixed = []
        for part in job.path.split("/")[:-1]:
            if not _template_fields(part) <= RUN_TOKENS:
                break
            fixed.append(part.format_map(self._run))
        self.folder = "/".join(fixed)
        """The folder below the destination that holds everything of this run; empty for the destination itself."""
        self.manifest = None if job.manifest is None else "/".join([*fixed, job.manifest])
        """Where the manifest goes, below the destination."""

    def path_of(self, file: FileInfo) -> str:
        """The path below the destination for a file of the source. Raises BadName."""
        below = file.path[self._skip :] if self._skip else file.path
        if self._plain:
            return names.check_path(below)
        folder, _, name = below.rpartition("/")
        stem, _, ext = name.rpartition(".")
        if not stem:
            stem, ext = name, ""
        values = {**self._run, "path": below, "folder": folder, "name": name, "stem": stem, "ext": ext}
        if self._dated:
            try:
                when = datetime.fromtimestamp(file.mtime_ns // 1_000_000_000, self._zone)
            except (ValueError, OverflowError, OSError):  # a broken clock, on a disk that keeps any 64-bit time
                raise ConfigError(
                    f"its time, {file.mtime_ns} ns since 1970, is in no calendar, and the path template asks for it",
                    path=file.path, remedy="set the file's time, or use a `path` without dates",
                ) from None  # fmt: skip
            values |= {
                "date": f"{when:%Y-%m-%d}", "time": f"{when:%H%M%S}", "year": f"{when:%Y}", "month": f"{when:%m}",
                "day": f"{when:%d}", "hour": f"{when:%H}",
            }  # fmt: skip
        path = self._template.format_map(values)
        if not folder or not ext:  # {folder}/{name} of a file at the top, {ext}/{name} of one without
            path = re.sub("/{2,}", "/", path).lstrip("/")
        return names.check_path(path)


# -- JOB.yaml ---------------------------------------------------------------------------------------------------


def load_job(path: Path | str) -> TransferJob:
    """Read a JOB.yaml. Raises ConfigError that names the file, the key and what is wrong with it."""
    data = read_yaml(path, "the job")
    try:
        return job_of(data)
    except OnblockError as error:
        error.path = str(path)
        raise


def job_of(data: Any, environment: Mapping[str, str] = os.environ) -> TransferJob:
    """The job that a JOB.yaml says. Raises ConfigError that names the key and what is wrong with it."""
    if not isinstance(data, dict):
        raise ConfigError("a job is a mapping of keys, such as `name:`, `source:`, `destination:`")
    data = dict(data)
    for key in ("source", "destination"):
        if key in data:
            data[key] = _storage_of(key, data[key], SOURCES if key == "source" else STORAGES, environment)
    for key in ("destinations", "more_destinations"):
        if isinstance(data.get(key), list):
            data[key] = [_storage_of(f"{key}.{n}", d, STORAGES, environment) for n, d in enumerate(data[key])]
    try:
        return TransferJob.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """What pydantic found of a job."""
    return form.explain(error, "job", TransferJob.model_fields)


SOURCES: dict[str, type[Storage]] = {**STORAGES, **DEVICES}
"""What a job may take from, by `type`."""


def _storage_of(key: str, value: Any, among: Mapping[str, type[Storage]], environment: Mapping[str, str]) -> Any:
    """`find_storage`, its refusal led by the key of the job it is about."""
    try:
        return find_storage(value, among, environment)
    except ConfigError as error:
        error.what = f"{key}: {error.what}"
        raise


def find_storage(
    value: Any, among: Mapping[str, type[Storage]] = SOURCES, environment: Mapping[str, str] = os.environ
) -> Any:
    """A storage from how a JOB.yaml writes it: inline (`{type: local-storage, root: /data}`) or `type/name`. Inline, a
    key may be `{env: NAME}`: what that variable of the environment holds."""
    if isinstance(value, str):
        kind, slash, name = value.partition("/")
        if not slash or kind not in among:
            raise ConfigError(
                f"{value!r} names no storage; write `TYPE/NAME` or `{{type: TYPE, ...}}` with TYPE {' | '.join(among)}"
            )
        from prefect.settings import PREFECT_API_URL
        from prefect.utilities.asyncutils import run_coro_as_sync

        if not PREFECT_API_URL.value():
            raise ConfigError(
                f"storage {value!r} is kept by a Prefect server, and PREFECT_API_URL is not set",
                remedy="set it (see `onblock up`), or write the storage inline",
            )
        try:
            return run_coro_as_sync(among[kind].aload(name))
        except ValueError as error:
            raise ConfigError(f"the Prefect server knows no block {value!r}", remedy="make it in the UI") from error
        except httpx.HTTPError as error:
            raise ConfigError(
                f"storage {value!r} is kept by a Prefect server that does not answer as it should ({error})",
                remedy="check PREFECT_API_URL, PREFECT_API_AUTH_STRING, and that the server runs",
            ) from error
    if isinstance(value, dict) and "type" in value:
        fields = dict(value)
        kind = fields.pop("type")
        if not isinstance(kind, str) or kind not in among:
            raise ConfigError(f"there is no storage type {kind!r}; there are {', '.join(among)}")
        cls = among[kind]
        if unknown := sorted(set(fields) - set(cls.model_fields), key=str):
            raise ConfigError(f"{kind} has no key {unknown[0]!r}; there are {', '.join(cls.model_fields)}")
        for key, given in fields.items():
            # `tags: {env: prod}` says what it says
            if (
                isinstance(given, dict)
                and list(given) == ["env"]
                and get_origin(cls.model_fields[key].annotation) is not dict
            ):
                fields[key] = environment.get(str(given["env"]))
                if not fields[key]:
                    raise ConfigError(
                        f"{kind}: `{key}` is kept in the environment variable {names.display(str(given['env']))}, which is not set",
                        remedy="set it (`export NAME=...`), or name a block in which it is kept: `TYPE/NAME`",
                    )
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ConfigError(f"{kind}: {explain(error)}") from error
    if isinstance(value, dict):
        raise ConfigError(f"a storage needs `type:`, one of {', '.join(among)}")
    return value
