"""The console's web application and its process: pages, API, metrics, webhooks, and the watcher of devices beside them."""

from __future__ import annotations

import argparse
import logging
import resource
import sys
from asyncio import constants as asyncio_constants
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Response
from fastapi.staticfiles import StaticFiles

from blocks.errors import ConfigError
from deployments.console import api, config, media, metrics, pages, problems
from deployments.console.access import People, Sessions, Throttle
from deployments.console.aside import Marks
from deployments.console.connections import HEAD_S, MOST, Hurried, Proxied
from deployments.console.desk import Desk
from deployments.console.guard import Guard
from deployments.console.office import Office
from deployments.console.outside import DIRECT, Outside, public_origin
from deployments.console.pictures import Pictures
from deployments.console.prefect_api import PrefectApi
from deployments.console.presence import Presence
from deployments.console.pulse import Pulse
from deployments.console.server_view import ServerView
from deployments.console.webhooks import routes
from flows.ledger import Ledger
from flows.ledger.hooks import Hooks

if TYPE_CHECKING:
    import uvicorn

PATIENCE_S = 2.0
"""So long a ledger that is away is waited for; who sends webhooks waits with us."""
LAST_S = 2
"""So long connections are waited for at the end."""
STATIC = Path(__file__).with_name("static")


def create_app(
    desk: Desk, office: Office, people: People, presence: Presence | None = None, *, outside: Outside = DIRECT
) -> FastAPI:  # fmt: skip
    """The application, as it is seen from `outside`. FastAPI's own documentation pages are off: they would load scripts
    from elsewhere. A slash too many is no redirection: that would go to whatever Host says."""
    pulse, pictures = Pulse(office.listing), Pictures()

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        desk.start()
        office.figures.cached.want()
        if presence is not None:
            presence.start()
        yield
        office.server.dry_runs.close()
        await pulse.close()
        pictures.close()
        if presence is not None:
            presence.stop()
        desk.stop()

    app = FastAPI(
        title="onblock", version="1", lifespan=life, redirect_slashes=False, docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json",
        description="Transfers, jobs, devices and recordings. Send `Authorization: Bearer TOKEN`; `onblock access add` makes one.",
    )  # fmt: skip
    show = pages.Shown(office)
    trouble = problems.register(app, show.trouble)
    app.add_middleware(
        Guard, people=people, sessions=Sessions(people), throttle=Throttle(), audit=office.audit, outside=outside,
        trouble=trouble,
    )  # fmt: skip
    app.include_router(routes(desk), include_in_schema=False)
    app.include_router(api.routes(office, pulse))
    app.include_router(config.routes(office))
    marks = Marks(people.folder / "aside.json", office.listing)
    connected = (lambda: presence.seen) if presence is not None else dict
    app.include_router(pages.routes(office, show, marks, connected), include_in_schema=False)
    app.include_router(media.routes(office, pictures), include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.api_route("/health", methods=["GET", "HEAD"], include_in_schema=False)
    async def health() -> dict[str, bool]:
        """Whether the console is there, however busy its threads are."""
        return {"ok": True}

    @app.get("/metrics", include_in_schema=False)
    def told() -> Response:
        """For Prometheus."""
        return Response(metrics.told(office), media_type=metrics.CONTENT_TYPE)

    return app


def _no_line_of_a_stranger(record: logging.LogRecord) -> bool:
    """Whether a line of the server's is for the log: not what anybody can have written there, as often as he likes."""
    return not record.getMessage().startswith(("Invalid HTTP request received", "Exceeded concurrency limit"))


def server_config(
    app: FastAPI, host: str, port: int, outside: Outside = DIRECT, cert: Path | None = None, key: Path | None = None
) -> uvicorn.Config:
    """How it is served: a head or a body that does not end is not waited for, and nobody has all connections."""
    import uvicorn

    asyncio_constants.SSL_HANDSHAKE_TIMEOUT = HEAD_S  # type: ignore[misc] - uvicorn has no word for it
    logging.getLogger("uvicorn.error").addFilter(_no_line_of_a_stranger)
    return uvicorn.Config(
        app, host=host, port=port, access_log=False, log_level="warning", server_header=False, proxy_headers=False,
        limit_concurrency=MOST, http=Proxied if outside.public else Hurried, timeout_graceful_shutdown=LAST_S,
        timeout_keep_alive=75 if outside.public else 5,  # longer than a proxy keeps a connection that is not used
        ssl_certfile=cert, ssl_keyfile=key,
    )  # fmt: skip


def main() -> None:
    """The process, until a signal ends it."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Pages and API for people and programs; webhooks; watches devices.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4280)
    parser.add_argument("--tls-cert", type=Path, help="certificate and chain, PEM")
    parser.add_argument("--tls-key", type=Path, help="its key, PEM")
    parser.add_argument("--public-url", help="what browsers have in their address line, where that is a proxy's")
    parser.add_argument("--ui", help="where people find Prefect's UI")
    given = parser.parse_args()
    if bool(given.tls_cert) != bool(given.tls_key):
        parser.error("--tls-cert and --tls-key go together")
    try:
        public = public_origin(given.public_url) if given.public_url else None
    except ConfigError as error:
        parser.error(f"{error.what}: {error.todo}")
    outside = Outside(public, bool(given.tls_cert))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # sockets
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("onblock").setLevel(logging.INFO)
    log = logging.getLogger("onblock.console")
    people = People()
    if (token := people.first_start()) is not None:
        print(f"the token of the console's admin is in {token}", file=sys.stderr, flush=True)
    if given.host not in ("127.0.0.1", "::1", "localhost") and not given.tls_cert:
        log.warning("the console listens on %s without TLS: tokens can be read on the way", given.host)
    with Ledger.open() as ledger:
        hooks = Hooks(ledger.engine)
        hooks.patience_s = PATIENCE_S
        prefect = PrefectApi.of_the_environment()
        desk = Desk(hooks, prefect)
        office = Office(ledger, ServerView(prefect, given.ui), people.audit)
        app = create_app(desk, office, people, Presence(desk), outside=outside)
        server = uvicorn.Server(server_config(app, given.host, given.port, outside, given.tls_cert, given.tls_key))
        with suppress(KeyboardInterrupt):
            server.run()
        prefect.close()
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    main()
