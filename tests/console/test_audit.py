"""What is written down of what people did and were refused; that nobody washes it out, and who is told of it."""

from __future__ import annotations

import json
import logging
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from deployments.access import access
from deployments.console import audit as module
from deployments.console.access import WRONG, People, Role
from deployments.console.audit import LONGEST, OF_ALL, OF_ONE, WITHIN_S, Audit, Refusals
from flows.ledger import State
from tests.console.conftest import Site

pytestmark = pytest.mark.timeout(600)


@pytest.mark.usefixtures("long_minute")
def test_what_was_refused_is_written_down(site: Site, url: str) -> None:
    with httpx.Client(base_url=url, timeout=180) as client:
        client.get("/api/v1/jobs", headers={"Authorization": "Bearer not-this-one"})
        client.post("/login", data={"token": site.tokens[Role.ADMIN]}, headers={"Origin": "http://evil.example"})
        client.post("/api/v1/overrides", json={}, headers=site.head(Role.OPERATOR) | {"Sec-Fetch-Site": "cross-site"})
        client.post("/api/v1/overrides", json={})
        client.post("/api/v1/overrides", json={}, headers=site.head(Role.VIEWER))
        for _ in range(WRONG):
            client.post("/login", data={"token": "not-this-one"})
    lines = [line for line in site.audit.recent() if "status" in line][::-1]
    assert all(line["address"] == "127.0.0.1" for line in lines)
    elsewhere = "sent by a page from elsewhere"
    assert [(o["who"], o["what"], o.get("asked"), o["status"]) for o in lines[:5]] == [
        (None, "wrong token", "GET /api/v1/jobs", 401), (None, elsewhere, "POST /login", 403),
        (None, elsewhere, "POST /api/v1/overrides", 403), (None, "POST /api/v1/overrides", None, 401),
        ("viewer", "POST /api/v1/overrides", None, 403),
    ]  # fmt: skip
    assert [o["what"] for o in lines[5:]] == ["wrong token"] * (WRONG - 1) + ["too many wrong tokens"]
    assert "not-this-one" not in site.audit.file.read_text()


@pytest.mark.usefixtures("long_minute")
def test_who_is_refused_all_the_time_washes_nothing_out(site: Site, url: str) -> None:
    """Neither a viewer, nor somebody without a token, nor by long paths, nor by logging out for ever."""
    size = site.audit.file.stat().st_size
    with httpx.Client(base_url=url, timeout=180) as client:
        for _ in range(2 * OF_ONE):
            client.post(f"/overrides/{'A' * 10_000}/revoke", headers=site.head(Role.VIEWER))
            client.post(f"/overrides/{'A' * 10_000}/revoke")
            client.post("/logout", headers=site.head(Role.VIEWER))
    lines = [line for line in site.audit.recent(1000) if "status" in line]
    for who in ("viewer", None):
        assert sum(line["who"] == who for line in lines) == OF_ONE
    assert site.audit.file.stat().st_size - size < len(lines) * 2 * LONGEST


def test_how_many_lines_were_left_out_is_told() -> None:
    now = [0.0]
    refusals = Refusals(lambda: now[0])
    assert [refusals.may("eve") for _ in range(OF_ONE + 5)] == [{}] * OF_ONE + [None] * 5
    assert refusals.may("alex") == {"left_out": 5}
    told = [refusals.may(f"10.0.0.{i}") for i in range(OF_ALL)]
    assert told == [{}] * (OF_ALL - OF_ONE - 1) + [None] * (OF_ONE + 1)
    now[0] = WITHIN_S
    assert [refusals.may("eve"), refusals.may("eve")] == [{"left_out": OF_ONE + 1}, {}]


def test_what_an_operator_names_is_kept_whole_and_what_he_writes_has_an_end(site: Site, url: str) -> None:
    ids = site.rows(*((f"f{i}", State.QUEUED) for i in range(600)))
    head = site.head(Role.OPERATOR)
    with httpx.Client(base_url=url, headers=head, timeout=180) as client:
        assert client.post("/api/v1/transfers/actions", json={"action": "pause", "ids": ids}).status_code == 200
        assert site.audit.recent()[0]["ids"] == ids
        missing = list(range(10_000, 10_600))
        assert client.post("/api/v1/transfers/actions", json={"action": "pause", "ids": missing}).status_code == 404
        assert site.audit.recent()[0]["ids"] == missing[:20]
        ask = {"job": "card", "rule": "prefix", "path": "p" * 4000, "why": "w" * 4000}
        assert client.post("/api/v1/overrides", json=ask).status_code == 201
    told = site.audit.recent()[0]["override"]
    assert told["path"] == "p" * LONGEST + "... (4000 characters)" and len(told["why"]) < LONGEST + 30


def test_who_gets_access_and_loses_it_is_written_down(onblock_home: Path) -> None:
    for words in (["add", "alex"], ["add", "alex", "--role", "admin"], ["remove", "alex"]):
        assert CliRunner().invoke(access, words).exit_code == 0
    assert CliRunner().invoke(access, ["remove", "alex"]).exit_code != 0
    lines = People().audit.recent()[::-1]
    assert [(o["what"], o["name"], o.get("role"), o.get("before")) for o in lines] == [
        ("access add", "alex", "viewer", None), ("access add", "alex", "admin", "viewer"), ("access remove", "alex", None, None),
    ]  # fmt: skip
    assert all(o["who"].startswith("(") for o in lines)  # somebody of this machine: nobody of the console is called so


def test_who_gets_access_without_a_line_gets_none(onblock_home: Path) -> None:
    people = People()
    people.audit.file.mkdir(parents=True)
    with pytest.raises(OSError):
        people.add("alex", Role.ADMIN)
    assert people.all() == []


def test_only_admins_are_told_who_has_acted_on_a_file(site: Site, url: str) -> None:
    """Everybody is told what was done, also when that is many lines ago."""
    one, other = site.rows(("a", State.QUEUED), ("b", State.QUEUED))
    with httpx.Client(base_url=url, timeout=180) as client:
        ask = {"action": "pause", "ids": [one, other]}
        assert client.post("/api/v1/transfers/actions", json=ask, headers=site.head(Role.OPERATOR)).status_code == 200
        for i in range(300):
            site.audit.write("pat", "x", status=200, ids=[1000 + i], action="retry")

        def told(role: Role) -> list[tuple[str, str]]:
            history = client.get(f"/api/v1/transfers/{one}/history", headers=site.head(role)).json()
            return [(e["what"], e["detail"]) for e in history["events"]]

        assert ("pause", "by operator") in told(Role.ADMIN)
        for role in (Role.VIEWER, Role.OPERATOR):
            assert ("pause", "") in told(role)
            page = client.get(f"/transfers/{one}", headers=site.head(role)).text
            assert "pause" in page and ">by operator" not in page
        assert ">by operator" in client.get(f"/transfers/{one}", headers=site.head(Role.ADMIN)).text


# -- the file ---------------------------------------------------------------------------------------------------------


def lines_of(file: Path) -> list[dict[str, object]]:
    files = [file, *file.parent.glob(f"{file.name}.*")]
    return [json.loads(line) for f in files for line in f.read_text().splitlines()]


def test_no_line_is_lost_where_several_write_while_it_is_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE", 4000)
    file = tmp_path / "audit.jsonl"

    def write(number: int) -> None:
        mine = Audit(file)
        for i in range(50):
            mine.write(str(number), "x", i=i)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert {(o["who"], o["i"]) for o in lines_of(file)} == {(str(n), i) for n in range(6) for i in range(50)}
    assert len(list(tmp_path.glob("audit.jsonl.*"))) >= 3
    assert len(Audit(file).recent(60)) == 60  # also those of the file before


def test_a_disk_that_is_full_leaves_no_half_line(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    program = f"""
import pathlib
from deployments.console.audit import Audit
audit = Audit(pathlib.Path({str(file)!r}))
audit.write("a", "first")
try:
    audit.write("a", "second " + "x" * 290)
except OSError:
    print("refused")
"""

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    done = subprocess.run([sys.executable, "-c", program], preexec_fn=little_room, capture_output=True, text=True, cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.stdout == "refused\n", done.stderr
    Audit(file).write("a", "third")
    assert [o["what"] for o in lines_of(file)] == ["first", "third"]


def test_what_is_asked_for_makes_no_line_of_its_own(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the audit log nor in that of the console."""

    @site.app.post("/api/v1/defect/{name}")
    def defect(name: str) -> None:
        raise RuntimeError("a defect")

    forged = '2026-11-22 20:00:00,000 INFO all is well {"who": "root"}'
    with caplog.at_level(logging.INFO), site.served() as url:
        path = f"/api/v1/defect/%0d%0a{forged.replace(' ', '%20')}%1b%5b31m%e2%80%a8"
        assert httpx.post(url + path, headers=site.head(Role.OPERATOR), timeout=180).status_code == 500
    (line,) = [r.getMessage() for r in caplog.records if r.name == "onblock.console" and "defect/" in r.getMessage()]
    assert forged[-8:] in line and line.isprintable()
    text = site.audit.file.read_bytes()
    assert text.isascii() and b"\x1b" not in text and b"\r" not in text
    assert forged in json.loads(text.splitlines()[-1])["what"]


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_file_whose_token_is_void_is_not_there(onblock_home: Path) -> None:
    people = People()
    file = people.first_start()
    assert file is not None
    token = people.add("admin", Role.ADMIN)
    assert not file.exists() and people.first_start() is None
    person = people.by_token(token)
    assert person is not None and person.role is Role.ADMIN


def test_two_first_starts_at_once_make_one_admin_whose_token_is_right(tmp_path: Path) -> None:
    for turn in range(20):
        folder, ready = tmp_path / str(turn), threading.Barrier(4)

        def start(folder: Path = folder, ready: threading.Barrier = ready) -> None:
            ready.wait()
            People(folder).first_start()

        threads = [threading.Thread(target=start) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        person = People(folder).by_token((folder / "admin.token").read_text().strip())
        assert person is not None and person.name == "admin", turn
        assert [line["what"] for line in People(folder).audit.recent()] == ["access add"]
