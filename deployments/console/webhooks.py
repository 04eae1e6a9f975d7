"""Webhooks: `POST /hooks/flight-end`, `/hooks/device-connected`, `/hooks/{name}`. Who sends them, whether they are true,
new and well-formed; what becomes of them is in `desk.py`.

A message is signed: `X-Onblock-Signature: sha256=HEX` is the HMAC-SHA256, under the sender's secret, of the timestamp, a
dot and the body. `X-Onblock-Timestamp` is in seconds since the epoch, `X-Onblock-Sender` the name of the sender's block.
The answers: 202 taken, 200 known already (the first answer again), 400 not understood, 401 not signed as it should be,
403 not for this sender, 404 no such hook or device, 408 too slow, 413 too long, 503 later.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import ClientDisconnect

from blocks import names
from blocks.errors import OnblockError
from deployments.console.desk import Desk, message
from deployments.console.prefect_api import Known
from flows.ledger.hooks import Message
from flows.starts import Refused

log = logging.getLogger("onblock.console")

MOST_BYTES = 64 << 10
"""Longest body."""
WINDOW_S = 300
"""A message is as old as this at most, and no more ahead of our clock."""
SLOW_S = 10.0
"""So long a body may take to arrive."""
THREADS = 16
"""That work for senders alone: however long pages take, a webhook is taken."""
AGAIN_S = 5
"""When to come again, if we could not do it now."""
_KEY = re.compile(r"[\x21-\x7e]{1,200}\Z")
_NUL = re.compile(r"(?<!\\)(\\\\)*\\u0000")
"""In JSON: a NUL, and not a backslash before the word u0000. PostgreSQL keeps none, in no text."""


def _label(value: str) -> str:
    try:
        return names.check_label(value)
    except names.BadName as error:
        raise ValueError(error.what) from None


Label = Annotated[str, AfterValidator(_label)]


class _Devices(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    device: Label | None = None
    devices: list[Label] = Field(default=[], max_length=64)

    @model_validator(mode="after")
    def _some(self) -> _Devices:
        if bool(self.device) == bool(self.devices):
            raise ValueError("give `device` or `devices`")
        return self

    def all(self) -> list[str]:
        """The devices, each once."""
        return list(dict.fromkeys(self.devices or [self.device or ""]))


class FlightEnd(_Devices):
    """The body of `flight-end`."""

    flight: Label
    ended_at: Annotated[AwareDatetime | None, Field(strict=False)] = None


class DeviceConnected(_Devices):
    """The body of `device-connected`; with a flight if its files are known to be of that."""

    flight: Label | None = None


EVENTS: dict[str, tuple[type[FlightEnd] | type[DeviceConnected], str]] = {
    "flight-end": (FlightEnd, "onblock.flight.ended"),
    "device-connected": (DeviceConnected, "onblock.device.connected"),
}


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The signature of a message, in hex."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def routes(desk: Desk) -> APIRouter:
    """The paths, served from a desk."""
    router = APIRouter()
    threads = CapacityLimiter(THREADS)

    @router.post("/hooks/{name}")
    async def hook(name: str, request: Request) -> JSONResponse:
        """One message."""
        body = await _body(request)
        head = {k: request.headers.get(f"x-onblock-{k}", "") for k in ("sender", "timestamp", "signature")}
        key = request.headers.get("idempotency-key")
        return await to_thread.run_sync(_take, desk, name, body, head, key, limiter=threads)

    return router


async def _body(request: Request) -> bytes:
    """The body, unless it is too long: then no more of it is read than shows that."""
    told = request.headers.get("content-length", "0")
    parts, size = [], int(told) if told.isdigit() else 0
    if size <= MOST_BYTES:
        size = 0
        try:
            async with asyncio.timeout(SLOW_S):
                async for part in request.stream():
                    size += len(part)
                    if size > MOST_BYTES:
                        break
                    parts.append(part)
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {SLOW_S:.0f} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the connection was closed in the middle of the body") from None
    if size > MOST_BYTES:
        raise HTTPException(413, f"the body is longer than {MOST_BYTES} bytes", {"Connection": "close"})
    return b"".join(parts)


def _take(desk: Desk, name: str, body: bytes, head: dict[str, str], key: str | None) -> JSONResponse:
    try:
        known, signature = _authentic(desk, body, head)
        sender = head["sender"]
        if (before := desk.hooks.seen(sender, signature)) is None:
            before = _understood(known, desk, name, body, sender, signature, key)
        kept, new = desk.hand_in(before)
    except (OnblockError, Refused) as error:
        log.warning("%s: %s", names.display(name)[:100], error)
        raise HTTPException(
            503, f"{getattr(error, 'what', error)}; send it again, it is taken once", {"Retry-After": str(AGAIN_S)}
        ) from None
    except HTTPException as no:
        if no.status_code != 401:  # whose messages are true may fill our log
            log.warning("%s from %s: %d %s", names.display(name)[:100], head["sender"], no.status_code, no.detail)
        raise
    return JSONResponse(kept.answer, 202 if new else 200)


def _authentic(desk: Desk, body: bytes, head: dict[str, str]) -> tuple[Known, str]:
    """What is known by now, and the signature, if it is one of the sender's. 401 without saying what was wrong with it:
    only the clock is told."""
    sender, stamp = head["sender"], head["timestamp"]
    if not (sender and stamp and head["signature"]):
        raise HTTPException(401, "a message has X-Onblock-Sender, X-Onblock-Timestamp and X-Onblock-Signature")
    if not re.fullmatch(r"[0-9]{1,12}", stamp):
        raise HTTPException(401, "X-Onblock-Timestamp is in whole seconds since the epoch, UTC")
    given = head["signature"].removeprefix("sha256=")

    def fits(known: Known) -> bool:
        secrets = known.senders[sender].secrets if sender in known.senders else ("nobody's",)
        # all are tried, always: how long it takes tells nothing
        right = sum(hmac.compare_digest(sign(s, stamp, body).encode(), given.encode()) for s in secrets)
        return bool(right) and sender in known.senders

    known = desk.api.known(fits)
    if not fits(known):
        raise HTTPException(401, "the signature is not that of the sender for this timestamp and body")
    if abs(time.time() - int(stamp)) > WINDOW_S:
        raise HTTPException(401, f"the timestamp is more than {WINDOW_S} s from this clock, {int(time.time())}")
    return known, given


def _understood(
    known: Known, desk: Desk, name: str, body: bytes, sender: str, signature: str, key: str | None
) -> Message:  # fmt: skip
    """The message that a body is. HTTPException 400, 403, 404."""
    allowed = known.senders[sender]
    if name not in EVENTS:
        known = desk.api.known(lambda k: name in k.hooks)
        if name not in known.hooks:
            raise HTTPException(
                404, f"there is no hook {name!r}; there are {', '.join(sorted({*EVENTS, *known.hooks}))}"
            )
    if allowed.hooks and name not in allowed.hooks:
        raise HTTPException(403, f"{sender} may call {', '.join(sorted(allowed.hooks))} only")
    if key is not None and not _KEY.match(key):
        raise HTTPException(400, "Idempotency-Key is 1 to 200 printable characters, without spaces")
    try:
        content = json.loads(body)
        said = json.dumps(content, allow_nan=False, ensure_ascii=False)
        said.encode()  # NaN and half characters are no JSON elsewhere
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no JSON") from None
    if not isinstance(content, dict):
        raise HTTPException(400, "the body is no JSON object")
    if _NUL.search(said):
        raise HTTPException(400, "the body holds a NUL (\\u0000), which no event can carry")
    given = None if key is None else f"key {name} {key}"
    if name not in EVENTS:
        return message(
            sender, name, given or f"signature {signature}", event=f"onblock.hook.{name}",
            resources=[f"onblock.hook.{name}"], payload=content, signature=signature,
        )  # fmt: skip
    form, event = EVENTS[name]
    try:
        told = form.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(400, _wrong(error)) from None
    devices = told.all()
    known = desk.api.known(lambda k: set(devices) <= k.devices)
    for device in devices:
        if allowed.devices and device not in allowed.devices:
            raise HTTPException(403, f"{sender} may speak for {', '.join(sorted(allowed.devices))} only")
        if device not in known.devices:
            raise HTTPException(
                404, f"there is no device {device!r}; there are {', '.join(sorted(known.devices)) or 'none'}"
            )
    if given is None and isinstance(told, FlightEnd):
        given = f"flight {told.flight} {hashlib.sha256(' '.join(sorted(devices)).encode()).hexdigest()}"
    payload: dict[str, Any] = told.model_dump(mode="json", exclude={"device", "devices"}, exclude_none=True)
    return message(
        sender, name, given or f"signature {signature}", event=event, signature=signature,
        resources=[f"onblock.device.{d}" for d in devices], payload=payload, flight=told.flight,
    )  # fmt: skip


def _wrong(error: ValidationError) -> str:
    """What is wrong with the fields; never what stood in them."""
    parts = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
    return "; ".join(f"{where}: {what}" if where else what for where, what in parts)
