"""`onblock migrate`, or `python -m deployments.migrate`: brings the ledger and Prefect's database to this version, and frees
slots that nobody holds.

Once for all hosts, while no server runs: two servers that did it at their start would be in each other's way. How to go
back is told in `docs/fleet.md`. `onblock up --profile fleet` does this first; the embedded server does it by itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING
from uuid import UUID

from blocks.errors import OnblockError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

MOST = 100_000
"""Leases; there is one for each task that is at work."""


def main() -> int:
    """The command; 0, or 2 with a message where a database is not fit for it."""
    from deployments.fleet import reach_what_servers_need
    from flows.ledger import Ledger
    from flows.ledger.migrate import HEAD

    try:
        remarks = reach_what_servers_need(os.environ)
        Ledger.open().close()
    except OnblockError as error:
        print(f"migrate: {error}", file=sys.stderr)
        return 2
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    print(f"the ledger is at {HEAD}", flush=True)
    freed = asyncio.run(_prefect())
    print("Prefect's database is up to date")
    for name, slots in freed.items():
        print(f"{name}: {slots} slots that nobody holds are free again")
    return 0


async def _prefect() -> dict[str, int]:
    """All of it; how many slots were freed, by limit."""
    from prefect.server.database import provide_database_interface

    database = provide_database_interface()
    await database.create_db()
    async with await database.session() as session:
        await _block_types(session)
        freed = await _free_slots(session)
        await session.commit()
    return freed


async def _block_types(session: AsyncSession) -> None:
    """Those that Prefect brings, as its server makes them at its start."""
    from prefect.server.models.block_registration import run_block_auto_registration

    await run_block_auto_registration(session=session)


async def _free_slots(session: AsyncSession) -> dict[str, int]:
    """A slot is counted in the database, and who holds it is told by a lease, which Redis has. After a restore of the one
    or a loss of the other, slots are counted that no lease will ever give back."""
    from prefect.server.concurrency.lease_storage import get_concurrency_lease_storage
    from prefect.server.database.orm_models import ConcurrencyLimitV2
    from sqlalchemy import select

    leases, held = get_concurrency_lease_storage(), Counter[UUID]()
    ids = await leases.read_expired_lease_ids(limit=MOST)  # their slots are given back by a service of the server
    ids += await leases.read_active_lease_ids(limit=MOST)
    for one in ids:
        if lease := await leases.read_lease(one):
            held.update(dict.fromkeys(lease.resource_ids, lease.metadata.slots if lease.metadata else 1))
    freed: dict[str, int] = {}
    for limit in await session.scalars(select(ConcurrencyLimitV2).with_for_update()):
        if (more := int(limit.active_slots) - held[limit.id]) > 0:
            freed[limit.name] = more
            limit.active_slots = held[limit.id]
    return freed


if __name__ == "__main__":
    sys.exit(main())
