"""`onblock migrate`, or `python -m deployments.migrate`: brings the ledger and Prefect's database to this version.

Once for all hosts, while no server runs: two servers that did it at their start would be in each other's way. How to go
back is told in `docs/fleet.md`. `onblock up --profile fleet` does this first; the embedded server does it by itself.
"""

from __future__ import annotations

import asyncio
import sys

from blocks.errors import OnblockError


def main() -> int:
    """The command; 0, or 2 with a message where a database is not fit for it."""
    from flows.ledger import Ledger
    from flows.ledger.migrate import HEAD

    try:
        Ledger.open().close()
    except OnblockError as error:
        print(f"migrate: {error}", file=sys.stderr)
        return 2
    print(f"the ledger is at {HEAD}", flush=True)
    asyncio.run(_prefect())
    print("Prefect's database is up to date")
    return 0


async def _prefect() -> None:
    """Its tables, and the block types that Prefect brings, as its server makes them at its start."""
    from prefect.server.database import provide_database_interface
    from prefect.server.models.block_registration import run_block_auto_registration

    database = provide_database_interface()
    await database.create_db()
    async with await database.session() as session:
        await run_block_auto_registration(session=session)
        await session.commit()


if __name__ == "__main__":
    sys.exit(main())
