"""The environment of what `onblock up` starts: what Prefect's server, workers and clients are told by it.

Which processes there are is in `up.py`; what a fleet has besides, in `fleet.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from blocks.home import home

LEASES = "prefect.server.concurrency.lease_storage.filesystem"
"""Where the server keeps held slots. In memory, the default, a restart of the server leaks them for ever."""
HOUR, DAY = 3600, 86_400
SEEN_FOR = {"onblock.device.status": HOUR, "onblock.device.seen": HOUR, "prefect.flow-run.heartbeat": DAY}
"""So many seconds events stay that come all the time; what comes now and then stays for 7 days. A device tells its status
every 10 s and is seen every 20 s, 13 million a day for a thousand; the console looks back ten minutes."""
SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
    # written once a second, not with each event: a task that asks for its slot at that moment would find SQLite
    # busy, get a 503 and sleep 2 s (measured: 3 of 5 shipments)
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    # runs that ended 90 days ago go, with their tasks, logs and artifacts: else they stay for ever. What became of files is
    # in the ledger, which knows a webhook again as long
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(90 * DAY),
    "PREFECT_SERVER_SERVICES_DB_VACUUM_EVENT_RETENTION_OVERRIDES": json.dumps(SEEN_FOR, separators=(",", ":")),
    "PREFECT_SERVER_SERVICES_DB_VACUUM_BATCH_SIZE": "1000",
}
"""For the server and its services."""
WORKER = {
    "PREFECT_WORKER_QUERY_SECONDS": "0.5",  # default 10: a flight would wait that long for its transfer
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",  # said by a server whose database or Redis is restarted; 503 is there anyway
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # without heartbeats a run cut off by a power failure is Running for ever
}
"""For workers and the runs that they start."""


def environment(given: Mapping[str, str], host: str, port: int, url: str) -> dict[str, str]:
    """The environment for server, bootstrap and worker. What the user set stays, except the address of the API."""
    # the page in the browser calls the API where these say, whatever `--port` says
    return with_defaults(given, SERVER) | {
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": str(port),
    }


def with_defaults(given: Mapping[str, str], more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What anything of onblock's that speaks with Prefect is told, and `more`, where the user did not say otherwise."""
    own = {"ONBLOCK_HOME": str(home()), "PREFECT_HOME": str(home() / "prefect"), "DO_NOT_TRACK": "1"}
    env = {**own, **WORKER, **(more or {}), **given}
    if login := env.get("PREFECT_SERVER_API_AUTH_STRING"):
        env.setdefault("PREFECT_API_AUTH_STRING", login)
    return env


def reachable(host: str) -> str:
    """`host` as it stands in a URL: a server on all addresses is reached on the loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
