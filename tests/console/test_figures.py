"""What the overview and Prometheus are told: by runs as they really end, of jobs and of upkeep, and while the ledger is away."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from blocks.errors import NotFound
from blocks.storage import LocalStorage
from deployments.console.access import Role
from deployments.console.pages import NAV
from flows.ledger import Ledger, State
from flows.transfer.run import TransferRun
from flows.upkeep.retention import retain
from flows.upkeep.scrub import scrub
from tests.console.conftest import Site
from tests.deployments.conftest import until
from tests.servers import postgres
from tests.transfer.conftest import Bench
from tests.upkeep.conftest import Yard
from tests.upkeep.test_by_mistake import damage

ALERTS = Path(__file__).parents[2] / "deployments" / "console" / "alerts.yaml"


def told(site: Site) -> dict[str, Any]:
    """The summary as it is now."""
    site.office.figures.cached.forget()
    site.office.figures.now(180)
    answer = site.program(Role.VIEWER).get("/api/v1/stats/summary")
    assert answer.status_code == 200, answer.text
    return answer.json()


def metrics(site: Site) -> dict[str, list[Any]]:
    """Samples by name."""
    answer = site.program(Role.VIEWER).get("/metrics")
    assert answer.status_code == 200, answer.text
    return {f.name: f.samples for f in text_string_to_metric_families(answer.text)}


# -- runs as they end ---------------------------------------------------------------------------------------------


def test_upkeep_is_no_delivery_and_no_success(site: Site, tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    yard.keys |= {"name": "upkeep", "cleanup": {"action": "backup", "backup_folder": "old"}}
    for name in "abcd":
        yard.put(name, name.encode() * 10)
    yard.proven()
    before = told(site)
    assert yard.clean()["cleaned"] == 4
    limits = {"backup": {"max_files": 2}, "delivered": {"max_files": 3}}
    kept = retain(yard.job(retention=limits))
    assert (kept["removed"], [d["removed"] for d in kept["delivered"]]) == (2, [1])
    damage(yard.archive / "c")
    assert [d["path"] for d in scrub(yard.job(), part="1/1")["damaged"]] == ["c"]

    now = told(site)
    assert (sum(h["files"] for h in now["hours"]), sum(h["bytes"] for h in now["hours"])) == (4, 40)
    assert now["last"] == before["last"]
    (last,) = now["last"]
    assert last["job"] == "upkeep" and last["succeeded_at"] == last["ended_at"] is not None
    assert now["failures"] and not now["stale"]
    browser = site.browser()
    assert {path: browser.get(path).status_code for path, _ in NAV} == {path: 200 for path, _ in NAV}
    assert [s.value for s in metrics(site)["onblock_delivered_bytes_30d"]] == [40]


def test_what_goes_to_two_places_fills_neither_twice(site: Site, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.put("a", bytes(7_000_000))
    (tmp_path / "second").mkdir()
    both = [LocalStorage(root=str(bench.archive)), LocalStorage(root=str(tmp_path / "second"))]
    assert bench.run(destinations=both)["bytes"] == 14_000_000
    (disk,) = told(site)["disks"]
    assert disk["free"] / disk["days_left"] == pytest.approx(2_000_000, rel=0.01)  # both are on this disk


def test_a_run_that_is_broken_off_is_no_success(site: Site, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.put("DCIM/a")
    assert bench.run(folder="DCIM")["delivered"] == 1
    before = told(site)["last"][0]
    (bench.card / "DCIM").rename(bench.card / "elsewhere")
    with pytest.raises(NotFound):
        bench.run(folder="DCIM")
    after = told(site)["last"][0]
    assert after["succeeded_at"] == before["succeeded_at"] == before["ended_at"] < after["ended_at"]

    for number, error in enumerate((SystemExit(143), RuntimeError("with a secret in it"))):
        job = bench.job(name=f"broken-off-{number}")
        with pytest.raises(type(error)), TransferRun(job, site.ledger) as run:
            raise error
        assert run.problems == [f"the run was broken off ({type(error).__name__})"]
    assert {o["job"]: o["succeeded_at"] for o in told(site)["last"] if o["job"] != "job"} == {
        "broken-off-0": None, "broken-off-1": None,
    }  # fmt: skip


# -- a ledger that is away ----------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[postgres.Postgres]:
    """A PostgreSQL of this test's own, to be stopped."""
    folder = tmp_path_factory.mktemp("own-postgres")
    # the server's user must reach it
    for one in (
        folder,
        *(p for p in folder.parents if p.is_relative_to(tempfile.gettempdir()) and p != Path(tempfile.gettempdir())),
    ):
        one.chmod(one.stat().st_mode | 0o755)
    with postgres.Postgres(folder / "server") as server:
        yield server


def test_numbers_of_a_ledger_that_is_away_are_not_told_as_new(
    database: postgres.Postgres, onblock_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONBLOCK_LEDGER_URL", database.info["url"])
    with Ledger.open() as ledger:
        site = Site(ledger, onblock_home / "console")
        site.rows(("a", State.QUEUED), ("b", State.FAILED))
        first = metrics(site)
        assert [s.value for s in first["onblock_ledger_up"]] == [1]
        counted = first["onblock_counted_timestamp_seconds"][0].value
        known = told(site)
        assert known["stale"] is None

        database.stop()

        def away() -> dict[str, Any] | None:
            now = metrics(site)
            return now if now["onblock_ledger_up"][0].value == 0 else None

        now = until("a word about it", away)
        assert not {"onblock_files", "onblock_queue_age_seconds", "onblock_last_success_timestamp_seconds"} & now.keys()
        assert now["onblock_counted_timestamp_seconds"][0].value >= counted
        answer = site.program(Role.VIEWER).get("/api/v1/stats/summary").json()
        assert "does not answer" in answer["stale"]
        assert answer["totals"] == known["totals"]

        database.start()

        def back() -> bool:
            site.office.figures.cached.forget()
            return bool(metrics(site)["onblock_ledger_up"][0].value)

        until("new numbers", back)
        assert told(site)["stale"] is None


def test_a_ledger_that_never_answered_is_told_too(
    database: postgres.Postgres, onblock_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONBLOCK_LEDGER_URL", database.info["url"])
    with Ledger.open() as ledger:
        database.stop()
        site = Site(ledger, onblock_home / "console")
        assert [s.value for s in metrics(site)["onblock_ledger_up"]] == [0]
        assert site.program(Role.VIEWER).get("/api/v1/devices").json() == []
        database.start()


# -- rules for Prometheus -----------------------------------------------------------------------------------------


def test_jobs_without_success_are_there_with_zero(site: Site, tmp_path: Path) -> None:
    site.rows(("a", State.QUEUED), job="never-ran")
    bench = Bench(tmp_path)
    with pytest.raises(NotFound):
        bench.run(name="never-well", folder="gone")
    bench.put("a")
    bench.run(name="well")
    told(site)
    found = metrics(site)

    def of(name: str) -> dict[str, bool]:
        return {s.labels["onblock_job"]: bool(s.value) for s in found[f"onblock_last_{name}_timestamp_seconds"]}

    assert of("success") == {"never-ran": False, "never-well": False, "well": True}
    assert of("run") == {"never-ran": False, "never-well": True, "well": True}


def test_the_rules_name_what_there_is(site: Site, onblock_home: Path) -> None:
    """Every name and label of the example is one of ours, and no label of ours is one of Prometheus' own."""
    site.rows(("a", State.FAILED), ("b", State.QUEUED))
    (onblock_home / "agent").mkdir()
    status = {
        "device": "cam-1", "battery": {"percent": 7.0},
        "recording": {"streams": {"video": {"dropped": {"queue": 3}}}},
    }  # fmt: skip
    (onblock_home / "agent" / "status.json").write_text(json.dumps(status))
    labels = {name: {k for s in samples for k in s.labels} for name, samples in metrics(site).items()}
    assert not {"job", "instance"} & {label for some in labels.values() for label in some}
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    for rule in rules:
        names = set(re.findall(r"\bonblock_\w+", re.sub(r"by \(.*?\)", "", rule["expr"]))) or {"up"}
        have = set.intersection(*(labels[name] for name in names - {"up"})) if names != {"up"} else set()
        asked = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        for some in re.findall(r"by \((.*?)\)", rule["expr"]):
            asked |= set(some.split(", "))
        assert asked <= have, rule["alert"]
