"""FileFlow's connections as storages: local, sftp, scp, s3 with its presets, hdfs by both transports, both ways."""

from __future__ import annotations

from typing import Any

import pytest

from blocks.storage import HadoopCliStorage, LocalStorage, S3Storage, ScpStorage, SftpStorage, WebHdfsStorage
from deployments.imports.fileflow import translate
from deployments.imports.findings import Around
from deployments.imports.workspace import Job
from tests.imports.conftest import a_job
from tests.imports.test_translate import AROUND, job_from, made_of, said

LOCAL = {"type": "local", "path": "/here"}


def side(role: str, kind: str, path: str, **connection: Any) -> dict[str, Any]:
    """A job with that on one side, and a folder on the other."""
    other = "destination" if role == "source" else "source"
    return {role: {"type": kind, "path": path, "connection": connection}, other: LOCAL}


def test_local_folders_are_read_as_fileflow_read_them() -> None:
    made = made_of(source={"type": "local", "path": "in/${CARD}"}, destination={"type": "local", "path": "/out/../a"})
    assert made.job is not None
    assert made.job.source == LocalStorage(root="/ws/in/card-7")
    assert made.job.destination == LocalStorage(root="/a", create_root=True)
    assert "/ws/in/card-7" in said(made, "source.path")
    assert made_of(source={"type": "local", "path": ""}).document is None
    assert "NUL" in said(made_of(source={"type": "local", "path": "/a\0b"}), "job")


def test_a_destination_in_a_folder_of_the_source() -> None:
    assert job_from(destination={"type": "local", "path": "/data/incoming/sent"}).recursive is False
    assert made_of(destination={"type": "local", "path": "/data/incoming"}).document is None


@pytest.mark.parametrize("role", ["source", "destination"])
def test_sftp(role: str) -> None:
    keys = side(role, "sftp", "/srv/files/", host="nas", port="2222", username="u", password="p", key_file="/k")
    made = made_of(**keys)
    storage = getattr(made.job, role)
    assert isinstance(storage, SftpStorage)
    assert (storage.host, storage.port, storage.user, storage.root, storage.key_file) == (
        "nas",
        2222,
        "u",
        "/srv/files",
        "/k",
    )
    assert storage.create_root is (role == "destination")
    assert "known_hosts" in said(made, f"{role}.host_key") and not storage.accept_new_host_key


def test_sftp_without_a_login() -> None:
    made = made_of(**side("source", "sftp", "out"))
    assert made.job is not None and isinstance(made.job.source, SftpStorage)
    assert (made.job.source.host, made.job.source.user, made.job.source.root) == ("localhost", "me", "out")
    assert made.job.source.use_agent and "key_file" in said(made, "source.login")
    assert "no number" in said(made_of(**side("source", "sftp", "/x", port="many")), "job")


def test_scp_delivers_from_now_on() -> None:
    made = made_of(**side("destination", "scp", "/srv", host="box", username="u", key_file="/k"))
    assert made.job is not None and isinstance(made.job.destination, ScpStorage)
    assert "delivers nothing" in said(made, "destination")


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ({"region": "us-east-2"}, {"preset": "aws", "region": "us-east-2"}),
        ({}, {"preset": "aws", "region": "us-east-1"}),
        ({"endpoint_url": "https://fra1.digitaloceanspaces.com", "region": "fra1"}, {"preset": "digitalocean", "region": "fra1"}),
        (
            {"endpoint_url": "https://nyc2.digitaloceanspaces.com", "region": "nyc3"},
            {"preset": "digitalocean", "region": "nyc3", "endpoint": "https://nyc2.digitaloceanspaces.com", "addressing": "virtual"},
        ),
        ({"endpoint_url": "https://abc123.r2.cloudflarestorage.com", "region": "auto"}, {"preset": "r2", "account": "abc123"}),
        (
            {"endpoint_url": "https://abc123.eu.r2.cloudflarestorage.com"},
            {"preset": "r2", "account": "abc123", "endpoint": "https://abc123.eu.r2.cloudflarestorage.com", "addressing": "path"},
        ),
        (
            {"endpoint_url": "https://s3.us-west-002.backblazeb2.com", "region": "us-west-002"},
            {"preset": "b2", "region": "us-west-002"},
        ),
        (
            {"endpoint_url": "http://localhost:9000", "region": "us-east-1", "addressing_style": "path"},
            {"preset": "minio", "endpoint": "http://localhost:9000", "region": "us-east-1", "addressing": "path"},
        ),
        ({"endpoint_url": "https://s3.example.org/"}, {"preset": "other", "endpoint": "https://s3.example.org"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ["source", "destination"])
def test_s3(role: str, connection: dict[str, str], expected: dict[str, str]) -> None:
    made = made_of(
        **side(role, "s3", "/archive/csv/", bucket="my-bucket", access_key="AK", secret_key="SK", **connection)
    )
    assert made.document is not None and made.job is not None
    written = made.document[role]
    assert {k: v for k, v in written.items() if not isinstance(v, dict)} == {
        "type": "s3-storage",
        "bucket": "my-bucket",
        "prefix": "archive/csv",
        **expected,
    }
    storage = getattr(made.job, role)
    assert isinstance(storage, S3Storage)
    if endpoint := connection.get("endpoint_url"):
        assert storage.address() == endpoint.rstrip("/")
    assert storage.access_key == "AK" and "SK" not in str(written)


def test_keys_of_s3_from_the_environment() -> None:
    around = Around(
        AROUND.folder, "me", "UTC", {"AWS_ACCESS_KEY": "ak", "aws_secret_key": "sk", "AWS_REGION": "eu-west-1"}
    )
    keys = side("destination", "s3", "", bucket="b")
    made = translate(Job.model_validate(a_job(**keys)), around)
    assert made.secrets == {"AWS_ACCESS_KEY": "ak", "aws_secret_key": "sk"}
    assert made.document is not None and made.document["destination"]["region"] == "eu-west-1"

    standard = Around(AROUND.folder, "me", "UTC", {"AWS_ACCESS_KEY_ID": "ak", "AWS_SECRET_ACCESS_KEY": "sk"})
    assert set(translate(Job.model_validate(a_job(**keys)), standard).secrets) == set(standard.environment)
    assert made_of(**keys).secrets == {}
    assert "one of access_key and secret_key" in said(
        made_of(**side("source", "s3", "", bucket="b", access_key="x")), "job"
    )


def test_s3_as_it_cannot_be() -> None:
    assert "needs a bucket" in said(made_of(**side("source", "s3", "x")), "job")
    login = made_of(**side("source", "s3", "x", bucket="b", endpoint_url="https://AK:geheim@s3.example.org"))
    assert "holds a name or password" in said(login, "job") and "geheim" not in str(login.findings)
    bad = made_of(**side("source", "s3", "x", bucket="b", endpoint_url="https://s3.example.org:port"))
    assert bad.document is None
    old = made_of(destination={"type": "s3", "path": "x", "bucket": "b"})
    assert old.job is not None and "s3://BUCKET/" in said(old, "destination.bucket")
    open_ = job_from(**side("destination", "s3", "x", bucket="b", verify_ssl=False)).destination
    assert isinstance(open_, S3Storage) and open_.verify_tls is False


@pytest.mark.parametrize("role", ["source", "destination"])
def test_hdfs_by_the_program(role: str) -> None:
    connection = {
        "transport": "cli", "principal": "example@EXAMPLE.COM", "keytab": "/home/example/example.kt",
        "krb5ccname": "FILE:/tmp/k5cc_example", "hadoop_cli": "hadoopcli", "overwrite": False, "cli_timeout": 60,
    }  # fmt: skip
    made = made_of(**side(role, "hdfs", "/external/", **connection))
    storage = getattr(made.job, role)
    assert isinstance(storage, HadoopCliStorage)
    assert (storage.root, storage.program, storage.timeout_s) == ("/external", "hadoop", 60)
    assert (storage.principal, storage.keytab, storage.ticket_cache) == (
        connection["principal"],
        connection["keytab"],
        "",
    )
    assert "`hadoop fs`" in said(made, f"{role}.hadoop_cli")
    assert made.job is not None and made.job.on_conflict == ("fail" if role == "destination" else "replace")
    cache = job_from(**side(role, "hdfs", "/x", hadoop_cli="/opt/bin/hdfs", krb5ccname="FILE:/tmp/cc", principal="a@B"))
    storage = getattr(cache, role)
    assert (storage.program, storage.ticket_cache, storage.principal) == ("/opt/bin/hdfs", "FILE:/tmp/cc", "")


@pytest.mark.parametrize("role", ["source", "destination"])
def test_webhdfs(role: str) -> None:
    connection = {"transport": "webhdfs", "namenode": "https://nn.example.com:9871", "kerberos": False, "user": "hdfs"}
    made = made_of(**side(role, "hdfs", "/x", **connection))
    storage = getattr(made.job, role)
    assert isinstance(storage, WebHdfsStorage)
    assert (storage.namenodes, storage.user, storage.verify_tls) == (["https://nn.example.com:9871"], "hdfs", True)
    assert "here it is checked" in said(made, f"{role}.verify_ssl")
    storage = getattr(
        job_from(**side(role, "hdfs", "/x", **connection | {"verify_ssl": False, "kerberos": True})), role
    )
    assert (storage.user, storage.verify_tls) == ("", False)
    assert "no namenode" in said(made_of(**side(role, "hdfs", "/x", transport="webhdfs")), "job")
