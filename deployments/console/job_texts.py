"""A job as text that programs send and read: JSON or YAML, what is wrong with it and where, and nothing secret in it.

Nothing here asks the server, but for blocks that a job names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import SecretBytes, SecretStr, ValidationError

from blocks.errors import ConfigError
from deployments.console.problems import Problem
from flows.transfer.form import found

if TYPE_CHECKING:
    from flows.transfer.job import TransferJob

HIDDEN = "********"
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml")
NO_ENVIRONMENT: Mapping[str, str] = {}
"""The console's environment is not that of whoever sends a job: `{env: NAME}` means nothing here."""
PLACES = ("source", "destination", "destinations", "more_destinations")
_SECRET = re.compile("secret|password|passphrase|token|private_key", re.IGNORECASE)
_WHERE = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)*): ")


class Wrong(Problem):
    """422, with where and what."""

    def __init__(self, errors: list[dict[str, str]]):
        super().__init__(
            422, "; ".join(f"{e['where']}: {e['what']}" if e["where"] else e["what"] for e in errors), errors=errors
        )


def parsed(body: bytes, content_type: str) -> dict[str, Any]:
    """The keys of a job from a body. Raises Problem 415, Wrong."""
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind in YAML_TYPES:
            text = body.decode("utf-8")
            # with them, a line of text can say a gigabyte
            if any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, yaml.SafeLoader)):
                raise Wrong([{"where": "", "what": "is YAML with `*` aliases: write it out"}])
            data = yaml.safe_load(text)
        elif kind in ("application/json", ""):
            data = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        else:
            raise Problem(415, f"send a job as application/json or {YAML_TYPES[0]}")
        _check_text(data, "")
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError, TypeError) as error:
        # ValueError: also of UTF-8 and JSON; the last three are what PyYAML says of `!!int ""` and its like
        mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        what = (
            f"line {mark.line + 1}, column {mark.column + 1}: {said}" if mark and said else " ".join(str(error).split())
        )
        raise Wrong([{"where": "", "what": f"cannot be read: {what}"}]) from None
    if not isinstance(data, dict):
        raise Wrong([{"where": "", "what": "a job is a mapping of keys, such as `name:`, `source:`, `destination:`"}])
    return data


def checked(data: dict[str, Any]) -> TransferJob:
    """The job. Raises Wrong."""
    from deployments.deploy import check_schedule
    from flows.transfer.job import job_of

    try:
        job = job_of(data, NO_ENVIRONMENT)
        check_schedule(job)
    except ConfigError as error:
        raise Wrong(wrong_of(error)) from None
    return job


def wrong_of(error: ConfigError) -> list[dict[str, str]]:
    """What a refusal says, key by key; never a value."""
    from flows.transfer.job import TransferJob

    match = _WHERE.match(error.what)
    where = match[1] if match else ""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        of_storage = where.partition(".")[0] in PLACES and cause.title != "Transfer job"
        told = found(cause, under=where) if of_storage else found(cause, TransferJob.model_fields)
        return [{"where": w, "what": what} for w, what in told]
    return [{"where": where, "what": error.what[len(match[0]) :] if match else error.what}]


def masked(value: Any) -> Any:
    """A job as it is read: what was written where only blocks should be hides its secrets."""
    if isinstance(value, list):
        return [masked(v) for v in value]
    if not isinstance(value, dict):
        return value
    hidden = _secret_keys()
    return {
        k: HIDDEN if v is not None and (k in hidden or _SECRET.search(k)) else masked(v) for k, v in value.items()
    }  # fmt: skip


def mark_of(job: dict[str, Any]) -> str:
    """An ETag: the same for the same job."""
    return '"' + hashlib.sha256(json.dumps(job, sort_keys=True, default=str).encode()).hexdigest()[:16] + '"'


def _secret_keys() -> frozenset[str]:
    from flows.transfer.job import SOURCES

    return frozenset(
        name for cls in SOURCES.values() for name, field in cls.model_fields.items()
        if {SecretStr, SecretBytes} & {field.annotation, *get_args(field.annotation)}
    )  # fmt: skip


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _check_text(value: Any, where: str) -> None:
    """Raises Wrong for text that no server can keep."""
    if isinstance(value, str):
        if "\0" in value or any(0xD800 <= ord(c) < 0xE000 for c in value):
            raise Wrong([{"where": where, "what": "there is half a character, or a NUL, in it"}])
    elif isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise Wrong([{"where": where, "what": "keys are text"}])
            _check_text(key, where)
            _check_text(one, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            _check_text(one, f"{where}.{number}".lstrip("."))
