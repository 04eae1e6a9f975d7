"""What Prefect's database keeps: runs that ended long ago go with all that is theirs, and events that come all the time soon."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deployments.server_settings import environment

RUNS = {
    "old": ("COMPLETED", 91, None), "young": ("COMPLETED", 89, None), "waits": ("SCHEDULED", 91, None),
    "hand": ("COMPLETED", 91, "old"),
}  # fmt: skip
"""State, since how many days, and whose hand."""
EVENTS = {
    "told before": ("onblock.device.status", 2), "told now": ("onblock.device.status", 0),
    "seen before": ("onblock.device.seen", 2), "heartbeat": ("prefect.flow-run.heartbeat", 2),
    "beat before": ("prefect.flow-run.heartbeat", 25), "flight": ("onblock.flight.ended", 25),
    "flight before": ("onblock.flight.ended", 8 * 24),
}  # fmt: skip
"""Event, and how many hours ago."""


@pytest.mark.timeout(300)
def test_what_is_old_goes(tmp_path: Path) -> None:
    """Prefect's own service, told what `onblock up` and server.env tell it, on a database of its own."""
    given = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    env = environment(given, "127.0.0.1", 4200, "http://127.0.0.1:4200")
    env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.deployments.test_vacuum"], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout.splitlines()[-1])
    assert left["on"] == ["events", "flow_runs", "orphans"]
    assert left["runs"] == left["logs"] == left["artifacts"] == ["waits", "young"]
    assert left["tasks"] == [], "the hand was hired by a task of the run that went"
    assert left["events"] == ["flight", "heartbeat", "told now"]


async def _vacuum() -> dict[str, Any]:
    """Plant, let it work, and tell what is left."""
    import sqlalchemy as sa
    from prefect.server.database import provide_database_interface
    from prefect.server.services import db_vacuum
    from prefect.settings import get_current_settings

    db, now = provide_database_interface(), datetime.now(UTC)
    await db.create_db()
    ids = {name: uuid.uuid4() for name in RUNS}
    async with db.session_context(begin_transaction=True) as session:
        flow = db.Flow(name="transfer")
        session.add(flow)
        await session.flush()
        hired: dict[str, uuid.UUID] = {}
        for name, (state, days, leader) in RUNS.items():
            at = now - timedelta(days=days)
            session.add(db.FlowRun(
                id=ids[name], name=name, flow_id=flow.id, state_type=state, start_time=at,
                end_time=at if state == "COMPLETED" else None, parent_task_run_id=hired[leader] if leader else None,
            ))  # fmt: skip
            await session.flush()
            if name == "old":
                task = db.TaskRun(flow_run_id=ids[name], task_key="deliver", dynamic_key="0", name="deliver")
                session.add(task)
                await session.flush()
                hired[name] = task.id
            session.add(db.Log(flow_run_id=ids[name], name="onblock", level=20, message=name, timestamp=at))
            session.add(db.Artifact(flow_run_id=ids[name], data=name))
        for name, (event, hours) in EVENTS.items():
            session.add(db.Event(
                id=uuid.uuid4(), event=event, occurred=now - timedelta(hours=hours), received=now, recorded=now,
                resource_id=name, resource={"prefect.resource.id": name}, related_resource_ids=[], related=[], payload={},
            ))  # fmt: skip
    await db_vacuum.vacuum_old_flow_runs(db=db)
    await db_vacuum.vacuum_old_flow_runs(db=db)  # an hour later: nobody has hired the hand any more
    await db_vacuum.vacuum_events_with_retention_overrides(db=db)
    await db_vacuum.vacuum_old_events(db=db)
    async with db.session_context() as session:

        async def names(column: Any) -> list[str]:
            return sorted(map(str, (await session.execute(sa.select(column))).scalars()))

        return {
            "on": sorted(get_current_settings().server.services.db_vacuum.enabled_vacuum_types),
            "runs": await names(db.FlowRun.name), "logs": await names(db.Log.message),
            "artifacts": await names(db.Artifact.data), "tasks": await names(db.TaskRun.name),
            "events": await names(db.Event.resource_id),
        }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_vacuum())))
