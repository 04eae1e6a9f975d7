"""The configuration of jobs as programs send it: what is wrong is told with its place, before any server is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deployments.console.access import Role
from deployments.console.job_texts import HIDDEN, masked
from tests.console.conftest import Site

GOOD: dict[str, Any] = {
    "name": "card", "source": {"type": "local-storage", "root": "/card"},
    "destination": {"type": "sftp-storage", "host": "nas", "user": "me", "root": "/srv", "password": "geheim-17"},
}  # fmt: skip


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in GOOD.items() if k != key}


def test_what_fits_is_told_so_as_json_and_as_yaml(site: Site) -> None:
    program = site.program()
    assert program.post("/api/v1/config/validate", json=GOOD).json() == {"name": "card", "fits": True}
    text = (
        b"name: card\nsource: {type: local-storage, root: /card}\ndestination: {type: local-storage, root: /archive}\n"
    )
    for kind in ("application/yaml", "text/yaml; charset=utf-8"):
        answer = program.post("/api/v1/config/validate", content=text, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("job", "where", "what"),
    [
        (without("source"), "source", "Field required"),
        (GOOD | {"verfy": "size"}, "verfy", "there is no such key; there are name, source"),
        (GOOD | {"min_size": "large"}, "min_size", "500 KB"),
        (GOOD | {"settle": {"quiet": "soon"}}, "settle.quiet", "no duration"),
        (GOOD | {"path": "{flite}/{name}"}, "path", "unknown token {flite}"),
        (GOOD | {"name": "a/b"}, "name", "name"),
        (GOOD | {"source": {"type": "tape", "root": "/x"}}, "source", "no storage type 'tape'"),
        (GOOD | {"source": {"type": "local-storage"}}, "source.root", "Field required"),
        (GOOD | {"destination": GOOD["destination"] | {"port": "geheim-18"}}, "destination.port", "integer"),
        (GOOD | {"destination": GOOD["destination"] | {"password": {"env": "HOME"}}}, "destination", "HOME, which is not set"),
        (without("destination") | {"destinations": [GOOD["source"] | {"root": "/a"}, {"type": "s3-storage"}]}, "destinations.1.bucket", "required"),
        (GOOD | {"steps": [{"kind": "transcode", "crf": 999}]}, "steps.0.transcode.crf", "less than"),
        (GOOD | {"schedule": {"cron": "0 5 * * *"}, "path": "{flight}/{name}"}, "", "without a flight"),
        (GOOD | {"schedule": {"cron": "61 5 * * *"}}, "schedule.cron", "cron"),
        (GOOD | {"include": ["a\ud800"]}, "include.0", "half a character"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(site: Site, job: dict[str, Any], where: str, what: str) -> None:
    head = {"Content-Type": "application/json"}
    for method, path in (
        ("POST", "/api/v1/config/validate"),
        ("PUT", f"/api/v1/config/jobs/{job['name'].replace('/', '')}"),
    ):
        answer = site.program(Role.ADMIN).request(method, path, content=json.dumps(job), headers=head)
        assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json", answer.text
        told = answer.json()
        assert any(e["where"] == where and what in e["what"] for e in told["errors"]), told
        assert "geheim" not in answer.text


@pytest.mark.parametrize(
    ("kind", "body", "status", "what"),
    [
        ("application/json", b"{", 422, "cannot be read"),
        ("application/json", b"[1]", 422, "a mapping"),
        ("application/json", b'{"min_size": NaN}', 422, "NaN"),
        ("application/json", b"\xff\xfe", 422, "cannot be read"),
        ("application/json", b"[" * 100_000, 422, "cannot be read"),
        ("application/yaml", b"a: [1, 2", 422, "line 1"),
        ("application/yaml", b"a: &x [1]\nb: *x\n", 422, "aliases"),
        ("application/yaml", b"!!python/object:os.system {}", 422, "cannot be read"),
        ("application/yaml", b"a: !!bool foo", 422, "cannot be read"),
        ("application/yaml", b"a: !!int ''", 422, "cannot be read"),
        ("application/yaml", b"a: !!timestamp foo", 422, "cannot be read"),
        ("text/csv", b"a,b", 415, "application/json"),
    ],
)
def test_what_is_no_job_is_no_defect(site: Site, kind: str, body: bytes, status: int, what: str) -> None:
    answer = site.program(Role.ADMIN).post("/api/v1/config/validate", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status and what in answer.json()["detail"], answer.text


def test_a_job_keeps_its_name_and_only_admins_write(site: Site) -> None:
    answer = site.program(Role.ADMIN).put("/api/v1/config/jobs/other", json=GOOD)
    assert answer.status_code == 422 and answer.json()["errors"][0]["where"] == "name"
    assert site.program(Role.OPERATOR).put("/api/v1/config/jobs/card", json=GOOD).status_code == 403
    assert "geheim" not in site.audit.file.read_text()


def test_without_a_server_nothing_is_written_and_it_is_said(site: Site) -> None:
    for client, method, path in (
        (site.program(Role.ADMIN), "PUT", "/api/v1/config/jobs/card"), (site.program(Role.VIEWER), "GET", "/api/v1/config/jobs"),
        (site.program(Role.VIEWER), "GET", "/api/v1/config/jobs/card"),
    ):  # fmt: skip
        answer = client.request(method, path, **({"json": GOOD} if method == "PUT" else {}))
        assert answer.status_code == 503 and "Prefect" in answer.json()["detail"], answer.text
    named = GOOD | {"source": "local-storage/card"}
    assert site.program().post("/api/v1/config/validate", json=named).status_code == 503


def test_secrets_written_where_only_blocks_should_be_are_hidden() -> None:
    told = {
        "name": "card", "source": "local-storage/card", "more_destinations": [
            {"host": "nas", "password": "geheim", "private_key": None},
            {"bucket": "b", "credentials": {"aws_secret_access_key": "geheim"}, "session_token": "geheim"},
        ],
    }  # fmt: skip
    shown = masked(told)
    assert "geheim" not in str(shown) and str(shown).count(HIDDEN) == 3
    assert shown["more_destinations"][0] == {"host": "nas", "password": HIDDEN, "private_key": None}
