"""Events for the Prefect server, kept on disk until it has taken them. The server may be away for days.

Each is a file of its own, sent in their order, under an id that makes a second sending harmless. The newest `most` are
kept. The device's status is different: only the newest is worth sending, and none is kept.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from blocks.errors import ConfigError, NetworkError
from deployments import trust
from flows import starts

log = logging.getLogger("onblock.agent")

MOST = 1000
STATUS_EVERY_S = 10.0


NO = (400, 413, 422)
"""Answers of a server that has read the event, and will not have it. Others may be of a portal or a proxy."""
NO_ANSWER = (httpx.HTTPError, httpx.InvalidURL, UnicodeError, OverflowError)
"""What httpx lets through: a host's name that cannot be encoded, a port beyond 65535."""


class Refused(ConfigError):
    """The server will not take it, however often it is sent."""


class Server:
    """A Prefect server by its API, as little of it as the agent needs. Of one thread. `ca` signed its certificate, if that is
    not public. Raises ConfigError for what is no URL, and no CA."""

    def __init__(self, url: str, login: str | None = None, ca: str | None = None):
        try:
            local = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
        except ValueError as error:
            raise ConfigError(f"PREFECT_API_URL is no URL: {error}", path=url) from error
        self.url = url.rstrip("/")
        try:
            self._client = httpx.Client(
                base_url=self.url, timeout=10, trust_env=not local, verify=trust.context(ca) if ca else True,
                auth=tuple(login.split(":", 1)) if login and ":" in login else None,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(f"PREFECT_API_URL is no URL: {error}", path=self.url) from error
        except (OSError, ImportError) as error:  # of SSL_CERT_FILE, of a SOCKS proxy
            raise ConfigError(f"the server cannot be asked: {error}", path=self.url) from error

    def send(self, event: dict[str, Any]) -> None:
        """Give it an event. NetworkError where it is away, not well, or not the one that answers; Refused for a no."""
        self._post("/events", [event], NO)

    def tell(self, event: dict[str, Any]) -> None:
        """Start what waits for an event, and give it the event. May be repeated. Raises as `send`."""

        def post(path: str, body: Any) -> Any:
            if path == "/events":
                return self._post(path, body, NO)
            try:
                return self._post(path, body, starts.NO).json()
            except Refused as error:  # that deployment is gone
                raise starts.Refused(str(error)) from error
            except ValueError as error:
                raise NetworkError("what answers is no Prefect server", path=self.url) from error

        try:
            starts.tell(post, event)
        except (starts.Refused, LookupError, TypeError, AttributeError) as error:
            raise NetworkError(f"what answers is no Prefect server: {error}", path=self.url) from error

    def _post(self, path: str, body: Any, no: tuple[int, ...]) -> httpx.Response:
        try:
            answer = self._client.post(path, json=body)
        except NO_ANSWER as error:
            if trust.refused(error):
                raise NetworkError(
                    f"the Prefect server is not believed: {error}", path=self.url, remedy=trust.remedy(error, "")
                ) from error
            raise NetworkError(f"the Prefect server does not answer ({type(error).__name__})", path=self.url) from error
        if answer.is_success and not _is_page(answer):
            return answer
        if answer.status_code in no:
            raise Refused(
                f"the Prefect server refuses the event: {answer.status_code} {answer.text[:300]}", path=self.url
            )
        # a login can be put right, and a page, a redirect or a 404 is of a captive portal or of a proxy
        what = "a web page" if _is_page(answer) else "not well"
        raise NetworkError(
            f"the Prefect server is {what} ({answer.status_code})", path=self.url,
            remedy="look at PREFECT_API_URL and at the network; the event is kept",
        )  # fmt: skip

    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            answer = self._client.get("/health", timeout=5)
        except NO_ANSWER:
            return False
        return answer.status_code == 200 and not _is_page(answer)

    def has_runs(self, pool: str, within_s: float) -> bool:
        """Whether a worker is wanted: a run of the pool is due so soon, or the pool is gone. It is told that the pool is
        looked after. False where the server does not answer."""
        before = (datetime.now(UTC) + timedelta(seconds=within_s)).isoformat()
        try:
            answer = self._client.post(f"/work_pools/{pool}/workers/heartbeat", json={"name": "agent"})
            if answer.status_code == 404:
                return not _is_page(answer)
            answer = self._client.post(
                f"/work_pools/{pool}/get_scheduled_flow_runs", json={"scheduled_before": before, "limit": 1}
            )
            return answer.is_success and bool(answer.json())
        except (*NO_ANSWER, ValueError):
            return False

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()


def _is_page(answer: httpx.Response) -> bool:
    """Whether it is a web page: Prefect's API has none."""
    return "html" in answer.headers.get("content-type", "").lower() or answer.content.lstrip()[:1] == b"<"


def event(name: str, resource: str, payload: dict[str, Any], device: str = "", once: str = "") -> dict[str, Any]:
    """An event about `resource` as the server takes it, related to a device if one is given. Those of one name that are the
    same `once` have one id: the server takes the first."""
    related = [{"prefect.resource.id": f"onblock.device.{device}", "prefect.resource.role": "device"}] if device else []
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {once}") if once else uuid.uuid4()), "event": name, "occurred": datetime.now(UTC).isoformat(), "payload": payload,
        "resource": {"prefect.resource.id": resource, "prefect.resource.name": resource.split(".", 2)[-1]},
        "related": related,
    }  # fmt: skip


class Outbox:
    """What is to be sent. `put` and `report` from any thread; one thread sends (`run`, or `deliver` by hand)."""

    def __init__(
        self, folder: Path, send: Callable[[dict[str, Any]], None], most: int = MOST, *, least_s: float = 1.0,
        most_s: float = 30.0, status_every_s: float = STATUS_EVERY_S, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self._folder, self._send, self._most, self._clock = folder, send, most, clock
        self._least, self._longest, self._every = least_s, most_s, status_every_s
        self._lock = threading.Lock()
        self._wake, self._again, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._status: dict[str, Any] | None = None
        self._status_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="onblock-outbox", daemon=True)
        self.trouble: str | None = None
        """Why the last sending failed; None after one that did not."""
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, event: dict[str, Any]) -> None:
        """Keep an event until it is sent; it survives a power cut. Raises OSError where the disk will not have it."""
        with self._lock:
            # what records puts its own in, from another process: names do not collide, they hold the id
            number = 1 + max((int(p.name.partition("-")[0]) for p in self._files()), default=0)
            name = f"{number:012d}-{event['id']}.json"
            part = self._folder / f".{name}.part"
            with part.open("w") as file:
                json.dump(event, file)
                file.flush()
                os.fsync(file.fileno())
            part.rename(self._folder / name)
            files = self._files()
            for old in files[: -self._most]:
                log.warning("%d events wait for the server: the oldest is given up, %s", len(files), old.name)
                old.unlink(missing_ok=True)
        self._wake.set()

    def report(self, status: dict[str, Any]) -> None:
        """This is the newest status, as an event; sent when `status_every_s` have passed since the last one."""
        with self._lock:
            self._status = status
        if self._status_at is None or self._clock() - self._status_at >= self._every:
            self._wake.set()

    @property
    def waiting(self) -> int:
        """How many events are kept."""
        return len(self._files())

    def wake(self) -> None:
        """The server may be there again: try now."""
        self._wake.set()
        self._again.set()

    def deliver(self) -> None:
        """Send what is kept, the oldest first, then the newest status if it is due. NetworkError stops it there."""
        while files := self._files():
            self._deliver(files[0])
        with self._lock:
            now, status = self._clock(), self._status
            if status is None or (self._status_at is not None and now - self._status_at < self._every):
                return
            self._status, self._status_at = None, now
        try:
            self._send(status)
        except Refused as error:
            log.error("status: %s", error)

    def _deliver(self, file: Path) -> None:
        try:
            event = json.loads(file.read_text())
        except FileNotFoundError:  # given up meanwhile
            return
        except (OSError, ValueError) as error:  # a disk that failed; the others go on
            log.error("an event cannot be read and is put aside as %s.bad: %s", file.name, error)
            file.rename(file.with_suffix(".bad"))
            return
        try:
            self._send(event)
        except Refused as error:
            log.error("%s: %s", event.get("event"), error)
        file.unlink(missing_ok=True)

    def start(self) -> None:
        """Send from now on."""
        for left in self._folder.glob(".*.part"):  # of a power cut
            left.unlink(missing_ok=True)
        self._thread.start()

    def stop(self, last_s: float = 3.0) -> None:
        """One more sending, if it goes quickly. What is left is sent after the next start."""
        self._stopped.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(last_s)

    def _run(self) -> None:
        failures = 0
        while True:
            last = self._stopped.is_set()
            try:
                self.deliver()
                self.trouble, failures = None, 0
                pause, seconds = self._wake, self._every
            except NetworkError as error:
                if self.trouble is None:
                    log.warning("%s: events are kept until it is back", error)
                self.trouble = str(error)
                # what is put in meanwhile is no reason to try more often
                pause, seconds = self._again, min(self._longest, self._least * 2.0 ** min(failures, 20))
                failures += 1
            except OSError as error:
                self.trouble = f"the disk does not keep events: {error}"
                pause, seconds = self._again, self._longest
            if last:
                return
            pause.wait(seconds)
            self._wake.clear()
            self._again.clear()

    def _files(self) -> list[Path]:
        return sorted(p for p in self._folder.glob("*.json") if p.name.partition("-")[0].isdigit())
