"""FileFlow's connections as storages of onblock, as a JOB.yaml writes them: local, sftp, scp, s3, hdfs.

What the connectors of FileFlow 0.5 do is told beside each; no storage is opened.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from blocks.storage.s3 import PRESETS
from deployments.imports.findings import Beyond, Draft, word
from deployments.imports.workspace import Kind, Side

Role = Literal["source", "destination"]
Written = dict[str, Any]
"""A storage as a JOB.yaml writes it."""

_KEYS: dict[Kind, set[str]] = {
    Kind.LOCAL: set(),
    Kind.SFTP: {"host", "port", "username", "password", "key_file"},
    Kind.SCP: {"host", "port", "username", "password", "key_file"},
    Kind.S3: {"endpoint_url", "region", "access_key", "secret_key", "bucket", "verify_ssl", "addressing_style"},
    Kind.HDFS: {
        "transport", "principal", "keytab", "krb5ccname", "hadoop_cli", "cli_timeout", "overwrite", "namenode", "kerberos",
        "verify_ssl", "user", "timeout",
    },
}  # fmt: skip
"""Keys of a connection that FileFlow reads."""


def place(draft: Draft, role: Role, side: Side, bucket: str | None = None) -> Written:
    """A side of a job as a storage. Raises Beyond."""
    given = {k: v for k, v in (side.connection or {}).items() if v is not None}
    if unknown := sorted(set(given) - _KEYS[side.type], key=str):
        draft.lost(f"{role}.connection", f"FileFlow does not read {', '.join(map(ascii, unknown))}")
    if side.config_ref:
        draft.lost(f"{role}.config_ref", "FileFlow does not read it")
    made = {
        Kind.LOCAL: _local, Kind.SFTP: _ssh, Kind.SCP: _ssh, Kind.S3: _s3, Kind.HDFS: _hdfs,
    }[side.type](draft, role, _Given(draft, given), side, bucket)  # fmt: skip
    draft.carried(role, f"{side.type.value} as {made['type']}")
    return made


class _Given:
    """The values of a connection, each as FileFlow takes it."""

    def __init__(self, draft: Draft, given: dict[str, Any]):
        self._draft, self.given = draft, given

    def raw(self, key: str) -> str:
        """As it is written, with its `${NAME}`."""
        return word(self.given.get(key))

    def text(self, key: str) -> str:
        """With `${NAME}` filled in."""
        return self._draft.filled(self.raw(key))

    def flag(self, key: str, default: bool) -> bool:
        """As Python takes it for true or false."""
        return bool(self.given.get(key, default))

    def number(self, role: Role, key: str) -> int | None:
        """A whole number, None if there is none. Raises Beyond for what FileFlow's `int()` refuses."""
        if not (value := self.text(key)):
            return None
        try:
            return int(float(value)) if isinstance(self.given[key], float) else int(value)
        except (ValueError, OverflowError):
            raise Beyond(f"{role}.connection.{key} is no number") from None


def absolute(draft: Draft, about: str, path: str) -> str:
    """A folder on FileFlow's machine; relative ones are meant from its workspace, where it was started."""
    path = draft.filled(path)
    if "\0" in path:  # which some versions of `normpath` take for the end
        raise Beyond(f"{about} holds a NUL byte")
    if os.path.isabs(path):
        return os.path.normpath(path)
    full = os.path.normpath(draft.around.folder / path)
    draft.differs(about, f"is relative: read from the workspace, as {full}")
    return full


def _local(draft: Draft, role: Role, given: _Given, side: Side, bucket: str | None) -> Written:
    if not draft.filled(side.path):
        raise Beyond(f"{role}.path is empty")
    root = absolute(draft, f"{role}.path", side.path)
    return {"type": "local-storage", "root": root} | ({"create_root": True} if role == "destination" else {})


def _ssh(draft: Draft, role: Role, given: _Given, side: Side, bucket: str | None) -> Written:
    if side.type is Kind.SCP:
        draft.differs(role, "FileFlow's scp delivers nothing, and says that it did; here files are moved")
    root = draft.filled(side.path).rstrip("/") or ("/" if role == "destination" or side.path else ".")
    made: Written = {
        "type": f"{side.type.value}-storage",
        "host": given.text("host") or "localhost",
        "user": given.text("username") or draft.around.user,
        "root": root,
    }
    if not given.text("host"):
        draft.differs(f"{role}.host", "is not given: localhost, as in FileFlow")
    if not given.text("username"):
        draft.differs(f"{role}.username", f"is not given: {made['user']}, who runs this import")
    if (port := given.number(role, "port")) is not None:
        made["port"] = port
    if given.raw("password"):
        made["password"] = draft.secret(role, "password", given.raw("password"))
    if key := given.text("key_file"):
        made["key_file"] = key
    if not given.raw("password") and not key:
        made["use_agent"] = True
        draft.differs(
            f"{role}.login",
            "FileFlow tried the agent and ~/.ssh/id_*; here the agent only: name a `key_file` otherwise",
        )
    if role == "destination":
        made["create_root"] = True
    draft.differs(
        f"{role}.host_key",
        "FileFlow trusts whoever answers; here the host has to be in ~/.ssh/known_hosts (`ssh-keyscan HOST`, and compare), "
        "or `accept_new_host_key: true` be said",
    )
    return made


_SERVICES: tuple[tuple[str, str, str], ...] = (
    (r"s3[.-](?P<region>[a-z0-9-]+)\.amazonaws\.com", "aws", "region"),
    (r"(?P<region>[a-z0-9-]+)\.digitaloceanspaces\.com", "digitalocean", "region"),
    (r"(?P<account>[a-z0-9]+)(?:\.[a-z]+)?\.r2\.cloudflarestorage\.com", "r2", "account"),
    (r"s3\.(?P<region>[a-z0-9-]+)\.backblazeb2\.com", "b2", "region"),
)
"""Hosts of the services that FileFlow's form offers, and what their addresses tell."""


def _s3(draft: Draft, role: Role, given: _Given, side: Side, bucket: str | None) -> Written:
    name = given.text("bucket") or draft.filled(bucket or "")
    if not name:
        raise Beyond(f"{role}: S3 needs a bucket")
    if bucket:
        draft.differs(
            f"{role}.bucket", "FileFlow puts `s3://BUCKET/` into the names of its objects; here they have none"
        )
    made: Written = {"type": "s3-storage", "bucket": name}
    if prefix := draft.filled(side.path).strip("/"):
        made["prefix"] = prefix
    made |= _service(draft, role, given)
    if given.given.get("verify_ssl") is False:
        made["verify_tls"] = False
        draft.carried(f"{role}.verify_ssl", "off: certificates are not checked")
    made |= _keys(draft, role, given)
    return made


def _service(draft: Draft, role: Role, given: _Given) -> Written:
    """Preset, endpoint, region and addressing."""
    endpoint, region = given.text("endpoint_url").rstrip("/"), given.text("region")
    path_style = {"addressing": "path"} if given.text("addressing_style") == "path" else {}
    region = region or draft.around.setting("aws_region")
    try:
        address = urlsplit(endpoint)
        host, port, login = address.hostname or "", address.port, "@" in address.netloc
    except ValueError:
        raise Beyond(f"{role}.connection.endpoint_url is no address") from None
    if login:
        raise Beyond(f"{role}.connection.endpoint_url holds a name or password; give access_key and secret_key")
    if not endpoint:
        if not region:
            draft.differs(f"{role}.region", "is not given: us-east-1, where boto3 asks first")
        return {"preset": "aws", "region": region or "us-east-1"} | path_style
    for pattern, preset, tells in _SERVICES:
        if match := re.fullmatch(pattern, host):
            made: Written = {"preset": preset, tells: region or match[tells] if tells == "region" else match[tells]}
            if endpoint == PRESETS[preset].endpoint.format(region=region or match[tells], account=match[tells]):
                return made | path_style
            if tells == "region" and made["region"] != match[tells]:
                draft.differs(f"{role}.region", f"{region} is not that of the endpoint, {match[tells]}: both are kept")
            return made | {"endpoint": endpoint, "addressing": PRESETS[preset].addressing} | path_style
    made = {"preset": "minio" if port == 9000 else "other", "endpoint": endpoint}
    return made | ({"region": region} if region else {}) | path_style


def _keys(draft: Draft, role: Role, given: _Given) -> Written:
    access = given.raw("access_key") or draft.around.reference("aws_access_key")
    secret = given.raw("secret_key") or draft.around.reference("aws_secret_key")
    if not access and not secret:
        standard = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        there = draft.around.environment
        if not all(there.get(name) for name in standard) or there.get("AWS_SESSION_TOKEN"):
            draft.differs(f"{role}.access_key", "is not given: what boto3 finds where the job runs, as in FileFlow")
            return {}
        access, secret = (f"${{{name}}}" for name in standard)
    if not access or not secret:
        raise Beyond(f"{role}.connection has one of access_key and secret_key, and not the other")
    return {
        "access_key": draft.secret(role, "access_key", access),
        "secret_key": draft.secret(role, "secret_key", secret),
    }


def _hdfs(draft: Draft, role: Role, given: _Given, side: Side, bucket: str | None) -> Written:
    path = draft.filled(side.path)
    root = path if path or role == "source" else "/"
    made: Written = {"type": "hadoop-cli-storage", "root": root}
    principal, keytab, cache = (given.text(k) for k in ("principal", "keytab", "krb5ccname"))
    if (given.text("transport") or "cli").lower() == "webhdfs":
        if not given.text("namenode"):
            raise Beyond(f"{role}.connection has no namenode")
        made = {"type": "webhdfs-storage", "namenodes": [given.text("namenode")], "root": root}
        seconds = given.number(role, "timeout")
        kerberos = given.flag("kerberos", True)
        if not kerberos:
            principal = keytab = cache = ""
            if user := given.text("user"):
                made["user"] = user
        if given.given.get("verify_ssl") is None:
            draft.differs(f"{role}.verify_ssl", "FileFlow checks no certificate unless told to; here it is checked")
        elif not given.flag("verify_ssl", False):
            made["verify_tls"] = False
            draft.carried(f"{role}.verify_ssl", "off: certificates are not checked")
    else:
        seconds = given.number(role, "cli_timeout")
        program = given.text("hadoop_cli") or "hadoopcli"
        if program.rpartition("/")[2] in ("hadoop", "hdfs"):
            made["program"] = program
        else:
            draft.differs(
                f"{role}.hadoop_cli", f"{program!a} is a shell of its own; here `hadoop fs` is run: see `program`"
            )
    if seconds is not None:
        made["timeout_s"] = seconds
    if principal and keytab:
        made |= {"principal": principal, "keytab": keytab}
        if cache:
            draft.differs(f"{role}.krb5ccname", "with a keytab, tickets are kept in a cache of onblock's own")
    else:
        if principal or keytab:
            draft.lost(
                f"{role}.principal",
                "goes with a keytab: FileFlow took the tickets that were there, and so is done here",
            )
        if cache:
            made["ticket_cache"] = cache
    if role == "destination":
        made["create_root"] = True
    return made
