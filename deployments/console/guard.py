"""Before anything of the console is reached: who asks, whether he may, and whether it is he who asks and not a page from
elsewhere. What is not named here as open is closed: a route that is added later needs a person, one that changes
something an operator. What people and sessions are is in `access.py`; webhooks see for themselves who sends them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blocks import names
from deployments.console.access import LOG_INS, People, Person, Role, Sessions, Throttle
from deployments.console.audit import Audit, Refusals
from deployments.console.connections import MOST_OF_ONE
from deployments.console.outside import Outside, household
from deployments.console.problems import Answer, Problem, problem

log = logging.getLogger("onblock.console")

OPEN = frozenset({"/health", "/login"})
"""Paths for everybody."""
OPEN_BELOW = ("/static/", "/hooks/")
ANYONE_MAY = frozenset({"/logout"})
"""What a viewer may change: his own session."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
MOST_BYTES, MOST_OPEN_BYTES = 1 << 20, 4 << 10
"""Longest body, and longest of what is for everybody; webhooks have a limit of their own."""
SLOW_S = 10.0
"""So long a body may take to arrive."""
CLOSE = {"Connection": "close"}

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none at all a browser would not say where a form comes from, either
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


class Guard:
    """The middleware. `trouble` answers what fails behind it."""

    def __init__(
        self, app: ASGIApp, *, people: People, sessions: Sessions, throttle: Throttle, audit: Audit, outside: Outside,
        trouble: Answer,
    ):  # fmt: skip
        self._app, self._people, self._sessions = app, people, sessions
        self._throttle, self._audit, self._outside, self._trouble = throttle, audit, outside, trouble
        self._log_ins, self._refusals = Throttle(most=LOG_INS), Refusals()
        self._asking: Counter[str] = Counter()  # behind a proxy: requests that are being answered, by address
        self.cookie = "__Host-onblock" if outside.secure else "onblock"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state["guard"] = self
        status = 0

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await self._write_down(scope, state, status)  # before anybody is told that it is done
                head = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    head.setdefault(name, value)
                if (
                    self._outside.alone
                ):  # browsers know no ports: what else is at this name would have to speak TLS, too
                    head.setdefault("strict-transport-security", "max-age=31536000")
                if not scope["path"].startswith("/static/"):
                    head.setdefault("cache-control", "no-store")
            await send(message)

        who = household(self._outside.address(scope)) if self._outside.public else ""
        self._asking[who] += 1
        try:
            if who and self._asking[who] > MOST_OF_ONE:
                answer = problem(429, f"{MOST_OF_ONE} requests of this address are under way", {"Retry-After": "1"})
                await answer(scope, receive, dressed)
            else:
                await self._answer(scope, receive, dressed)
        except asyncio.CancelledError:  # the console ends
            if not status:
                await problem(503, "the console ends", {"Retry-After": "5"})(scope, receive, dressed)
        except Exception as error:
            if status:  # half of an answer is told: that it is no whole one, the connection's end says
                raise
            answer = await self._trouble(Request(scope), error)
            await answer(scope, receive, dressed)
        finally:
            self._asking[who] -= 1
            if not self._asking[who]:
                del self._asking[who]
            if not status:
                await self._write_down(scope, state, 500)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, changes = scope["path"], scope["method"] not in SAFE
        state: dict[str, Any] = scope["state"]
        if {"content-length", "transfer-encoding"} <= set(Headers(scope=scope)):
            # whoever stands before us may have taken for a body what we would take for the next request
            await problem(400, "a body has a Content-Length or a Transfer-Encoding", CLOSE)(scope, receive, send)
            return
        if path.startswith(OPEN_BELOW):
            await self._app(scope, receive, send)
            return
        state["audited"] = changes and path not in OPEN
        app: ASGIApp = self._refusal(scope, path, changes, state) or self._app
        if app is self._app and changes:
            body = await _body(receive, MOST_OPEN_BYTES if path in OPEN else MOST_BYTES)
            if isinstance(body, Response):
                app = body
            else:
                receive = _again(body, receive)
        if app is self._app and state["audited"]:
            try:
                await run_in_threadpool(self._audit.ready)
            except OSError as error:
                app = problem(507, f"what is done cannot be written down, so nothing is: {error.strerror}")
        await app(scope, receive, send)

    async def _write_down(self, scope: Scope, state: dict[str, Any], status: int) -> None:
        """A line for what was done, and, as far as there may be lines of that, for what was refused."""
        if not (state.get("audited") or "refused" in state):
            return
        person: Person | None = state.get("person")
        address, name = self._outside.address(scope), person.name if person else None
        told: dict[str, Any] = {"status": status, "address": address} | state.get("audit", {})
        if status >= 400 or scope["path"] in ANYONE_MAY:
            if (left_out := self._refusals.may(name or household(address))) is None:
                return
            told = {k: v[:20] if isinstance(v, (list, tuple)) else v for k, v in told.items()} | left_out
        what = f"{scope['method']} {scope['path']}"
        if refused := state.get("refused"):
            what, told = refused, told | {"asked": what}
        await run_in_threadpool(self._line, name, what, told)

    def _line(self, who: str | None, what: str, told: dict[str, Any]) -> bool:
        """Whether it could be written."""
        try:
            self._audit.write(who, what, **told)
        except OSError as error:
            text = names.display(f"{who} {what} {told}")[:1000]
            log.error("the audit log cannot be written (%s): %s", error.strerror, text)
            return False
        return True

    def _refusal(self, scope: Scope, path: str, changes: bool, state: dict[str, Any]) -> Response | None:
        """The answer to a request that goes no further; None for one that does, with the person in its state."""
        head = Headers(scope=scope)
        if changes:
            length, most = head.get("content-length"), MOST_OPEN_BYTES if path in OPEN else MOST_BYTES
            if length is None and "transfer-encoding" in head:
                return problem(411, "say how long the body is, by Content-Length", CLOSE)
            if length is not None and (not length.isdigit() or int(length) > most):
                return problem(413, f"the body is longer than {most} bytes", CLOSE)
            if self._outside.is_from_elsewhere(head):
                state["refused"] = "sent by a page from elsewhere"
                return problem(403, "a page from elsewhere has sent this: it is refused")
        if path in OPEN:
            return None
        if (token := _token(head)) is not None:
            return self._by_token(scope, token, path, changes, state)
        renews = changes or head.get("hx-target") != "live"  # a page that is open asks by itself: nobody need be there
        person = None if (secret := self._secret(head)) is None else self._sessions.person(secret, uses=renews)
        if person is None:
            return _who_are_you(path, head, changes)
        if changes and not self._outside.is_from_here(head):
            state["refused"] = "sent by no page of the console"
            return problem(403, "the browser does not say that a page of this console has sent this: it is refused")
        state["person"] = person
        return _may_not(person, path, changes)

    def _by_token(self, scope: Scope, token: str, path: str, changes: bool, state: dict[str, Any]) -> Response | None:
        person = self._people.by_token(token)
        if person is None:
            return self._wrong(scope, state)
        state["person"] = person
        return _may_not(person, path, changes)

    def _wrong(self, scope: Scope, state: dict[str, Any]) -> Response:
        """The answer to a token that is nobody's. A right one is never answered so: others of that address may be wrong."""
        who = household(self._outside.address(scope))
        if wait := self._throttle.wait_s(who):
            state["refused"] = "too many wrong tokens"
            return problem(429, "too many wrong tokens; wait", {"Retry-After": str(int(wait) + 1)})
        self._throttle.count(who)
        state["refused"] = "wrong token"
        return problem(401, "this token is nobody's", {"WWW-Authenticate": "Bearer"})

    # -- log in, log out -----------------------------------------------------------------------------------------------

    def log_in(self, request: Request, token: str) -> Person | Response:
        """Who this token belongs to; or what to answer instead. A file is written: not for the event loop."""
        person = self._people.by_token(token)
        if person is None:
            return self._wrong(request.scope, request.scope["state"])
        if wait := self._log_ins.wait_s(person.name):
            return problem(429, f"{person.name} logs in too often; wait", {"Retry-After": str(int(wait) + 1)})
        self._log_ins.count(person.name)
        if not self._line(person.name, "log in", {"address": self._outside.address(request.scope)}):
            return problem(507, "a log-in cannot be written down, so there is none")
        return person

    def admit(self, request: Request, person: Person, response: Response) -> None:
        """Begin a session, with the cookie in this response; the one that this browser had is over."""
        self._end_session(request)
        self._set_cookie(response, self._sessions.open(person))

    def log_out(self, request: Request, response: Response) -> None:
        """End the session of this request."""
        self._end_session(request)
        self._set_cookie(response, "", max_age=0)

    def still(self, request: Request) -> bool:
        """Whether who has asked may still do so: what is told for hours asks again and again, and keeps no session
        alive by that."""
        if (token := _token(request.headers)) is not None:
            return self._people.by_token(token) is not None
        secret = self._secret(request.headers)
        return secret is not None and self._sessions.person(secret, uses=False) is not None

    def _end_session(self, request: Request) -> None:
        if (secret := self._secret(request.headers)) is not None:
            self._sessions.close(secret)

    def _set_cookie(self, response: Response, secret: str, max_age: int | None = None) -> None:
        response.set_cookie(
            self.cookie, secret, max_age, httponly=True, samesite="lax", secure=self._outside.secure, path="/"
        )

    def _secret(self, head: Headers) -> str | None:
        """What our cookie holds, whatever others there are beside it. Not by Python's parser: it drops all after an odd
        one, and takes a time that grows with the square of what a stranger sends."""
        found = None
        for one in ";".join(head.getlist("cookie")).split(";"):
            name, _, value = one.partition("=")
            if name.strip() == self.cookie:
                found = value.strip()
        return found


def whoever(request: Request) -> Person:
    """The person of a request that has passed the guard: a dependency of routes."""
    return request.state.person


def admin_only(request: Request) -> Person:
    """The same, if it is an admin. Raises Problem 403."""
    person = whoever(request)
    if person.role < Role.ADMIN:
        raise Problem(403, f"that takes an admin; {person.name} is {person.role.name.lower()}")
    return person


def tell_audit(request: Request, **more: Any) -> None:
    """What the audit log is to say of this request besides who, what and when."""
    request.state.audit = getattr(request.state, "audit", {}) | more


def _who_are_you(path: str, head: Headers, changes: bool) -> Response:
    if path.startswith("/api/") or path == "/metrics" or changes or "hx-request" in head:
        answer = problem(401, "log in, or send `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})
        if "hx-request" in head:
            answer.headers["HX-Redirect"] = "/login"
        return answer
    return RedirectResponse(f"/login?next={quote(path)}", 303)


def _may_not(person: Person, path: str, changes: bool) -> Response | None:
    if changes and person.role < Role.OPERATOR and path not in ANYONE_MAY:
        return problem(403, f"that takes an operator; {person.name} is {person.role.name.lower()}")
    return None


def _token(head: Headers) -> str | None:
    """What a program sends. Another scheme is a proxy's affair."""
    scheme, _, token = head.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def _body(receive: Receive, most: int) -> bytes | Response:
    """The whole body, or what to answer instead: nothing behind us waits for who is slow."""
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(SLOW_S):
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return problem(400, "the connection was closed in the middle of the body")
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > most:
                    return problem(413, f"the body is longer than {most} bytes", CLOSE)
    except TimeoutError:
        return problem(408, f"the body did not arrive within {SLOW_S:.0f} s", CLOSE)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body, once more, for those behind."""
    first = True

    async def given() -> Message:
        nonlocal first
        if not first:
            return await receive()
        first = False
        return {"type": "http.request", "body": body, "more_body": False}

    return given
