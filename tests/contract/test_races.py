"""Several sessions at once: nobody's bytes in another's file, and one winner."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from blocks.errors import Conflict, NetworkError
from blocks.storage.base import Session, Storage, Upload
from blocks.storage.pool import SessionPool
from tests.contract.data import MIB, begin, chunks, listing, payload
from tests.contract.places import Place

WORKERS = 8


def at_once(storage: Storage, work: Callable[[Session, int, threading.Barrier], object]) -> list[object]:
    """`work` by 8 threads, each with a session of its own and past the same barrier; their results in order."""
    barrier = threading.Barrier(WORKERS, timeout=60)

    def one(number: int) -> object:
        with storage.open() as session:
            return work(session, number, barrier)

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(one, range(WORKERS)))


def test_different_files_at_once(place: Place) -> None:
    def work(session: Session, number: int, barrier: threading.Barrier) -> None:
        barrier.wait()
        for turn in range(5):
            data = payload([0, 10, 5000, 300_000, MIB + 1][turn], number)
            upload = session.upload(f"new/folder {turn}/{number}", len(data), key=f"{number}")
            for chunk in chunks(data, 10_000):
                upload.write(chunk)
            upload.commit()

    at_once(place.storage, work)
    assert place.everything() == {f"new/folder {t}/{n}" for t in range(5) for n in range(WORKERS)}
    for number in range(WORKERS):
        for turn, size in enumerate([0, 10, 5000, 300_000, MIB + 1]):
            assert place.get(f"new/folder {turn}/{number}") == payload(size, number)


def test_one_name_has_one_winner(place: Place, session: Session) -> None:
    exclusive = session.features.exclusive_commit

    for turn in range(10):
        path = f"d{turn}/file"

        def work(session: Session, number: int, barrier: threading.Barrier, path: str = path) -> str | Conflict:
            upload = begin(session, path, payload(5000, number), key=f"version {number}")
            barrier.wait()
            try:
                return upload.commit()
            except Conflict as conflict:
                upload.abort()
                return conflict

        results = at_once(place.storage, work)
        winners = [n for n, r in enumerate(results) if r == path]
        assert winners
        assert all(r == path or isinstance(r, Conflict) for r in results)
        if exclusive:
            assert len(winners) == 1
        assert place.get(path) in [payload(5000, n) for n in winners], "the file is not one winner's, whole"
        assert {p for p in place.everything() if p.startswith(f"d{turn}/")} == {path}


def test_losers_find_other_names(place: Place, session: Session) -> None:
    """What the job's `on_conflict: rename` does, by all at once: everything arrives."""
    if not session.features.exclusive_commit:
        return  # then the mover looks first, and nothing is promised in a race

    def work(session: Session, number: int, barrier: threading.Barrier) -> str:
        upload = begin(session, "file", payload(3000, number), key=f"version {number}")
        barrier.wait()
        for n in range(WORKERS + 1):
            try:
                return upload.commit(f"file~{n}" if n else None)
            except Conflict:
                continue
        raise AssertionError("no name was free")

    names = at_once(place.storage, work)
    assert len(set(names)) == WORKERS
    assert place.everything() == set(names)
    for number, name in enumerate(names):
        assert place.get(str(name)) == payload(3000, number)


def test_one_file_has_one_mover(place: Place) -> None:
    """A source file moved aside by several at once lies in one place."""
    place.put("file", b"x" * 100)

    def work(session: Session, number: int, barrier: threading.Barrier) -> bool:
        barrier.wait()
        try:
            session.move("file", f"done/{number}")
        except Exception as error:  # noqa: BLE001  the loser's error is of the taxonomy: checked here
            assert type(error).__module__ == "blocks.errors", repr(error)
            return False
        return True

    assert at_once(place.storage, work).count(True) == 1
    assert len(place.everything()) == 1


def test_a_scan_while_others_write(place: Place) -> None:
    """Whoever scans meanwhile sees whole files only."""

    def work(session: Session, number: int, barrier: threading.Barrier) -> int:
        barrier.wait()
        seen = 0
        for turn in range(12):
            if number % 2:
                begin(session, f"d{turn % 3}/{number}-{turn}", payload(4000, turn), key="k").commit()
            else:
                found = list(session.scan())
                assert all(f.size == 4000 and not f.problem for f in found)
                seen += len(found)
        return seen

    at_once(place.storage, work)
    with place.storage.open() as session:
        assert len(listing(session)) == WORKERS // 2 * 12


# -- the pool of sessions ---------------------------------------------------------------------------------------------


def test_pool_lends_a_session_to_one_at_a_time_and_again(place: Place) -> None:
    pool = SessionPool()
    with pool.session(place.storage) as first, pool.session(place.storage) as second:
        assert first is not second
    with pool.session(place.storage) as again:
        assert again in (first, second)
    pool.close()
    with pool.session(place.storage) as fresh:
        assert fresh not in (first, second)
    pool.close()


def test_pool_drops_a_session_whose_network_failed(place: Place) -> None:
    pool = SessionPool()
    with pytest.raises(NetworkError), pool.session(place.storage) as broken:
        raise NetworkError("gone")
    with pytest.raises(KeyError), pool.session(place.storage) as fine:
        raise KeyError
    assert fine is not broken
    with pool.session(place.storage) as again:
        assert again is fine
    pool.close()


def test_uploads_of_one_session_end_in_any_order(place: Place, session: Session) -> None:
    uploads: list[Upload] = [begin(session, f"f{n}", payload(100, n), key="k") for n in range(6)]
    uploads[4].commit()
    uploads[0].abort()
    uploads[5].keep()
    uploads[1].commit()
    assert session.commit_all([uploads[3], uploads[2]]) == ["f3", "f2"]
    assert listing(session) == {"f1", "f2", "f3", "f4"}
