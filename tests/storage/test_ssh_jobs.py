"""Jobs from and to hosts reached by SSH: written inline in a JOB.yaml, and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from blocks.errors import ConfigError
from blocks.storage import ScpStorage, SftpStorage
from flows.transfer.job import load_job
from flows.transfer.story import run_here
from tests.contract.data import MIB, payload
from tests.servers.sshd import Sshd

FILES = {f"small/{n:03}": payload(n * 37, n) for n in range(60)} | {
    "large.mp4": payload(40 * MIB), "odd\nname -x'.bin": payload(5000), "\udcff.bin": b"bytes",
}  # fmt: skip


def inline(kind: str, server: Sshd, root: Path) -> dict[str, Any]:
    info = server.info
    return {
        "type": kind, "host": info["host"], "port": info["port"], "user": info["user"], "root": str(root),
        "password": info["password"], "host_key": info["host_key"],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["sftp-storage", "scp-storage"])
def test_a_card_goes_there_and_comes_back(sshd: Sshd, sshd_without_sftp: Sshd, tmp_path: Path, kind: str) -> None:
    server = sshd if kind == "sftp-storage" else sshd_without_sftp
    there, card, back = server.new_folder(), tmp_path / "card", tmp_path / "back"
    for path, data in FILES.items():
        (card / path).parent.mkdir(parents=True, exist_ok=True)
        (card / path).write_bytes(data)
    back.mkdir()
    local = {"type": "local-storage", "root": str(card)}
    legs = [
        ("out", local, inline(kind, server, there)),
        ("in", inline(kind, server, there), local | {"root": str(back)}),
    ]
    for name, source, destination in legs:
        job = tmp_path / f"{name}.yaml"
        job.write_text(yaml.safe_dump({
            "name": name, "source": source, "destination": destination, "settle": {"quiet": "0s"},
            "exclude": ["checksums.sha256"],
        }))  # fmt: skip
        for turn in range(2):
            summary = run_here(load_job(job))
            assert summary["failed"] == summary["deferred"] == 0, summary
            assert summary["delivered"] == (0 if turn else len(FILES))
        root = there if name == "out" else back
        found = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        assert found.pop("checksums.sha256").count(b"\n") == len(FILES)
        assert found == FILES


def test_a_job_says_what_is_wrong_with_its_storage(sshd: Sshd, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    good = inline("sftp-storage", sshd, tmp_path)
    for change, word in (
        ({"type": "ftp-storage"}, "sftp-storage"), ({"colour": "red"}, "colour"), ({"password": None}, "one way to log in"),
        ({"port": "many"}, "port"),
    ):  # fmt: skip
        source = {k: v for k, v in {**good, **change}.items() if v is not None}
        job.write_text(yaml.safe_dump({"name": "x", "source": source, "destination": good}))
        with pytest.raises(ConfigError) as caught:
            load_job(job)
        assert word in str(caught.value)
        assert sshd.info["password"] not in str(caught.value)


def test_the_two_are_told_apart(tmp_path: Path) -> None:
    """As flow parameters they are unions: each value must be taken for what it is."""
    from flows.transfer.job import TransferJob

    login = {"host": "nas", "user": "u", "root": "/x", "password": "geheim"}
    job = TransferJob(name="x", source=ScpStorage(**login), destinations=[SftpStorage(**login)])  # type: ignore[arg-type]
    assert type(job.source) is ScpStorage and type(job.destinations[0]) is SftpStorage
    assert "geheim" not in repr(job) + job.model_dump_json()
    schema = TransferJob.model_json_schema()
    names = [one["$ref"].rpartition("/")[2] for one in schema["properties"]["source"]["anyOf"]]
    assert {"LocalStorage", "SftpStorage", "ScpStorage"} <= set(names)
    assert all(p["description"] for name in names for p in schema["$defs"][name]["properties"].values())
