"""Bad input to `onblock import-fileflow`: one clear message, exit code 2, nothing half-written."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.imports.conftest import Cli, Workspace, a_job, report

SFTP = {"type": "sftp", "path": "/in", "connection": {"host": "nas", "username": "u", "password": "${NAS_PASSWORD}"}}


def refused(onblock: Cli, workspace: Workspace, *options: str | Path, says: str) -> None:
    out = workspace.folder / "out"
    done = onblock("import-fileflow", workspace.jobs, "--to", out, *options)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("jobs", "says"),
    [
        ("jobs: [", "is not YAML: line 1"),
        ("- a list", "it has a list `jobs:`"),
        ("jobs: nothing", "FileFlow would not take it: jobs: "),
        ([{"job_id": "x"}], "jobs.0.schedule: Field required"),
        ([a_job(source={"type": "ftp", "path": "/x"})], "jobs.0.source.type: Input should be 'local'"),
        ([a_job(verification={"method": "guess"})], "jobs.0.verification.method"),
        ([a_job(), a_job()], "two jobs have the job_id 'daily'"),
        ([a_job(job_id="../../etc/cron")], "job_id '../../etc/cron' is no name of a job"),
        ([a_job(job_id="a\nb")], "is no name of a job"),
        ([a_job(job_id="..")], "is no name of a job"),
        (
            [
                a_job(),
                a_job(job_id="b", destination={"type": "hdfs", "path": "/x", "connection": {"transport": "ftp"}}),
            ],
            "connection.transport 'ftp' is unknown; there are cli, webhdfs",
        ),
        ([a_job(), a_job(job_id="b", destination=SFTP)], "asks for the variable NAS_PASSWORD, which is not set"),
    ],
)
def test_jobs_that_are_none(onblock: Cli, workspace: Workspace, jobs: Any, says: str) -> None:
    if isinstance(jobs, str):
        workspace.jobs.write_text(jobs)
    else:
        workspace.write(*jobs)
    refused(onblock, workspace, says=says)


def test_files_that_are_none(onblock: Cli, workspace: Workspace) -> None:
    refused(onblock, workspace, says="cannot read FileFlow's jobs: No such file")
    workspace.write(a_job())
    refused(onblock, workspace, "--env", workspace.folder / "no.env", says="cannot read the environment: No such file")
    (workspace.folder / "bad.env").write_bytes(b"A=\xff\xfe")
    refused(onblock, workspace, "--env", workspace.folder / "bad.env", says="is no text in UTF-8")
    refused(onblock, workspace, "--timezone", "Mars/Base", says="'Mars/Base' is no IANA time zone")
    refused(onblock, workspace, "--skip-delivered", says="goes with --transfers-db")
    refused(onblock, workspace, "--deploy", says="PREFECT_API_URL is not set")


def test_records_that_are_none(onblock: Cli, workspace: Workspace) -> None:
    workspace.write(a_job())
    refused(onblock, workspace, "--transfers-db", workspace.db, says="there is no such file")
    workspace.db.write_text("This is a text of more than sixteen bytes. " * 40)
    refused(onblock, workspace, "--transfers-db", workspace.db, says="file is not a database")
    workspace.db.unlink()
    with sqlite3.connect(workspace.db) as db:
        db.execute("CREATE TABLE other (x)")
    refused(onblock, workspace, "--transfers-db", workspace.db, says="it has no table `transfers`")
    with db:
        db.execute("CREATE TABLE transfers (id, job_id, file_name, file_size)")
    refused(onblock, workspace, "--transfers-db", workspace.db, says="it has no column destination_path")
    db.close()
    workspace.db.unlink()
    workspace.record({"file_name": "x"})
    other = sqlite3.connect(workspace.db, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    refused(onblock, workspace, "--transfers-db", workspace.db, "--skip-delivered", says="is locked by another program")
    other.close()


def test_what_is_there_is_not_written_over(onblock: Cli, workspace: Workspace) -> None:
    out = workspace.folder / "out"
    out.mkdir()
    (out / "b.yaml").write_text("mine")
    workspace.write(a_job(job_id="a"), a_job(job_id="b"))
    done = onblock("import-fileflow", workspace.jobs, "--to", out)
    assert done.returncode == 2 and "b.yaml: is there already, and says something else" in done.stderr
    assert [p.name for p in out.iterdir()] == ["b.yaml"] and (out / "b.yaml").read_text() == "mine"
    assert onblock("import-fileflow", workspace.jobs, "--to", out, "--replace").returncode == 0
    assert onblock("import-fileflow", workspace.jobs, "--to", out).returncode == 0  # says the same
    assert sorted(p.name for p in out.iterdir()) == ["a.yaml", "b.yaml"]
    done = onblock("import-fileflow", workspace.jobs, "--to", out / "a.yaml")
    assert done.returncode == 2 and "is a file, not a folder" in done.stderr


def test_a_folder_that_takes_no_files(onblock: Cli, workspace: Workspace) -> None:
    workspace.write(a_job())
    done = onblock("import-fileflow", workspace.jobs, "--to", "/proc/nothing")
    assert done.returncode == 2 and "/proc/nothing" in done.stderr and "Traceback" not in done.stderr


def test_a_job_that_cannot_be_carried_over_stops_no_other(onblock: Cli, workspace: Workspace) -> None:
    workspace.write(a_job(job_id="good"), a_job(job_id="bad", destination={"type": "s3", "path": "x"}))
    done = onblock("import-fileflow", workspace.folder, "--to", workspace.folder / "out", "--json")
    assert done.returncode == 1
    good, bad = report(done)["jobs"]
    assert Path(good["file"]).exists() and bad["file"] is None
    assert [f["how"] for f in bad["findings"] if f["about"] == "job"] == ["not carried over"]
    shown = onblock("import-fileflow", workspace.folder)
    assert shown.returncode == 1 and "no job is made of it" in shown.stdout and "Nothing is written" in shown.stdout
