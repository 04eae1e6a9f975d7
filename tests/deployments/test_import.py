"""`onblock import-fileflow --deploy` on a real server: blocks with the secrets, deployments with the schedules."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.schedules import CronSchedule
from typer.testing import CliRunner

from blocks.storage import SftpStorage
from deployments.cli import app
from flows.transfer.job import load_job


def test_a_workspace_becomes_blocks_and_deployments(client: SyncPrefectClient, tmp_path: Path) -> None:
    login = {"host": "nas.example.org", "username": "archive", "password": "geheim-91"}
    jobs, out = tmp_path / "jobs.yaml", tmp_path / "out"
    jobs.write_text(yaml.safe_dump({"jobs": [
        {
            "job_id": "ff-nas", "schedule": "0 2 * * *", "source": {"type": "local", "path": "/data/incoming"},
            "destination": {"type": "sftp", "path": "/srv", "connection": login},
            "backup": {"enabled": True, "location": "/data/backups", "retention_days": 30},
        },
        {
            "job_id": "ff-off", "enabled": False, "schedule": "0 3 * * *", "source": {"type": "local", "path": "/data/a"},
            "destination": {"type": "local", "path": "/data/b"},
        },
    ]}))  # fmt: skip
    arguments = ["import-fileflow", str(jobs), "--deploy", "--to", str(out), "--timezone", "Europe/Berlin", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert [job["deployed"] for job in json.loads(done.stdout)["jobs"]] == [True, True]

    deployment = client.read_deployment_by_name("transfer/ff-nas")
    [schedule] = deployment.schedules
    assert isinstance(schedule.schedule, CronSchedule)
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "Europe/Berlin")
    assert "geheim" not in str(deployment.parameters)
    for flow in ("clean", "retention"):
        assert client.read_deployment_by_name(f"{flow}/ff-nas").schedules
    assert client.read_deployment_by_name("transfer/ff-off").schedules == []
    block = SftpStorage.load("ff-nas-destination-1")
    assert isinstance(block, SftpStorage) and block.password is not None
    assert block.password.get_secret_value() == "geheim-91" and block.host == "nas.example.org"

    # what is written names the block: no secret, and no variable to set
    text = (out / "ff-nas.yaml").read_text()
    assert "geheim" not in text and "env:" not in text
    assert yaml.safe_load(text)["destination"] == "sftp-storage/ff-nas-destination-1"
    job = load_job(out / "ff-nas.yaml")
    assert isinstance(job.destination, SftpStorage) and job.destination.password == block.password

    version = deployment.version
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert client.read_deployment_by_name("transfer/ff-nas").version == version
