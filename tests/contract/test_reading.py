"""What a source owes: scan, stat, read, checksum."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable

import pytest

from blocks.errors import Conflict, HashMismatch, NotFound, OnblockError, SourceChanged, SourceVanished
from blocks.storage.base import Reader, Session, Storage, aligned_buffer
from tests.contract.data import KIB, MIB, SIZES, begin, chunks, fetch, listing, payload
from tests.contract.places import Place

MTIME = 1_700_000_000_000_000_000


# -- scan -----------------------------------------------------------------------------------------------------------


def test_scan_of_an_empty_storage(session: Session) -> None:
    assert list(session.scan()) == []


def test_scan_finds_every_file_with_size_and_mtime(place: Place, session: Session) -> None:
    files = {"top.mp4": 3, "DCIM/100/a.mp4": 5, "DCIM/100/b.mp4": 0, "DCIM/101/a.mp4": 70_000, "x/y/z/w/v": 1}
    for path, size in files.items():
        place.put(path, payload(size), MTIME)
    found = {f.path: f for f in session.scan()}
    assert {p: f.size for p, f in found.items()} == files
    for path, info in found.items():
        assert info.problem is None
        assert not place.puts_mtime or abs(info.mtime_ns - MTIME) < 2_000_000_000
        assert session.stat(path).version == info.version  # the fingerprint is the same, however it was asked for


def test_scan_of_a_folder_gives_paths_from_the_root(place: Place, session: Session) -> None:
    for path in ("a/1", "a/b/2", "ab/3", "4"):
        place.put(path, b"x")
    assert listing(session, "a") == {"a/1", "a/b/2"}
    assert listing(session, "a/b") == {"a/b/2"}


def test_scan_of_many(place: Place, session: Session) -> None:
    names = {f"d{n % 13}/e{n % 3}/f{n:04}" for n in range(place.many)}
    for name in names:
        place.put(name, b"")
    assert listing(session) == names


def test_scan_enters_only_where_it_may(place: Place, session: Session) -> None:
    for path in ("keep/a", "keep/deep/b", "skip/c", "skip/keep/d", "e"):
        place.put(path, b"x")
    asked: list[str] = []

    def enter(folder: str) -> bool:
        asked.append(folder)
        return folder != "skip"

    assert {f.path for f in session.scan(enter=enter)} == {"keep/a", "keep/deep/b", "e"}
    assert sorted(asked) == ["keep", "keep/deep", "skip"]  # each once, and what is below a refused one never


def test_scan_streams(place: Place, session: Session) -> None:
    """Taking the first files of many costs no walk through all folders."""
    for n in range(60):
        place.put(f"d{n}/f", b"")
    entered: list[str] = []
    scan = session.scan(enter=lambda folder: not entered.append(folder))
    assert len(list(itertools.islice(scan, 2))) == 2
    assert len(entered) < 60
    del scan  # a scan nobody finishes is no error
    assert len(listing(session)) == 60


def test_scan_of_a_missing_folder(place: Place, session: Session) -> None:
    place.put("a/b", b"x")
    for missing in ("nothing", "a/nothing", "nothing/at/all"):
        with pytest.raises(NotFound):
            list(session.scan(missing))


def test_scan_never_shows_what_is_not_whole(place: Place, session: Session) -> None:
    place.put("whole", b"x")
    place.put("sub/whole", b"x")
    if not session.features.writable:
        place.put("sub/.onblock-0123456789abcdef.part", b"x")
        assert listing(session) == {"whole", "sub/whole"}
        return
    upload, kept = begin(session, "coming", payload(5000)), begin(session, "sub/kept", payload(10), key="k")
    kept.keep()
    assert listing(session) == {"whole", "sub/whole"}
    upload.abort()
    assert listing(session) == {"whole", "sub/whole"}


# -- stat -----------------------------------------------------------------------------------------------------------


def test_stat(place: Place, session: Session) -> None:
    place.put("a/file", payload(1234))
    info = session.stat("a/file")
    assert (info.path, info.size, info.problem) == ("a/file", 1234, None)


@pytest.mark.parametrize("missing", ["none", "a/none", "none/none"])
def test_stat_of_what_is_not_there(place: Place, session: Session, missing: str) -> None:
    place.put("a/file", b"x")
    with pytest.raises(NotFound) as caught:
        session.stat(missing)
    assert caught.value.path == missing


def test_a_folder_is_no_file(place: Place, session: Session) -> None:
    place.put("a/b/file", b"x")
    for folder in ("a", "a/b"):
        with pytest.raises((NotFound, Conflict)):
            session.stat(folder)
        with pytest.raises(OnblockError):  # at the latest where bytes are asked for
            fetch(session, folder)


def test_versions_differ_when_a_file_does(place: Place, session: Session) -> None:
    versions = set()
    for data, mtime in ((b"one", MTIME), (b"three", MTIME), (b"fours", MTIME + 2_000_000_000)):
        place.put("f", data, mtime)
        versions.add(session.stat("f").version)
    assert len(versions) == 3


# -- read -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_read_gives_the_exact_bytes(place: Place, session: Session, size: int) -> None:
    data = payload(size)
    place.put("f", data)
    assert fetch(session, "f", step=MIB) == data
    assert session.checksum("f") == hashlib.sha256(data).hexdigest()
    assert session.checksum("f", fresh=True) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 4097, 299_999, 300_000])
def test_read_from_an_offset(place: Place, session: Session, offset: int) -> None:
    data = payload(300_000)
    place.put("f", data)
    for step in (4096, 5000, MIB):
        assert fetch(session, "f", offset, step) == data[offset:]


@pytest.mark.parametrize("offset", [4 * MIB, 9 * MIB])
def test_what_came_before_counts_where_reads_are_proven(place: Place, session: Session, offset: int) -> None:
    """What goes on in the middle is held against what the far side has of the whole file."""
    place.put("f", data := payload(9 * MIB))
    wrong = bytearray(data[:offset])
    wrong[offset // 2] ^= 1
    for before, damaged in ((data[:offset], False), (bytes(wrong), session.features.proven_reads)):
        with session.read("f", offset) as reader:
            for chunk in chunks(before, MIB):
                reader.before(chunk)
            if damaged:
                with pytest.raises(HashMismatch):
                    rest(reader)
            else:
                assert rest(reader) == data[offset:]


def rest(reader: Reader) -> bytes:
    out, buffer = bytearray(), bytearray(MIB)
    while n := reader.readinto(buffer):
        out += buffer[:n]
    return bytes(out)


@pytest.mark.parametrize("length", [1, 7, 4096, 4097, 100_003])
def test_readinto_takes_any_buffer(place: Place, session: Session, length: int) -> None:
    data = payload(100_003)
    place.put("f", data)
    for buffer in (bytearray(length), aligned_buffer(length), memoryview(bytearray(length + 1))[1:]):
        with session.read("f") as reader:
            assert reader.readinto(buffer) == length
            assert bytes(buffer[:length]) == data[:length]


def test_several_readers_at_once(place: Place, session: Session) -> None:
    contents = {name: payload(200_000, n) for n, name in enumerate("abc")}
    for name, data in contents.items():
        place.put(name, data)
    readers = {name: session.read(name) for name in contents}
    got, buffer = {name: bytearray() for name in contents}, bytearray(7001)
    while any(len(got[name]) < 200_000 for name in contents):
        for name, reader in readers.items():
            got[name] += buffer[: reader.readinto(buffer)]
    for reader in readers.values():
        reader.close()
        reader.close()  # twice is once
    assert got == contents


@pytest.mark.parametrize("missing", ["none", "a/none", "none/none"])
def test_read_of_what_is_not_there(place: Place, session: Session, missing: str) -> None:
    place.put("a/file", b"x")
    with pytest.raises(SourceVanished) as caught:
        session.read(missing)
    assert caught.value.path == missing


def test_checksum_of_what_is_not_there(session: Session) -> None:
    for fresh in (False, True):
        with pytest.raises((NotFound, SourceVanished)):
            session.checksum("none", fresh=fresh)


def test_checksums_the_far_side_knows(place: Place, session: Session) -> None:
    data = payload(70_000)
    place.put("f", data)
    for kind in {*session.features.server_checksums, "sha256"} & hashlib.algorithms_available:
        assert session.checksum("f", kind) == hashlib.new(kind, data).hexdigest()


def test_checksum_is_of_what_lies_there_now(place: Place, session: Session) -> None:
    place.put("f", data := payload(9 * MIB))
    before = session.checksum("f", fresh=True)
    assert before == hashlib.sha256(data).hexdigest()
    place.flip("f", 5 * MIB)
    assert session.checksum("f", fresh=True) != before
    assert session.checksum("f") != before


# -- a source that changes while it is read ---------------------------------------------------------------------------


def change_size(place: Place) -> None:
    place.put("f", payload(50_000), MTIME)


def change_content(place: Place) -> None:
    place.put("f", payload(100_000, 1), MTIME + 2_000_000_000)


def move_and_replace(place: Place) -> None:
    """What a recorder does that rotates its files."""
    place.remove("f")
    place.put("f", payload(100_000, 2), MTIME + 2_000_000_000)


@pytest.mark.parametrize("change", [change_size, change_content, move_and_replace])
def test_a_change_while_reading_is_seen(place: Place, session: Session, change: Callable[[Place], None]) -> None:
    place.put("f", payload(100_000), MTIME)
    before = session.stat("f")
    with session.read("f") as reader:
        assert reader.readinto(bytearray(4096)) == 4096
        assert reader.info().version == before.version
        change(place)
        assert seen_as_changed(reader, before.version)


def test_a_rotation_while_reading_is_seen(place: Place, session: Session) -> None:
    """The file that is read is renamed, and another has its name."""
    place.put("f", payload(100_000), MTIME)
    before = session.stat("f")
    with session.read("f") as reader:
        assert reader.readinto(bytearray(4096)) == 4096
        move_away(place, "f.1")
        place.put("f", payload(100_001), MTIME + 5_000_000_000)
        assert seen_as_changed(reader, before.version)


def move_away(place: Place, to: str) -> None:
    """Rename `f`; where the storage cannot, as a device does it by itself."""
    with place.storage.open() as other:
        if other.features.renames:
            other.move("f", to)
            return
    data = place.get("f")
    assert data is not None
    place.put(to, data)
    place.remove("f")


def seen_as_changed(reader: Reader, before: tuple[int, int, str]) -> bool:
    try:
        return reader.info().version != before
    except SourceChanged:
        return True


def test_a_file_removed_while_reading_is_seen(place: Place, session: Session) -> None:
    place.put("f", payload(100_000))
    with session.read("f") as reader:
        assert reader.readinto(bytearray(4096)) == 4096
        place.remove("f")
        with pytest.raises(SourceVanished):
            reader.info()


def test_a_file_moved_away_while_reading_is_seen(place: Place, session: Session) -> None:
    place.put("f", payload(100_000))
    with session.read("f") as reader:
        assert reader.readinto(bytearray(4096)) == 4096
        move_away(place, "elsewhere/f")
        with pytest.raises(SourceVanished):
            reader.info()


# -- the block ------------------------------------------------------------------------------------------------------


def test_place_names_it_without_secrets(place: Place) -> None:
    storage: Storage = place.storage
    said = storage.place()
    assert said == type(storage)(**storage.model_dump(exclude_unset=True)).place()
    assert said.isprintable()
    values = [getattr(storage, name) for name in type(storage).model_fields]
    secrets = [v.get_secret_value() for v in values if hasattr(v, "get_secret_value")]
    assert not [secret for secret in secrets if secret in said]


def test_free_bytes_is_a_number_or_unknown(session: Session) -> None:
    free = session.free_bytes()
    assert free is None or free > KIB


def test_features_can_be_asked_before_anything_is_done(place: Place) -> None:
    with place.storage.open() as session:
        assert session.features.atomic_rename in (True, False)
        if session.features.exclusive_commit:
            assert session.features.atomic_rename
