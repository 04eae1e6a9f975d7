"""`onblock doctor`: what onblock needs on this machine, looked at, not changed."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from blocks.errors import ConfigError, OnblockError
from blocks.home import home
from blocks.storage import LocalStorage
from deployments import trust
from flows.ledger import Ledger
from flows.ledger.store import default_url
from flows.transfer.job import TransferJob, load_job

PACKAGES = (
    "prefect", "prefect-aws", "prefect-shell", "pydantic", "sqlalchemy", "paramiko", "av", "numpy", "smbus2", "hdfs",
)  # fmt: skip
LOW_BYTES = 1 << 30


class Check(NamedTuple):
    """One thing looked at: fine, not fine, or (None) merely worth knowing."""

    what: str
    ok: bool | None
    found: str


def examine(job_file: Path | None = None, device: str | None = None) -> list[Check]:
    """All checks; with a job, those of its storages too; with a device, those of the hardware that its agent uses."""
    checks = [Check("Python", True, platform.python_version()), _packages(), _home(), _ledger(), *_prefect(), *_tools()]
    if device is not None:
        from deployments.agent.checks import examine_device

        checks += [Check(*found) for found in examine_device(device)]
    if job_file is not None:
        try:
            job = load_job(job_file)
        except OnblockError as error:
            return [*checks, Check("job", False, str(error))]
        checks += [Check("job", True, f"{job.name}: the file is in order"), *_storages(job)]
    return checks


def _packages() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", False, f"missing: {', '.join(missing)}; `pip install onblock` brings them")
    return Check("packages", True, ", ".join(found))


def _home() -> Check:
    folder = home()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(there, os.W_OK):
        return Check(
            "ONBLOCK_HOME", False, f"{folder} cannot be written; set ONBLOCK_HOME to a folder you may write to"
        )
    free = shutil.disk_usage(there).free
    return Check("ONBLOCK_HOME", free > LOW_BYTES, f"{folder}, {free / 1e9:.1f} GB free")


def _ledger() -> Check:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        shown = make_url(default_url()).render_as_string(hide_password=True)
        with Ledger.open(create=False) as ledger:
            files = sum(n for *_, n, _ in ledger.counts())
        return Check("ledger", True, f"{shown}, {files:,} files")
    except (OnblockError, ArgumentError) as error:
        return Check("ledger", False, str(error))


def _prefect() -> list[Check]:
    import httpx
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        return [
            Check(
                "Prefect server",
                None,
                "PREFECT_API_URL is not set: `onblock run` works without; `onblock up` starts one",
            )
        ]
    try:
        client = trust.client()
    except ConfigError as error:
        return [Check("Prefect server", False, str(error))]
    with client:
        failure = client.api_healthcheck()
        if failure is not None:
            what_to_do = trust.remedy(failure, "start it with `onblock up`")
            return [Check("Prefect server", False, f"{url} does not answer ({failure}); {what_to_do}")]
        try:
            limit = client.read_concurrency_limit_by_tag("onblock")
            return [
                Check("Prefect server", True, url),
                Check("limit", True, f"at most {limit.concurrency_limit} tasks at a time"),
            ]
        except (ObjectNotFound, httpx.HTTPError):
            found = "the tag `onblock` has no concurrency limit; `onblock up` makes it"
            return [Check("Prefect server", True, url), Check("limit", False, found)]


def _tools() -> list[Check]:
    return [Check(tool, None, shutil.which(tool) or "not installed; not needed yet") for tool in ("rclone", "rsync")]


def _storages(job: TransferJob) -> list[Check]:
    checks = []
    for role, storage in (("source", job.source), *(("destination", d) for d in job.destinations)):
        if isinstance(storage, LocalStorage) and storage.create_root and not Path(storage.root).exists():
            checks.append(Check(role, True, f"{storage.place()} will be made"))
            continue
        try:
            with storage.open() as session:
                free = session.free_bytes()
            checks.append(
                Check(role, True, storage.place() + (f", {free / 1e9:.1f} GB free" if free is not None else ""))
            )
        except OnblockError as error:
            checks.append(Check(role, False, str(error)))
    return checks
