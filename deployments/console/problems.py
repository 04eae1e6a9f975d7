"""Errors of the API as RFC 9457 has them: `application/problem+json` with type, title, status, detail; of failures of ours
also `kind` and `remedy`, as `blocks/errors.py` tells them. Never a stack, never a secret.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from blocks import names
from blocks.errors import Kind, OnblockError
from deployments.console.prefect_api import Refused

log = logging.getLogger("onblock.console")

STATUS: dict[Kind, int] = {
    Kind.CONFIG: 409, Kind.NOT_FOUND: 404, Kind.NETWORK: 503, Kind.DISK_FULL: 507, Kind.PERMISSION: 503,
    Kind.AUTH: 503, Kind.CORRUPT: 503,
}  # fmt: skip
"""What a failure of ours is in HTTP; 503 where nothing else is said."""


class Problem(HTTPException):
    """A refusal that we word ourselves."""

    def __init__(self, status: int, detail: str, **more: Any):
        super().__init__(status, detail)
        self.more = more


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """The answer."""
    title = HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": names.display(detail), **more}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def status_of(error: OnblockError) -> int:
    """The HTTP status of a failure of ours."""
    return STATUS.get(error.kind, 503)


AsPage = Callable[[Request, int, str], Response]
"""Makes a page of a status and a sentence."""


Answer = Callable[[Request, Exception], Awaitable[Response]]
"""Answers a request in which something went wrong."""


def register(app: FastAPI, as_page: AsPage) -> Answer:
    """Answer so wherever something goes wrong; with a page where a browser has asked for one. What is returned answers
    all the rest: that is for the guard, who sees to it that these answers, too, are dressed and written down."""

    def answered(
        request: Request, status: int, detail: str, head: dict[str, str] | None = None, **more: Any
    ) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "") and "hx-request" not in request.headers
        if wants_page and not request.url.path.startswith(("/api/", "/hooks/", "/static/")):
            return as_page(request, status, detail)
        return problem(status, detail, head, **more)

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, OnblockError)
        status = status_of(error)
        head = {"Retry-After": "5"} if status == 503 else None
        what = error.what + (f": {error.path}" if error.path else "")
        return answered(request, status, what, head, kind=error.kind.value, remedy=error.todo)

    async def refused(request: Request, error: Exception) -> Response:
        log.warning("%s", error)
        detail = "the Prefect server refused it; the console's log says why"
        return answered(request, 502, detail, kind=Kind.CONFIG.value)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        more = error.more if isinstance(error, Problem) else {}
        return answered(request, error.status_code, str(error.detail), dict(error.headers or {}), **more)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        wrong = [{"where": ".".join(map(str, e["loc"])), "what": e["msg"]} for e in error.errors()]
        return problem(422, "; ".join(f"{w['where']}: {w['what']}" for w in wrong), errors=wrong)

    async def other(request: Request, error: Exception) -> Response:
        if isinstance(error, OnblockError):
            return await ours(request, error)
        log.error("%s %s", request.method, names.display(request.scope["path"])[:300], exc_info=error)
        return answered(request, 500, "that is a defect; the console's log has its trace")

    app.add_exception_handler(OnblockError, ours)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    return other
