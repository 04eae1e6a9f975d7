"""One job, two hosts: both move its files, and one that loses its power has its part taken over by the other."""

from __future__ import annotations

from tests.deployments.conftest import until
from tests.hosts.conftest import Fleet
from tests.hosts.test_links import MIB, Job


def test_a_host_that_helps_loses_its_power(fleet: Fleet) -> None:
    job = Job(
        fleet, "crew", {f"{n:02}.mp4": 4 * MIB for n in range(12)},
        shipping={"large": 1 * MIB, "at_once": 1, "workers": 2},
    )  # fmt: skip
    for host in (fleet.a, fleet.b):
        fleet.worker(host, 0, 1)
    fleet.hosts["device"].slow(1 * MIB)
    run = fleet.begin(job.name)

    def at_work() -> dict[bool, str]:
        """By whether they help: the hosts of runs that are moving a file."""
        found = fleet.ask(
            "SELECT DISTINCT r.worker, r.leader_id FROM runs r JOIN files f ON f.run_id = r.id "
            "WHERE r.job = %s AND r.ended_at IS NULL AND f.state = 'DELIVERING'", job.name,
        )  # fmt: skip
        return {r["leader_id"] is not None: r["worker"].partition("/")[0] for r in found}

    hosts = until("two hosts that move files", lambda: len(at_work()) == 2 and at_work(), told=fleet.said)
    assert set(hosts.values()) == {"worker-a", "worker-b"}
    fleet.hosts[hosts[True]].power_cut()
    fleet.hosts["device"].slow(None)
    done = job.completed(run)
    assert done.run_count == 1 and done.state is not None and done.state.message == "12 delivered", done.state
    job.all_arrived_once()
    assert max(r["attempt"] for r in fleet.rows(job.name)) == 2, "what the dead one had in hand"
