"""The configuration of jobs through the API, on a real server: read, written, deployed at once, whole or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound

from blocks.home import home
from blocks.storage import SftpStorage
from deployments.bootstrap import bootstrap, connect
from deployments.console.access import People, Role
from deployments.deploy import deploy_job
from deployments.server import Report, create_pool
from flows.transfer.job import job_of
from tests.deployments.conftest import end, until
from tests.deployments.test_hooks import start_console
from tests.servers.faultproxy import FaultProxy

NIGHTLY = {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}


def program(url: str) -> httpx.Client:
    token = People().add("boss", Role.ADMIN)
    return httpx.Client(base_url=f"{url}/api/v1/config", headers={"Authorization": f"Bearer {token}"}, timeout=180)


@pytest.fixture
def admin(api: str) -> Iterator[httpx.Client]:
    process, url = start_console()
    with program(url) as client:
        yield client
    end(process)


def job(tmp_path: Path, name: str, **keys: Any) -> dict[str, Any]:
    return {
        "name": name, "source": {"type": "local-storage", "root": str(tmp_path / "card")},
        "destination": {"type": "sftp-storage", "host": "nas", "user": "me", "root": "/srv", "password": "geheim-17"}, **keys,
    }  # fmt: skip


def ok(answer: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert "geheim" not in answer.text
    return answer.json()


def test_a_job_is_written_read_and_written_again(
    admin: httpx.Client, client: SyncPrefectClient, tmp_path: Path
) -> None:
    bootstrap()
    made = ok(admin.put("/jobs/conf", json=job(tmp_path, "conf", schedule=NIGHTLY, cleanup={"action": "delete"})), 201)
    assert made["job"]["destination"] == "sftp-storage/conf-destination-1" and made["finished"]
    assert any("transfer/conf" in line for line in made["told"])
    block = SftpStorage.load("conf-destination-1")
    assert isinstance(block, SftpStorage) and block.password is not None
    assert block.password.get_secret_value() == "geheim-17"
    assert client.read_deployment_by_name("transfer/conf").schedules[0].schedule.cron == "0 3 * * *"  # type: ignore[union-attr]
    assert client.read_deployment_by_name("clean/conf")

    read = ok(admin.get("/jobs/conf"))
    assert {k: read[k] for k in ("job", "mark")} == {k: made[k] for k in ("job", "mark")}
    assert [c["mark"] for c in ok(admin.get("/jobs")) if c["name"] == "conf"] == [read["mark"]]  # type: ignore[index]

    # what was read is what may be sent; the program that has an older one does not undo it
    changed = read["job"] | {"include": ["*.mp4"], "schedule": None, "cleanup": {"action": "off"}}
    written = ok(admin.put("/jobs/conf", json=changed, headers={"If-Match": read["mark"]}))
    assert written["job"]["include"] == ["*.mp4"] and written["mark"] != read["mark"]
    assert admin.put("/jobs/conf", json=read["job"], headers={"If-Match": read["mark"]}).status_code == 412
    assert client.read_deployment_by_name("transfer/conf").schedules == []
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("clean/conf")
    assert ok(admin.put("/jobs/conf", json=changed))["mark"] == written["mark"]
    assert admin.get("/jobs/no-such-job").status_code == 404

    lines = [json.loads(line) for line in (home() / "console" / "audit.jsonl").read_text().splitlines()]
    told = [(x["who"], x["status"], x.get("changed")) for x in lines if x.get("action") == "config"]
    assert told[0][:2] == ("boss", 201) and told[1] == ("boss", 200, ["cleanup", "include", "schedule"])
    assert "geheim" not in str(lines)


def test_a_storage_that_changes_stays_for_runs_that_are_under_way(admin: httpx.Client, tmp_path: Path) -> None:
    ok(admin.put("/jobs/moves", json=job(tmp_path, "moves")), 201)
    other = job(tmp_path, "moves")
    other["destination"] = {**other["destination"], "root": "/elsewhere"}
    for _ in range(2):
        assert ok(admin.put("/jobs/moves", json=other))["job"]["destination"] == "sftp-storage/moves-destination-1-2"
    roots = [b.root for n in ("", "-2") if isinstance(b := SftpStorage.load(f"moves-destination-1{n}"), SftpStorage)]
    assert roots == ["/srv", "/elsewhere"]
    assert (
        ok(admin.put("/jobs/moves", json=job(tmp_path, "moves")))["job"]["destination"]
        == "sftp-storage/moves-destination-1"
    )


def test_what_was_written_stays_until_the_file_changes(
    admin: httpx.Client, write_job: Callable[..., Path], client: SyncPrefectClient
) -> None:
    file = write_job("filed", scrub={"part": "1/7", "schedule": NIGHTLY})
    bootstrap([file])
    read = ok(admin.get("/jobs/filed"))
    ok(admin.put("/jobs/filed", json=read["job"] | {"include": ["*.jpg"], "scrub": {}}))
    assert any("transfer/filed" in line for line in bootstrap([file]).kept)
    again = ok(admin.get("/jobs/filed"))
    assert again["job"]["include"] == ["*.jpg"]
    assert not [d for d in client.read_deployments() if d.name == "filed" and d.entrypoint == "flows.upkeep.flow.scrub"]
    bootstrap([write_job("filed", exclude=["*.tmp"])])
    assert ok(admin.get("/jobs/filed"))["job"].get("include", []) == []


def test_what_the_server_does_not_have_and_what_a_device_keeps(admin: httpx.Client, tmp_path: Path, api: str) -> None:
    told = admin.put("/jobs/named", json=job(tmp_path, "named", source="local-storage/no-such-block"))
    assert told.status_code == 422 and told.json()["errors"][0]["where"] == "source", told.text
    assert admin.get("/jobs/named").status_code == 404
    bootstrap()
    told = admin.put("/jobs/demo-flight", json=job(tmp_path, "demo-flight"))  # its flight would be lost
    assert told.status_code == 409 and "flight" in told.json()["detail"]
    with connect() as client:
        create_pool(client, Report(), "device-cam-9")
        deploy_job(client, job_of(job(tmp_path, "on-device")), Report(), "device-cam-9")
    told = admin.put("/jobs/on-device", json=job(tmp_path, "on-device", include=["*.mp4"]))
    assert told.status_code == 409 and "agent.yaml" in told.json()["detail"]
    assert "cam-9" in told.json()["remedy"]


def test_a_block_that_was_deleted_hides_no_job(admin: httpx.Client, client: SyncPrefectClient, tmp_path: Path) -> None:
    ok(admin.put("/jobs/orphan", json=job(tmp_path, "orphan")), 201)
    block = client.read_block_document_by_name("orphan-destination-1", "sftp-storage")
    client.delete_block_document(block.id)
    read = ok(admin.get("/jobs/orphan"))
    assert read["job"]["destination"] == {"$ref": {"block_document_id": str(block.id)}}
    assert any(c["name"] == "orphan" for c in admin.get("/jobs").json())
    assert (
        ok(admin.put("/jobs/orphan", json=job(tmp_path, "orphan")))["job"]["destination"]
        == "sftp-storage/orphan-destination-1"
    )


def test_a_server_that_goes_away_in_the_middle_leaves_one_or_the_other(
    api: str, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """It is gone after a part of what a write sends: the job is the one before, whole, or the new one, which says that it
    is not finished, and is when it is sent again."""
    bootstrap()
    address = urlsplit(api)
    proxy = FaultProxy(address.port or 80).up()
    process, url = start_console(PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api", PREFECT_CLIENT_MAX_RETRIES="0")
    old = job(tmp_path, "cut", cleanup={"action": "delete"})
    new = job(tmp_path, "cut", include=["*.mp4"], cleanup={"action": "delete", "min_age": "48 h"}, schedule=NIGHTLY)
    new["destination"] = {**new["destination"], "root": "/elsewhere"}
    try:
        with program(url) as admin:
            before = ok(admin.put("/jobs/cut", json=old), 201)
            proxy.heal()
            after = ok(admin.put("/jobs/cut", json=new))
            whole = proxy.bytes_up
            assert before["job"]["destination"] != after["job"]["destination"]
            seen: set[str] = set()
            for part in (0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9):
                until("the old one", lambda: admin.put("/jobs/cut", json=old).status_code == 200)
                proxy.heal()
                if part == 0:
                    proxy.down()
                answer: list[httpx.Response] = []
                thread = threading.Thread(target=lambda: answer.append(admin.put("/jobs/cut", json=new)))  # noqa: B023
                thread.start()
                while thread.is_alive() and proxy.bytes_up < part * whole:
                    thread.join(0.0005)
                proxy.down()
                thread.join()
                proxy.up()
                now = until("an answer", lambda: (a := admin.get("/jobs/cut")).status_code == 200 and a.json())
                if answer[0].status_code == 200:
                    seen.add("written")
                    assert now["job"] == after["job"] and now["finished"]
                    continue
                assert answer[0].status_code == 503, answer[0].text
                if now["job"] == before["job"]:
                    seen.add("before")
                    assert now["finished"] and now["mark"] == before["mark"]
                    clean = client.read_deployment_by_name("clean/cut").parameters["job"]
                    assert clean["cleanup"] == {"action": "delete"}
                else:
                    seen.add("after" if now["finished"] else "unfinished")
                    assert now["job"] == after["job"]
                sent = until(
                    "sent again", lambda: (a := admin.put("/jobs/cut", json=new)).status_code == 200 and a.json()
                )
                assert sent["finished"] and sent["mark"] == after["mark"]
                clean = client.read_deployment_by_name("clean/cut").parameters["job"]
                assert "48" in str(clean["cleanup"]["min_age"]) or "P2D" in str(clean["cleanup"]["min_age"])
            assert "before" in seen, seen
    finally:
        end(process)
        proxy.down()
