"""Large files over SFTP: by a Python at the far side, or by the server's own SFTP and a shell that follows; what is hashed
while it is sent, and what happens when the far side dies, stands still, has no room, or may not."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from blocks.errors import DiskFull, NetworkError
from blocks.storage import sftp_messages as wire
from blocks.storage.base import Session
from blocks.storage.sftp import SftpSession
from blocks.storage.sftp_files import SftpUpload
from blocks.storage.sftp_messages import Refused
from tests.contract.data import MIB, begin, fetch, payload, send
from tests.servers.sshd import Sshd
from tests.storage.test_sftp import sftp


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A file that is hashed at the far side while it is sent, in several steps."""
    monkeypatch.setattr("blocks.storage.sftp.LARGE", 4 * MIB)
    monkeypatch.setattr("blocks.storage.sftp.FOLLOWED", 4 * MIB)
    monkeypatch.setattr("blocks.storage.sftp_follow.STEP", MIB)
    return payload(9 * MIB + 77)


Login = dict[str, Any]
WITHOUT_PYTHON = ["lean", "spare"]


WITH_PYTHON = ["xfer", "password"]


@pytest.fixture(params=[*WITH_PYTHON, *WITHOUT_PYTHON])
def account(request: pytest.FixtureRequest, sshd: Sshd) -> Login:
    """The far side hashes by Python, over OpenSSH's client or our own; by OpenSSL; by coreutils."""
    if request.param == "password":
        return {"key_file": None, "password": sshd.info["password"]}
    return {"user": request.param}


by_python = pytest.mark.parametrize("account", WITH_PYTHON, indirect=True)


def began(session: Session, data: bytes) -> tuple[SftpSession, SftpUpload]:
    upload = begin(session, "f", data)
    assert isinstance(session, SftpSession) and isinstance(upload, SftpUpload)
    return session, upload


HASHERS = {"lean": "openssl", "spare": "sha256sum"}


def hashers(sshd: Sshd) -> set[str]:
    """The programs that hash under the server, once there is one."""
    assert sshd.process is not None
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(psutil.NoSuchProcess):
            names = {
                os.path.basename(p.cmdline()[0]) for p in psutil.Process(sshd.process.pid).children(True) if p.cmdline()
            }
            if found := names & {"python3", *HASHERS.values()}:
                return found
        time.sleep(0.02)
    return set()


def test_a_large_file_is_hashed_while_it_is_sent(sshd: Sshd, account: Login, followed: bytes) -> None:
    """Nobody else could tell: the shell that hashes at the end is gone."""
    with sftp(sshd, **account).open() as session:
        mine, upload = began(session, followed)
        assert hashers(sshd) == {HASHERS.get(account.get("user", ""), "python3")}
        assert mine.server._shell is not None
        mine.server._shell.close()
        assert upload.matches(hashlib.sha256(followed).hexdigest())
        upload.abort()


def far_sides(sshd: Sshd) -> list[psutil.Process]:
    """The Pythons under the server."""
    assert sshd.process is not None
    below = psutil.Process(sshd.process.pid).children(True)
    return [p for p in below if (p.cmdline() or [""])[0].endswith("python3")]


@by_python
def test_a_far_side_that_is_killed_leaves_what_it_had(sshd: Sshd, account: Login, followed: bytes) -> None:
    root = sshd.new_folder()
    with sftp(sshd, root, **account).open() as session:
        _, upload = began(session, followed[: 5 * MIB])
        upload.settle()
        for process in far_sides(sshd):
            process.kill()
        with pytest.raises(NetworkError):
            upload.write(memoryview(followed)[5 * MIB :])
            upload.settle()
        send(session, "other", followed)  # a new one is started
    with sftp(sshd, root, **account).open() as session:
        upload = session.upload("f", len(followed), resume=True)
        assert upload.offset == 5 * MIB
        upload.write(memoryview(followed)[upload.offset :])
        assert upload.matches(hashlib.sha256(followed).hexdigest()) and upload.commit() == "f"
    assert (root / "f").read_bytes() == followed and len(list(root.iterdir())) == 2


def test_a_far_side_that_stands_still_is_given_up(sshd: Sshd, followed: bytes) -> None:
    with sftp(sshd, io_timeout=2).open() as session:
        _, upload = began(session, followed[: 5 * MIB])
        upload.settle()
        stopped = far_sides(sshd)
        assert stopped
        try:
            for process in stopped:
                process.suspend()
            with pytest.raises(NetworkError, match="no answer in time"):
                for _ in range(8):  # more than fits between it and us
                    upload.write(memoryview(followed))
                upload.settle()
        finally:
            for process in stopped:
                process.kill()


def test_a_far_side_without_room_says_so(tmp_path: Path, followed: bytes) -> None:
    with Sshd(tmp_path, small="6m") as full, sftp(full, full.info["small"]).open() as session:
        with pytest.raises(DiskFull):
            _, upload = began(session, followed)
            upload.settle()
        assert far_sides(full)


def held_open(root: Path) -> list[str]:
    """What lay below a folder, was removed, and is open still."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if (name := os.readlink(link)).startswith(f"{root}/") and name.endswith(" (deleted)"):
                found.append(name)
    return found


@pytest.mark.parametrize("sealed", [False, True])
def test_what_is_given_up_takes_no_room(sshd: Sshd, account: Login, followed: bytes, sealed: bool) -> None:
    root = sshd.new_folder()
    with sftp(sshd, root, **account).open() as session:
        mine, upload = began(session, followed)
        if sealed:
            upload.seal()
        upload.abort()
        end = time.monotonic() + 20
        while held_open(root) and time.monotonic() < end:
            time.sleep(0.02)
        assert not held_open(root) and not list(root.iterdir())
        send(session, "g", followed)
        assert not mine.server.lane().wire._answers


@by_python
def test_what_the_far_side_may_not_open_goes_another_way(
    sshd: Sshd, account: Login, followed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the server's SFTP is somebody else than the login."""
    root = sshd.new_folder()
    with sftp(sshd, root, **account).open() as session:
        assert isinstance(session, SftpSession)
        lane = session.server.lane()
        assert wire.DIGEST in lane.wire.extensions

        def refused(full: bytes, flags: int) -> bytes:
            raise Refused(3, "Permission denied")

        monkeypatch.setattr(lane, "open", refused)
        send(session, "f", followed)
        assert fetch(session, "f", step=MIB) == followed
    assert [p.name for p in root.iterdir()] == ["f"]


def test_a_lane_that_was_closed_is_nobody_elses(sshd: Sshd, followed: bytes) -> None:
    """What waits to be sent when a lane dies does not go where its descriptors lead later."""
    root = sshd.new_folder()
    with sftp(sshd, root).open() as session:
        mine, first = began(session, followed)
        assert first.matches(hashlib.sha256(followed).hexdigest())
        first.seal()
        for process in far_sides(sshd):
            process.kill()
        pipe = mine.server._pipe
        assert pipe is not None
        until_closed = time.monotonic() + 20
        while not pipe.closed and time.monotonic() < until_closed:
            time.sleep(0.02)
        second = session.upload("g", len(followed))
        second.write(memoryview(followed))
        with pytest.raises(NetworkError):
            first.commit()
        assert second.matches(hashlib.sha256(followed).hexdigest()) and second.commit() == "g"
    assert (root / "g").read_bytes() == followed and not (root / "f").exists()


def test_what_is_followed_is_what_lies_there(sshd: Sshd, account: Login, followed: bytes) -> None:
    """The far side holds a flipped bit: no digest but its own is right, and one look more is taken before it is said."""
    flipped = bytearray(followed)
    flipped[5 * MIB] ^= 1
    with sftp(sshd, **account).open() as session:
        upload = begin(session, "f", bytes(flipped))
        assert upload.matches(hashlib.sha256(followed).hexdigest()) is False
        assert upload.matches(hashlib.sha256(flipped).hexdigest()) is True
        upload.abort()


def test_bytes_behind_the_end_are_seen(sshd: Sshd, account: Login, followed: bytes) -> None:
    root = sshd.new_folder()
    with sftp(sshd, root, **account).open() as session:
        _, upload = began(session, followed)
        upload.settle()
        (staged,) = root.iterdir()
        with staged.open("ab") as file:
            file.write(b"more")
        assert upload.matches(hashlib.sha256(followed).hexdigest()) is False
        upload.abort()


@pytest.mark.parametrize("user", WITHOUT_PYTHON)
def test_a_follower_that_fails_costs_nothing(sshd: Sshd, user: str, followed: bytes) -> None:
    with sftp(sshd, user=user).open() as session:
        _, upload = began(session, followed[: 6 * MIB])
        assert upload._follower is not None and upload._follower._channel is not None
        upload._follower._channel.close()
        upload.write(memoryview(followed)[6 * MIB :])
        assert upload.matches(hashlib.sha256(followed).hexdigest())
        assert upload.commit() == "f"
        assert session.checksum("f") == hashlib.sha256(followed).hexdigest()


def test_a_rewound_file_is_not_followed(sshd: Sshd, account: Login, followed: bytes) -> None:
    other = payload(3 * MIB, 5)
    with sftp(sshd, **account).open() as session:
        _, upload = began(session, followed)
        assert upload.rewind(5 * MIB) == 5 * MIB
        upload.write(memoryview(other))
        assert upload.matches(hashlib.sha256(followed[: 5 * MIB] + other).hexdigest())
        upload.abort()
