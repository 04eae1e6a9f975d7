"""Where a JOB.yaml gets the keys of its storages from, and which places go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.errors import ConfigError
from flows.transfer.job import load_job
from tests.test_job import GOOD, write


def test_a_key_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = {"type": "sftp-storage", "host": "nas", "user": "u", "root": "/srv", "password": {"env": "NAS_PASSWORD"}}
    path = write(tmp_path, GOOD | {"destination": login})
    monkeypatch.delenv("NAS_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match=r"destination: sftp-storage: `password` .* NAS_PASSWORD, which is not set"):
        load_job(path)
    monkeypatch.setenv("NAS_PASSWORD", "geheim")
    destination = load_job(path).destination
    assert destination.password.get_secret_value() == "geheim"  # type: ignore[union-attr]
    # what may be a mapping says what it says
    bucket = {"type": "s3-storage", "bucket": "b", "region": "r", "tags": {"env": "prod"}}
    assert load_job(write(tmp_path, GOOD | {"destination": bucket})).destination.tags == {"env": "prod"}  # type: ignore[union-attr]


def test_a_folder_of_the_source_may_be_the_destination_where_nothing_is_taken_from_it(tmp_path: Path) -> None:
    inside = {"destination": {"type": "local-storage", "root": "/media/card/sent"}}
    with pytest.raises(ConfigError, match="lies in the source"):
        load_job(write(tmp_path, GOOD | inside))
    assert load_job(write(tmp_path, GOOD | inside | {"recursive": False})).recursive is False
    with pytest.raises(ConfigError, match="lies in the source"):
        load_job(write(tmp_path, GOOD | inside | {"recursive": False, "folder": "sent"}))
