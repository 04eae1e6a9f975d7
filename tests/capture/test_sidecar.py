"""The sidecar: whatever a kill, a power cut or a bad disk makes of it, only what was written is read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flows.capture import sidecar
from flows.capture.sidecar import DropRecord, PacketRecord, Reason, Record, SampleRecord, encode_header, parse, salvage

U64, I64, U32 = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1)
RECORD: st.SearchStrategy[Record] = st.one_of(
    st.builds(PacketRecord, U64, I64, I64, I64, I64, U64, U32, U32, st.booleans(), st.booleans()),
    st.builds(DropRecord, U64, U64, I64, I64, st.sampled_from(list(Reason))),
    st.builds(SampleRecord, U64, I64, I64, st.binary(max_size=300)),
)
HEADER = st.dictionaries(st.text(max_size=8), st.integers(-9, 9) | st.text(max_size=9), max_size=4)
FILE = st.tuples(HEADER, st.lists(RECORD, max_size=12))


def written(header: dict[str, object], records: list[Record]) -> bytes:
    return encode_header(header) + b"".join(r.encode() for r in records)


@given(FILE)
def test_what_is_written_is_read(file: tuple[dict[str, object], list[Record]]) -> None:
    found = parse(written(*file))
    assert (found.header, found.records, found.whole) == (*file, True)


@given(FILE, st.data())
def test_a_cut_leaves_the_records_before_it(file: tuple[dict[str, object], list[Record]], data: st.DataObject) -> None:
    whole = written(*file)
    cut = data.draw(st.integers(0, len(whole)))
    tail = data.draw(st.sampled_from([b"", b"\0" * 4096, b"\xff" * 50]))
    for read in (parse, salvage):
        found = read(whole[:cut] + tail)
        assert found.records == file[1][: len(found.records)]
        assert whole.startswith(whole[: found.good])
        complete = sum(len(written(file[0], file[1][:n])) <= cut for n in range(1, len(file[1]) + 1))
        assert len(found.records) == complete
        if cut < len(whole) or tail:
            assert not found.whole or found.good == cut


@given(FILE, st.data())
def test_damage_anywhere_lets_nothing_pass_that_was_not_written(
    file: tuple[dict[str, object], list[Record]], data: st.DataObject
) -> None:
    damaged = bytearray(written(*file))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    assert all(r in file[1] for r in parse(bytes(damaged)).records)
    saved = salvage(bytes(damaged)).records
    assert all(r in file[1] for r in saved)
    if at >= len(encode_header(file[0])):  # one record is hit, and the others are all there
        assert len(saved) >= len(file[1]) - 1


@given(st.binary(max_size=500) | st.binary(max_size=500).map(lambda b: sidecar.MAGIC + b))
def test_anything_can_be_read(data: bytes) -> None:
    assert parse(data).good <= len(data)
    assert salvage(data).good <= len(data)
