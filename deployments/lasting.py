"""Prefect's clients, made to outlast a restart of its server: in workers, and in the runs that they start.

A client tries again for a minute when its server does not answer (`PREFECT_CLIENT_MAX_RETRIES`), but takes a refused
connection for a wrong address until it was connected once. A run makes a new client for each task, and its worker one that
is first used when something is wrong: both would fail in the moment in which the server is restarted. Whoever works off
what the server has told knows that the address is right.
"""

from __future__ import annotations

from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient


def outlast_restarts() -> None:
    """From now on, a refused connection is no end for any client of this process."""
    for cls in (PrefectHttpxAsyncClient, PrefectHttpxSyncClient):
        cls._has_connected = property(lambda _: True, lambda _, value: None)  # pyright: ignore[reportAttributeAccessIssue]
