"""`onblock support`: all that is asked for is in the bundle, and no secret, wherever one was; what is broken is told in it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tarfile
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from pydantic import SecretStr

from blocks.errors import NetworkError
from blocks.sender import WebhookSender
from blocks.storage import SftpStorage
from blocks.storage.base import FileInfo
from deployments.bootstrap import bootstrap
from deployments.redaction import Redaction
from flows.ledger import Ledger
from flows.ledger.states import State
from flows.ledger.store import NewFile, Outcome

NOBODY = "http://127.0.0.1:9/api"
ROOT = Path(__file__).parents[2]
PEM = "\n".join(
    [
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        *("b3BlbnNzaC1rZXktdjEAAAAABG5vbmU" + "x" * n for n in range(3)),
        "-----END OPENSSH PRIVATE KEY-----",
    ]
)
SECRETS = {
    "env": "Env-7h3-Passw0rd", "plain": "swordfishlike", "env_plain": "quietcanary", "auth": "admin:Gr33nl4mp",
    "block": "blocksecret-Qx81", "sender": "sendersecret-Qx81-long-enough", "inline": "1nline Secr3t wi7h spc9",
    "access": "AKIAIOSFODNN7EXAMPLE", "ledger": "l3dg3r-p4ss", "bearer": "eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG",
    "log_json": "jsons3cr3t!!", "long_number": "8812736450912", "file": "Tr0ub4dor&3", "folder": "opensesame",
    "query": "sig9f8e7d6c5b4a", "word": "server", "run": "flowrunsecret77", "token": "console-token-xyzzy",
    "pem": "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUx",
}  # fmt: skip


def onblock(*args: str, env: dict[str, str], limit: int | None = None) -> subprocess.CompletedProcess[str]:
    def small() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-P", "-m", "deployments.cli", *args], env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True, text=True, preexec_fn=small, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def unpacked(file: Path) -> dict[str, str]:
    with tarfile.open(file) as tar:
        members = {m.name.partition("/")[2]: tar.extractfile(m) for m in tar.getmembers()}
        return {name: f.read().decode() for name, f in members.items() if f is not None}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "logs").mkdir(parents=True)
    (folder / "console").mkdir()
    (folder / "console" / "admin.token").write_text(SECRETS["token"] + "\n")
    return folder


def planted_log(home: Path) -> None:
    s = SECRETS
    (home / "logs" / "server.log").write_text("\n".join([
        "04:32:46.123 | INFO    | prefect.flow_runs.worker - the worker has started 3 flow runs",
        f"ERROR connection to postgresql://onblock:{s['ledger']}@nas.example.org:5432/ledger failed",
        f"DEBUG Authorization: Bearer {s['bearer']}", f'DEBUG headers {{"X-Api-Key": "{s["log_json"]}"}}',
        f"INFO password={s['env']} and {s['plain']}, then {s['env_plain']} ({s['long_number']})",
        f"INFO GET https://s3.example.org/x?X-Amz-Signature={s['query']}", f"INFO console token {s['token']}",
        f"WARNING login admin with password={s['word']} refused", f"INFO {s['inline']}", PEM,
        '  File "/somewhere/else/site.py", line 3, in connect',
    ]))  # fmt: skip
    (home / "logs" / f"{s['folder']}.log").write_text("INFO the console listens\n")


def planted_ledger(url: str) -> tuple[str, int]:
    """A run that failed on a file whose name, and whose failure, hold secrets."""
    with Ledger.open(url) as ledger:
        run = ledger.begin_run("support-job", flight="F0042", device="cam-01")
        route = ledger.route("support-job", f"sftp:nas.example.org:/{SECRETS['folder']}")
        info = FileInfo(f"{SECRETS['folder']}/DCIM-{SECRETS['file']}.mp4", 123456789, 1, "")
        [entered] = ledger.enter(run, [NewFile(route, info, info.path, None)], flight="F0042", device="cam-01")
        claim = ledger.claim(run, [entered.id])[entered.id]
        failure = NetworkError(f"{SECRETS['file']} was not taken: password={SECRETS['block']} refused", path=info.path)
        ledger.finish([Outcome(entered.id, claim.attempt, State.FAILED, failure=failure, stage="write")])
        ledger.end_run(run, {
            "job": "support-job", "destinations": [], "delivered": 0, "bytes": 0, "failed": 1, "blocked": 0, "deferred": 0,
            "scanned": 1, "problems": [f"{SECRETS['block']} was refused"],
        })  # fmt: skip
        return run, entered.id


def planted_server(client: SyncPrefectClient, api: str) -> str:
    """Blocks with secrets, a run with one in its name and in what it logged; the run."""
    SftpStorage(host="nas.example.org", user="archive", root="/srv", password=SecretStr(SECRETS["block"])).save(
        "support-nas",
        overwrite=True,
        _sync=True,  # pyright: ignore
    )
    WebhookSender(secret=SecretStr(SECRETS["sender"])).save("support-sender", overwrite=True, _sync=True)  # pyright: ignore
    deployment = client.read_deployment_by_name("transfer/demo-flight")
    run = client.create_flow_run_from_deployment(deployment.id, name=f"run-{SECRETS['run']}")
    now = datetime.now(UTC).isoformat()
    log = {"name": "prefect.flow_runs", "level": 40, "timestamp": now, "flow_run_id": str(run.id)}
    httpx.post(
        f"{api}/logs/",
        json=[log | {"message": f"the login {SECRETS['run']} was refused, token {SECRETS['bearer']}"}],
        timeout=180,
    ).raise_for_status()
    client.set_flow_run_state(run.id, _cancelled(), force=True)
    return str(run.id)


def _cancelled() -> Any:
    from prefect.states import Cancelled

    return Cancelled(message=f"was not needed, says {SECRETS['run']}")


def test_all_is_in_it_but_no_secret(
    client: SyncPrefectClient, api: str, postgres_url: str, home: Path, tmp_path: Path
) -> None:
    bootstrap()
    flow_run = planted_server(client, api)
    run, row = planted_ledger(postgres_url)
    planted_log(home)
    job, file = tmp_path / "job.yaml", tmp_path / "bundle.tar.gz"
    job.write_text(json.dumps({
        "name": "support-job", "device": "cam-01", "path": "{flight}/{path}",
        "source": {"type": "sftp-storage", "host": "127.0.0.1", "port": 9, "user": "archive", "root": "/", "password": SECRETS["inline"]},
        "destination": {"type": "s3-storage", "bucket": "flights", "endpoint": "http://127.0.0.1:9", "access_key": SECRETS["access"], "secret_key": SECRETS["query"]},
    }))  # fmt: skip
    # the ledger's own password is another; the query is what a driver would take, too
    url = postgres_url + f"?application_name={SECRETS['ledger']}"
    done = onblock("support", str(file), "--job", str(job), "--json", env={
        "ONBLOCK_HOME": str(home), "ONBLOCK_LEDGER_URL": url, "NAS_PASSWORD": SECRETS["env"], "MY_THING": SECRETS["env_plain"],
        "PREFECT_API_AUTH_STRING": SECRETS["auth"], "ONBLOCK_HOOK_SECRET": SECRETS["sender"], "ONBLOCK_STEP": SECRETS["plain"],
    })  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = unpacked(file)
    text = "\n".join([*parts, *parts.values()])
    password = postgres_url.partition("://onblock:")[2].partition("@")[0]
    for name, secret in {**SECRETS, "database": password}.items():
        if name == "word":  # a word of everybody's; it is not shown where it is a password
            assert f"password={secret}" not in text
        else:
            assert secret not in text, name
            assert secret not in done.stdout + done.stderr, name
    pieces = (
        " ".join(SECRETS[part] for part in ("inline", "auth", "bearer")).replace(":", " ").replace(".", " ").split()
    )
    assert not [piece for piece in pieces if len(piece) > 3 and piece != "admin" and piece in text]
    assert file.stat().st_mode & 0o777 in (0o600, 0o644)

    told = {name: json.loads(t) for name, t in parts.items() if name.endswith(".json")}
    assert told["versions.json"]["packages"]["prefect"] == "3.8.8"
    assert told["settings.json"]["ONBLOCK_HOOK_SECRET"] == "(set)"
    assert "MY_THING" not in parts["settings.json"]
    assert told["ledger.json"]["counts"] == [{"job": "support-job", "state": "FAILED", "files": 1}]
    [seen] = told["ledger.json"]["runs"]
    assert (seen["id"], seen["job"], seen["flight"], seen["failed"]) == (run, "support-job", "F0042", 1)
    [wrong] = told["ledger.json"]["wrong"]
    assert (wrong["id"], wrong["kind"], wrong["size"], wrong["device"]) == (row, "NETWORK", 123456789, "cam-01")
    assert wrong["path"].endswith(".mp4")
    assert "was not taken" in wrong["message"]
    server = told["prefect.json"]
    assert {"sftp-storage/support-nas", "webhook-sender/support-sender"} <= set(server["blocks"])
    assert "transfer/demo-flight" in [d["name"] for d in server["deployments"]]
    assert "onblock" in [p["name"] for p in server["pools"]]
    assert {"tag": "onblock", "limit": 4, "held": 0} in server["limits"]
    assert any("dead" in a["name"] for a in server["automations"])
    [seen] = [r for r in server["runs"] if r["id"] == flow_run]
    assert seen["deployment"] == "transfer/demo-flight"
    assert any(line["run"] == flow_run and line["said"].startswith("the login [") for line in server["log"])
    assert [s["type"] for s in told["job.json"]["storages"].values()] == ["sftp-storage", "s3-storage"]
    assert "password" in told["job.json"]["storages"]["source"]["keys"]
    assert {c["what"] for c in told["doctor.json"]["checks"]} >= {"ledger", "Prefect server", "source", "destination"}
    log = parts["logs/server.log"]
    assert "04:32:46.123 | INFO    | prefect.flow_runs.worker - the worker has started 3 flow runs" in log
    assert "line 3, in connect" in log
    assert told["machine.json"]["disks"]["ONBLOCK_HOME"]["total"] > 0


def test_server_away_and_ledger_broken_are_told_in_it(home: Path, tmp_path: Path) -> None:
    (home / "ledger.db").write_bytes(b"no database at all" * 500)
    file = tmp_path / "bundle.tar.gz"
    done = onblock(
        "support", str(file), env={"ONBLOCK_HOME": str(home), "PREFECT_API_URL": NOBODY, "ONBLOCK_LEDGER_URL": ""}
    )
    assert done.returncode == 0, done.stderr
    parts = unpacked(file)
    for found in (done.stdout, parts["README.txt"]):
        assert "ledger: the ledger is damaged" in found
        assert "prefect: the Prefect server does not answer" in found
    checks = {c["what"]: c["ok"] for c in json.loads(parts["doctor.json"])["checks"]}
    assert (checks["ledger"], checks["Prefect server"]) == (False, False)
    assert {"versions.json", "settings.json", "machine.json"} <= parts.keys()


def test_a_ledger_that_refuses_us_tells_no_password(home: Path, tmp_path: Path, postgres_url: str) -> None:
    file, password = tmp_path / "bundle.tar.gz", postgres_url.partition("://onblock:")[2].partition("@")[0]
    url = postgres_url.replace(password, SECRETS["ledger"])
    done = onblock(
        "support", str(file), env={"ONBLOCK_HOME": str(home), "PREFECT_API_URL": NOBODY, "ONBLOCK_LEDGER_URL": url}
    )
    assert done.returncode == 0, done.stderr
    parts = unpacked(file)
    assert "ledger: the ledger refused the login" in parts["README.txt"]
    assert SECRETS["ledger"] not in "".join(parts.values()) + done.stdout + done.stderr


def test_nothing_is_written_over(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "bundle.tar.gz"
    file.write_text("somebody's")
    done = onblock("support", str(file), env={"ONBLOCK_HOME": str(home), "PREFECT_API_URL": NOBODY})
    assert (done.returncode, file.read_text()) == (2, "somebody's")
    assert "not written over" in done.stderr


def test_no_half_file_is_left(home: Path, tmp_path: Path) -> None:
    """As large as a file may be is less than the bundle is: as on a full disk."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = onblock(
        "support", str(folder / "bundle.tar.gz"), env={"ONBLOCK_HOME": str(home), "PREFECT_API_URL": NOBODY}, limit=512
    )
    assert done.returncode == 2, done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("text", "harmless"), [
    ("the worker has started 3 flow runs", True),
    ('INFO: 127.0.0.1:4444 - "POST /api/flow_runs/filter HTTP/1.1" 200 OK', True),
    ("2026-11-23T04:32:46.123456+00:00 1,234,567 bytes in 3.2 s", True),
    ("device:cam-01 of cam-01: transfer/cam-01", True),
    ("04:32:46,123 Nov 23 04:32:46 2026-11-23 23:59 (2026-11-23T04:32:46Z)", True),
    ("10.0.0.24:54321 192.168.178.24/24 certifi 2025.11.12, psycopg 3.2.13", True),
    ("30s, 12MB 720p 1.5GiB 250ms [12345] line=123456", True), ("transfer/cam-01:123456", True),
    ("passphrase 1234-5678-9012", False), ("1234/5678", False), ("1234.5678", False), ("12ab-34cd", False),
    ("12ab", False), ("1234-56-78", False), ("999.999.999.999", False), ("2026-11-23-1234567", False),
    ("123-456-7", False), ("cam-01:1234567", False),
    ("hunter2", False), ("Hunter2.mp4", False), ("password=server", False), ("Authorization: Basic server", False),
    ("postgresql://onblock:server@host/db", False), ("12345678", False), (str(uuid.UUID(int=7)), False),
    ("DCIM/hunter2/clip.mp4", False), ("läufer", False), ("пароль", False), ("a\x1b[31mb7q", False),
])  # fmt: skip
def test_words(text: str, harmless: bool) -> None:
    redaction = Redaction({})
    redaction.allow(["cam-01"])
    assert (redaction.text(text) == text) is harmless


def test_the_same_word_is_the_same_mark_in_one_bundle_only() -> None:
    one, other = Redaction({}), Redaction({})
    assert one.text("hunter2.mp4 and hunter2.mp4").split(" and ")[0] == one.text("hunter2.mp4")
    assert one.text("hunter2.mp4") != other.text("hunter2.mp4")
