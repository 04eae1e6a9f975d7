"""Recording as Prefect flows: `capture`; `stop-capture`, for an event; `recover-recordings`, for what was not sealed.

A recording works without any of this: the agent's button uses `Recorder` while the server cannot be reached.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.states import Completed, Failed

from blocks.errors import DiskFull, Kind, NetworkError, OnblockError
from blocks.hardware.battery import ToldBattery
from blocks.home import home
from flows.capture import announce
from flows.capture.at_work import request_stop
from flows.capture.manifest import Manifest, load, told
from flows.capture.recorder import Recorder
from flows.capture.recover import finished, recover_all
from flows.capture.spec import CaptureSpec
from flows.starts import NO, Post, Refused, tell

log = logging.getLogger("onblock.capture")

RETRY_S = (2, 10, 60)


def recordings() -> Path:
    """Where this machine keeps its recordings."""
    return home() / "recordings"


@flow(name="capture", persist_result=False)  # pyright: ignore
def capture(spec: CaptureSpec) -> State:
    """Record cameras and sensors of this machine, until it is told to stop; then make one file of it.

    Cancelling the run seals the recording; it is merged by the next `recover-recordings`, or the agent.

    Args:
        spec: what to record, and how.
    """
    # in the main thread, where Prefect raises its TerminationSignal: the recorder seals on its way out
    recorder = Recorder(spec, recordings(), battery=ToldBattery(home() / "agent" / "status.json"))
    manifest = recorder.run(threading.Event())
    text = told(manifest)
    if spec.merge:
        state = merged(str(recorder.folder), return_state=True)
        if not state.is_completed():
            _accounts(manifest)
            if isinstance(state.result(raise_on_failure=False), DiskFull):  # its way off this disk is as it is
                text += _segments(recorder.folder)
            return Failed(message=f"{text}; the segments are sealed, and are not merged yet: {state.message}")
        manifest = state.result()
    _accounts(manifest)
    if announce.is_due(manifest):
        text += announced(recorder.folder, manifest)
    else:  # the disk was too slow to close it in time
        text += "; it is put in order and announced by the agent or `recover-recordings`"
    return Completed(message=text, data={"recording": manifest.id, "state": manifest.state})


def may_pass(task: object, task_run: object, state: State) -> bool:
    """Whether to try a merge again: not where the disk is full, or a file cannot be read."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, OnblockError) or error.kind in (Kind.UNKNOWN, Kind.HASH_MISMATCH, Kind.CONFLICT)


@task(
    name="merge", retries=len(RETRY_S), retry_delay_seconds=list(RETRY_S), retry_condition_fn=may_pass,
    cache_policy=NO_CACHE, persist_result=False,
)  # fmt: skip
def merged(folder: str) -> Manifest:
    """Merge a recording, and read it back; one that could not be sealed is put in order first."""
    return finished(Path(folder))


@flow(name="stop-capture", persist_result=False)  # pyright: ignore
def stop_capture(device: str | None = None) -> State:
    """Stop what is being recorded on this machine: for an automation on an event, and for people.

    Args:
        device: only on this device.
    """
    stopped = request_stop(recordings(), device)
    return Completed(message=f"asked {', '.join(stopped)} to stop" if stopped else "nothing is being recorded")


@flow(name="recover-recordings", persist_result=False)  # pyright: ignore
def recover_recordings() -> State:
    """Put in order, merge and announce what a kill, a power cut or a cancellation left on this machine."""
    root = recordings()
    for folder in announce.left(root):
        _owe(folder)
    found = recover_all(root)
    good = [m for m in found if isinstance(m, Manifest)]
    bad = [str(e) for e in found if not isinstance(e, Manifest)]
    untold = "".join(_segments(announce.folder_of(root, e)) for e in found if isinstance(e, DiskFull))
    for folder in sorted({*announce.owed(root), *(root / m.id for m in good)}):  # also what a flow run could not tell
        try:
            if announce.is_due(manifest := load(folder)):
                untold += announced(folder, manifest)
        except (OnblockError, OSError) as error:
            bad.append(str(error))
    text = f"{len(good)} recovered{untold}" + (f", {len(bad)} could not be: {'; '.join(bad)}" if bad else "")
    return Failed(message=text) if bad else Completed(message=text)


def _owe(folder: Path) -> None:
    """Note that a recording is to be announced; where the disk is too full for that, whoever ends us ends the news, too."""
    with suppress(OSError):
        announce.owe(folder)


def _segments(folder: Path) -> str:
    """Announce a recording that the disk has no room to merge, as it is, once."""
    try:
        manifest = announce.as_it_is(folder)
    except (OnblockError, OSError) as error:
        return f"; it is not announced yet: {error}"
    return announced(folder, manifest, announce.SEGMENTS) if manifest is not None else ""


def announced(folder: Path, manifest: Manifest, as_it_is: str = "") -> str:
    """Start what waits for this recording, and tell the event, by Prefect's API: `emit_event` knows of no failure. What is
    to be said of it: nothing, or that it is still owed."""
    try:
        with get_client(sync_client=True) as client:
            tell(_post(client), announce.event(manifest, as_it_is))
        announce.settled(folder, as_it_is)
    except (OnblockError, Refused, PrefectException, OSError) as error:
        log.warning("%s is not announced: %s", manifest.id, error)
        return f"; it is not announced yet, the agent or `recover-recordings` will: {error}"
    return ""


def _post(client: SyncPrefectClient) -> Post:
    """POST by a client of Prefect's, which has the patience that a busy server asks for."""

    def post(path: str, body: Any) -> Any:
        try:
            answer = client.request("POST", path, json=body)  # pyright: ignore[reportArgumentType]
            return answer.json() if answer.content else None
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in NO:
                raise Refused(f"{path}: {status} {error.response.text[:300]}") from error
            raise NetworkError(f"the Prefect server is not well ({status} to {path})") from error
        except (httpx.HTTPError, ValueError) as error:
            raise NetworkError(f"the Prefect server does not answer ({type(error).__name__})") from error

    return post


def _accounts(manifest: Manifest) -> None:
    """The accounts of the recording as an artifact."""
    rows: list[dict[str, Any]] = [
        {
            "stream": name, "captured": e.captured, "written": e.written,
            "dropped": ", ".join(f"{n} {reason}" for reason, n in e.dropped.items()) or "0", "lost": e.in_flight,
            "damaged": sum(s.damaged for s in e.segments),
            "segments": len(e.segments), "opened again": e.reconnects,
        }
        for name, e in manifest.streams.items()
    ]  # fmt: skip
    try:
        create_table_artifact(table=rows, key=f"recording-{manifest.device}".lower().replace("_", "-").replace(".", "-"),
                              description=f"{manifest.id}: {manifest.state}, {manifest.stopped_because}")  # fmt: skip
    except Exception:  # a server that is away must not make a recording fail
        log.warning("the accounts of %s could not be shown as an artifact", manifest.id, exc_info=True)
