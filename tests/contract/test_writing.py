"""What a destination owes: upload, digest, commit, keep, abort, delete, move."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.errors import Conflict, NotFound, OnblockError, SourceChanged, SourceVanished
from blocks.names import TEMPORARY
from blocks.storage.base import Session, Upload, aligned_buffer
from tests.contract.data import MIB, SIZES, aligned_chunks, begin, chunks, fetch, listing, payload, send
from tests.contract.places import Place


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def temporaries(place: Place) -> set[str]:
    return {path for path in place.everything() if TEMPORARY.search(path)}


def resumes(upload: Upload, kept: int, session: Session) -> bool:
    """Whether it goes on where `kept` bytes end, or as near before it as the storage can."""
    step = session.features.resume_step
    return kept - step < upload.offset <= kept if session.features.resume_write else upload.offset == 0


def begins_anew(place: Place, session: Session, data: bytes) -> None:
    """What a storage owes that cannot go on in mid-file: nothing of what was kept is taken for the beginning."""
    old = begin(session, "a/file", data[: len(data) // 2], key="v1")
    journal = old.journal
    old.keep()
    assert session.rekey("a/file", "v1", "v2") is None
    for key in ("v1", "v2"):
        upload = session.upload("a/file", len(data), key=key, resume=True, journal=journal)
        assert upload.offset == 0
        upload.write(memoryview(data))
        upload.commit(replace=True)
        assert place.get("a/file") == data
    assert place.everything() == {"a/file"}


# -- upload and commit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [chunks, aligned_chunks], ids=["bytes", "aligned"])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_sent_arrives(
    place: Place, session: Session, size: int, cut: Callable[[bytes, int], Iterator[memoryview]]
) -> None:
    data = payload(size)
    upload = session.upload("a/b/file", size, key="version 1")
    assert upload.offset == 0
    for chunk in cut(data, MIB):
        upload.write(chunk)
    digest = upload.digest()
    assert digest == sha256(data) if session.features.staged_digest else digest is None
    assert place.get("a/b/file") is None, "the final name is there before commit"
    assert upload.commit() == "a/b/file"
    assert place.get("a/b/file") == data
    assert place.everything() == {"a/b/file"}
    info = session.stat("a/b/file")
    assert info.size == size
    assert {f.path: f.version for f in session.scan()} == {"a/b/file": info.version}


@pytest.mark.parametrize("announced", [0, 100, 9 * MIB])
@pytest.mark.parametrize("step", [1, 511, 4095, 4096, 4097, 65_537])
def test_odd_chunks_and_a_wrong_announcement(place: Place, session: Session, step: int, announced: int) -> None:
    """`size` is a hint, and chunks come in any size: also where the upload bypasses a cache that wants pages."""
    data = payload(3000 if step == 1 else 200_001)
    for cut in (chunks, aligned_chunks):
        upload = session.upload("file", announced, key=cut.__name__)
        for chunk in cut(data, step):
            upload.write(chunk)
        upload.commit(replace=True)
        assert place.get("file") == data


def test_chunks_of_changing_size_and_alignment(place: Place, session: Session) -> None:
    """Aligned, then not, then aligned again, with an empty one between: a large file all the same."""
    data, buffer = payload(9 * MIB + 5), aligned_buffer(MIB + 8192)
    upload, at = session.upload("file", len(data)), 0
    for turn in range(1000):
        n = [MIB, 4096, 0, 1000, MIB, 8191, 4096][turn % 7]
        skew = [0, 0, 0, 1, 512, 7, 4096][turn % 7]
        part = data[at : at + n]
        buffer[skew : skew + len(part)] = part
        upload.write(memoryview(buffer)[skew : skew + len(part)])
        at += len(part)
        if at == len(data):
            break
    upload.commit()
    assert place.get("file") == data


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.binary(max_size=9000), max_size=8),
    st.sampled_from([0, 8 * MIB, 64 * MIB]),
    st.integers(0, 8),
)
def test_any_chunks_arrive(place: Place, session: Session, parts: list[bytes], announced: int, asked: int) -> None:
    """However a file is cut, and whenever it is asked for its digest meanwhile."""
    upload = session.upload("file", announced, key="k")
    for number, part in enumerate(parts):
        if number == asked:
            digest = upload.digest()
            assert digest in (None, sha256(b"".join(parts[:number])))
        upload.write(memoryview(part))
    upload.commit(replace=True)
    assert place.get("file") == b"".join(parts)


def test_nothing_is_at_the_final_name_until_commit(place: Place, session: Session) -> None:
    upload = session.upload("file", 4 * MIB)
    for chunk in chunks(payload(4 * MIB), MIB):
        upload.write(chunk)
        assert place.get("file") is None
        assert listing(session) == set()
        with pytest.raises(NotFound):
            session.stat("file")
    upload.commit()
    assert place.get("file") == payload(4 * MIB)


def test_what_was_there_stays_whole_until_commit(place: Place, session: Session) -> None:
    place.put("file", b"old and whole")
    upload = begin(session, "file", payload(300_000))
    assert place.get("file") == b"old and whole"
    assert fetch(session, "file") == b"old and whole"
    assert upload.commit(replace=True) == "file"
    assert place.get("file") == payload(300_000)
    assert place.everything() == {"file"}


def test_files_of_one_folder_do_not_meet(place: Place, session: Session) -> None:
    """Several uploads open at once in one session, also two versions of one path."""
    open_ones = {name: session.upload(f"d/{name}", 3000, key=name) for name in "abc"}
    twin = session.upload("d/a", 3000, key="another version")
    for turn in range(3):
        for name, upload in open_ones.items():
            upload.write(memoryview(name.encode() * 1000))
        twin.write(memoryview(bytes([turn]) * 1000))
    for upload in open_ones.values():
        upload.commit()
    twin.abort()
    assert {p: place.get(p) for p in place.everything()} == {f"d/{n}": n.encode() * 3000 for n in "abc"}


def test_mtime_is_kept(place: Place, session: Session) -> None:
    for number, size in enumerate((0, 5000, 9 * MIB)):
        stamp = 1_234_567_890_000_000_000 + number * 10_000_000_000
        send(session, f"f{number}", payload(size), mtime_ns=stamp)
        found = session.stat(f"f{number}").mtime_ns
        if session.features.mtime_set:
            assert abs(found - stamp) < 2_000_000_000  # FAT keeps two seconds
        else:
            assert found > 1_700_000_000_000_000_000  # the time it arrived
    assert place.get("f1") == payload(5000)


# -- the read-back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_digest_is_that_of_what_lies_there(place: Place, session: Session, size: int) -> None:
    data = payload(size)
    upload = begin(session, "file", data)
    for fresh in (False, True, True, False):
        digest = upload.digest(fresh=fresh)
        assert digest == sha256(data) if session.features.staged_digest else digest is None
    upload.commit()
    assert place.get("file") == data
    assert session.checksum("file") == session.checksum("file", fresh=True) == sha256(data)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(("size", "position"), [(1, 0), (5000, 4999), (300_000, 270_000), (9 * MIB + 1, 9 * MIB)])
def test_digest_sees_a_flipped_byte(place: Place, session: Session, size: int, position: int, fresh: bool) -> None:
    data = payload(size)
    upload = begin(session, "file", data)
    if not session.features.staged_digest:
        assert upload.digest(fresh=fresh) is None
        upload.commit()
        place.flip("file", position)
        assert session.checksum("file", fresh=fresh) != sha256(data)
        return
    assert upload.matches(sha256(data)) is True
    assert upload.digest() == sha256(data)
    (staged,) = temporaries(place)
    place.flip(staged, position)
    assert upload.matches(sha256(data), fresh=fresh) is False
    assert upload.digest(fresh=fresh) not in (None, sha256(data))
    place.flip(staged, position)
    assert upload.digest(fresh=fresh) == sha256(data)
    upload.abort()
    assert place.everything() == set()


def test_writing_goes_on_after_a_digest(place: Place, session: Session) -> None:
    data = payload(9 * MIB + 11)
    for cut in (1, 4096, 5000, MIB, 8 * MIB + 1):
        upload = session.upload("file", len(data), key=str(cut))
        upload.write(memoryview(data)[:cut])
        assert upload.digest() == (sha256(data[:cut]) if session.features.staged_digest else None)
        upload.write(memoryview(data)[cut:])
        assert upload.digest(fresh=True) == (sha256(data) if session.features.staged_digest else None)
        upload.commit(replace=True)
        assert place.get("file") == data


# -- conflicts ------------------------------------------------------------------------------------------------------------


def in_the_way(place: Place, session: Session, size: int = 5000) -> bytes:
    place.put("d/file", b"was here first")
    return payload(size)


@pytest.mark.parametrize("size", [0, 5000, 9 * MIB])
def test_conflict_then_another_name(place: Place, session: Session, size: int) -> None:
    upload = begin(session, "d/file", in_the_way(place, session, size))
    with pytest.raises(Conflict) as caught:
        upload.commit()
    assert caught.value.path == "d/file"
    assert upload.commit("d/file~2") == "d/file~2"
    assert place.get("d/file") == b"was here first"
    assert place.get("d/file~2") == payload(size)
    assert place.everything() == {"d/file", "d/file~2"}


def test_conflict_twice_then_a_third_name(place: Place, session: Session) -> None:
    upload = begin(session, "d/file", in_the_way(place, session), mtime_ns=1_234_567_890_000_000_000)
    place.put("d/file~2", b"was here second")
    for path in (None, "d/file~2", None, "d/file"):
        with pytest.raises(Conflict) as caught:
            upload.commit(path)
        assert caught.value.path == (path or "d/file")
    assert upload.commit("d/file~3") == "d/file~3"
    contents = {p: place.get(p) for p in place.everything()}
    assert contents == {"d/file": b"was here first", "d/file~2": b"was here second", "d/file~3": payload(5000)}
    if session.features.mtime_set:
        assert abs(session.stat("d/file~3").mtime_ns - 1_234_567_890_000_000_000) < 2_000_000_000


def test_conflict_then_replace(place: Place, session: Session) -> None:
    upload = begin(session, "d/file", in_the_way(place, session))
    with pytest.raises(Conflict):
        upload.commit()
    assert place.get("d/file") == b"was here first"
    assert upload.commit(replace=True) == "d/file"
    assert place.get("d/file") == payload(5000)
    assert place.everything() == {"d/file"}


def test_a_name_that_was_refused_is_not_remembered(place: Place, session: Session) -> None:
    """Without `path`, commit means the name the upload was begun with, whatever was tried between."""
    place.put("d/other", b"was here first")
    upload = begin(session, "d/file", payload(10))
    with pytest.raises(Conflict):
        upload.commit("d/other")
    assert upload.path == "d/file"
    assert upload.commit(replace=True) == "d/file"
    assert place.get("d/other") == b"was here first"
    assert place.get("d/file") == payload(10)


def test_conflict_then_abort(place: Place, session: Session) -> None:
    upload = begin(session, "d/file", in_the_way(place, session))
    with pytest.raises(Conflict):
        upload.commit()
    upload.abort()
    assert place.everything() == {"d/file"}
    assert place.get("d/file") == b"was here first"


@pytest.mark.parametrize("size", [0, 5000, 9 * MIB])
def test_sealed_and_decided_later(place: Place, session: Session, size: int) -> None:
    """`seal` lets go of what an open file costs; every end is still possible."""
    data, stamp = payload(size), 1_234_567_890_000_000_000
    uploads = {n: begin(session, f"d/{n}", data, key="k", mtime_ns=stamp) for n in ("commit", "abort", "keep", "late")}
    for upload in uploads.values():
        upload.seal()
        upload.seal()  # twice is once
    assert listing(session) == set()
    uploads["commit"].commit()
    uploads["abort"].abort()
    uploads["keep"].keep()
    place.put("d/late", b"was here first")
    with pytest.raises(Conflict):
        uploads["late"].commit()
    uploads["late"].commit("d/late~2")
    assert {p: place.get(p) for p in listing(session)} == {
        "d/commit": data, "d/late": b"was here first", "d/late~2": data
    }  # fmt: skip
    if session.features.mtime_set:
        assert abs(session.stat("d/commit").mtime_ns - stamp) < 2_000_000_000
    again = session.upload("d/keep", size, key="k", resume=True)
    assert resumes(again, size, session)
    again.abort()
    assert place.everything() == {"d/commit", "d/late", "d/late~2"}


def test_another_name_from_the_start(place: Place, session: Session) -> None:
    assert begin(session, "d/file", payload(5000)).commit("d/other") == "d/other"
    assert place.everything() == {"d/other"}
    assert place.get("d/other") == payload(5000)


# -- stopping half way ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5000, 9 * MIB])
def test_abort_leaves_nothing(place: Place, session: Session, size: int) -> None:
    begin(session, "a/file", payload(size)).abort()
    assert place.everything() == set()
    send(session, "a/file", b"the next one")
    assert place.get("a/file") == b"the next one"


def test_abort_after_the_place_was_cleared(place: Place, session: Session) -> None:
    upload = begin(session, "a/file", payload(5000))
    for path in place.everything():
        place.remove(path)
    upload.abort()
    assert place.everything() == set()


@pytest.mark.parametrize("done", [1, 4095, 4096, MIB, 5 * MIB + 7, 9 * MIB])
def test_keep_and_resume(place: Place, session: Session, done: int) -> None:
    data = payload(9 * MIB + 3)
    upload = begin(session, "a/file", data[:done], key="v1")
    upload.keep()
    assert place.get("a/file") is None
    assert listing(session) == set()
    with place.storage.open() as later:
        upload = later.upload("a/file", len(data), key="v1", resume=True, mtime_ns=1_234_567_890_000_000_000)
        assert resumes(upload, done, later)
        for chunk in aligned_chunks(data[upload.offset :], MIB):
            upload.write(chunk)
        assert upload.digest() == (sha256(data) if later.features.staged_digest else None)
        upload.commit()
    assert place.get("a/file") == data
    assert place.everything() == {"a/file"}


def test_what_was_kept_whole_is_proven_and_committed(place: Place, session: Session) -> None:
    """Nothing is left to write."""
    data = payload(10 * MIB)
    upload = begin(session, "a/file", data, key="v1")
    journal = upload.journal
    upload.keep()
    upload = session.upload("a/file", len(data), key="v1", resume=True, journal=journal)
    if session.features.resume_write:
        assert upload.offset == upload.rewind(len(data)) == len(data)
    for chunk in chunks(data[upload.offset :], MIB):
        upload.write(chunk)
    assert upload.matches(sha256(data)) is (True if session.features.staged_digest else None)
    upload.seal()
    upload.commit()
    assert place.get("a/file") == data
    assert place.everything() == {"a/file"}


def test_resume_again_and_again(place: Place, session: Session) -> None:
    data = payload(100_000)
    for turn in range(60):
        upload = session.upload("file", len(data), key="v1", resume=True)
        at = upload.offset
        upload.write(memoryview(data)[at : at + 7001])
        if at + 7001 >= len(data):
            upload.commit()
            break
        if not at and turn > 3:  # nothing is kept of so little
            upload.write(memoryview(data)[at + 7001 :])
            upload.commit()
            break
        upload.keep()
    assert place.get("file") == data
    assert place.everything() == {"file"}


def test_nobody_resumes_what_is_not_his(place: Place, session: Session) -> None:
    begin(session, "a/file", payload(5000), key="v1").keep()
    for path, key in (("a/file", "v2"), ("a/file", ""), ("a/other", "v1"), ("file", "v1")):
        upload = session.upload(path, 10, key=key, resume=True)
        assert upload.offset == 0
        upload.write(memoryview(b"0123456789"))
        upload.commit(replace=True)
        assert place.get(path) == b"0123456789"
    upload = session.upload("a/file", 5000, key="v1", resume=True)
    assert resumes(upload, 5000, session)
    upload.abort()
    assert place.everything() == {"a/file", "a/other", "file"}


@pytest.mark.parametrize("size", [5000, 9 * MIB])
def test_one_key_takes_over_from_another(place: Place, session: Session, size: int) -> None:
    """Whoever wrote under the old key can't give his bytes the final name any more."""
    data = payload(size)
    if not session.features.resume_write:
        begins_anew(place, session, data)
        return
    old = begin(session, "a/file", data[: size // 2], key="v1")
    journal = old.journal
    old.keep()
    with place.storage.open() as later:
        later.rekey("a/file", "v1", "v2")
        later.rekey("a/file", "never begun", "v3")
        later.rekey("no folder/file", "v1", "v2")
        upload = later.upload("a/file", size, key="v2", resume=True, journal=journal)
        assert size // 2 - session.features.resume_step < upload.offset <= size // 2
        upload.write(memoryview(data)[upload.offset :])
        upload.commit()
    assert place.get("a/file") == data
    assert place.everything() == {"a/file"}


@pytest.mark.parametrize("to", [0, 1, 4096, 5 * MIB, 8 * MIB, 9 * MIB])
def test_rewind(place: Place, session: Session, to: int) -> None:
    """What lies beyond is forgotten, and what is before can be read back where staged files can."""
    data = payload(9 * MIB)
    if not session.features.resume_write:
        begins_anew(place, session, data)
        return
    upload = begin(session, "a/file", data, key="v1")
    journal = upload.journal
    upload.keep()
    upload = session.upload("a/file", len(data), key="v1", resume=True, journal=journal)
    offset = upload.rewind(min(to, upload.offset))
    assert offset == upload.offset <= to
    assert session.features.resume_step > 1 or offset == to
    seen = hashlib.sha256()
    assert upload.replay(seen.update) == session.features.staged_digest
    if session.features.staged_digest:
        assert seen.hexdigest() == sha256(data[:offset])
    for chunk in aligned_chunks(data[offset:], MIB):
        upload.write(chunk)
    upload.commit()
    assert place.get("a/file") == data
    assert place.everything() == {"a/file"}


def test_without_resume_it_begins_anew(place: Place, session: Session) -> None:
    begin(session, "file", payload(5000), key="v1").keep()
    upload = session.upload("file", 3, key="v1")
    assert upload.offset == 0
    upload.write(memoryview(b"new"))
    upload.commit()
    assert place.get("file") == b"new"
    assert place.everything() == {"file"}


def test_a_resume_with_nothing_kept_begins_anew(place: Place, session: Session) -> None:
    upload = session.upload("a/file", 3, key="v1", resume=True)
    assert upload.offset == 0
    upload.write(memoryview(b"new"))
    upload.commit()
    assert place.get("a/file") == b"new"


# -- many at once -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 150])
def test_commit_all(place: Place, session: Session, count: int) -> None:
    uploads, stamp = [], 1_234_567_890_000_000_000
    for n in range(count):
        uploads.append(begin(session, f"d{n % 5}/f{n}", payload(n * 13 % 9000, n), key=str(n), mtime_ns=stamp))
    assert not place.everything() - temporaries(place)
    done = session.commit_all(uploads)
    assert done == [f"d{n % 5}/f{n}" for n in range(count)]
    assert place.everything() == set(done)
    for n in range(count):
        assert place.get(f"d{n % 5}/f{n}") == payload(n * 13 % 9000, n)
    if session.features.mtime_set:
        assert all(abs(f.mtime_ns - stamp) < 2_000_000_000 for f in session.scan())


@pytest.mark.parametrize("count", [1, 7, 8, 150])
def test_commit_all_with_one_in_the_way(place: Place, session: Session, count: int) -> None:
    odd = count // 2
    place.put(f"d/f{odd}", b"was here first")
    uploads = [begin(session, f"d/f{n}", payload(n), key=str(n)) for n in range(count)]
    done = session.commit_all(uploads)
    assert len(done) == count
    failure = done[odd]
    assert isinstance(failure, Conflict)
    assert failure.path == f"d/f{odd}"
    assert [d for n, d in enumerate(done) if n != odd] == [f"d/f{n}" for n in range(count) if n != odd]
    assert place.get(f"d/f{odd}") == b"was here first"
    assert uploads[odd].commit(f"d/f{odd}~2") == f"d/f{odd}~2"  # it is still open
    assert place.get(f"d/f{odd}~2") == payload(odd)
    assert place.everything() == {f"d/f{n}" for n in range(count)} | {f"d/f{odd}~2"}


def test_commit_all_where_all_are_in_the_way(place: Place, session: Session) -> None:
    uploads = [begin(session, f"f{n}", payload(n), key=str(n)) for n in range(12)]
    for n in range(12):
        place.put(f"f{n}", b"was here first")
    done = session.commit_all(uploads)
    assert all(isinstance(d, Conflict) for d in done)
    for n, upload in enumerate(uploads):
        if n % 2:
            upload.abort()
        else:
            assert upload.commit(replace=True) == f"f{n}"
    assert {p: place.get(p) for p in place.everything()} == {
        f"f{n}": b"was here first" if n % 2 else payload(n) for n in range(12)
    }


def test_commit_all_twice_to_one_name(place: Place, session: Session) -> None:
    """Two files of a source may get one name from the job's template: one arrives, the other is told."""
    uploads = [begin(session, "one" if n in (3, 6) else f"f{n}", payload(50, n), key=str(n)) for n in range(9)]
    done = session.commit_all(uploads)
    assert [n for n, d in enumerate(done) if isinstance(d, OnblockError)] == [6]
    assert isinstance(done[6], Conflict)
    uploads[6].abort()
    assert place.get("one") == payload(50, 3)
    assert len(place.everything()) == 8


# -- delete and move ------------------------------------------------------------------------------------------------------------


def test_delete(place: Place, session: Session) -> None:
    place.put("a/file", b"x")
    place.put("a/other", b"y")
    session.delete("a/file")
    assert place.everything() == {"a/other"}
    for missing in ("a/file", "none/none"):
        with pytest.raises(NotFound) as caught:
            session.delete(missing)
        assert caught.value.path == missing


def test_delete_what_was_seen(place: Place, session: Session) -> None:
    place.put("a/file", b"x")
    seen = session.stat("a/file")
    place.put("a/file", b"longer")
    with pytest.raises(SourceChanged) as caught:
        session.delete_seen(seen)
    assert (caught.value.path, place.get("a/file")) == ("a/file", b"longer")
    session.delete_seen(session.stat("a/file"))
    assert place.everything() == set()
    with pytest.raises(NotFound):
        session.delete_seen(seen)


def test_delete_takes_no_folder(place: Place, session: Session) -> None:
    place.put("a/b/file", b"x")
    for folder in ("a", "a/b"):
        with pytest.raises((NotFound, Conflict)):
            session.delete(folder)
    assert place.everything() == {"a/b/file"}


def test_move(place: Place, session: Session) -> None:
    place.put("a/file", payload(70_000), 1_234_567_890_000_000_000)
    session.move("a/file", "done/2024/file")
    assert place.everything() == {"done/2024/file"}
    assert place.get("done/2024/file") == payload(70_000)
    session.move("done/2024/file", "file")
    assert place.everything() == {"file"}


def test_move_never_overwrites(place: Place, session: Session) -> None:
    place.put("a", b"a")
    place.put("b/c", b"c")
    for target in ("b/c", "a"):
        with pytest.raises(Conflict):
            session.move("a", target)
    assert (place.get("a"), place.get("b/c")) == (b"a", b"c")


def test_move_of_what_is_not_there(place: Place, session: Session) -> None:
    with pytest.raises((NotFound, SourceVanished)):
        session.move("none", "elsewhere")
    assert place.everything() == set()


def test_discard_removes_what_was_kept_and_nothing_else(place: Place, session: Session) -> None:
    for key in ("one", "two"):
        begin(session, "d/clip.mp4", b"1234", key=key).keep()
    kept = place.everything()
    session.discard("d/clip.mp4", "one")
    session.discard("d/clip.mp4", "never begun")
    session.discard("no folder/clip.mp4", "one")
    assert place.everything() < kept if session.features.resume_write and kept else True
    assert kept or session.features.resume_step > 4 or not session.features.resume_write
    session.discard("d/clip.mp4", "two")
    assert place.everything() == set()
