"""`/api/v1/config`: jobs as programs read and write them. What is written is deployed at once, by what `onblock up` uses;
the next run goes by it, and those under way end as they began.

A job is read as a JOB.yaml has it, its storages by the names of their blocks: no secret is in it. It is written in the same
form; a storage that is written out becomes a block, as with `onblock up JOB.yaml`, beside the one that was there: up to the
moment in which the deployment goes by the new one, nothing of the job has changed. A write is like an edit in Prefect's UI: a
JOB.yaml that is deployed later counts only if it has changed since it was deployed last.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import httpx
from fastapi import APIRouter, Depends, Header, Path, Request, Response
from pydantic import BaseModel, Field

from blocks.errors import ConfigError, NetworkError, NotFound
from deployments.console import forms
from deployments.console.access import Person
from deployments.console.api import PROBLEMS
from deployments.console.guard import admin_only, tell_audit, whoever
from deployments.console.job_texts import YAML_TYPES, Wrong, checked, mark_of, masked, parsed, wrong_of
from deployments.console.office import Office
from deployments.console.prefect_api import Refused
from deployments.console.problems import Problem
from deployments.deploy import UNFINISHED
from flows.starts import pages

if TYPE_CHECKING:
    from flows.transfer.job import TransferJob

log = logging.getLogger("onblock.console")

Admin = Annotated[Person, Depends(admin_only)]
Name = Annotated[str, Path(max_length=100), forms.Plain]
Job = Annotated[dict[str, Any], Field(description="The keys of a JOB.yaml.")]
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True, "description": "The keys of a JOB.yaml.",
        "content": {kind: {"schema": {"type": "object"}} for kind in ("application/json", YAML_TYPES[0])},
    }
}  # fmt: skip


class JobConfig(BaseModel):
    """A deployed job. `mark` says which version this is: sent as `If-Match`, it keeps a change of somebody else's. What is
    not `finished` was cut off while it was written, after the job itself: sent again, it is."""

    name: str
    mark: str
    finished: bool
    job: Job


class Written(JobConfig):
    """A job as it is now, and what was done for it, one line each."""

    told: list[str]


class Fits(BaseModel):
    """It can be deployed."""

    name: str
    fits: bool = True


async def _text(request: Request) -> tuple[bytes, str]:
    """The body, whose length the guard has limited, and what it is."""
    return await request.body(), request.headers.get("content-type", "")


Sent = Annotated[tuple[bytes, str], Depends(_text)]


def routes(office: Office) -> APIRouter:
    """The paths."""
    api = APIRouter(
        prefix="/api/v1/config",
        responses=PROBLEMS | {412: {"model": forms.Problem, "description": "It has changed"}},
        tags=["config"],
    )
    writing = threading.Lock()

    @api.get("/jobs")
    def jobs(who: Annotated[Person, Depends(whoever)]) -> list[JobConfig]:
        """All deployed jobs."""
        return [config for found in _deployments(office) if (config := _config(office, found)) is not None]

    @api.get("/jobs/{name}")
    def job(who: Annotated[Person, Depends(whoever)], name: Name, response: Response) -> JobConfig:
        """A deployed job, and its mark, also as `ETag`."""
        found, _ = _there(office, name)
        if found is None:
            raise Problem(404, f"there is no job {name}")
        response.headers["ETag"] = found.mark
        return found

    @api.post("/validate", openapi_extra=BODY)
    def validate(who: Annotated[Person, Depends(whoever)], sent: Sent) -> Fits:
        """Whether a job can be deployed; 422 says where it is wrong, and what is. Nothing is written, no storage is opened."""
        data = parsed(*sent)
        _names_of_blocks_need_the_server(office, data)
        return Fits(name=checked(data).name)

    @api.put("/jobs/{name}", openapi_extra=BODY)
    def write(
        who: Admin, name: Name, sent: Sent, request: Request, response: Response,
        if_match: Annotated[str | None, Header(max_length=100, description="The mark of what is to be changed.")] = None,
    ) -> Written:  # fmt: skip
        """Deploy a job, new or changed. For admins. Checked before anything is written."""
        data = parsed(*sent)
        data.setdefault("name", name)
        if data["name"] != name:
            raise Wrong([{"where": "name", "what": f"is not {name!r}, as the address says; a job keeps its name"}])
        _names_of_blocks_need_the_server(office, data)
        job = checked(data)
        with writing:
            before, there = _there(office, name)
            pool = there.get("work_pool_name")
            if if_match is not None and if_match != (before.mark if before else None):
                raise Problem(412, "it has changed since it was read: read it again")
            if pool is not None and pool.startswith("device-"):
                raise Problem(
                    409, f"{name} runs on a device, whose agent deploys it from its agent.yaml",
                    remedy=f"change the file on {pool.removeprefix('device-')}",
                )  # fmt: skip
            if more := sorted(k for k, v in (there.get("parameters") or {}).items() if k != "job" and v is not None):
                raise Problem(
                    409, f"the deployment transfer/{name} has parameters of its own ({', '.join(more)}), which would be lost",
                    remedy="change it in Prefect's UI",
                )  # fmt: skip
            told = _deploy(job, pool)
            office.server.forget()
            after, _ = _there(office, name)
        if after is None:
            raise NetworkError(
                f"the job {name} is not on the Prefect server any more: somebody has deleted it meanwhile"
            )
        changed = sorted(
            k
            for k in {*after.job, *(before.job if before else ())}
            if before is None or after.job.get(k) != before.job.get(k)
        )
        tell_audit(request, action="config", job=name, new=before is None, changed=changed)
        response.headers["ETag"] = after.mark
        response.status_code = 201 if before is None else 200
        return Written(**after.model_dump(), told=told)

    return api


def _config(office: Office, deployment: dict[str, Any]) -> JobConfig | None:
    """The job of a deployment; None where it is somebody's own of that flow, without one."""
    job = (deployment.get("parameters") or {}).get("job")
    if not isinstance(job, dict):
        return None
    try:
        shown = masked(office.server.named(job))
    except (NotFound, Refused):  # a block was deleted, or is none: its number stays to be seen
        shown = masked(job)
    finished = deployment.get("version") != UNFINISHED
    return JobConfig(name=deployment["name"], mark=mark_of(shown), finished=finished, job=shown)


def _there(office: Office, name: str) -> tuple[JobConfig | None, dict[str, Any]]:
    """The job as it is on the server this moment, and its deployment, empty where there is none. Raises NetworkError."""
    found = _deployments(office, name)
    return (_config(office, found[0]), found[0]) if found else (None, {})


def _deployments(office: Office, name: str | None = None) -> list[dict[str, Any]]:
    """Deployments of jobs, all or those of a name, by name. Raises NetworkError."""
    wanted: dict[str, Any] = {"flows": {"name": {"any_": ["transfer"]}}}
    if name is not None:
        wanted["deployments"] = {"name": {"any_": [name]}}
    return sorted(pages(office.server.api.call, "/deployments/filter", wanted), key=lambda d: d["name"])


def _names_of_blocks_need_the_server(office: Office, data: dict[str, Any]) -> None:
    """Raises NetworkError where a job names blocks, and nobody can be asked for them."""
    places = [data.get("source"), data.get("destination")]
    for key in ("destinations", "more_destinations"):
        several = data.get(key)
        places += several if isinstance(several, list) else []
    if any(isinstance(p, str) for p in places):
        office.server.api.call("/block_types/filter", {"limit": 1})


def _deploy(job: TransferJob, pool: str | None) -> list[str]:
    """Deploy a job; what was done. Raises Wrong, NetworkError."""
    from deployments.bootstrap import connect
    from deployments.deploy import deploy_job
    from deployments.server import POOL, Report, create_limits, create_pool, register_blocks

    report = Report()
    with _as_ours(job.name), connect() as client:
        if pool is None:  # a server that nobody has set up yet
            register_blocks(Report())
            create_limits(client, [], Report())
            create_pool(client, Report())
        deploy_job(client, job, report, pool or POOL, by_hand=True)
    return [*report.made, *report.changed]


@contextmanager
def _as_ours(name: str) -> Iterator[None]:
    """What goes wrong on the way, as the API tells it."""
    from prefect.exceptions import PrefectException

    try:
        yield
    except ConfigError as error:
        raise Wrong(wrong_of(error)) from None
    except (httpx.HTTPError, PrefectException, ValueError, RuntimeError) as error:  # the last two are of blocks
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
            raise Refused(f"job {name}: {error.response.status_code}") from error  # its text may hold what was written
        log.warning("job %s could not be written: %s", name, type(error).__name__)
        raise NetworkError(f"the Prefect server went away while the job {name} was written; send it again") from error
