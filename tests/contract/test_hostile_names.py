"""Names as devices make them: what is legal goes through unharmed, what is not touches nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import pytest

from blocks.errors import ConfigError
from blocks.storage.base import Session
from tests.contract.data import BYTES, HOSTILE, ILLEGAL, begin, fetch, listing, payload, send
from tests.contract.places import FolderPlace, Place


def takes(place: Place, session: Session, path: str) -> bool:
    return place.holds(path) and (session.features.byte_names or path not in BYTES)


def test_a_hostile_name_goes_all_the_way(place: Place, session: Session, subtests: pytest.Subtests) -> None:
    for path in place.some(HOSTILE + BYTES):
        with subtests.test(path=ascii(path)):
            all_the_way(place, session, path)


def all_the_way(place: Place, session: Session, path: str) -> None:
    data = payload(len(path) * 11, 1)
    if not takes(place, session, path):
        with pytest.raises(ConfigError):
            send(session, path, data)
        assert place.everything() == set()
        return
    upload = begin(session, path, data, key=path)
    assert listing(session) == set()
    assert upload.commit() == path
    assert place.get(path) == data
    assert place.everything() == {path}
    (info,) = session.scan()
    assert (info.path, info.size, info.problem) == (path, len(data), None)
    assert session.stat(path).version == info.version
    assert fetch(session, path) == data
    assert session.checksum(path) == hashlib.sha256(data).hexdigest()
    session.move(path, "plain/name")
    assert place.everything() == {"plain/name"}
    session.move("plain/name", path)
    assert place.get(path) == data
    session.delete(path)
    assert place.everything() == set()


def test_hostile_names_side_by_side(place: Place, session: Session) -> None:
    """All in one folder, none taken for another; moved by another hand, found by ours."""
    names = [p for p in HOSTILE + BYTES if takes(place, session, p)]
    for number, path in enumerate(names):
        place.put(path, payload(50, number))
    assert listing(session) == set(names)
    for number, path in enumerate(names):
        assert fetch(session, path) == payload(50, number)


def test_a_hostile_folder(place: Place, session: Session, subtests: pytest.Subtests) -> None:
    for path in place.some(HOSTILE + BYTES):
        with subtests.test(path=ascii(path)):
            as_a_folder(place, session, path)


def as_a_folder(place: Place, session: Session, path: str) -> None:
    if not takes(place, session, path):
        with pytest.raises(ConfigError):
            send(session, f"{path}/file", b"x")
        assert place.everything() == set()
        return
    send(session, f"{path}/file", b"x")
    assert place.everything() == {f"{path}/file"}
    assert listing(session, path) == {f"{path}/file"}
    session.delete(f"{path}/file")


ATTEMPTS: dict[str, Callable[[Session, str], object]] = {
    "stat": lambda s, p: s.stat(p),
    "read": lambda s, p: s.read(p),
    "upload": lambda s, p: s.upload(p, 1),
    "resume": lambda s, p: s.upload(p, 1, key="k", resume=True),
    "checksum": lambda s, p: s.checksum(p),
    "delete": lambda s, p: s.delete(p),
    "move": lambda s, p: s.move(p, "fine"),
    "move to": lambda s, p: s.move("file", p),
    "scan": lambda s, p: list(s.scan(p)) if p else s.stat(p),  # the empty path is the whole storage, for a scan
}


def test_an_illegal_name_is_refused_by_every_method(place: Place, session: Session, subtests: pytest.Subtests) -> None:
    place.put("file", b"untouched")
    for path in place.some(ILLEGAL):
        with subtests.test(path=ascii(path)):
            refused(place, session, path)


def refused(place: Place, session: Session, path: str) -> None:
    for name, attempt in ATTEMPTS.items():
        with pytest.raises(ConfigError) as caught:
            attempt(session, path)
        assert str(caught.value).isprintable(), name
    if session.features.writable:
        upload = begin(session, "other", b"data")
        with pytest.raises(ConfigError):
            upload.commit(path)
        upload.abort()
    assert place.everything() == {"file"}
    assert place.get("file") == b"untouched"
    if isinstance(place, FolderPlace):  # nothing beside the root either
        assert os.listdir(place.folder) == ["file"]
        if place.folder.parent.name != "shm":
            assert os.listdir(place.folder.parent) == [place.folder.name]
