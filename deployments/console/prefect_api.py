"""What the console asks of the Prefect server, and tells it: senders, devices, what starts what; runs, events.

Plain HTTP: Prefect's own client answers a busy server (503, on SQLite) with a sleep of 2 s or more, which a webhook does
not have. What is asked is remembered for a while, and stays known while the server is away.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from blocks.devices import DEVICES
from blocks.errors import AuthError, NetworkError, UnknownError
from deployments import trust
from flows.starts import Refused, Start, events_of, pages, start, starts_of

log = logging.getLogger("onblock.console")

HOOK, MOST_OF_NAME = "onblock.hook.", 100
"""What the events of further hooks begin with; the ledger has room for so much of the name behind it."""
FRESH_S = 10.0
"""So long what is known is taken for true."""
SOON_S = 1.0
"""Something unknown is asked for anew, but not more often than this."""
UNSEEN_S = 60.0
"""So late, at most, a change of an automation is known that shows neither in their number nor as the newest, where the
clocks of two API servers differ; and a limit that was made for itself."""
BUSY_S = 3.0
"""A server that is busy is asked again for so long."""


class Sender(NamedTuple):
    """Who may send webhooks."""

    secrets: tuple[str, ...]
    hooks: frozenset[str]
    devices: frozenset[str]


class Known(NamedTuple):
    """What is known of the server, and since when."""

    senders: dict[str, Sender]
    devices: frozenset[str]
    hooks: frozenset[str]
    starts: tuple[Start, ...]
    blocks: tuple[tuple[str, dict[str, Any]], ...]  # type and fields of the devices
    at: float


class PrefectApi:
    """A server, by its API. Shared by threads. `ca` signed its certificate, if that is not public."""

    def __init__(self, url: str, login: str | None = None, ca: str | None = None):
        local = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
        self._client = httpx.Client(
            base_url=url.rstrip("/"), timeout=10, trust_env=not local, verify=trust.context(ca) if ca else True,
            auth=tuple(login.split(":", 1)) if login and ":" in login else None,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        self._lock = threading.Lock()
        self._known: Known | None = None
        self._last: tuple[Any, float, list[dict[str, Any]], set[str]] = (None, 0.0, [], set())

    @classmethod
    def of_the_environment(cls) -> PrefectApi:
        """PREFECT_API_URL, its login and its CA. Raises ConfigError for a CA that is none."""
        from prefect.settings import get_current_settings

        api = get_current_settings().api
        login = api.auth_string.get_secret_value() if api.auth_string else None
        return cls(api.url or os.environ["PREFECT_API_URL"], login, trust.api_ca())

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def call(self, path: str, body: Any) -> Any:
        """POST; the answer. Raises NetworkError where the server is away, or stays busy, AuthError for a login that is wrong,
        UnknownError where something else answers, and Refused for a no."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                answer = self._client.post(path, json=body)
            except httpx.HTTPError as error:
                if trust.refused(error):
                    raise NetworkError(
                        f"the Prefect server is not believed: {error}", remedy=trust.remedy(error, "")
                    ) from error
                raise NetworkError(f"the Prefect server does not answer ({type(error).__name__})") from error
            if answer.status_code < 400:
                try:
                    return answer.json() if answer.content else None
                except ValueError as error:
                    raise UnknownError("what answers is no Prefect server", remedy="correct PREFECT_API_URL") from error
            if answer.status_code in (401, 403):  # no answer to what was asked: it is asked again
                raise AuthError("the Prefect server refuses our login", remedy="correct PREFECT_API_AUTH_STRING")
            if answer.status_code < 500 and answer.status_code not in (408, 429):
                raise Refused(f"{path}: {answer.status_code} {answer.text[:300]}")
            if time.monotonic() > deadline:
                raise NetworkError(f"the Prefect server is not well ({answer.status_code} to {path})")
            time.sleep(0.1)

    # -- what is known ------------------------------------------------------------------------------------------------

    def known(self, enough: Callable[[Known], bool] = lambda _: True, soon_s: float = SOON_S) -> Known:
        """What is known; asked for anew if that is `FRESH_S` ago, or not `enough` and `soon_s` ago. NetworkError if
        nothing is known yet."""
        since = time.monotonic()
        with self._lock:
            now, known = time.monotonic(), self._known
            if known is not None and (known.at >= since or now - known.at < (FRESH_S if enough(known) else soon_s)):
                return known
            try:
                self._known = self._ask(now)
            except NetworkError as error:
                if known is None:
                    raise
                log.warning("%s: what was known before counts", error)
                self._known = known._replace(at=time.monotonic())
            return self._known

    def refresh(self) -> None:
        """Ask for all of it now, so that a message need not wait for that. Raises NetworkError."""
        fresh = self._ask(time.monotonic())
        with self._lock:
            self._known = fresh

    def _ask(self, now: float) -> Known:
        wanted = {"block_types": {"slug": {"any_": ["webhook-sender", *DEVICES]}}, "include_secrets": True}
        senders: dict[str, Sender] = {}
        blocks: list[tuple[str, dict[str, Any]]] = []
        for found in self._all("/block_documents/filter", wanted):
            kind, fields = found["block_type"]["slug"], found["data"]
            if kind != "webhook-sender":
                blocks.append((kind, fields))
                continue
            secrets = tuple(s for s in (fields.get("secret"), fields.get("previous")) if s)
            senders[found["name"]] = Sender(
                secrets, frozenset(fields.get("hooks") or ()), frozenset(fields.get("devices") or ())
            )
        automations, devices = self._remembered(now)
        devices |= {str(fields["device"]) for _, fields in blocks if fields.get("device")}
        hooks: set[str] = set()
        starts: list[Start] = []
        for automation in automations:
            if automation["enabled"]:
                hooks |= {
                    e.removeprefix(HOOK) for e in events_of(automation)
                    if e.startswith(HOOK) and len(e) <= len(HOOK) + MOST_OF_NAME
                }  # fmt: skip
                starts += starts_of(automation)
        return Known(senders, frozenset(devices), frozenset(hooks), tuple(starts), tuple(blocks), now)

    def _remembered(self, now: float) -> tuple[list[dict[str, Any]], set[str]]:
        """Automations, and the devices that have a limit: those of the last time, if no automation has changed. A thousand
        devices have three thousand of them and two thousand limits, and a job that is deployed changes both."""
        newest = self.call("/automations/filter", {"sort": "UPDATED_DESC", "limit": 1})
        mark = (self.call("/automations/count", {}), [(a["id"], a["updated"]) for a in newest])
        before, at, automations, devices = self._last
        if mark != before or now - at > UNSEEN_S:
            automations = self._all("/automations/filter", {})
            # not by `/concurrency_limits/filter`, for which the server looks up who holds each: 2 s for 200 of them
            names = (limit["name"] for limit in self._all("/v2/concurrency_limits/filter", {}))
            devices = {name.removeprefix("tag:device:") for name in names if name.startswith("tag:device:")}
            self._last = mark, now, automations, devices
        return automations, set(devices)

    def _all(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        return pages(self.call, path, body)

    # -- what is told -------------------------------------------------------------------------------------------------

    def tell(self, event: dict[str, Any]) -> list[str]:
        """Start what an event starts, each once however often this is called, and emit it; the ids of the runs."""
        # this is told once only: a job that was deployed a moment ago is asked for, however fresh our knowledge is
        starts = self.known(lambda k: any(s.meant(event) for s in k.starts), 0.0).starts
        runs = start(self.call, event, starts, event["tags"])
        if event["event"] == "onblock.flight.ended" and not runs:
            log.warning("the flight end of %s starts no run: no job of that device is deployed and switched on",
                        event["resource"]["prefect.resource.id"])  # fmt: skip
        sent = {key: value for key, value in event.items() if key != "tags"}
        self.call("/events", [sent | {"payload": event["payload"] | {"runs": runs}}])
        return runs
