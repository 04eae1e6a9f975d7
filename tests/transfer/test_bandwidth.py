"""Which limit holds at an instant; buckets on a clock of their own; and whole jobs that keep to a limit."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from sqlalchemy import select

from blocks.errors import Cancelled, ConfigError, NetworkError
from blocks.storage import RcloneStorage, RsyncStorage
from flows.ledger import Ledger
from flows.ledger.models import Berth
from flows.ledger.wishes import Wish
from flows.transfer.bandwidth import DAYS, Limit, Timetable, Window, changes_at, limit_at, rate
from flows.transfer.job import load_job
from flows.transfer.run import TransferRun
from flows.transfer.story import carry_out, here
from flows.transfer.throttle import BURST_S, COUNT_S, LOOK_S, Bucket, Throttle
from tests.faults.breaking import BreakingStorage
from tests.servers.sshd import Sshd
from tests.transfer.conftest import Bench

MIB = 1 << 20
BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")


# -- what people write --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("10 Mbit", 1_250_000), ("10 MiB", 10_485_760), ("10 MB", 10_000_000), ("10MiB/s", 10_485_760),
        ("1 Gbit/s", 125_000_000), ("100 kbit", 12_500), ("1 Kibit", 128), ("1 kB", 1000), ("1 KiB", 1024),
        ("512 B", 512), ("1.5 MiB", 1_572_864), ("8 bit", 1), ("1 TiB", 1 << 40), ("2 GB", 2_000_000_000),
        ("10 Mbits", 1_250_000), ("10 Mbitps", 1_250_000), ("off", None), (" OFF ", None), ("unlimited", None),
    ],
)  # fmt: skip
def test_rates(text: str, bytes_per_s: int | None) -> None:
    assert rate(text) == bytes_per_s


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10 MB/fortnight", "is no bandwidth"), ("10", "is no bandwidth"), ("10 M", "is no bandwidth"), ("", "is no bandwidth"),
        ("fast", "is no bandwidth"), ("10 XB", "is no bandwidth"), ("10 iB", "is no bandwidth"), ("1e9 B", "is no bandwidth"),
        ("nan MB", "is no bandwidth"), ("0 MiB", "nothing pass"), ("-1 MiB", "nothing pass"), ("7 bit", "nothing pass"),
        ("10 Mb", "bits or bytes"), ("10 Mbps", "bits or bytes"), ("10 MBps", "bits or bytes"), ("10 mb", "bits or bytes"),
    ],
)  # fmt: skip
def test_rates_that_are_none(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        rate(text)
    assert "10 Mbit" in str(caught.value), "what to write is said"


WEEKDAYS = {"days": "mon-fri", "from": "08:00", "to": "18:00", "up": "10 MiB"}


@pytest.mark.parametrize(
    ("bandwidth", "says"),
    [
        ([WEEKDAYS | {"to": "08:00"}], "from 08:00 to 08:00 is no time at all"),
        ([WEEKDAYS | {"from": "00:00", "to": "00:00"}], "is no time at all"),
        ([WEEKDAYS | {"from": "24:00"}], "begins at 23:59 at the latest"),
        ([WEEKDAYS | {"from": "24:00", "to": "00:00"}], "is no time at all"),
        ([WEEKDAYS | {"days": ["mon", "someday"]}], "there is no day 'someday'"),
        ([WEEKDAYS | {"days": "mon-fri-sun"}], "there is no day 'fri-sun'"),
        ([WEEKDAYS | {"days": []}], "at least 1 item"),
        ([WEEKDAYS | {"days": ""}], "there is no day ''"),
        ([WEEKDAYS | {"days": 7}], "valid list"),
        ([WEEKDAYS | {"from": "8 o'clock"}], "is no time of day"),
        ([WEEKDAYS | {"to": "25:00"}], "is no time of day"),
        ([WEEKDAYS | {"to": "24:01"}], "is no time of day"),
        ([WEEKDAYS | {"to": "12:60"}], "is no time of day"),
        ([WEEKDAYS | {"to": 1080}], "in quotes"),
        ([WEEKDAYS | {"up": 10485760}], "in quotes"),
        ([WEEKDAYS | {"up": "0 MiB"}], "nothing pass"),
        ([WEEKDAYS | {"up": "-3 MiB"}], "nothing pass"),
        ([WEEKDAYS | {"up": "10 MB/fortnight"}], "is no bandwidth"),
        ([{k: v for k, v in WEEKDAYS.items() if k != "up"}], "limits nothing"),
        ([{k: v for k, v in WEEKDAYS.items() if k != "to"}], "Field required"),
        ([WEEKDAYS | {"side": "1 MB"}], "no such key"),
        ([], "limits nothing"), ({}, "limits nothing"), ({"up": True}, "in quotes"), ("10 MiB", "dictionary"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_when_the_job_is_read(bench: Bench, bandwidth: Any, says: str) -> None:
    job = bench.yaml(bandwidth=bandwidth)
    with pytest.raises(ConfigError) as caught:
        load_job(job)
    text = str(caught.value)
    assert says in text and "bandwidth" in text and str(job) in text
    assert "\n" not in text and text.count("bandwidth.") <= 1, "one message, not one for each consequence"


def test_as_a_job_writes_it(bench: Bench) -> None:
    path = bench.yaml()
    text = path.read_text() + (
        "bandwidth:\n  up: 50 MiB\n  windows:\n"
        "    - {days: [mon-fri], from: '08:00', to: '18:00', up: 10 Mbit}\n"
        "    - {from: '22:00', to: '06:00', up: off, down: off}\n"
    )
    path.write_text(text)
    table = load_job(path).bandwidth
    assert table is not None
    monday = datetime(2026, 3, 2, tzinfo=UTC)
    at = lambda h: limit_at(table, monday + timedelta(hours=h))  # noqa: E731
    assert [at(h).up for h in (5, 7, 9, 19, 23)] == [None, 50 * MIB, 1_250_000, 50 * MIB, None]
    assert all(at(h).down is None for h in range(24))
    assert Timetable.model_validate(table.model_dump(mode="json")) == table, "as Prefect keeps it"
    assert Timetable.model_validate(table.model_dump(mode="json", exclude_unset=True)) == table
    properties = Window.model_json_schema()["properties"]
    assert {"days", "from", "to", "up", "down"} == properties.keys(), "as the form shows it"


# -- which limit holds --------------------------------------------------------------------------------------------------


def table(*windows: dict[str, Any], **default: str) -> Timetable:
    return Timetable.model_validate({"windows": list(windows), **default})


def w(days: str, span: str, **limits: str) -> dict[str, Any]:
    start, _, end = span.partition("-")
    return {"days": days, "from": start, "to": end, **limits}


NIGHT = w("fri", "22:00-06:00", up="1 MB")
OVERLAP = (w("mon-sun", "08:00-18:00", up="10 MB", down="5 MB"), w("wed", "12:00-14:00", up="off", down="1 MB"))


@pytest.mark.parametrize(
    ("timetable", "local", "expected"),
    [
        (table(up="1 MB"), "2026-03-04 12:00", (1_000_000, None)),
        (table(NIGHT), "2026-03-06 21:59:59", (None, None)),  # a Friday
        (table(NIGHT), "2026-03-06 22:00", (1_000_000, None)),
        (table(NIGHT), "2026-03-07 05:59:59", (1_000_000, None)),  # it belongs to the day on which it began
        (table(NIGHT), "2026-03-07 06:00", (None, None)),
        (table(NIGHT), "2026-03-07 22:00", (None, None)),
        (table(NIGHT), "2026-03-06 05:00", (None, None)),
        (table(w("sun", "22:00-06:00", up="1 MB")), "2026-03-09 05:00", (1_000_000, None)),  # over the week's end
        (table(w("sat-mon", "00:00-24:00", up="1 MB")), "2026-03-08 00:00", (1_000_000, None)),
        (table(w("sat-mon", "00:00-24:00", up="1 MB")), "2026-03-10 00:00", (None, None)),
        (table(w("mon", "20:00-00:00", up="1 MB")), "2026-03-02 23:59", (1_000_000, None)),
        (table(w("mon", "20:00-00:00", up="1 MB")), "2026-03-03 00:00", (None, None)),
        (table(*OVERLAP), "2026-03-04 13:00", (10_000_000, 1_000_000)),  # the strictest: off is the least strict
        (table(*OVERLAP), "2026-03-04 14:00", (10_000_000, 5_000_000)),
        (table(OVERLAP[1], up="2 MB", down="2 MB"), "2026-03-04 13:00", (None, 1_000_000)),  # off beats the default
        (table(NIGHT, down="2 MB"), "2026-03-06 23:00", (1_000_000, 2_000_000)),  # what it does not speak of
        (table(w("sun", "02:00-03:00", up="1 MB")), "2026-03-29 03:00", (None, None)),  # the hour that is skipped
        (table(w("sun", "02:00-03:00", up="1 MB")), "2026-10-25 02:30", (1_000_000, None)),  # and the one that comes twice
        (table(w("sun", "02:00-03:00", up="1 MB")), "2026-10-25 02:30+", (1_000_000, None)),
    ],
)  # fmt: skip
def test_limits(timetable: Timetable, local: str, expected: tuple[int | None, int | None]) -> None:
    when = datetime.fromisoformat(local.rstrip("+")).replace(tzinfo=BERLIN, fold=local.endswith("+"))
    assert limit_at(timetable, when) == expected


def naive(timetable: Timetable) -> list[list[Limit]]:
    """The week as a grid of days and minutes, painted window by window."""
    factor = {"MB": 10**6, "kB": 10**3}
    size = lambda t: float("inf") if t == "off" else int(t.split()[0]) * factor[t.split()[1]]  # noqa: E731
    grid: list[list[dict[str, list[float]]]] = [[{"up": [], "down": []} for _ in range(1440)] for _ in range(7)]
    for window in timetable.windows:
        begin, end = (int(t[:2]) * 60 + int(t[3:]) for t in (window.start, window.end))
        for name in window.days:
            for step in range((end - begin) % 1440 or 1440):
                day, at = divmod(DAYS.index(name) * 1440 + begin + step, 1440)
                for way in ("up", "down"):
                    if (text := getattr(window, way)) is not None:
                        grid[day % 7][at][way].append(size(text))

    def cell(said: list[float], default: str | None) -> int | None:
        found = min(said) if said else size(default or "off")
        return None if found == float("inf") else int(found)

    return [[Limit(cell(c["up"], timetable.up), cell(c["down"], timetable.down)) for c in day] for day in grid]


rates = st.sampled_from(["off", "1 MB", "2 MB", "300 kB"])
times = st.one_of(st.integers(0, 1439), st.sampled_from([0, 60, 120, 150, 180, 1439]))


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    start, length = draw(times), draw(st.one_of(st.integers(1, 1439), st.integers(1, 90)))
    end = (start + length) % 1440
    window = {
        "days": draw(st.lists(st.sampled_from(DAYS), min_size=1, max_size=7, unique=True)),
        "from": f"{start // 60:02}:{start % 60:02}", "to": f"{end // 60:02}:{end % 60:02}",
    }  # fmt: skip
    ways = draw(st.sampled_from([("up",), ("down",), ("up", "down")]))
    return window | {way: draw(rates) for way in ways}


@st.composite
def timetables(draw: st.DrawFn) -> Timetable:
    default = draw(st.fixed_dictionaries({}, optional={"up": rates, "down": rates}))
    return table(*draw(st.lists(windows(), min_size=1, max_size=4)), **default)


AROUND = {
    BERLIN: [datetime(2026, 3, 28, 12), datetime(2026, 10, 24, 12), datetime(2026, 7, 1)],
    NEW_YORK: [datetime(2026, 3, 7, 12), datetime(2026, 10, 31, 12), datetime(2026, 7, 1)],
}
"""A day and a half with a change of the clocks in it, and one without."""


@settings(max_examples=40, deadline=None)
@given(timetables(), st.sampled_from([BERLIN, NEW_YORK]), st.integers(0, 2), st.integers(0, 59))
def test_every_minute_is_as_the_naive_model_says(t: Timetable, zone: ZoneInfo, part: int, second: int) -> None:
    grid = naive(t)
    at = AROUND[zone][part].replace(tzinfo=zone).astimezone(UTC) + timedelta(seconds=second)
    for _ in range(36 * 60):
        local = at.astimezone(zone)
        assert limit_at(t, local) == grid[local.weekday()][local.hour * 60 + local.minute], local
        at += timedelta(minutes=1)


@settings(max_examples=60, deadline=None)
@given(timetables(), st.sampled_from([BERLIN, NEW_YORK]), st.integers(0, 2), st.integers(0, 36 * 3600))
def test_the_next_change_is_the_next_change(t: Timetable, zone: ZoneInfo, part: int, second: int) -> None:
    grid = naive(t)
    start = AROUND[zone][part].replace(tzinfo=zone).astimezone(UTC) + timedelta(seconds=second)
    now = limit_at(t, start.astimezone(zone))
    change = changes_at(t, start.astimezone(zone))
    if change is None:
        assert all(cell == now for day in grid for cell in day)
        return
    assert change.tzinfo is zone
    end = change.astimezone(UTC)
    assert end > start
    assert limit_at(t, change) != now
    assert limit_at(t, (end - timedelta(seconds=1)).astimezone(zone)) == now
    at = start
    while at < end:
        local = at.astimezone(zone)
        assert grid[local.weekday()][local.hour * 60 + local.minute] == now, local
        at = (at + timedelta(minutes=1)).replace(second=0)


def test_a_window_that_the_clocks_skip_comes_next_week() -> None:
    t = table(w("sun", "02:00-03:00", up="1 MB"))
    change = changes_at(t, datetime(2026, 3, 29, 1, 0, tzinfo=BERLIN))
    assert change == datetime(2026, 4, 5, 2, 0, tzinfo=BERLIN)


def test_a_timetable_that_never_changes() -> None:
    assert changes_at(table(up="1 MB"), datetime(2026, 3, 29, tzinfo=BERLIN)) is None
    assert changes_at(table(w("mon-sun", "00:00-24:00", up="1 MB")), datetime(2026, 3, 29, tzinfo=BERLIN)) is None
    with pytest.raises(ValidationError):
        table()


# -- buckets, on a clock of their own -------------------------------------------------------------------------------------


class Clock:
    """Time that passes when somebody waits for it, for any number of threads."""

    def __init__(self) -> None:
        self.now, self._lock = 1000.0, threading.Lock()
        self.at: dict[float, Callable[[], object]] = {}  # what happens at a moment
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        with self._lock:
            self.waits.append(seconds)
            self.now += seconds
            for moment in [m for m in self.at if m <= self.now]:
                self.at.pop(moment)()


def bucket(clock: Clock, limit: Callable[[], float | None] | float | None) -> Bucket:
    return Bucket(limit if callable(limit) else lambda: limit, clock, clock.wait)


def test_a_second_lets_pass_what_the_limit_says() -> None:
    clock = Clock()
    one = bucket(clock, MIB)
    for _ in range(100):
        one.take(MIB // 4)
    assert clock.now - 1000 == pytest.approx(25, abs=0.3)


def test_a_pause_is_not_saved_up() -> None:
    clock = Clock()
    one = bucket(clock, MIB)
    clock.now += 3600
    before = clock.now
    one.take(10 * MIB)
    assert clock.now - before == pytest.approx(10, abs=0.3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4 * MIB), st.floats(0, 5)), min_size=1, max_size=40), st.integers(1000, 10 * MIB)
)
def test_never_more_than_the_limit_in_any_stretch_of_time(asked: list[tuple[int, float]], limit: int) -> None:
    clock = Clock()
    one = bucket(clock, limit)
    passed: list[tuple[float, float, int]] = []
    for count, pause in asked:
        clock.now += pause
        before = clock.now
        one.take(count)
        passed.append((before, clock.now, count))
    for i, (_, first, _) in enumerate(passed):
        total = 0
        for _, last, count in passed[i + 1 :]:
            total += count
            assert total <= (last - first) * limit + limit * BURST_S + 1


def test_the_limit_changes_while_somebody_waits() -> None:
    clock = Clock()
    now: list[float | None] = [1000.0]
    one = bucket(clock, lambda: now[0])
    clock.at = {1010.0: lambda: now.__setitem__(0, 10_000.0)}
    one.take(50_000)
    assert clock.now - 1000 == pytest.approx(10 + 4, abs=0.6)
    clock.at = {clock.now + 2: lambda: now.__setitem__(0, None)}
    before = clock.now
    one.take(10**9)
    assert clock.now - before == pytest.approx(2, abs=LOOK_S)
    one.take(10**12)
    assert clock.now - before == pytest.approx(2, abs=LOOK_S)


def test_whoever_waits_is_asked_four_times_a_second() -> None:
    clock = Clock()
    asked: list[float] = []

    def wanted() -> bool:
        asked.append(clock.now)
        return clock.now < 1060

    bucket(clock, 1000.0).take(10**9, wanted)
    assert clock.now == pytest.approx(1060, abs=LOOK_S)
    assert max(b - a for a, b in itertools.pairwise(asked)) <= LOOK_S
    with pytest.raises(Cancelled):
        bucket(clock, 1000.0).take(10**9, lambda: (_ for _ in ()).throw(Cancelled("stop")))


def test_threads_share_a_bucket() -> None:
    clock = Clock()
    one = bucket(clock, MIB)
    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(lambda: [one.take(MIB // 8) for _ in range(20)]) for _ in range(8)]:
            future.result()
    # time passes for all of them whenever one waits: so they pass sooner than one alone, and never faster than allowed
    assert clock.now - 1000 >= 20 - BURST_S - 0.01


def test_what_a_program_moved_is_waited_for() -> None:
    clock = Clock()
    one = bucket(clock, MIB)
    one.passed(20 * MIB)
    one.take(MIB)
    assert clock.now - 1000 == pytest.approx(21, abs=0.3)


@pytest.mark.parametrize("limit", [100.0, 50_000.0, float(MIB), 1e9])
def test_portions_are_small_and_whole_pages(limit: float) -> None:
    portion = bucket(Clock(), limit).portion()
    assert portion % 4096 == 0 and portion <= max(4096, limit / 8)


# -- who shares, and since when -------------------------------------------------------------------------------------------


class Day:
    """A throttle on a clock of its own, whose calendar goes with it."""

    def __init__(self, timetable: Timetable, begins: str = "2026-03-04 07:59:00"):
        self.clock = Clock()
        self.begins = datetime.fromisoformat(begins).replace(tzinfo=BERLIN)
        self.throttle = Throttle(
            timetable, BERLIN, "sftp://camera", ["sftp://nas"], clock=self.clock, wait=self.clock.wait, today=self.today
        )

    def today(self, zone: ZoneInfo) -> datetime:
        return (self.begins.astimezone(UTC) + timedelta(seconds=self.clock.now - 1000)).astimezone(zone)


OFFICE = table(w("mon-fri", "08:00-18:00", up="8 MB", down="4 MB"))


def test_a_share_is_a_half_until_somebody_has_counted() -> None:
    throttle = Day(table(up="8 MB", down="4 MB")).throttle
    assert throttle.limits() == (4_000_000, 2_000_000)
    throttle.recount(lambda places: {p: 4 if p == "up sftp://nas" else 1 for p in places}, due=True)
    assert throttle.limits() == (2_000_000, 4_000_000)


def test_the_last_count_stays_while_the_ledger_is_away() -> None:
    day = Day(table(up="8 MB"))
    calls: list[float] = []

    def count(places: Sequence[str]) -> dict[str, int]:
        calls.append(day.clock.now)
        if len(calls) > 1:
            raise NetworkError("the ledger does not answer")
        return dict.fromkeys(places, 4)

    day.throttle.recount(count, due=True)
    for _ in range(60):
        day.clock.now += 1
        day.throttle.recount(count)
    assert day.throttle.limits() == (2_000_000, None)
    assert len(calls) == 1 + 60 // COUNT_S, "it is asked every few seconds"


def test_an_edge_takes_effect_within_a_second_or_two() -> None:
    """In the middle of one large file: bytes are counted against the virtual clock."""
    day = Day(OFFICE)
    day.throttle.recount(lambda places: dict.fromkeys(places, 1), due=True)
    one = day.throttle.up[0]
    one.take(10**12)
    assert day.clock.now == 1000, "unlimited at 7:59"
    day.clock.now += 58
    assert one.portion() > 10**12
    day.clock.now += 3
    passed = 0
    while day.clock.now < 1000 + 60 + 30:
        part = min(one.portion(), 4 * MIB)
        one.take(part)
        passed += part
    assert 28 * 8_000_000 <= passed <= 30.5 * 8_000_000


def test_what_cannot_be_slowed_down_does_not_begin_before_an_edge() -> None:
    day = Day(OFFICE, "2026-03-04 07:00:00")
    assert day.throttle.free("up") and day.throttle.free("down")
    day.clock.now += 59 * 60 + 1
    assert not day.throttle.free("up")
    day.clock.now += 120
    assert not day.throttle.free("up")
    assert Day(table(down="1 MB")).throttle.free("up")


# -- whole jobs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Runs wait for bandwidth on a clock of their own."""
    clock = Clock()
    real = Throttle.__init__

    def init(self: Throttle, *args: Any, **options: Any) -> None:
        real(self, *args, **(options | {"clock": clock, "wait": clock.wait}))

    monkeypatch.setattr(Throttle, "__init__", init)
    return clock


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_job_between_local_folders_keeps_to_its_limit(bench: Bench, clock: Clock, way: str) -> None:
    files = {f"s{n}": bytes([n]) * 20_000 for n in range(50)} | {"large": random.Random(1).randbytes(9 * MIB + 5)}
    for path, content in files.items():
        bench.put(path, content)
    summary = bench.run(bandwidth={way: "1 MiB"}, shipping={"at_once": 1})
    assert (summary["delivered"], summary["failed"]) == (51, 0)
    assert bench.files() == files
    bench.check_manifest()
    assert clock.now - 1000 >= sum(map(len, files.values())) / MIB - BURST_S - 1
    assert max(clock.waits) <= LOOK_S


def test_without_limits_nobody_waits(bench: Bench, clock: Clock) -> None:
    bench.put("large", bytes(9 * MIB))
    job = bench.job()
    with Ledger.open() as ledger, TransferRun(job, ledger) as run:
        assert run.throttle is None
        assert carry_out(run, here(run))["delivered"] == 1
    assert bench.run(name="other", bandwidth={"up": "off"})["adopted"] == 1
    assert clock.now == 1000


@pytest.mark.parametrize("wish", [Wish.PAUSE, Wish.CANCEL])
def test_a_wish_is_heard_while_a_file_waits(bench: Bench, clock: Clock, wish: Wish) -> None:
    bench.put("large", random.Random(1).randbytes(40 * MIB))
    to = BreakingStorage.at(bench.archive)
    job = bench.job(destinations=[to], bandwidth={"up": "1 MiB"})
    with Ledger.open() as ledger, TransferRun(job, ledger) as run:

        def want() -> None:
            ledger.grant(wish, ledger.choose(job="job"), who="me")
            run.ask()
            clock.at = {}

        clock.at = {1020.5: want}
        summary = carry_out(run, here(run))
    assert summary["delivered"] == 0
    assert 1020 <= clock.now <= 1022
    assert to.cable.written <= 21 * MIB
    assert len(bench.files()) == (1 if wish is Wish.PAUSE else 0)
    if wish is Wish.PAUSE:
        with Ledger.open() as ledger:
            ledger.grant(Wish.RESUME, ledger.choose(job="job"), who="me")
        assert bench.run(destinations=[to])["delivered"] == 1
        assert to.cable.written < 40 * MIB + 10 * MIB, "it went on where it was"


def test_a_run_that_is_stopped_does_not_wait(bench: Bench, clock: Clock) -> None:
    bench.put("large", bytes(40 * MIB))
    job = bench.job(bandwidth={"up": "1 MiB"})
    with Ledger.open() as ledger, TransferRun(job, ledger) as run:
        clock.at = {1005.0: run.stop.set}
        with pytest.raises(Cancelled):
            carry_out(run, here(run))
    assert clock.now <= 1007


def test_runs_at_one_place_share_its_limit(bench: Bench) -> None:
    """Each has its n-th part while it runs, and what it held is free when it has ended."""
    job = bench.job(bandwidth={"up": "8 MB"})
    with Ledger.open() as ledger:
        with TransferRun(job, ledger) as one:
            assert one.throttle is not None and one.throttle.limits() == (8_000_000, None)
            with TransferRun(bench.job(name="other", bandwidth={"up": "8 MB"}), ledger) as two:
                assert two.throttle is not None and two.throttle.limits() == (4_000_000, None)
                one._recount(one.throttle, due=True)
                assert one.throttle.limits() == (4_000_000, None)
            one._recount(one.throttle, due=True)
            assert one.throttle.limits() == (8_000_000, None)
        with ledger.engine.begin() as c:
            assert c.execute(select(Berth.place)).all() == []


# -- rclone and rsync are told --------------------------------------------------------------------------------------------


def commands() -> set[str]:
    """The command lines of the machine's processes."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.add(entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


@pytest.mark.parametrize("way", ["up", "down"])
def test_rsync_gets_the_limit(bench: Bench, sshd: Sshd, way: str) -> None:
    """Seen on the command line of the real program while it runs; to the far end it passes its options unseen."""
    info = sshd.info
    far = lambda folder: RsyncStorage(  # noqa: E731
        host=info["host"], port=info["port"], user=info["user"], key_file=info["key"], known_hosts=info["known_hosts"],
        root=str(folder),
    )  # fmt: skip
    for n in range(20):
        bench.put(f"f{n:02}", bytes([n]) * 100_000)
    ends = {"destinations": [far(bench.archive)]} if way == "up" else {"source": far(bench.card)}
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen.update(c for c in commands() if "--bwlimit" in c)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        summary = bench.run(**ends, bandwidth={way: "2000 KiB"}, shipping={"at_once": 1})
    finally:
        done.set()
        watcher.join()
    assert (summary["delivered"], summary["failed"]) == (20, 0)
    assert bench.files().keys() == {f"f{n:02}" for n in range(20)}
    ours = [c for c in seen if c.rstrip("/ ").endswith(str(bench.archive)) or f":{bench.card}/ " in c]
    assert ours and all(" --bwlimit=2000 -- " in c for c in ours), seen


@pytest.mark.parametrize("way", ["up", "down"])
def test_rclone_gets_the_limit_and_its_changes(bench: Bench, rclone_disk: SecretStr, way: str) -> None:
    """The daemon itself says what it keeps to: at the beginning, after a change in mid-way, and afterwards."""
    for n in range(12):
        bench.put(f"f{n:02}", bytes([n]) * 300_000)
    storage = RcloneStorage(remote="disk", root=str(bench.archive if way == "up" else bench.card), config=rclone_disk)
    now: list[int | None] = [1_000_000]
    said: list[int] = []
    with storage.open() as session:
        ask = lambda: session.call("core/bwlimit", "cannot ask")["bytesPerSecond"]  # noqa: E731
        direction = 0 if way == "up" else 1
        session.limits = lambda: (now[0], None) if way == "up" else (None, now[0])

        def moved(count: int) -> None:
            said.append(ask())
            now[0] = 3_000_000

        if way == "up":
            pairs = [
                (str(bench.card / f"f{n:02}"), session.upload(f"f{n:02}", 300_000, key="k", mtime_ns=None))
                for n in range(12)
            ]
            assert None not in session.push(pairs, moved, threading.Event())
            for _, upload in pairs:
                upload.commit()
        else:
            fetched = [(f"f{n:02}", str(bench.archive / f"f{n:02}")) for n in range(12)]
            assert set(session.pull(fetched, moved, threading.Event())) == {None}
        assert direction in (0, 1) and said[0] == 1_000_000 and said[-1] == 3_000_000, said
        assert ask() == -1, "no limit stays behind"
    assert len(bench.files()) == 12


def test_a_job_to_rclone_is_slowed_by_rclone(bench: Bench, rclone_disk: SecretStr, caplog: Any) -> None:
    """Small files go at once, and large ones by us; both arrive, and the limits were asked for."""
    files = {f"f{n:02}": bytes([n]) * 50_000 for n in range(20)} | {"large": bytes(33 * MIB)}
    for path, content in files.items():
        bench.put(path, content)
    to = RcloneStorage(remote="disk", root=str(bench.archive), config=rclone_disk)
    summary = bench.run(destinations=[to], bandwidth={"up": "100 MiB"})
    assert (summary["delivered"], summary["failed"]) == (21, 0)
    assert bench.files() == files
