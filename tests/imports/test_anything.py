"""Whatever FileFlow's model takes becomes a job of onblock or a finding, never an exception; and no secret is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deployments.imports.fileflow import name_of, translate
from deployments.imports.findings import Around, How
from deployments.imports.workspace import Job
from deployments.imports.writing import file_of, text_of
from flows.transfer.job import TransferJob, job_of
from tests.imports.conftest import a_job

SECRET = "geheim-7f3a"
AROUND = Around(Path("/ws"), "me", "UTC", {"AWS_ACCESS_KEY_ID": SECRET, "aws_region": "eu-1", "X": "/from/x"})

TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from([
        "", "/", ".", "..", "../..", "/data", "/data/in", "relative/x", "~", "~/x", "${X}", "${X}/y", "${", "a//b", "*.csv",
        "re:(", "re:^a$", "[", "/a\0b", "-x", "\ud800", "täglich", "0 2 * * *", "1 0 1 1 7", "@daily", "* * * *", "0 0 31 2 *",
        "localhost", "https://nyc3.digitaloceanspaces.com", "https://s3.example.org", "http://[", "https://a:b@c", "http://x:99999",
    ]),
)  # fmt: skip
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
VALUE = st.one_of(SCALAR, st.lists(SCALAR, max_size=2), st.dictionaries(TEXT, SCALAR, max_size=2))
KEYS = [
    "host", "port", "username", "key_file", "endpoint_url", "region", "bucket", "verify_ssl", "addressing_style", "transport",
    "principal", "keytab", "krb5ccname", "hadoop_cli", "cli_timeout", "overwrite", "namenode", "kerberos", "user", "timeout", "env",
]  # fmt: skip
GOOD = {"host": "nas", "username": "u", "bucket": "b", "namenode": "https://nn:9871", "region": "eu-1"}
CONNECTION = st.one_of(
    st.none(),
    st.builds(
        lambda good, plain, secret: good | plain | dict.fromkeys(secret, SECRET),
        st.sampled_from([{}, GOOD, GOOD]),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), TEXT), VALUE, max_size=3),
        st.sampled_from([[], ["password", "access_key", "secret_key"], ["access_key"]]),
    ),
)


KNOWN = ["compress", "decompress", "zip", "compress_bz2", "rename", "timestamp", "bash_script:/x/y.sh"]
STEPS = st.one_of(
    st.lists(st.sampled_from(KNOWN), max_size=17),
    st.lists(st.one_of(st.sampled_from([*KNOWN, "bash_script:"]), TEXT), max_size=4),
)
FOLDER = st.one_of(st.sampled_from(["/data/in", "/data/out", "/data", "in", "/other/x"]), TEXT)
YES = st.sampled_from([True, True, True, False])
DAYS = st.one_of(st.none(), st.integers(-2, 400), st.integers())
CRON = st.one_of(st.sampled_from(["0 2 * * *", "*/5 * * * mon-fri", "0 2 1 * 0,6"]), TEXT)


def side(**more: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"type": st.sampled_from(["local", "sftp", "s3", "scp", "hdfs"]), "path": FOLDER, "connection": CONNECTION},
        optional={"config_ref": st.one_of(st.none(), TEXT), **more},
    )


JOBS = st.fixed_dictionaries(
    {"job_id": TEXT, "schedule": CRON, "source": side(file_pattern=st.one_of(st.none(), TEXT)),
     "destination": side(bucket=st.one_of(st.none(), TEXT))},
    optional={
        "enabled": st.booleans(),
        "processing": st.fixed_dictionaries({"enabled": YES, "steps": STEPS}),
        "backup": st.fixed_dictionaries({"enabled": YES}, optional={"location": FOLDER, "retention_days": DAYS}),
        "verification": st.fixed_dictionaries(
            {}, optional={"method": st.sampled_from(["file_exists", "size_match", "checksum_match"])}
        ),
    },
)  # fmt: skip


@settings(max_examples=400)
@given(JOBS)
@example(a_job(source={"type": "s3", "path": "x", "connection": GOOD | {"access_key": SECRET, "secret_key": SECRET}}))
@example(a_job(backup={"enabled": True, "location": "/data/b", "retention_days": 3}))
def test_a_job_or_a_finding(job: dict[str, Any]) -> None:
    made = translate(Job.model_validate(job), AROUND)

    if made.document is None:
        assert any(f.about == "job" and f.how is How.NOT for f in made.findings)
        assert made.job is None and made.secrets == {}
    else:
        assert isinstance(made.job, TransferJob)
        folder = Path("/folder")
        assert file_of(folder, made).parent == folder and file_of(folder, made).name == f"{made.name}.yaml"
        text = text_of(made, deployed=False)
        assert SECRET not in text
        # what is written is what was checked
        assert job_of(yaml.safe_load(text), made.secrets).model_dump() == made.job.model_dump()
        text.encode("utf-8", "strict")
    assert SECRET not in str(made.findings)


@given(st.text())
def test_names_are_labels(job_id: str) -> None:
    from blocks.names import check_label

    assert check_label(name_of(job_id)) == name_of(job_id)
