"""What is told once a second: by a real server, to a program; and how fast a ledger of many rows is looked at."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from blocks.storage.base import FileInfo
from deployments.console.access import People
from flows.ledger import Ledger
from flows.ledger.listing import Aside, Listing, Wanted
from flows.ledger.store import NewFile, Outcome, State
from tests.console.conftest import Site, serving
from tests.deployments.conftest import PATIENCE_S

pytestmark = pytest.mark.timeout(600)


@contextmanager
def listening(url: str, token: str) -> Iterator[Iterator[tuple[str, Any]]]:
    """(event, data) of the stream, as they come; fails the test where it goes on for longer than anything may take."""
    head = {"Authorization": f"Bearer {token}"}
    deadline = time.monotonic() + PATIENCE_S

    def events(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
        event = ""
        for line in answer.iter_lines():  # where nothing moves, one that says so comes every few seconds
            assert time.monotonic() < deadline, "what is waited for does not come"
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield event, json.loads(line.removeprefix("data: "))

    with httpx.stream("GET", f"{url}/api/v1/stream", headers=head, timeout=PATIENCE_S) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield events(answer)


def test_the_stream_tells_how_far_a_transfer_is_and_how_it_ended(running: str, token: str) -> None:
    with Ledger.open() as ledger, listening(running, token) as events:
        run = ledger.begin_run("card", flight=None, device=None)
        route = ledger.route("card", "local:/archive")
        (entered,) = ledger.enter(
            run, [NewFile(route, FileInfo("clip.mp4", 100_000_000, 1, ""), "clip.mp4", None)], flight=None, device=None
        )
        claim = ledger.claim(run, [entered.id])[entered.id]
        seen = next(d["rows"] for e, d in events if e == "rows" and d["rows"])
        assert [(r["id"], r["state"], r["phase"], r["bytes_done"]) for r in seen] == [
            (entered.id, "DELIVERING", "deliver", 0)
        ]
        ledger.note(claim, 50_000_000, "{}")
        row = next(d["rows"][0] for e, d in events if e == "rows" and d["rows"][0]["bytes_done"])
        assert row["bytes_done"] == 50_000_000
        assert row["bytes_per_s"] > 0 and row["seconds_left"] >= 0
        ledger.finish(
            [Outcome(claim.id, claim.attempt, State.VERIFIED, "clip.mp4", "ab" * 32, "checksum", 100_000_000)]
        )
        last = next(d["rows"] for e, d in events if e == "rows" and d["rows"][0]["state"] == "VERIFIED")
        assert last[0]["id"] == entered.id
        ledger.end_run(run, {})


def test_the_stream_ends_for_whoever_is_not_let_in_any_more(running: str, token: str) -> None:
    with Ledger.open() as ledger, listening(running, token) as events:
        People().remove("admin")
        run = ledger.begin_run("card", flight=None, device=None)
        route = ledger.route("card", "local:/archive")
        (entered,) = ledger.enter(
            run, [NewFile(route, FileInfo("clip.mp4", 1, 1, ""), "clip.mp4", None)], flight=None, device=None
        )
        ledger.claim(run, [entered.id])
        assert [d for _, d in events if d["rows"]] == []
        ledger.end_run(run, {})


def test_it_speaks_tls_with_a_cookie_that_goes_nowhere_else(onblock_home: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert], check=True, capture_output=True,
    )  # fmt: skip
    trust = ssl.create_default_context(cafile=str(cert))
    with serving(onblock_home, "--tls-cert", str(cert), "--tls-key", str(key), scheme="https", verify=trust) as url:
        token = (onblock_home / "console" / "admin.token").read_text().strip()
        with httpx.Client(base_url=url, verify=trust, headers={"Sec-Fetch-Site": "same-origin"}, timeout=180) as client:
            answer = client.post("/login", data={"token": token})
            told = answer.headers["set-cookie"]
            assert told.startswith("__Host-onblock=") and "Secure" in told
            assert "strict-transport-security" not in answer.headers, "Prefect's UI is at this name, too, without TLS"
            assert client.get("/transfers").status_code == 200
            assert client.head("/health").status_code == 200, "as those ask who look whether it is up"


def test_a_page_looks_at_a_few_rows_however_many_there_are(site: Site) -> None:
    """By what SQLite says it does, and not by a clock: no page and no filter by job or state reads the whole table, and
    none sorts it."""
    site.rows(*((f"f{i}", State.VERIFIED) for i in range(50)), ("x", State.FAILED))
    asked: list[tuple[str, Any]] = []
    event.listen(
        site.ledger.engine, "before_cursor_execute", lambda c, cur, sql, params, *_: asked.append((sql, params))
    )
    listing = Listing(site.ledger.engine)
    for wanted in (
        Wanted(), Wanted(job="card"), Wanted(states=frozenset({State.FAILED})), Wanted(job="card", states=frozenset({State.VERIFIED})),
        Wanted(text="ab" * 32), Wanted(text="f1"), Wanted(flight="F1"), Wanted(aside=Aside(1, (1, 2), 1)), Wanted(job="card", aside=Aside(1)),
    ):  # fmt: skip
        listing.page(wanted, limit=10)
    selects = [(sql, params) for sql, params in asked if sql.startswith("SELECT") and "files" in sql]
    assert len(selects) >= 14
    with site.ledger.engine.connect() as c:
        for sql, params in selects:
            plan = " | ".join(r[-1] for r in c.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", params))
            assert "SCAN files" not in plan, (sql, plan)
            assert "TEMP B-TREE" not in plan or "json_each" in plan, (sql, plan)
