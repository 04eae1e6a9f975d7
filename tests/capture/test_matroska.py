"""Segments: what FFmpeg reads of them, and what can be proven of a damaged one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.capture.matroska import (
    HEAD_SIZE,
    block_at,
    blocks,
    cluster_head,
    header_container,
    header_size,
    length_prefixed,
)


@pytest.fixture(scope="module")
def header() -> bytes:
    container, sink = header_container()
    stream = container.add_stream("mjpeg", rate=30)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"  # type: ignore[union-attr]
    container.start_encoding()
    return bytes(sink.data)


def segment(header: bytes, payloads: list[bytes]) -> bytes:
    return header + b"".join(cluster_head(n * 33, p, key=n % 10 == 0) + p for n, p in enumerate(payloads))


def test_blocks_are_found(header: bytes) -> None:
    payloads = [random.Random(n).randbytes(n * 7) for n in range(30)]
    data = segment(header, payloads)
    assert header_size(data) == len(header)
    found = list(blocks(data))
    assert [data[b.offset : b.offset + b.size] for b in found] == payloads
    assert [(b.at_ms, b.key) for b in found] == [(n * 33, n % 10 == 0) for n in range(30)]
    assert found[-1].end == len(data)


@pytest.mark.parametrize("fill", [b"", b"\0"], ids=["truncated", "zero-filled"])
def test_tails(header: bytes, fill: bytes) -> None:
    """60 random cuts: exactly the packets that are whole before the cut."""
    payloads = [random.Random(n).randbytes(200 + n) for n in range(20)]
    data = segment(header, payloads)
    ends = [b.end for b in blocks(data)]
    for seed in range(60):
        cut = random.Random(seed).randint(len(header), len(data) - 1)
        damaged = data[:cut] + fill * (len(data) - cut)
        found = list(blocks(damaged))
        assert [b.end for b in found] == [e for e in ends if e <= cut or not data[cut:e].strip(b"\0")]


def test_a_hole_costs_what_it_covers(header: bytes) -> None:
    payloads = [random.Random(n).randbytes(500) for n in range(20)]
    data = bytearray(segment(header, payloads))
    every = list(blocks(bytes(data)))
    begin, end = every[5].start + 100, every[7].start + 100
    data[begin:end] = bytes(end - begin)
    assert list(blocks(bytes(data))) == every[:5] + every[8:]


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\xff", b"RIFF" * 100])
def test_what_is_no_segment(data: bytes) -> None:
    assert header_size(data) is None
    assert list(blocks(data)) == []


@given(st.binary(max_size=200), st.integers(0, 2**40), st.booleans(), st.data())
def test_one_wrong_bit_is_seen(payload: bytes, at_ms: int, key: bool, data: st.DataObject) -> None:
    whole = cluster_head(at_ms, payload, key=key) + payload
    block = block_at(whole, 0)
    assert block is not None
    assert (block.offset, block.size, block.at_ms, block.key) == (HEAD_SIZE, len(payload), at_ms, key)
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    assert block_at(bytes(damaged), 0) is None


UNIT = st.binary(min_size=1, max_size=40).map(lambda b: b.replace(b"\0", b"\1") + b"\x80")


@given(st.lists(st.tuples(UNIT, st.sampled_from([b"\0\0\1", b"\0\0\0\1"])), min_size=1, max_size=6))
def test_start_codes_become_lengths(units: list[tuple[bytes, bytes]]) -> None:
    packet = b"".join(code + unit for unit, code in units)
    assert length_prefixed(packet) == b"".join(len(unit).to_bytes(4, "big") + unit for unit, _ in units)
