"""How much may be moved, when: the key `bandwidth` of a job, and which limit holds at an instant.

    bandwidth:
      up: 50 MiB                                                        # outside the windows; unlimited if not said
      windows:
        - {days: [mon-fri], from: "08:00", to: "18:00", up: 10 Mbit}    # 1,250,000 bytes a second
        - {from: "22:00", to: "06:00", up: "off", down: "off"}          # unlimited

`up` is what is written to a destination, `down` what is read from the source. A window holds by the clock on the wall
of the job's time zone: an hour that the clocks skip never comes, one that they repeat comes twice. A window that ends
before the hour it begins runs past midnight and belongs to the day on which it begins. Where windows overlap, the
strictest counts; a window that does not speak of a direction leaves it to the others, then to the default.

Nothing here waits or counts: `throttle.py` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

from pydantic import ConfigDict, Field, field_validator, model_validator

from flows.transfer.form import Form

# -- rates, days and hours as people write them -------------------------------------------------------------------------

_PREFIX = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_RATE = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([kmgt]?i?)(bits?|b)\s*(?:/\s*s|ps)?", re.IGNORECASE)
_HOW = "write such as 10 MiB, 10 MB (bytes a second), 10 Mbit (bits a second) or off"


def rate(text: str) -> int | None:
    """Bytes a second: `10 MiB` is 10,485,760, `10 MB` 10,000,000, `10 Mbit` 1,250,000; None for `off`. Raises ValueError."""
    plain = text.strip()
    if plain.lower() in ("off", "unlimited"):
        return None
    m = _RATE.fullmatch(plain)
    if m is None or m[2].lower() not in _PREFIX:
        raise ValueError(f"{text!r} is no bandwidth; {_HOW}")
    number, prefix, unit = Fraction(m[1]), m[2].lower(), m[3]
    bits = unit.lower().startswith("bit")
    if unit == "b" or (unit == "B" and plain.endswith("ps")):  # Mb, MBps: who knows
        raise ValueError(f"{text!r} may be bits or bytes; {_HOW}")
    bytes_per_s = number * _PREFIX[prefix] / (8 if bits else 1)
    if bytes_per_s < 1:
        raise ValueError(f"{text!r} would let nothing pass; {_HOW}; `onblock transfers pause` stops a job")
    return int(bytes_per_s)


DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LONG = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _day(text: str) -> int:
    plain = text.strip().lower()
    for number, long in enumerate(_LONG):
        if plain in (DAYS[number], long):
            return number
    raise ValueError(f"there is no day {text.strip()!r}; write {', '.join(DAYS)}, or ranges such as mon-fri")


def days(texts: Sequence[str]) -> frozenset[int]:
    """Numbers of days, Monday 0, from names and ranges; a range may run over the week's end. Raises ValueError."""
    found: set[int] = set()
    for text in texts:
        first, dash, last = text.partition("-")
        a, b = _day(first), _day(last if dash else first)
        found |= {(a + n) % 7 for n in range((b - a) % 7 + 1)}
    return frozenset(found)


def minute(text: str) -> int:
    """The minute of the day, 0 to 1440. Raises ValueError."""
    m = re.fullmatch(r"(\d\d?):(\d\d)", text.strip())
    if m is None or int(m[2]) > 59 or int(m[1]) * 60 + int(m[2]) > 1440:
        raise ValueError(f"{text!r} is no time of day; write such as '08:00', up to '24:00'")
    return int(m[1]) * 60 + int(m[2])


def _as_text(value: Any) -> Any:
    """YAML reads a bare off as false, and a bare 18:00 as the number 1080, which nobody could tell from a number."""
    if value is False:
        return "off"
    if isinstance(value, int | float):
        raise ValueError(f"{value!r} is a number; write times and bandwidths in quotes, such as '18:00' or '10 MiB'")
    return value


class _Limits(Form):
    """A limit for each direction."""

    up: str | None = None
    """What is written to a destination, a second: such as 10 MiB, 10 MB or 10 Mbit; off is unlimited."""
    down: str | None = None
    """What is read from the source, a second."""

    @field_validator("up", "down", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        value = _as_text(value)
        if isinstance(value, str):
            rate(value)
        return value


class Window(_Limits):
    """Hours of a week in which other limits hold."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    days: list[str] = Field(default=["mon-sun"], min_length=1)
    """Days on which it begins: mon, tue ... or ranges such as mon-fri."""
    start: str = Field(alias="from", description="When it begins, such as '08:00', in the job's time zone.")
    end: str = Field(alias="to", description="When it ends, such as '18:00'; before its beginning: on the next day.")

    @field_validator("days", mode="before")
    @classmethod
    def _days(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.split(",")
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            days(value)
        return value

    @field_validator("start", "end", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        value = _as_text(value)
        if isinstance(value, str):
            minute(value)
        return value

    @model_validator(mode="after")
    def _sense(self) -> Window:
        if minute(self.start) % 1440 == minute(self.end) % 1440 and self.span != (0, 1440):
            raise ValueError(f"from {self.start} to {self.end} is no time at all; the whole day is 00:00 to 24:00")
        if minute(self.start) == 1440:
            raise ValueError("a window begins at 23:59 at the latest")
        if self.up is None and self.down is None:
            raise ValueError("the window limits nothing: give `up` or `down`")
        return self

    @property
    def span(self) -> tuple[int, int]:
        """Minutes of the day of its beginning and its end."""
        return minute(self.start), minute(self.end)


class Timetable(_Limits):
    """How much may be moved, when. Without windows, `up` and `down` always hold."""

    windows: list[Window] = Field(default=[], max_length=100)
    """Hours in which other limits hold. Where they overlap, the strictest counts."""

    @model_validator(mode="before")
    @classmethod
    def _list(cls, data: Any) -> Any:
        return {"windows": data} if isinstance(data, list) else data

    @model_validator(mode="after")
    def _sense(self) -> Timetable:
        if self.up is None and self.down is None and not self.windows:
            raise ValueError("limits nothing: give `up`, `down` or `windows`")
        return self


class Limit(NamedTuple):
    """Bytes a second in each direction; None is unlimited."""

    up: int | None = None
    down: int | None = None


# -- which limit holds, as functions of values --------------------------------------------------------------------------


class _Hours(NamedTuple):
    """A window, read."""

    days: frozenset[int]
    start: int
    end: int
    up: list[int | None]  # empty if it does not speak of it
    down: list[int | None]

    def holds(self, weekday: int, at: int) -> bool:
        if self.start < self.end:
            return weekday in self.days and self.start <= at < self.end
        return (weekday in self.days and at >= self.start) or ((weekday - 1) % 7 in self.days and at < self.end)


def _said(text: str | None) -> list[int | None]:
    return [] if text is None else [rate(text)]


def _hours(timetable: Timetable) -> list[_Hours]:
    return [_Hours(days(w.days), *w.span, _said(w.up), _said(w.down)) for w in timetable.windows]


def _strictest(said: list[int | None], otherwise: list[int | None]) -> int | None:
    return min((r for r in said or otherwise if r is not None), default=None)


def _limit(timetable: Timetable, hours: list[_Hours], when: datetime) -> Limit:
    now = [h for h in hours if h.holds(when.weekday(), when.hour * 60 + when.minute)]
    return Limit(
        _strictest([r for h in now for r in h.up], _said(timetable.up)),
        _strictest([r for h in now for r in h.down], _said(timetable.down)),
    )


def limit_at(timetable: Timetable, when: datetime) -> Limit:
    """What holds at an instant, given in the time zone of the timetable."""
    return _limit(timetable, _hours(timetable), when)


HORIZON = timedelta(days=15)
"""A window that the clocks skip this week comes again next week."""


def changes_at(timetable: Timetable, when: datetime) -> datetime | None:
    """The first instant after `when`, in its time zone, at which another limit holds; None if there is none in sight."""
    hours, zone, since = _hours(timetable), when.tzinfo, when.astimezone(UTC)
    now = _limit(timetable, hours, when)
    edges: set[datetime] = set()
    marks = {0} | {m % 1440 for h in hours for m in (h.start, h.end)}
    for n in range(-1, HORIZON.days + 1):
        day = (when.replace(tzinfo=None) + timedelta(days=n)).replace(hour=0, minute=0, second=0, microsecond=0)
        for mark in marks:
            wall = (day + timedelta(minutes=mark)).replace(tzinfo=zone)
            edges |= {wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1)}
    edges |= set(_shifts(zone, since, since + HORIZON))
    for edge in sorted(e for e in edges if e > since):
        if _limit(timetable, hours, edge.astimezone(zone)) != now:
            return edge.astimezone(zone)
    return None


def _shifts(zone: Any, since: datetime, until: datetime) -> Iterator[datetime]:
    """When the clocks of a zone are put forward or back, to the second."""
    step, offset = timedelta(hours=1), since.astimezone(zone).utcoffset()
    at = since.replace(minute=0, second=0, microsecond=0)
    while at < until:
        later = (at + step).astimezone(zone).utcoffset()
        if later != offset:
            low, high = 0, 3600
            while high - low > 1:
                middle = (low + high) // 2
                if (at + timedelta(seconds=middle)).astimezone(zone).utcoffset() == later:
                    high = middle
                else:
                    low = middle
            yield at + timedelta(seconds=high)
        at, offset = at + step, later


def told(limit: Limit) -> str:
    """A limit for people."""
    return ", ".join(
        f"{way} {'unlimited' if value is None else f'{value:,} bytes/s'}" for way, value in limit._asdict().items()
    )
