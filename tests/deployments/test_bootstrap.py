"""What `deployments.bootstrap` makes of a real server, what it leaves alone, and that a worker runs what it deployed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from blocks.errors import ConfigError, NetworkError
from blocks.storage import STORAGES, LocalStorage
from deployments import bootstrap as boot
from deployments.bootstrap import bootstrap, main
from deployments.deploy import ENTRYPOINT, block_name, deploy_file
from deployments.server import POOL, Report
from deployments.up import descendants, port_trouble, up
from tests.deployments.conftest import answers, end, free_port, until

WriteJob = Callable[..., Path]
NIGHTLY = {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}


def parameters(client: SyncPrefectClient, name: str) -> dict[str, Any]:
    return client.read_deployment_by_name(f"transfer/{name}").parameters


def block_id(client: SyncPrefectClient, name: str) -> str:
    return str(client.read_block_document_by_name(name, "local-storage").id)


# -- what it makes --------------------------------------------------------------------------------------------------


def test_the_demo_is_registered_and_deployed(client: SyncPrefectClient) -> None:
    bootstrap()

    for slug, cls in STORAGES.items():
        assert client.read_block_type_by_slug(slug).name == cls._block_type_name
    assert client.read_work_pool(POOL).type == "process"
    deployment = client.read_deployment_by_name("transfer/demo-flight")
    assert deployment.work_pool_name == POOL
    assert deployment.entrypoint == ENTRYPOINT and not deployment.pull_steps and deployment.path is None
    assert [(s.schedule.cron, s.schedule.timezone, s.active) for s in deployment.schedules] == [  # type: ignore[union-attr]
        ("30 5 * * *", "Europe/Berlin", True)
    ]
    job = deployment.parameters["job"]
    assert job["source"] == {"$ref": {"block_document_id": block_id(client, "demo-card")}}
    assert job["destination"] == {"$ref": {"block_document_id": block_id(client, "demo-archive")}}
    assert job["schedule"] == {"cron": "30 5 * * *", "timezone": "Europe/Berlin"}


def test_the_limits_are_four_in_all_and_two_a_device(client: SyncPrefectClient, write_job: WriteJob) -> None:
    bootstrap([write_job("limits", device="cam-7")])

    for tag, slots in {
        "onblock": 4,
        "device:cam-7": 2,
        "device:demo-card": 2,
        "destination:limits-destination-1": 4,
    }.items():
        assert client.read_concurrency_limit_by_tag(tag).concurrency_limit == slots
        # the name under which tasks ask for it
        assert client.read_global_concurrency_limit_by_name(f"tag:{tag}").active


def test_a_job_becomes_a_deployment_with_blocks_schedule_and_zone(
    client: SyncPrefectClient, write_job: WriteJob, tmp_path: Path
) -> None:
    bootstrap([write_job("Card_To.NAS", schedule=NIGHTLY, include=["*.mp4"], settle={"quiet": "3s"})])

    deployment = client.read_deployment_by_name("transfer/Card_To.NAS")
    [schedule] = deployment.schedules
    assert isinstance(schedule.schedule, CronSchedule)
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("30 2 * * *", "Europe/Berlin")
    job = deployment.parameters["job"]
    assert job["schedule"] == NIGHTLY and job["include"] == ["*.mp4"]
    card = LocalStorage.load(block_name("Card_To.NAS", "source"))
    assert isinstance(card, LocalStorage) and card.root == str(tmp_path / "card")
    assert job["source"] == {"$ref": {"block_document_id": str(card._block_document_id)}}
    assert "root" not in str(deployment.parameters)
    assert block_name("Card_To.NAS", "source") != block_name("card-to-nas", "source")
    assert block_name("nightly", "destination-1") == "nightly-destination-1"


def test_a_storage_named_in_a_job_is_referred_to_and_not_copied(client: SyncPrefectClient, write_job: WriteJob) -> None:
    bootstrap()
    bootstrap([write_job("by-name", source="local-storage/demo-card")])

    assert parameters(client, "by-name")["job"]["source"]["$ref"]["block_document_id"] == block_id(client, "demo-card")
    with pytest.raises(ObjectNotFound):
        client.read_block_document_by_name("by-name-source", "local-storage")


def test_the_server_schedules_runs_at_the_local_time(client: SyncPrefectClient, write_job: WriteJob) -> None:
    bootstrap([write_job("scheduled", schedule={"cron": "15 3 * * *", "timezone": "Asia/Kathmandu"})])
    deployment = client.read_deployment_by_name("transfer/scheduled")
    mine = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))

    runs: list[FlowRun] = until("scheduled runs", lambda: client.read_flow_runs(deployment_filter=mine), 90)

    for run in runs:
        assert run.expected_start_time is not None and run.expected_start_time > datetime.now(UTC)
        local = run.expected_start_time.astimezone(ZoneInfo("Asia/Kathmandu"))
        assert (local.hour, local.minute) == (3, 15)


def test_triggers_of_prefect_yaml_are_made_once(client: SyncPrefectClient, tmp_path: Path) -> None:
    bootstrap()
    data = yaml.safe_load(boot.PREFECT_YAML.read_text())
    [entry] = data["deployments"]
    entry["name"] = "on-flight-end"
    trigger = {
        "type": "event", "expect": ["onblock.flight.ended"], "parameters": {"flight": "{{ event.payload.flight }}"},
    }  # fmt: skip
    entry["triggers"] = [trigger]
    path = tmp_path / "prefect.yaml"
    for tags in (["one"], ["two"]):
        path.write_text(yaml.safe_dump({"deployments": [{**entry, "tags": tags}]}))
        bootstrap(prefect_yaml=path)

    deployment = client.read_deployment_by_name("transfer/on-flight-end")
    assert deployment.tags == ["two"]
    automations = client.read_resource_related_automations(f"prefect.deployment.{deployment.id}")
    assert len(automations) == 4, "those that its device brings, and the one that was asked for"
    [automation] = [a for a in automations if not a.name.startswith("onblock: ")]
    assert automation.actions[0].parameters == {"flight": "{{ event.payload.flight }}"}  # type: ignore[union-attr]


def test_a_deployment_that_was_cut_off_is_finished_by_the_next(
    client: SyncPrefectClient, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at no moment is there neither the old trigger nor the new."""
    job = write_job("cut-off", device="cut-1")

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    def names() -> list[str]:
        deployment = client.read_deployment_by_name("transfer/cut-off")
        return sorted(a.name for a in client.read_resource_related_automations(f"prefect.deployment.{deployment.id}"))

    for moment in ("create_automation", "delete_automation"):
        with monkeypatch.context() as patch:
            if moment == "delete_automation":
                bootstrap([job])
                job = write_job("cut-off", device="cut-2")
            patch.setattr(SyncPrefectClient, moment, killed)
            with pytest.raises(Killed):
                bootstrap([job])
        assert any("cut-1" in name for name in names()) == (moment == "delete_automation")
    bootstrap([job])
    assert len(names()) == 3 and all("cut-2" in name for name in names())
    assert bootstrap([job]).changed == []


# -- what it leaves alone -------------------------------------------------------------------------------------------


def test_the_server_refuses_a_run_whose_parameters_do_not_fit(client: SyncPrefectClient, write_job: WriteJob) -> None:
    """Also of a deployment that was changed: it looks at them only once it is complete."""
    for keys in ({}, {"min_age": "3s"}):
        bootstrap([write_job("enforced", **keys)])
        deployment = client.read_deployment_by_name("transfer/enforced")
        assert deployment.enforce_parameter_schema
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            client.create_flow_run_from_deployment(deployment.id, parameters={"job": {"name": 7, "nonsense": True}})


def test_twice_changes_nothing(client: SyncPrefectClient, write_job: WriteJob) -> None:
    job = write_job("twice", device="cam-2", schedule=NIGHTLY)
    bootstrap([job])
    names = ["transfer/twice", "transfer/demo-flight"]
    before = [client.read_deployment_by_name(n).model_dump_json() for n in names]
    blocks = [client.read_block_document_by_name(n, "local-storage").updated for n in ("twice-source", "demo-card")]

    again = bootstrap([job])

    assert (again.made, again.changed) == ([], [])
    assert [client.read_deployment_by_name(n).model_dump_json() for n in names] == before
    assert blocks == [
        client.read_block_document_by_name(n, "local-storage").updated for n in ("twice-source", "demo-card")
    ]


def test_what_people_changed_stays(client: SyncPrefectClient, write_job: WriteJob, tmp_path: Path) -> None:
    job = write_job("kept", device="cam-3", schedule=NIGHTLY)
    bootstrap([job])
    client.create_concurrency_limit(tag="device:cam-3", concurrency_limit=1)
    LocalStorage(root=str(tmp_path / "my-card")).save("demo-card", overwrite=True)
    deployment = client.read_deployment_by_name("transfer/kept")
    client.update_deployment_schedule(deployment.id, deployment.schedules[0].id, active=False)

    report = bootstrap([job])

    assert (report.made, report.changed) == ([], [])
    assert client.read_concurrency_limit_by_tag("device:cam-3").concurrency_limit == 1
    card = LocalStorage.load("demo-card")
    assert isinstance(card, LocalStorage) and card.root == str(tmp_path / "my-card")
    assert [s.active for s in client.read_deployment_by_name("transfer/kept").schedules] == [False]


def test_a_changed_job_changes_deployment_and_blocks(
    client: SyncPrefectClient, write_job: WriteJob, tmp_path: Path
) -> None:
    bootstrap([write_job("changed", schedule=NIGHTLY)])
    was = block_id(client, "changed-source")
    (tmp_path / "other").mkdir()
    other = {"type": "local-storage", "root": str(tmp_path / "other")}

    report = bootstrap([write_job("changed", source=other, verify="readback")])

    assert len(report.changed) == 2
    assert block_id(client, "changed-source") == was  # runs already planned keep their block
    source = LocalStorage.load("changed-source")
    assert isinstance(source, LocalStorage) and source.root == str(tmp_path / "other")
    deployment = client.read_deployment_by_name("transfer/changed")
    assert deployment.parameters["job"]["verify"] == "readback"
    assert deployment.schedules == [] and "schedule" not in deployment.parameters["job"]


# -- what it refuses ------------------------------------------------------------------------------------------------


def test_a_schedule_without_a_flight_that_the_path_needs(client: SyncPrefectClient, write_job: WriteJob) -> None:
    """Each of its runs would fail, at half past five in the morning."""
    path = write_job("no-flight", path="{flight}/{path}", schedule={"cron": "30 5 * * *"})
    with pytest.raises(ConfigError, match="starts runs without a flight"):
        bootstrap([path])
    bootstrap([write_job("no-flight", path="{flight}/{path}")])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"parameters": {"job": {"name": "x", "source": {"root": "/secret"}, "destinations": []}}}, "written out"),
        ({"parameters": {"job": {"name": "x", "source": {"$ref": {"block_document_slug": "local-storage/no"}}}}}, "no block"),
        ({"parameters": {}}, "job: Field required"),
        ({"entrypoint": "flows/transfer/flow.py:transfer"}, "is a file"),
        ({"entrypoint": "flows.transfer.nothing.transfer"}, "cannot be loaded"),
        ({"schedules": [{"cron": "every day"}]}, "bad schedule"),
        ({"schedules": [{"timezone": "UTC"}]}, "cron, interval, rrule"),
        ({"triggers": [{"type": "sunrise"}]}, "bad trigger"),
        ({"shedules": []}, "there is no key 'shedules'"),
        ({"description": "{{ $USER }}"}, "not filled in"),
    ],
)  # fmt: skip
def test_a_bad_prefect_yaml_is_refused(
    client: SyncPrefectClient, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    bootstrap()
    [entry] = yaml.safe_load(boot.PREFECT_YAML.read_text())["deployments"]
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump({"deployments": [{**entry, "name": "bad", **change}]}))

    with pytest.raises(ConfigError, match=says) as refusal:
        deploy_file(client, path, Report())

    assert f"{path}, bad" in str(refusal.value) and "/secret" not in str(refusal.value)
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("transfer/bad")


def test_two_jobs_of_one_name_are_refused(api: str, write_job: WriteJob, tmp_path: Path) -> None:
    first = write_job("same")
    second = first.rename(tmp_path / "copy.yaml")
    with pytest.raises(ConfigError, match="'same'"):
        bootstrap([write_job("same"), second])


def test_the_command_says_what_is_wrong(
    api: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml" in capsys.readouterr().err

    nobody = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: nobody}):
        with pytest.raises(NetworkError, match="no Prefect server answers"):
            bootstrap()
        assert main([]) == 2
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main([]) == 2
        assert "PREFECT_API_URL is not set" in capsys.readouterr().err


# -- it runs --------------------------------------------------------------------------------------------------------


def test_a_worker_runs_the_deployment_and_the_files_arrive(
    client: SyncPrefectClient, write_job: WriteJob, worker: Callable[[str], Path], tmp_path: Path
) -> None:
    bootstrap([write_job("delivers", device="cam-9", path="{flight}/{path}", settle={"quiet": "0s"})])
    recording = os.urandom(300_000)
    (tmp_path / "card" / "DCIM").mkdir(parents=True)
    (tmp_path / "card" / "DCIM" / "clip 1.mp4").write_bytes(recording)
    log = worker(POOL)

    run = subprocess.run(
        [sys.executable, "-m", "prefect", "deployment", "run", "transfer/delivers", "--param", "flight=OB-12",
         "--watch", "--watch-timeout", "120"],
        cwd=tmp_path, capture_output=True, text=True, timeout=150,
    )  # fmt: skip

    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}\n{log.read_text()}"
    assert (tmp_path / "archive" / "OB-12" / "DCIM" / "clip 1.mp4").read_bytes() == recording


# -- onblock up -----------------------------------------------------------------------------------------------------


def test_up_on_a_used_port_says_so_and_exits_2(capsys: pytest.CaptureFixture[str], onblock_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert up([], port=port) == 2
    message = capsys.readouterr().err
    assert str(port) in message and "in use" in message and len(message.splitlines()) == 1
    assert not onblock_home.exists()


def test_trouble_with_a_host_or_port_is_told_in_a_line() -> None:
    assert port_trouble("127.0.0.1", free_port()) is None
    assert "no port" in (port_trouble("127.0.0.1", 70000) or "")
    assert "not known" in (port_trouble("no-such-host.invalid", 4200) or "")


def test_a_worker_in_the_background_of_a_shell_ends_when_asked(api: str, tmp_path: Path) -> None:
    """Such a shell has SIGINT ignored, into which Prefect translates SIGTERM."""
    bootstrap()
    log = tmp_path / "worker.log"
    command = [sys.executable, "-P", "-m", "deployments.worker", POOL]
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        until("a worker", lambda: "started" in log.read_text(), 60)
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        end(process)


@pytest.mark.parametrize("how", ["asked", "server dies"])
def test_up_ends_everything_it_started(how: str, write_job: WriteJob, tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "up.out"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_") or k == "PREFECT_PROFILES_PATH"}
    code = "import sys, pathlib; from deployments.up import up; up_ports = map(int, sys.argv[2:]); sys.exit(up([pathlib.Path(sys.argv[1])], '127.0.0.1', *up_ports))"
    with out.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(write_job("from-up")), str(port), str(free_port())],
            env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until("onblock is up", lambda: process.poll() is not None or "onblock is up" in out.read_text(), 150)
        assert process.poll() is None, out.read_text()
        url = f"http://127.0.0.1:{port}"
        assert f"export PREFECT_API_URL={url}/api" in out.read_text() and "transfer/from-up" in out.read_text()
        assert answers(url)
        started = descendants(process.pid)
        assert len(started) >= 2
        if how == "asked":
            process.send_signal(signal.SIGTERM)
        else:
            os.kill(started[0][0], signal.SIGKILL)  # the first one is the server
        assert process.wait(60) == (0 if how == "asked" else 1), out.read_text()
        # orphans that have ended stay until the machine's first process has looked at them
        until("the end of all", lambda: not [pid for pid, _ in started if Path(f"/proc/{pid}").exists()])
        assert not answers(url) and port_trouble("127.0.0.1", port) is None
        if how != "asked":
            assert "the Prefect server" in out.read_text() and "died of signal 9" in out.read_text()
    finally:
        end(process, 60)
