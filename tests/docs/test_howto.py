"""The how-to pages, done as they say: their files and their commands, with a shell, against real servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.hdfs import Hdfs
from tests.servers.kdc import Kdc
from tests.servers.s3 import SeaweedFS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)


class Reader:
    """Somebody who follows a page: he writes its files into his folder, and types its commands, with his own places."""

    def __init__(self, folder: Path, page: str, **places: str):
        self.folder, self.places = folder, {"/media/card": str(folder / "card"), **places}
        self.text = (ROOT / "docs" / page).read_text("utf-8")
        (folder / "card" / "DCIM").mkdir(parents=True)
        for name in ("clip.mp4", "DCIM/photo.jpg", "log.csv"):
            (folder / "card" / name).write_bytes(name.encode() * 1000)
            os.utime(folder / "card" / name, (1_700_000_000, 1_700_000_000))
        (folder / "bin").mkdir()
        program = folder / "bin" / "onblock"
        program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -m deployments.cli "$@"\n')
        program.chmod(0o755)
        for block in re.findall(r"^```yaml\n(# \S+\.yaml\n.*?)^```$", self.text, re.MULTILINE | re.DOTALL):
            name = block.split()[1]
            (folder / name).write_text(self.mine(block))

    def mine(self, text: str) -> str:
        for theirs, ours in self.places.items():
            text = text.replace(theirs, ours)
        return text

    def types(self, begins: str, **env: str) -> str:
        """Everything of the first block of commands that begins with a line like this; what was said."""
        found = re.search(rf"^```sh\n({re.escape(begins)}.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        assert found, begins
        return self.sh(self.mine(found[1]), **env)

    def sh(self, commands: str, **env: str) -> str:
        environment = {**os.environ, **env, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-exc", commands], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def test_first_job(tmp_path: Path) -> None:
    (tmp_path / "nas").mkdir()
    # no share is mounted here, and a folder of one's own is what the page says to take then
    place = "/mnt/nas/archive, require_mount: true"
    reader = Reader(
        tmp_path, "first-job.md", **{place: f"{tmp_path}/archive, create_root: true", "/mnt/nas": str(tmp_path)}
    )
    assert "3 delivered" in reader.types("onblock doctor card.yaml")
    assert reader.types("cd /mnt/nas/archive/F0042/cam-01").count("OK") == 3
    assert (tmp_path / "archive/F0042/cam-01/DCIM/photo.jpg").exists()
    assert "0 delivered" in reader.sh("onblock run card.yaml --flight F0042")
    assert reader.sh("onblock transfers list --job card --state FAILED") is not None


def test_s3(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    keys = {"S3_KEY": seaweedfs.info["access_key"], "S3_SECRET": seaweedfs.info["secret_key"]}
    mine = {
        "https://s3.example.org": seaweedfs.info["endpoint"],
        "bucket: flights": f"bucket: {seaweedfs.bucket}",
        "F0042": "how-to",
    }
    reader = Reader(tmp_path, "s3.md", **mine, **{"export S3_KEY=... S3_SECRET=...": ":"})
    assert "3 delivered" in reader.types("export S3_KEY", **keys)
    body = seaweedfs.client().get_object(Bucket=seaweedfs.bucket, Key="how-to/DCIM/photo.jpg")["Body"].read()
    assert body == b"DCIM/photo.jpg" * 1000


def test_hdfs_both_ways(tmp_path: Path, kerberos_hdfs: Hdfs, realm: Kdc, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in realm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path}/mine")
    superuser = f"FILE:{tmp_path}/superuser"
    subprocess.run(
        ["kinit", "-c", superuser, "-k", "-t", str(kerberos_hdfs.folder / "hdfs.keytab"), "hdfs/localhost"], check=True
    )
    kerberos_hdfs.hadoop("fs", "-mkdir", "-p", "/data/flights", KRB5CCNAME=superuser)
    kerberos_hdfs.hadoop("fs", "-chown", "pilot", "/data/flights", KRB5CCNAME=superuser)
    keytab = tmp_path / "onblock.keytab"
    keytab.write_bytes(Path(realm.info["keytab"]).read_bytes())
    names = '"https://nn1.example.org:9871", "https://nn2.example.org:9871"'
    reader = Reader(tmp_path, "hdfs-kerberos.md", **{
        names: f'"{kerberos_hdfs.info["url"]}"', "onblock@EXAMPLE.ORG": f"pilot@{realm.info['realm']}",
        "/etc/onblock.keytab": str(keytab), "/opt/hadoop/bin/hadoop": str(kerberos_hdfs.info["hadoop"]),
        "/etc/hadoop/conf": str(kerberos_hdfs.info["conf"]),
    })  # fmt: skip
    assert "pilot" in reader.types("kinit -kt")
    assert "3 delivered" in reader.types("chmod 600")
    assert "3 delivered" in reader.sh("onblock doctor hdfs-cli.yaml && onblock run hdfs-cli.yaml --flight F0043")
    listed = kerberos_hdfs.hadoop("fs", "-ls", "-R", "/data/flights", KRB5CCNAME=superuser)
    assert "/data/flights/F0042/DCIM/photo.jpg" in str(listed) and "/data/flights/F0043/clip.mp4" in str(listed)
