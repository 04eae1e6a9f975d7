"""Connections that died are not used again; what a server can is learnt once, and leaves nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from blocks.errors import NetworkError
from blocks.storage import LocalStorage, S3Storage, SftpStorage
from blocks.storage.pool import SessionPool
from tests.contract.data import MIB, fetch, payload, send
from tests.servers.s3 import OldMinIO, SeaweedFS
from tests.servers.sshd import Sshd


def test_a_session_under_which_the_network_failed_is_not_given_out_again(tmp_path: Path) -> None:
    pool, storage = SessionPool(), LocalStorage(root=str(tmp_path))
    with pool.session(storage) as first:
        pass
    with pool.session(storage) as again:
        assert again is first
        pool.spoil(again)
    with pool.session(storage) as other:
        assert other is not first
    with pytest.raises(NetworkError), pool.session(storage) as failing:
        assert failing is other
        raise NetworkError("gone")
    with pool.session(storage) as last:
        assert last is not other
    pool.close()


def test_a_fast_lane_that_died_is_laid_anew(sshd: Sshd) -> None:
    info, data = sshd.info, payload(33 * MIB)
    storage = SftpStorage(
        host=info["host"], port=info["port"], user=info["user"], key_file=info["key"], host_key=info["host_key"],
        root=str(sshd.new_folder()),
    )  # fmt: skip
    with storage.open() as session:
        send(session, "f", data)
        lane = session.server._pipe
        assert lane is not None, "a large file takes the fast lane"
        os.kill(lane._program.pid, signal.SIGKILL)
        lane._program.wait(10)
        assert fetch(session, "f", step=MIB) == data
        assert session.server._pipe not in (None, lane)


@pytest.mark.parametrize(("kind", "minds"), [("seaweedfs", True), ("old_minio", False)])
def test_whether_conditions_are_minded_is_learnt(request: pytest.FixtureRequest, kind: str, minds: bool) -> None:
    server: SeaweedFS | OldMinIO = request.getfixturevalue(kind)
    keys = {k: server.info[k] for k in ("access_key", "secret_key")}
    storage = S3Storage(
        preset="other", endpoint=server.info["endpoint"], bucket=server.bucket, prefix=f"learn-{kind}", **keys
    )
    with storage.open() as session:
        send(session, "f", b"data")
        assert session._bucket.ability.conditional_put is minds
        found = server.client().list_objects_v2(Bucket=server.bucket, Prefix=f"learn-{kind}/")
        assert [o["Key"] for o in found["Contents"]] == [f"learn-{kind}/f"]
