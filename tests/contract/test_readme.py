"""The README's table of what each storage can, held against what sessions to real servers say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from blocks.devices import DEVICES
from blocks.storage import STORAGES
from blocks.storage.base import Features
from flows.transfer.job import load_job
from tests.contract.places import Place

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
TYPICAL = {
    "local": "local-storage", "sftp": "sftp-storage", "scp": "scp-storage", "s3": "s3-storage",
    "webhdfs": "webhdfs-storage", "hadoop-cli": "hadoop-cli-storage", "rclone-sftp": "rclone-storage",
    "rsync": "rsync-storage",
}  # fmt: skip
"""The place whose server has all that a storage can make use of."""


def row(slug: str, features: Features) -> str:
    """One line of the table."""
    yes = {True: "yes", False: "no"}
    cells = [
        f"`{slug}`", yes[features.resume_write], yes[features.resume_read], yes[features.exclusive_commit],
        ", ".join(k.lower() for k in features.server_checksums) or "no", yes[features.mtime_set],
        str(features.parallel) if features.parallel > 1 else "1", yes[features.bulk_push],
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def test_the_table(request: pytest.FixtureRequest, place: Place) -> None:
    slug = TYPICAL.get(request.node.callspec.params["place"])
    if slug is None:
        return
    with place.storage.open() as session:
        assert row(slug, session.features) in README.splitlines()


def test_every_storage_has_a_line_and_an_example() -> None:
    assert set(TYPICAL.values()) == set(STORAGES)
    examples = re.findall(r"^(?:source|destination): (\{type: .*\})$", README, re.MULTILINE)
    assert {yaml.safe_load(e)["type"] for e in examples} - set(DEVICES) == set(STORAGES)
    assert all(f"| `{slug}` |" in README for slug in DEVICES)


@pytest.mark.parametrize("example", re.findall(r"^((?:source|destination): \{type: .*\})$", README, re.MULTILINE))
def test_examples_are_accepted(tmp_path: Path, example: str) -> None:
    side = example.partition(":")[0]
    other = {"source": "destination", "destination": "source"}[side]
    job = tmp_path / "job.yaml"
    job.write_text(f"name: x\n{example}\n{other}: {{type: local-storage, root: /tmp}}\n")
    assert load_job(job).name == "x"
