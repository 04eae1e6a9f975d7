"""A large file that is interrupted goes on where it was: little is sent twice, and what arrives is what was read."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.errors import Cancelled
from blocks.storage import LocalStorage
from flows.ledger import Ledger, runs
from flows.transfer import senders
from flows.transfer.progress import Receipt
from flows.transfer.resume import CHECKPOINT, Committed, Journal, last_checkpoint
from flows.transfer.run import TransferRun
from flows.transfer.shipment import Shipment, staging_key
from tests.faults.breaking import BreakingStorage, broken
from tests.ledger.crowd import elsewhere
from tests.transfer.conftest import Bench

MIB = 1 << 20
SIZE = 90 * MIB + 12_345


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries inside the run follow at once."""
    monkeypatch.setattr(senders, "TASK_RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr("flows.transfer.retry.delay_s", lambda tries: 0.0)


@pytest.fixture
def content() -> bytes:
    return random.Random(7).randbytes(SIZE)


def whole(bench: Bench, content: bytes) -> None:
    """The file arrived, nothing else is there, and the ledger keeps no journal."""
    assert bench.files() == {"clip.mp4": content}
    bench.check_manifest()
    with Ledger.open() as ledger:
        assert [r["journal"] for r in ledger.files()] == [None]


HERE = (False, False)
IN_THE_MIDDLE = [[40 * MIB], [20 * MIB, 41 * MIB, 80 * MIB]]


@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize(
    ("far", "marks"),
    [(far, marks) for far in (HERE, (True, False), (False, True), (True, True)) for marks in IN_THE_MIDDLE]
    + [(HERE, [1]), (HERE, [SIZE])],  # the ends are the same wherever the storages are
)
def test_a_cable_that_is_pulled(
    bench: Bench, content: bytes, marks: list[int], side: str, far: tuple[bool, bool]
) -> None:
    bench.put("clip.mp4", content)
    source, to = BreakingStorage.at(bench.card, far=far[0]), BreakingStorage.at(bench.archive, far=far[1])
    cable = (source if side == "source" else to).cable
    cable.at = dict.fromkeys(marks, broken)
    summary = bench.run(source=source, destinations=[to])
    assert (summary["delivered"], summary["failed"], summary["deferred"]) == (1, 0, 0)
    assert not cable.at
    whole(bench, content)
    twice = len(marks) * (CHECKPOINT + 8 * MIB)
    assert to.cable.written <= SIZE + twice
    if far == (True, False):  # what came over the network is not fetched again to be hashed
        assert source.cable.read <= SIZE + twice


@pytest.mark.parametrize("far", [(False, False), (True, False), (True, True)])
def test_all_of_it_was_there_when_the_cable_was_pulled(bench: Bench, far: tuple[bool, bool]) -> None:
    """Nothing is left to send, and nothing is sent again."""
    size = 4 * CHECKPOINT
    bench.put("clip.mp4", content := random.Random(8).randbytes(size))
    source, to = BreakingStorage.at(bench.card, far=far[0]), BreakingStorage.at(bench.archive, far=far[1])
    to.cable.proving = [broken]
    assert bench.run(source=source, destinations=[to])["delivered"] == 1
    assert not to.cable.proving
    assert to.cable.written <= size + 1000  # and the manifest
    whole(bench, content)


@pytest.mark.parametrize("far", [False, True])
def test_a_run_that_is_stopped_and_the_next(bench: Bench, content: bytes, far: bool) -> None:
    bench.put("clip.mp4", content)
    source, to = BreakingStorage.at(bench.card, far=far), BreakingStorage.at(bench.archive)
    job = bench.job(source=source, destinations=[to])
    from flows.transfer.story import carry_out, here

    with Ledger.open() as ledger, TransferRun(job, ledger) as run:
        to.cable.at = {50 * MIB: run.stop.set}
        with pytest.raises(Cancelled):
            carry_out(run, here(run))
    assert bench.files().keys() != {"clip.mp4"}
    first = to.cable.written
    assert bench.run(source=source, destinations=[to])["delivered"] == 1
    assert to.cable.written - first < SIZE - 30 * MIB
    whole(bench, content)


def test_a_run_that_is_stopped_before_it_begins_the_file_again(bench: Bench, content: bytes) -> None:
    """Claimed and not begun: what an earlier run left stays, and the one after goes on from it."""
    bench.put("clip.mp4", content)
    to = BreakingStorage.at(bench.archive)
    job = bench.job(destinations=[to])
    from flows.transfer.story import carry_out, deliver_shipment
    from flows.transfer.story import parts as parts_of

    parts = []
    for turn in range(3):
        with Ledger.open() as ledger, TransferRun(job, ledger) as run:

            def stopped(run: TransferRun, shipment: Shipment) -> Receipt:
                run.stop.set()
                return deliver_shipment(run, shipment)

            if not turn:
                to.cable.at = {50 * MIB: run.stop.set}
            with pytest.raises(Cancelled):
                carry_out(
                    run,
                    senders.Here(run, parts_of(run), {senders.Phase.DELIVER: stopped if turn else deliver_shipment}),
                )
        parts.append([p.stat().st_size for p in bench.archive.iterdir()])
    assert parts[0] == parts[1] == parts[2]
    first = to.cable.written
    assert bench.run(destinations=[to])["delivered"] == 1
    assert to.cable.written - first < SIZE - 30 * MIB
    whole(bench, content)


@pytest.mark.parametrize("far", [False, True])
def test_a_part_that_was_damaged_meanwhile(bench: Bench, content: bytes, far: bool) -> None:
    """What lies at the destination is not trusted: it is held against what was read, by checkpoint or at the end."""
    bench.put("clip.mp4", content)
    source, to = BreakingStorage.at(bench.card, far=far), BreakingStorage.at(bench.archive)

    def damage() -> None:
        (part,) = bench.archive.glob(".onblock-*")
        with part.open("r+b") as file:
            file.seek(3 * MIB)
            file.write(b"\0\1\2\3")
        broken()

    to.cable.at = {60 * MIB: damage}
    assert bench.run(source=source, destinations=[to], verify="size")["delivered"] == 1
    whole(bench, content)


def test_a_source_that_changed_meanwhile_begins_anew(bench: Bench, content: bytes) -> None:
    bench.put("clip.mp4", content)
    to = BreakingStorage.at(bench.archive)
    other = content[:1000] + b"x" + content[1001:]

    def change() -> None:
        bench.put("clip.mp4", other, mtime=1_700_000_001.0)
        broken()

    to.cable.at = {60 * MIB: change}
    bench.run(destinations=[to])
    assert bench.run(destinations=[to])["delivered"] == 1
    assert bench.files() == {"clip.mp4": other}


def test_what_was_put_off_while_the_clock_was_years_ahead_is_not_put_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose clock was set in the meantime."""
    bench.put("clip.mp4")
    to = BreakingStorage.at(bench.archive)
    to.cable.at = dict.fromkeys([1, 5, 9, 13], broken)  # each time it is tried
    with monkeypatch.context() as wrong:
        real = time.time_ns
        wrong.setattr(time, "time_ns", lambda: real() + 10 * 365 * 86_400 * 10**9)
        assert bench.run(destinations=[to])["deferred"] == 1
    to.cable.at = {}
    assert bench.run(destinations=[to])["delivered"] == 1


def test_two_destinations_of_which_one_breaks(bench: Bench, content: bytes, tmp_path: Path) -> None:
    bench.put("clip.mp4", content)
    (tmp_path / "second").mkdir()
    one, two = BreakingStorage.at(bench.archive), BreakingStorage.at(tmp_path / "second")
    two.cable.at = {40 * MIB: broken}
    assert bench.run(destinations=[one, two])["delivered"] == 2
    assert bench.files() == bench.files(tmp_path / "second") == {"clip.mp4": content}
    assert one.cable.written < SIZE + 1000  # and the manifest
    assert two.cable.written <= SIZE + CHECKPOINT + 8 * MIB


def test_nobody_notes_for_a_row_that_another_run_took(
    bench: Bench, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that slept while its row was taken stops at its next checkpoint, and leaves the other's bytes alone."""
    bench.put("clip.mp4", content)
    to = BreakingStorage.at(bench.archive)
    monkeypatch.setattr("flows.transfer.run.JOURNAL_S", 0.0)
    with Ledger.open() as ledger:

        def steal() -> None:
            from sqlalchemy import text

            with ledger.engine.begin() as c:
                c.execute(text("UPDATE files SET attempt = attempt + 1"))

        to.cable.at = {17 * MIB: steal}
        summary = bench.run(destinations=[to])
        assert summary["delivered"] == 0
    assert bench.files() == {}


@pytest.mark.parametrize("taken", [True, False])
def test_a_run_that_sleeps_in_the_middle_of_a_file(
    bench: Bench, content: bytes, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """Another run goes on in the same file, proves it and gives it its final name: what the sleeper still holds open is
    the final file. Where nobody has taken it, the sleeper goes on."""
    source = bench.put("clip.mp4", content)
    was, slept = os.stat(source), 0
    to = BreakingStorage.at(bench.archive)
    monkeypatch.setattr("flows.transfer.run.JOURNAL_S", 1e9)  # it does not happen to write down how far it is
    monkeypatch.setattr("flows.ledger.runs.awake_ms", lambda now=runs.awake_ms: now() + slept)

    def sleep() -> None:
        nonlocal slept
        slept += runs.LEASE_MS + 1
        if not taken:
            return
        with Ledger.open() as ledger, LocalStorage(root=str(bench.archive)).open() as session:
            (row,) = ledger.files()
            elsewhere(ledger, row["run_id"], silent_s=61)
            assert ledger.recover() == 1
            ledger.claim(ledger.begin_run("job", flight=None, device=None), [row["id"]])
            version = (was.st_size, was.st_mtime_ns, "")
            old, new = (staging_key("clip.mp4", version, attempt) for attempt in (1, 2))
            session.rekey("clip.mp4", old, new)
            upload = session.upload("clip.mp4", SIZE, key=new, resume=True)
            upload.rewind(16 * MIB)
            upload.write(memoryview(content)[16 * MIB :])
            upload.commit()
        source.write_bytes(bytes(SIZE))  # and the card is used again
        os.utime(source, ns=(was.st_mtime_ns, was.st_mtime_ns))

    to.cable.at = {24 * MIB: sleep}
    summary = bench.run(destinations=[to])
    assert bench.files() == {"clip.mp4": content}
    assert (summary["delivered"], summary["deferred"], summary["failed"]) == (int(not taken), int(taken), 0)
    assert to.cable.written < (24 * MIB if taken else SIZE) + 1000  # (it also writes the manifest)


# -- values ---------------------------------------------------------------------------------------------------------


VERSION = st.tuples(st.integers(0, 2**60), st.integers(0, 2**62), st.text())


@given(
    st.integers(0, 9), st.text(), st.lists(st.tuples(st.integers(0, 2**60), st.text("0123456789abcdef"))),
    st.none() | st.builds(Committed, st.text(), st.text("0123456789abcdef"), st.none() | VERSION),
)  # fmt: skip
def test_a_journal_is_read_as_it_was_written(
    attempt: int, token: str, checkpoints: list[tuple[int, str]], committed: Committed | None
) -> None:
    journal = Journal(attempt, token, checkpoints, committed)
    assert Journal.parse(journal.text()) == journal


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "null",
        "{}",
        "[]",
        "1",
        "{",
        '{"attempt": "x"}',
        '{"attempt": 1, "token": 2}',
        '{"attempt": 1, "token": "", "checkpoints": [], "committed": ["x"]}',
        '{"attempt": 1, "token": "", "checkpoints": [], "committed": ["x", "y", [1]]}',
    ],
)
def test_a_journal_nobody_can_read_is_none(text: str | None) -> None:
    assert Journal.parse(text) is None


@given(st.lists(st.integers(0, 100)), st.integers(0, 120), st.sampled_from([1, 2, 7]))
def test_the_last_checkpoint(offsets: list[int], offset: int, step: int) -> None:
    found = last_checkpoint([(o, str(o)) for o in offsets], offset, step)
    fitting = [o for o in offsets if o <= offset and o % step == 0]
    assert found == ((max(fitting), str(max(fitting))) if fitting else (0, ""))
