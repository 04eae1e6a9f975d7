"""Jobs of FileFlow (0.5) as jobs of onblock: a pure translation, with a list of what became of each part.

    Job of FileFlow  ->  document of a JOB.yaml, the environment variables it names, findings

What FileFlow does is told beside each part; its form is in `workspace.py`, its connections are in `places.py`. Nothing
is opened or written here.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from blocks.errors import ConfigError
from deployments.imports.findings import Around, Beyond, Draft, Finding
from deployments.imports.places import absolute, place
from deployments.imports.workspace import Backup, Job, Kind, Method
from flows.transfer.form import explain
from flows.transfer.job import Settle, TransferJob, job_of
from flows.transfer.patterns import compile_pattern
from flows.transfer.schedule import Schedule

ALWAYS = (
    "A file is known by its path, size and time: an edit that keeps the size is sent, which FileFlow skipped.",
    "Files are taken once they have been still for 2 s; names that end in .part, .tmp and such are left alone.",
    "A destination gets a list of checksums, `checksums.sha256`; `manifest: null` in a job writes none.",
    "A file gets its final name when it is whole. What fails is tried again, and is a row of the ledger.",
)
"""What is different in every job."""
CLEANUP_CRON, RETENTION_CRON = "17 * * * *", "37 4 * * *"
"""When backups are made, and thinned out: FileFlow does both after each file."""
SCRIPT_LIMIT = "300 s"
"""How long FileFlow gives a script."""


@dataclass
class Translated:
    """What became of a job. Without `document` it cannot be carried over; `secrets` are the variables it names."""

    job_id: str
    name: str
    document: dict[str, Any] | None
    job: TransferJob | None
    secrets: dict[str, str]
    findings: list[Finding]


def translate(job: Job, around: Around, taken: dict[str, str] | None = None) -> Translated:
    """A job of FileFlow as one of onblock. Never raises: what cannot be carried over is a finding. `taken` are the
    variables that other jobs name; those of this one are added."""
    draft = Draft(job.job_id, around, {} if taken is None else taken)
    name = name_of(job.job_id)
    document = made = None
    try:
        document, made = _document(draft, job, name)
    except ConfigError as error:
        draft.lost("job", f"{error.what}" + (f" ({error.todo})" if error.todo else ""))
    return Translated(job.job_id, name, document, made, draft.secrets if document else {}, draft.findings)


def name_of(job_id: str) -> str:
    """A name as onblock takes it; a digest keeps two apart that differ in what it does not take."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", job_id).lstrip("._-")[:80]
    if plain and plain == job_id:
        return plain
    return f"{plain or 'job'}-{hashlib.sha256(job_id.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def _document(draft: Draft, job: Job, name: str) -> tuple[dict[str, Any], TransferJob]:
    if name != job.job_id:
        draft.differs("job_id", f"{name}: letters, digits, '.', '-' and '_' are what a name may hold")
    for about, part in (
        ("job", job), ("source", job.source), ("destination", job.destination), ("processing", job.processing),
        ("backup", job.backup), ("verification", job.verification),
    ):  # fmt: skip
        if part is not None and part.unknown:
            draft.lost(about, f"FileFlow does not read {', '.join(map(ascii, part.unknown))}")
    document: dict[str, Any] = {
        "name": name,
        "source": place(draft, "source", job.source),
        "destination": place(draft, "destination", job.destination, job.destination.bucket),
        "recursive": False,
        **_pattern(draft, job),
        **_steps(draft, job),
        **_verify(draft, job),
        **_conflict(draft, job),
        **_schedule(draft, job),
    }
    checked = job_of(document, draft.secrets)
    if job.backup is not None and job.backup.enabled:
        mark, refusal = len(draft.findings), ""
        for inside in (False, True):  # where FileFlow has it, or else in the source itself
            try:
                with_backup = _backup(draft, job, job.backup, document, inside=inside)
                return with_backup, job_of(with_backup, draft.secrets)
            except ConfigError as error:
                refusal = refusal or error.what
                del draft.findings[mark:]
        draft.lost("backup", f"{refusal}: files stay at the source")
    elif job.backup is not None and job.backup.location:
        draft.carried("backup", "is switched off")
    return document, checked


def _pattern(draft: Draft, job: Job) -> dict[str, Any]:
    """FileFlow matches names with `fnmatch`, or with `re.fullmatch` what follows `re:`; it looks into no folder."""
    if not (pattern := job.source.file_pattern):
        draft.carried("file_pattern", "none: every file of the folder, and of none below it")
        return {}
    if not pattern.startswith("re:") and not re.fullmatch(r"[\w.*? +=@,~#%()-]+", pattern):
        pattern = f"re:{fnmatch.translate(pattern)}"
    try:
        compile_pattern(pattern)
    except ValueError as error:
        raise Beyond(f"file_pattern: {error}; FileFlow never took a file by it") from None
    draft.carried("file_pattern", pattern)
    found: dict[str, Any] = {"include": [pattern]}
    suffixes: list[str] = Settle.model_fields["ignore_suffixes"].default
    if any(pattern.endswith(suffix) for suffix in suffixes):
        found["settle"] = {"ignore_suffixes": [s for s in suffixes if not pattern.endswith(s)]}
    return found


def _steps(draft: Draft, job: Job) -> dict[str, Any]:
    if job.processing is None or not job.processing.steps:
        return {}
    if not job.processing.enabled:
        draft.carried("processing", f"is switched off: {len(job.processing.steps)} steps are left out")
        return {}
    return {"steps": [_step(draft, job, given) for given in job.processing.steps]}


def _step(draft: Draft, job: Job, given: str) -> dict[str, Any]:
    about = "processing"
    plain: dict[str, dict[str, Any]] = {
        "compress": {"kind": "compress", "format": "gzip"},
        "zip": {"kind": "compress", "format": "zip"},
        "compress_bz2": {"kind": "compress", "format": "bzip2"},
        "decompress": {"kind": "decompress", "only": ["*.gz"]},
        "rename": {"kind": "rename", "prefix": f"{job.job_id}_"},
        "timestamp": {"kind": "timestamp", "format": "%Y%m%d"},
    }
    if given == "timestamp":
        draft.differs(about, "timestamp: the day of the file's own time; FileFlow took the day of the transfer")
    elif given in plain:
        draft.carried(about, given)
    if given in plain:
        return plain[given]
    if given.startswith("bash_script:"):
        script = given.removeprefix("bash_script:").strip()
        if not (program := PurePosixPath(script).name):
            raise Beyond("processing: bash_script names no script")
        draft.differs(
            about,
            f"bash_script: put {script!a} into the folder for scripts (~/.onblock/scripts), executable and with its "
            "`#!/bin/bash`. What it leaves in the folder it is started in is delivered: a change of its input is not",
        )
        return {"kind": "script", "program": program, "args": ["{input}"], "time_limit": SCRIPT_LIMIT}
    raise Beyond(f"processing: there is no step {given!a}: FileFlow failed at it, too")


def _verify(draft: Draft, job: Job) -> dict[str, Any]:
    if job.verification is None:
        draft.differs("verification", "none in FileFlow; here what was written is read back (`verify: checksum`)")
        return {"verify": "checksum"}
    if job.verification.method is Method.CHECKSUM:
        draft.differs("verification", "checksum: read back and compared; FileFlow compared sizes")
        return {"verify": "checksum"}
    said = {Method.SIZE: "size", Method.EXISTS: "exists"}[job.verification.method]
    draft.carried("verification", f"{said}; `verify: checksum` proves the content, too")
    return {"verify": said}


def _conflict(draft: Draft, job: Job) -> dict[str, Any]:
    """FileFlow writes over what is at the final name, unless its `hadoop` may not."""
    connection = job.destination.connection or {}
    if job.destination.type is Kind.HDFS and not connection.get("overwrite", True):
        draft.carried("overwrite", "off: a file whose name is taken fails")
        return {"on_conflict": "fail"}
    draft.carried("overwrite", "what has the final name is replaced; `on_conflict: rename` keeps both")
    return {"on_conflict": "replace"}


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _schedule(draft: Draft, job: Job) -> dict[str, Any]:
    """FileFlow reads cron with APScheduler, in the zone of its machine: weekdays begin with Monday = 0 there."""
    schedule = {"cron": " ".join(job.schedule.split()), "timezone": draft.around.timezone}
    try:
        Schedule.model_validate(schedule)
    except ValidationError as error:
        draft.lost("schedule", f"{explain(error, 'schedule')}; FileFlow never ran this job by itself")
        return {}
    if not job.enabled:
        draft.differs("enabled", f"is switched off: has no schedule here; it was {schedule['cron']}")
        return {}
    *_, day, _month, weekday = schedule["cron"].split()
    draft.carried("schedule", f"{schedule['cron']}, {schedule['timezone']}")
    if digits := re.findall(r"(?<![/\d])\d", weekday):
        ran = ", ".join(_WEEKDAYS[int(d)] if int(d) < 7 else "never" for d in digits)
        draft.differs(
            "schedule", f"weekday {weekday}: FileFlow counts from Monday, and meant {ran}; here 0 is Sunday, as in cron"
        )
    if day != "*" and weekday != "*":
        draft.differs("schedule", "day of month and weekday: FileFlow asks for both, cron (and onblock) for either")
    return {"schedule": schedule}


def _backup(draft: Draft, job: Job, backup: Backup, document: dict[str, Any], *, inside: bool) -> dict[str, Any]:
    """FileFlow moves a local source file to LOCATION/JOB_ID; of a remote one it keeps a copy there. A backup of onblock
    lies in the storage of the source: both in a folder they share, or the backup `inside` the source. Raises Beyond."""
    if not backup.location:
        raise Beyond("it has no location, and FileFlow made none")
    folder = os.path.join(absolute(draft, "backup.location", backup.location), job.job_id)
    made = dict(document)
    if job.source.type is not Kind.LOCAL:
        return _copy(draft, backup, made, folder)
    source = document["source"]["root"]
    if inside:
        draft.differs(
            "backup.location", f"{folder!a} is not on the storage of the source: `delivered` in {source!a} instead"
        )
        folder = os.path.join(source, "delivered")
    root = os.path.commonpath([source, folder])
    if root == "/" and source != root:
        raise Beyond(f"{folder!a} and the source share no folder")
    if source != root:
        made["source"] = {**document["source"], "root": root}
        made["folder"] = os.path.relpath(source, root)
    if made["verify"] != "checksum":
        made["verify"] = "checksum"
        draft.differs("verification", "checksum, since sources are moved away: neither size nor name proves a content")
    daily = {"timezone": draft.around.timezone}
    by_itself = "schedule" in document
    made["cleanup"] = {"action": "backup", "backup_folder": os.path.relpath(folder, root), "keep": []}
    if by_itself:
        made["cleanup"]["schedule"] = {"cron": CLEANUP_CRON, **daily}
    draft.differs(
        "backup",
        "is moved a day after delivery, when two looks have proven it; FileFlow moved it at once, proven or not",
    )
    if not (days := backup.retention_days):
        return made
    try:
        if days < 0:
            raise OverflowError
        timedelta(days=days)
    except OverflowError:
        draft.lost("backup.retention_days", f"{days} is no number of days to keep something")
        return made
    made["retention"] = {"backup": {"max_age": f"{days} d"}}
    if by_itself:
        made["retention"]["schedule"] = {"cron": RETENTION_CRON, **daily}
    draft.differs("backup.retention_days", f"{days} d after delivery, while the destination still has the file")
    return made


def _copy(draft: Draft, backup: Backup, made: dict[str, Any], folder: str) -> dict[str, Any]:
    if "steps" in made:
        raise Beyond(
            "a copy of what is fetched, before its steps, is a job of its own: the same source, this folder, no steps"
        )
    made["more_destinations"] = [{"type": "local-storage", "root": folder, "create_root": True}]
    draft.differs("backup", "a second destination: the file is read once for both")
    if backup.retention_days:
        draft.lost("backup.retention_days", "`retention.delivered` would hold for the first destination, too")
    return made


__all__ = ["ALWAYS", "Translated", "name_of", "translate"]
