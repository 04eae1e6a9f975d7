"""What each part of a FileFlow job becomes, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from blocks.errors import ConfigError
from deployments.imports.fileflow import Translated, translate
from deployments.imports.findings import Around, How
from deployments.imports.workspace import Job
from flows.transfer.job import TransferJob, job_of
from tests.imports.conftest import a_job

AROUND = Around(Path("/ws"), "me", "Europe/Berlin", {"NAS_PASSWORD": "geheim-1", "CARD": "card-7"})


def made_of(**keys: Any) -> Translated:
    return translate(Job.model_validate(a_job(**keys)), AROUND)


def job_from(**keys: Any) -> TransferJob:
    made = made_of(**keys)
    assert made.job is not None, made.findings
    return made.job


def said(made: Translated, about: str) -> str:
    """All that is said about a part, how first."""
    return " | ".join(f"{f.how.value}: {f.text}" for f in made.findings if f.about == about)


# -- the job --------------------------------------------------------------------------------------------------------


def test_a_local_job() -> None:
    made = made_of(source={"type": "local", "path": "/data/incoming", "file_pattern": "*.csv"}, verification={})
    assert made.document == {
        "name": "daily", "source": {"type": "local-storage", "root": "/data/incoming"},
        "destination": {"type": "local-storage", "root": "/archive", "create_root": True}, "recursive": False,
        "include": ["*.csv"], "verify": "size", "on_conflict": "replace",
        "schedule": {"cron": "0 */6 * * *", "timezone": "Europe/Berlin"},
    }  # fmt: skip
    assert {f.how for f in made.findings} == {How.CARRIED}
    assert made.secrets == {}


@pytest.mark.parametrize(
    ("pattern", "takes", "leaves"),
    [
        ("*.csv", ["a.csv", ".csv", "a b.csv"], ["a.CSV", "a.csv.gz", "x/a.csv"]),
        ("report_?.txt", ["report_1.txt"], ["report_12.txt"]),
        ("[!a]*.txt", ["b.txt"], ["a.txt"]),
        ("[a", ["[a"], ["a"]),
        (r"re:^report_\d{4}\.csv$", ["report_2024.csv"], ["report_24.csv", "xreport_2024.csv"]),
        ("a/*", [], ["a/b", "ab"]),
        ("!x", ["!x"], ["x"]),
        (None, ["anything"], []),
    ],
)
def test_patterns_take_what_fnmatch_takes(
    tmp_path: Path, pattern: str | None, takes: list[str], leaves: list[str]
) -> None:
    from blocks.storage.base import FileInfo
    from flows.transfer.scan import Filter

    job = job_from(source={"type": "local", "path": str(tmp_path), "file_pattern": pattern})
    wanted = Filter(job, 0)
    for name in takes:
        assert wanted.wants(FileInfo(name, 1, 1)), name
    for name in leaves:
        assert not wanted.wants(FileInfo(name, 1, 1)) or ("/" in name and not wanted.enter(name.split("/")[0])), name


def test_a_pattern_that_asks_for_what_is_being_written_elsewhere() -> None:
    job = job_from(source={"type": "local", "path": "/in", "file_pattern": "*.tmp"})
    assert ".tmp" not in job.settle.ignore_suffixes and ".part" in job.settle.ignore_suffixes


def test_a_bad_regular_expression_took_nothing() -> None:
    made = made_of(source={"type": "local", "path": "/in", "file_pattern": "re:("})
    assert made.document is None
    assert "bad regular expression" in said(made, "job")


def test_the_steps() -> None:
    steps = ["decompress", "zip", "compress_bz2", "rename", "timestamp", "compress", "bash_script: /opt/x/clean.sh"]
    made = made_of(processing={"enabled": True, "steps": steps})
    assert made.document is not None
    assert made.document["steps"] == [
        {"kind": "decompress", "only": ["*.gz"]}, {"kind": "compress", "format": "zip"},
        {"kind": "compress", "format": "bzip2"}, {"kind": "rename", "prefix": "daily_"},
        {"kind": "timestamp", "format": "%Y%m%d"}, {"kind": "compress", "format": "gzip"},
        {"kind": "script", "program": "clean.sh", "args": ["{input}"], "time_limit": "300 s"},
    ]  # fmt: skip
    assert "'/opt/x/clean.sh'" in said(made, "processing")
    off = made_of(processing={"enabled": False, "steps": ["compress"]})
    assert off.document is not None and "steps" not in off.document
    assert "no step 'shrink'" in said(made_of(processing={"enabled": True, "steps": ["shrink"]}), "job")


@pytest.mark.parametrize(
    ("given", "verify"),
    [(None, "checksum"), ({}, "size"), *(({"method": m}, v) for m, v in (
        ("size_match", "size"), ("file_exists", "exists"), ("checksum_match", "checksum")))],
)  # fmt: skip
def test_verification(given: dict[str, str] | None, verify: str) -> None:
    assert job_from(verification=given).verify == verify


def test_schedules() -> None:
    assert "1 in Europe" not in said(made_of(), "schedule")
    weekday = said(made_of(schedule="0 2 * * 0"), "schedule")
    assert "differently: weekday 0: FileFlow counts from Monday, and meant Monday; here 0 is Sunday" in weekday
    assert "differently" not in said(made_of(schedule="*/5 * * * mon-fri"), "schedule")
    assert "either" in said(made_of(schedule="0 2 1 * mon"), "schedule")
    never = made_of(schedule="whenever")
    assert never.document is not None and "schedule" not in never.document
    assert said(never, "schedule").startswith("not carried over: ")
    off = made_of(enabled=False)
    assert off.document is not None and "schedule" not in off.document
    assert "0 */6 * * *" in said(off, "enabled")


def test_names() -> None:
    assert made_of(job_id="täglich nach NAS").name == "t-glich-nach-NAS-db9b30"
    assert made_of(job_id="a b").name != made_of(job_id="a+b").name
    assert made_of(job_id="two_jobs").name == "two_jobs"


def test_what_fileflow_does_not_read_is_told() -> None:
    made = made_of(
        owner="me", destination={"type": "local", "path": "/archive", "connection": {"speed": 3}, "config_ref": "x"}
    )
    assert "'owner'" in said(made, "job")
    assert "'speed'" in said(made, "destination.connection")
    assert said(made, "destination.config_ref")


# -- backups --------------------------------------------------------------------------------------------------------


def test_a_backup_beside_the_source() -> None:
    made = made_of(backup={"enabled": True, "location": "/data/backups", "retention_days": 30}, verification={})
    assert made.document is not None and made.job is not None
    assert made.document["source"] == {"type": "local-storage", "root": "/data"}
    assert made.document["folder"] == "incoming"
    assert made.document["cleanup"] == {
        "action": "backup", "backup_folder": "backups/daily", "keep": [],
        "schedule": {"cron": "17 * * * *", "timezone": "Europe/Berlin"},
    }  # fmt: skip
    assert made.document["retention"]["backup"] == {"max_age": "30 d"}
    assert made.job.verify == "checksum"  # nothing else may move a source away
    assert "neither size nor name" in said(made, "verification")


def test_a_backup_in_the_source_and_one_elsewhere() -> None:
    inside = job_from(backup={"enabled": True, "location": "/data/incoming/old"})
    assert (inside.folder, inside.cleanup.backup_folder) == ("", "old/daily")
    elsewhere = made_of(backup={"enabled": True, "location": "backups/daily", "retention_days": 30})
    assert elsewhere.job is not None and elsewhere.job.cleanup.backup_folder == "delivered"
    assert "'/ws/backups/daily/daily'" in said(elsewhere, "backup.location")
    # the folder both share is where the job delivers to
    shared = made_of(
        destination={"type": "local", "path": "/data"}, backup={"enabled": True, "location": "/data/backups"}
    )
    assert shared.job is not None and shared.job.cleanup.backup_folder == "delivered"


def test_a_backup_of_a_remote_source_is_a_second_destination() -> None:
    source = {"type": "sftp", "path": "/out", "connection": {"host": "nas", "username": "u", "key_file": "/k"}}
    made = made_of(source=source, backup={"enabled": True, "location": "/backups", "retention_days": 7})
    assert made.job is not None
    assert [d.place() for d in made.job.more_destinations] == ["local:/backups/daily"]
    assert "not carried over" in said(made, "backup.retention_days")
    steps = {"enabled": True, "steps": ["compress"]}
    made = made_of(source=source, processing=steps, backup={"enabled": True, "location": "/backups"})
    assert made.job is not None and not made.job.more_destinations
    assert "a job of its own" in said(made, "backup")


@pytest.mark.parametrize("days", [-1, 10**12])
def test_days_that_are_none(days: int) -> None:
    made = made_of(backup={"enabled": True, "location": "/data/b", "retention_days": days})
    assert made.job is not None and made.job.retention is None
    assert "not carried over" in said(made, "backup.retention_days")


def test_a_backup_without_a_location_or_switched_off() -> None:
    assert "no location" in said(made_of(backup={"enabled": True}), "backup")
    assert "switched off" in said(made_of(backup={"enabled": False, "location": "/b"}), "backup")


# -- secrets --------------------------------------------------------------------------------------------------------


def test_a_secret_is_named_not_written() -> None:
    login = {"host": "nas", "username": "u", "password": "geheim-2"}
    made = made_of(destination={"type": "sftp", "path": "/in", "connection": login})
    assert made.document is not None and made.document["destination"]["password"] == {
        "env": "DAILY_DESTINATION_PASSWORD"
    }
    assert made.secrets == {"DAILY_DESTINATION_PASSWORD": "geheim-2"}
    assert made.job is not None and made.job.destination.password == SecretStr("geheim-2")  # type: ignore[union-attr]
    assert "geheim" not in str(made.document) + str(made.findings)
    with pytest.raises(ConfigError, match="DAILY_DESTINATION_PASSWORD, which is not set"):
        job_of(made.document)

    named = made_of(destination={"type": "sftp", "path": "/in", "connection": login | {"password": "${NAS_PASSWORD}"}})
    assert named.secrets == {"NAS_PASSWORD": "geheim-1"}


def test_no_two_secrets_share_a_variable() -> None:
    taken: dict[str, str] = {}
    for job_id, password in (("nas-a", "1"), ("nas.a", "2"), ("nas_a", "1")):
        side = {"type": "sftp", "path": "/in", "connection": {"host": "nas", "username": "u", "password": password}}
        translate(Job.model_validate(a_job(job_id=job_id, destination=side)), AROUND, taken)
    assert taken == {"NAS_A_DESTINATION_PASSWORD": "1", "NAS_A_DESTINATION_PASSWORD_": "2"}
