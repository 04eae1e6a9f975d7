"""A FileFlow workspace is imported, and its jobs are run; what its records say was delivered is adopted, or skipped."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.ledger import Ledger
from tests.imports.conftest import Cli, Workspace, a_job, report
from tests.servers.sshd import Sshd

LONG_AGO = 1_700_000_000  # 2023-11-14


@pytest.fixture
def moving(workspace: Workspace, tmp_path: Path) -> Moving:
    return Moving(workspace, tmp_path)


class Moving:
    """A workspace with a job from `incoming` to `archive`."""

    def __init__(self, workspace: Workspace, folder: Path):
        self.workspace, self.out = workspace, folder / "jobs"
        self.incoming, self.archive = folder / "incoming", folder / "archive"
        self.incoming.mkdir()
        self.archive.mkdir()

    def put(self, name: str, content: str, when: int = LONG_AGO) -> None:
        (self.incoming / name).write_text(content)
        os.utime(self.incoming / name, (when, when))

    def job(self, **keys: Any) -> dict[str, Any]:
        source = {"type": "local", "path": str(self.incoming), "file_pattern": "*.csv"}
        return a_job(**{"source": source, "destination": {"type": "local", "path": str(self.archive)}} | keys)

    def rows(self) -> dict[str, dict[str, Any]]:
        with Ledger.open() as ledger:
            return {row["path"]: row for row in ledger.files()}


def test_a_workspace_moves_in(onblock: Cli, moving: Moving, sshd: Sshd) -> None:
    info, there = sshd.info, sshd.new_folder()
    for n in range(20):
        moving.put(f"report {n}.csv", f"{n}\n" * n)
    (moving.incoming / "sub").mkdir()
    (moving.incoming / "sub" / "deep.csv").write_text("not taken")
    moving.put("other.txt", "not taken")
    login = {"host": info["host"], "port": info["port"], "username": info["user"], "password": "${NAS_PASSWORD}"}
    moving.workspace.write(
        moving.job(job_id="to_archive", verification={"method": "checksum_match"}),
        moving.job(job_id="to nas", destination={"type": "sftp", "path": str(there / "new"), "connection": login},
                   processing={"enabled": True, "steps": ["rename", "compress"]}),
    )  # fmt: skip
    (moving.workspace.folder / ".env").write_text(f'ADMIN_PASSWORD=admin\nexport NAS_PASSWORD="{info["password"]}"\n')

    done = onblock("import-fileflow", moving.workspace.jobs, "--to", moving.out, "--timezone", "Asia/Dhaka", "--json")
    assert done.returncode == 0, done.stderr
    said = report(done)
    archive, nas = said["jobs"]
    assert said["timezone"] == "Asia/Dhaka" and nas["environment"] == ["NAS_PASSWORD"]
    assert info["password"] not in done.stdout + Path(nas["file"]).read_text()
    assert "# needs the environment variable NAS_PASSWORD" in Path(nas["file"]).read_text()
    written = yaml.safe_load(Path(nas["file"]).read_text())
    # FileFlow trusts any host; here somebody has compared its key
    written["destination"]["host_key"] = info["host_key"]
    Path(nas["file"]).write_text(yaml.safe_dump(written))

    first = onblock("run", archive["file"], "--json")
    assert first.returncode == 0, first.stderr
    assert report(first)["delivered"] == 20 and report(first)["verified_by"] == {"checksum": 20}
    assert (moving.archive / "report 3.csv").read_text() == "3\n3\n3\n"
    assert not (moving.archive / "deep.csv").exists() and not (moving.archive / "sub").exists()

    unset = onblock("run", nas["file"])
    assert unset.returncode == 2 and "NAS_PASSWORD, which is not set" in unset.stderr
    second = onblock("run", nas["file"], "--json", NAS_PASSWORD=info["password"])
    assert second.returncode == 0, second.stderr
    assert report(second)["delivered"] == 20 and report(second)["failed"] == 0
    names = {p.name for p in (there / "new").iterdir()} - {"checksums.sha256"}
    assert names == {f"to nas_report {n}.csv.gz" for n in range(20)}
    again = onblock("run", nas["file"], "--json", NAS_PASSWORD=info["password"])
    assert report(again)["delivered"] == 0 and report(again)["duplicates"] == 20


def test_what_is_there_with_the_same_content_is_adopted(onblock: Cli, moving: Moving) -> None:
    for name in ("same.csv", "other.csv", "gone.csv"):
        moving.put(name, f"1 {name}")
        moving.workspace.record(
            {"file_name": name, "file_size": 2 + len(name), "execution_time": "2024-01-01 00:00:00"}
        )
    (moving.archive / "same.csv").write_text("1 same.csv")
    (moving.archive / "other.csv").write_text("2 other.csv")
    moving.workspace.write(moving.job())
    done = onblock("import-fileflow", moving.workspace.jobs, "--to", moving.out, "--transfers-db", moving.workspace.db)
    assert done.returncode == 0, done.stderr
    assert (
        "it delivered 3 files, 0 of which it could not confirm; a run sends what is at the source once more"
        in done.stdout
    )
    assert moving.rows() == {}

    run = report(onblock("run", moving.out / "daily.yaml", "--json"))
    assert (run["adopted"], run["delivered"], run["failed"]) == (1, 2, 0)
    assert (moving.archive / "other.csv").read_text() == "1 other.csv"  # as FileFlow: replaced
    row = moving.rows()["same.csv"]
    assert (row["state"], row["sha256"]) == ("VERIFIED", hashlib.sha256(b"1 same.csv").hexdigest())


def test_what_is_skipped_is_no_proof(onblock: Cli, moving: Moving) -> None:
    rows = {
        "sent.csv": {}, "lost.csv": {}, "edited.csv": {"execution_time": "2023-01-01 00:00:00"},
        "unsure.csv": {"verification_status": "failed"}, "broken.csv": {"transfer_status": "failed"},
        "nowhere.csv": {"destination_type": "scp"}, "resized.csv": {"file_size": 99}, "when.csv": {"execution_time": "?"},
        "others.csv": {"job_id": "another"},
    }  # fmt: skip
    for name, row in rows.items():
        moving.put(name, "12345")
        moving.workspace.record({"file_name": name, "file_size": 5, "execution_time": "2024-01-01 00:00:00"} | row)
    moving.put("new.csv", "12345")
    backup = {"enabled": True, "location": str(moving.incoming / "old")}
    moving.workspace.write(moving.job(backup=backup))
    done = onblock(
        "import-fileflow", moving.workspace.jobs, "--to", moving.out, "--transfers-db", moving.workspace.db,
        "--skip-delivered", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [job] = report(done)["jobs"]
    assert job["fileflow"] == {
        "delivered": 6, "unconfirmed": 1,
        "skipped": {"entered": 2, "known": 0, "changed": 2, "unconfirmed": 1, "unknown": 5},
    }  # fmt: skip
    known = moving.rows()
    assert set(known) == {"sent.csv", "lost.csv"}
    for row in known.values():
        assert row["state"] == "DUPLICATE" and "nobody here has looked" in row["message"]
        assert (row["sha256"], row["verified_by"], row["dest_path"], row["done_at"], row["verify_passes"]) == (
            None, None, None, None, 0
        )  # fmt: skip

    file = moving.out / "daily.yaml"
    run = report(onblock("run", file, "--json"))
    assert (run["delivered"], run["duplicates"], run["failed"]) == (8, 2, 0)
    assert not (moving.archive / "lost.csv").exists()  # nobody has looked, as was asked for
    # a cleanup takes nothing for proven that nobody has proven, whatever the ages it is content with
    job_yaml = yaml.safe_load(file.read_text())
    job_yaml["cleanup"] |= {"min_age": "0 s", "min_verify_passes": 1, "passes_apart": "1 min"}
    file.write_text(yaml.safe_dump(job_yaml))
    clean = report(onblock("clean", file, "--json"))
    assert any("DUPLICATE, not VERIFIED" in reason for reason in clean["waiting"]), clean
    assert (moving.incoming / "sent.csv").exists() and (moving.incoming / "lost.csv").exists()
    assert report(onblock("verify", file, "--json"))["destinations"][f"local:{moving.archive}"]["checked"] == 8

    # imported again, nothing changes; asked for, it is sent
    again = onblock(
        "import-fileflow", moving.workspace.jobs, "--to", moving.out, "--replace", "--transfers-db", moving.workspace.db,
        "--skip-delivered", "--json",
    )  # fmt: skip
    assert report(again)["jobs"][0]["fileflow"]["skipped"]["entered"] == 0
    assert onblock("transfers", "retry", str(known["lost.csv"]["id"])).returncode == 0
    assert report(onblock("run", file, "--json"))["delivered"] == 1
    assert (moving.archive / "lost.csv").read_text() == "12345"


def test_a_source_that_is_away_is_told(onblock: Cli, moving: Moving) -> None:
    moving.workspace.record({"file_name": "a.csv"})
    moving.workspace.write(moving.job())
    moving.incoming.rmdir()
    done = onblock(
        "import-fileflow", moving.workspace.jobs, "--to", moving.out, "--transfers-db", moving.workspace.db,
        "--skip-delivered",
    )  # fmt: skip
    assert done.returncode == 1 and "its source cannot be" in done.stdout
    assert (moving.out / "daily.yaml").exists()
