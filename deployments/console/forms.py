"""What the API takes and gives, as its OpenAPI document tells it. Times are ISO 8601, UTC; sizes bytes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from flows.ledger.listing import LARGEST_ID


def _text(value: str) -> str:
    """Text that every database takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("half a character is no text") from None
    if "\0" in value:
        raise ValueError("there is a NUL in it")
    return value


Plain = AfterValidator(_text)
Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]
Short = Annotated[str, Field(min_length=1, max_length=100), Plain]
Text = Annotated[str, Field(min_length=1, max_length=4096), Plain]


class Asked(BaseModel):
    """A body: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class Action(Asked):
    """What is wanted of transfers: of those named by `ids`, or of those that fit all of the rest. Of files that are
    named all must fit; of others those that do are taken."""

    action: Literal["pause", "resume", "cancel", "retry", "priority"]
    ids: list[Id] = Field(default=[], max_length=5000)
    job: Short | None = None
    flight: Short | None = None
    device: Short | None = None
    states: list[Short] = Field(default=[], max_length=20)
    level: Literal["LOW", "NORMAL", "HIGH", "URGENT"] | None = Field(default=None, description="With `priority`.")


class ActionDone(BaseModel):
    """How many were moved at once, and for how many the run that works on them was told."""

    moved: int
    left: int
    told: str


class NewOverride(Asked):
    """Let files of a job that match a pattern pass in spite of what a rule finds."""

    job: Short
    rule: Short
    path: Text = Field(description="A pattern of source paths, as `include` has them.")
    why: Text = Field(description="The reason, in a line. It is kept.")
    expires: Short | None = Field(default=None, description="How long (7d, 12h), or until when (2027-01-31).")


class Reason(Asked):
    """Why."""

    why: Text


class StartRun(Asked):
    """A run of a job."""

    flight: Short | None = None
    device: Short | None = None


class Transfer(BaseModel):
    """One version of one file on its way to one destination."""

    id: int
    job: str
    path: str
    made: bool = Field(description="Whether steps made it; its path is one in the spool then.")
    size: int
    state: str
    phase: str | None
    bytes_done: int
    kind: str | None
    stage: str | None
    message: str | None
    wish: str | None
    flight: str | None
    device: str | None
    priority: str
    destination: str
    dest_path: str | None
    sha256: str | None
    verified_by: str | None
    verify_passes: int
    tries: int
    attempt: int
    run_id: str | None
    mtime: str | None
    queued_at: str | None
    done_at: str | None
    updated_at: str | None
    next_attempt_at: str | None
    findings: list[dict[str, Any]]


class Transfers(BaseModel):
    """A page, the newest first. `next` is the cursor of the next one, which may be there even where this one is short;
    null at the end."""

    items: list[Transfer]
    next: str | None


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    kind: str | None = None
    remedy: str | None = None


class Health(BaseModel):
    """Whether the parts answer; what is wrong of those that do not."""

    ok: bool
    ledger: str
    prefect: str


class Disk(BaseModel):
    """Room. `days_left` as things go, null where nothing is delivered to it."""

    path: str
    total: int
    free: int
    days_left: float | None


class LastRun(BaseModel):
    """When a job had success on a device last, and when it ran."""

    job: str
    device: str
    succeeded_at: str | None
    ended_at: str | None


class Hour(BaseModel):
    """What runs that ended in an hour have delivered."""

    at: str | None
    files: int
    bytes: int


class Summary(BaseModel):
    """Counts of files, and what is known beside them. `stale` is why they are no newer than `at`; null if they are as they
    should be. `silent` are places of the console's machine that do not answer."""

    at: str | None
    stale: str | None
    silent: list[str]
    totals: dict[str, int]
    failures: dict[str, int]
    hours: list[Hour]
    last: list[LastRun]
    disks: list[Disk]
