"""A fleet of two API servers, services, two workers and a console, on PostgreSQL and Redis: it delivers, and goes on when
one of these is away for 20 s in the middle of a job."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from prefect.client.orchestration import SyncPrefectClient

from deployments.server import ALL_TAG
from tests.deployments.conftest import until
from tests.fleet.conftest import Fleet, Job, create

pytestmark = pytest.mark.timeout(900)

MakeJob = Callable[..., Job]
AWAY_S = 20.0
MIB = 1 << 20


def nobody_holds_a_slot(client: SyncPrefectClient) -> None:
    def held() -> float:
        return client.read_global_concurrency_limit_by_name(f"tag:{ALL_TAG}").active_slots

    until("slots that are all free", lambda: held() == 0, told=lambda: f"{held()} are held")


def test_a_job_is_delivered_by_a_worker_of_the_fleet(
    fleet: Fleet, client: SyncPrefectClient, make_job: MakeJob
) -> None:
    job = make_job("plain", 3, 1000)
    job.deploy()
    done = job.finished(client, job.begin(client))
    assert (done.state.name, done.state.message) == ("Completed", "3 delivered"), done.state
    job.check()


def _api(fleet: Fleet) -> tuple[Callable[[], object], Callable[[], object]]:
    return lambda: fleet.stop("onblock-api"), lambda: (fleet.start("onblock-api"), fleet.answers())


OUTAGES: dict[str, Callable[[Fleet], tuple[Callable[[], object], Callable[[], object]]]] = {
    "api": _api,
    "redis": lambda fleet: (fleet.redis.stop, fleet.redis.start),
    "postgres": lambda fleet: (fleet.postgres.stop, fleet.postgres.start),
}


@pytest.mark.parametrize("what", OUTAGES)
def test_a_job_goes_on_when_a_server_was_away(
    fleet: Fleet, client: SyncPrefectClient, make_job: MakeJob, what: str
) -> None:
    """It is slowed down so that it is under way, and has shipments to begin, all the time."""
    job = make_job(f"away-{what}", 30, MIB, bandwidth={"up": "1 MiB"}, shipping={"max_files": 2})
    job.deploy()
    run = job.begin(client)
    until("the first files", lambda: job.look() >= 2, told=fleet.told)
    stop, start = OUTAGES[what](fleet)
    stop()
    gone = time.monotonic()
    assert job.look() < len(job.contents) - 4
    while time.monotonic() - gone < AWAY_S:
        job.look()
        time.sleep(0.2)
    start()
    done = job.finished(client, run)
    assert (done.state.name, done.state.message) == ("Completed", "30 delivered"), f"{done.state}\n{fleet.told()}"
    job.check()
    nobody_holds_a_slot(client)


def test_a_fleet_is_restored_from_a_backup(fleet: Fleet, client: SyncPrefectClient, make_job: MakeJob) -> None:
    """Taken in the middle of a job, as `docs/fleet.md` says; then the job ends, and both databases and Redis are lost. The
    ledger is older than the archive then: the job goes on, and takes what is there as delivered."""
    from flows.ledger import Ledger

    job = make_job("restored", 16, MIB, bandwidth={"up": "2 MiB"}, shipping={"max_files": 2})
    job.deploy()
    run = job.begin(client)
    until("the first files", lambda: job.look() >= 4, told=fleet.told)
    for name in ("ledger", "prefect"):
        fleet.postgres.run("pg_dump", "--format=custom", f"--file={fleet.folder}/{name}.dump", fleet.database(name))
    assert job.look() < len(job.contents)
    job.finished(client, run)
    job.check()

    fleet.stop(*reversed(list(fleet.parts)))
    fleet.redis.stop()
    for file in fleet.redis.folder.glob("appendonlydir/*"):
        file.unlink()
    fleet.redis.start()
    create(fleet, "ledger", "prefect", drop=True)
    for name in ("ledger", "prefect"):
        fleet.postgres.run(
            "pg_restore", "--no-owner", f"--dbname={fleet.database(name)}", f"{fleet.folder}/{name}.dump"
        )
    with Ledger.open(fleet.database("ledger")) as ledger:
        behind = [row["state"] for row in ledger.files() if row["job"] == job.name]
        assert len(behind) == 16 and behind.count("VERIFIED") < 16
    fleet.run("migrate")
    fleet.up()

    def proven() -> bool:
        """By the run that was under way then, which is taken for dead and started again, or by another."""
        job.finished(client, job.begin(client))
        with Ledger.open(fleet.database("ledger")) as ledger:
            return {row["state"] for row in ledger.files() if row["job"] == job.name} == {"VERIFIED"}

    until("a ledger that knows all of it", proven, told=fleet.told)
    job.check(attempts=None)
    nobody_holds_a_slot(client)
