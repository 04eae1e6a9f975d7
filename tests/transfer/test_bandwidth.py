"""Which limit holds at an instant; buckets on a clock of their own; and whole jobs that keep to a limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from blocks.errors import ConfigError
from flows.transfer.bandwidth import DAYS, Limit, Timetable, Window, changes_at, limit_at, rate
from flows.transfer.job import load_job
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
