"""A storage with secrets as a block on the server: named in a job, and never copied into its parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient

from blocks.storage import SftpStorage
from deployments.bootstrap import bootstrap
from flows.transfer.job import find_storage


def test_an_sftp_block_is_named_and_an_inline_one_saved(
    client: SyncPrefectClient, write_job: Callable[..., Path]
) -> None:
    login = {"host": "nas.example", "user": "me", "root": "/in", "password": "geheim", "port": 2222}
    SftpStorage(**login).save("nas", _sync=True)  # type: ignore[arg-type, call-arg]
    found = find_storage("sftp-storage/nas")
    assert isinstance(found, SftpStorage) and found.place() == "sftp://me@nas.example:2222/in"
    assert found.password is not None and found.password.get_secret_value() == "geheim"
    bootstrap([
        write_job("by-name", destination="sftp-storage/nas"),
        write_job("inline-ssh", destination={"type": "sftp-storage", **login}),
    ])  # fmt: skip
    for name, block in (("by-name", "nas"), ("inline-ssh", "inline-ssh-destination-1")):
        parameters = client.read_deployment_by_name(f"transfer/{name}").parameters
        kept = client.read_block_document_by_name(block, "sftp-storage", include_secrets=True)
        assert parameters["job"]["destination"] == {"$ref": {"block_document_id": str(kept.id)}}
        assert kept.data["password"] == "geheim"
        assert "geheim" not in json.dumps(parameters)
        hidden = client.read_block_document_by_name(block, "sftp-storage", include_secrets=False)
        assert "geheim" not in json.dumps(hidden.data)
