"""Held slots of a fleet: in Redis, by prefect-redis, and waited for while Redis is restarted.

The server takes a slot in its database first and writes down who holds it in Redis then. Where that fails, the slot is
taken for ever, and after four of them no shipment begins any more. So Redis is waited for; whoever asked waits with us.
Named by `PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE` (`fleet.py`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar

from prefect_redis.lease_storage import ConcurrencyLeaseStorage as InRedis
from redis.exceptions import ConnectionError as Refused
from redis.exceptions import TimeoutError as Silent

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger("onblock.leases")

PATIENCE_S = 45.0
"""So long Redis is waited for; a client of Prefect waits 60 s for an answer."""
AGAIN_S = 0.5


def patient(method: Callable[P, CoroutineType[Any, Any, R]]) -> Callable[P, CoroutineType[Any, Any, R]]:
    """Call it again while Redis is away. Each of these may be done twice."""

    @functools.wraps(method)
    async def call(*args: P.args, **keys: P.kwargs) -> R:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await method(*args, **keys)
            except (Refused, Silent) as error:
                if time.monotonic() >= deadline:
                    raise
                log.warning("Redis does not answer: %s; tried again", error)
                await asyncio.sleep(AGAIN_S)

    return call


class ConcurrencyLeaseStorage(InRedis):
    """What Prefect looks for in this module."""

    create_lease = patient(InRedis.create_lease)  # one that was written although nobody heard of it expires by itself
    read_lease = patient(InRedis.read_lease)
    renew_lease = patient(InRedis.renew_lease)
    revoke_lease = patient(InRedis.revoke_lease)
    read_expired_lease_ids = patient(InRedis.read_expired_lease_ids)
    read_active_lease_ids = patient(InRedis.read_active_lease_ids)
    list_holders_for_limit = patient(InRedis.list_holders_for_limit)
