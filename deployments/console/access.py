"""Who may do what in the console: people, each with a token and a role; sessions of browsers; how often one may guess.

Who asks is found out in `guard.py`; here is what is kept. A token is 256 random bits, of which only the SHA-256 is kept,
in `people.json` of the folder `console` in ONBLOCK_HOME. The file is read anew when it changes, so that whoever is taken
out of it is out at once, with his sessions.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from blocks import names
from blocks.errors import ConfigError, Corrupt
from blocks.home import home
from deployments.console.audit import Audit

FIRST = "admin"
"""Who is made at the first start."""
IDLE_S, LONGEST_S = 12 * 3600.0, 7 * 86_400.0
"""So long a session lives without a request, and at most."""
MOST_SESSIONS = 1000
MOST_OF_ONE = 20
"""Sessions of one person: with the next his oldest ends, and nobody else's."""
WRONG, WITHIN_S = 10, 60.0
"""So many wrong tokens an address may send within so many seconds."""
LOG_INS = 30
"""So often a person may log in within as many: each is written down, and on the disk before it counts."""
MOST_ADDRESSES = 10_000


class Role(IntEnum):
    """What somebody may do; each may do what those before him may."""

    VIEWER = 1  # look
    OPERATOR = 2  # act on transfers, jobs, recordings, overrides
    ADMIN = 3  # change jobs, read the audit log


class Person(NamedTuple):
    """Somebody, or a program."""

    name: str
    role: Role
    digest: str
    made_at: int  # s since the epoch


def console_folder() -> Path:
    """Where the console keeps what is its own."""
    return home() / "console"


class People:
    """Those who have a token. Shared by threads; other processes may change the file."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder if folder is not None else console_folder()
        self.audit = Audit(self.folder / "audit.jsonl")
        self._file = self.folder / "people.json"
        self._lock = threading.Lock()
        self._read_of: tuple[int, int, int] | None = None
        self._all: dict[str, Person] = {}

    def first_start(self) -> Path | None:
        """Make an admin, where nobody is; the file (0600) his token is in. None if there is one whose token is not
        there any more, because somebody has put it where he keeps such things."""
        file = self._token_file(FIRST)
        if not any(p.role is Role.ADMIN for p in self.all()):
            with self._changing() as people:
                if not any(p.role is Role.ADMIN for p in people.values()):  # two may start at once
                    _write(file, self._give(people, FIRST, Role.ADMIN) + "\n")
        return file if file.exists() else None

    def add(self, name: str, role: Role) -> str:
        """Somebody new, or a new token for somebody who is there; the token. Raises ConfigError."""
        try:
            names.check_label(name)
        except names.BadName as error:
            raise ConfigError(f"{names.display(name)!r} is no name: {error.what}") from None
        with self._changing() as people:
            token = self._give(people, name, role)
            self._token_file(name).unlink(missing_ok=True)  # the one in it is void
        return token

    def remove(self, name: str) -> None:
        """Not any more. Raises ConfigError if there is nobody of that name."""
        with self._changing() as people:
            if people.pop(name, None) is None:
                raise ConfigError(
                    f"nobody is called {names.display(name)!r}", remedy="`onblock access list` shows who is"
                )
            self.audit.write(_shell(), "access remove", name=name)
            self._token_file(name).unlink(missing_ok=True)

    def _give(self, people: dict[str, Person], name: str, role: Role) -> str:
        token, before = f"onblock_{secrets.token_urlsafe(32)}", people.get(name)
        people[name] = Person(name, role, _digest(token), int(time.time()))
        told = {"name": name, "role": role.name.lower(), "before": before and before.role.name.lower()}
        self.audit.write(_shell(), "access add", **told)
        return token

    def _token_file(self, name: str) -> Path:
        return self.folder / f"{name}.token"

    def all(self) -> list[Person]:
        """Everybody, by name."""
        return [p for _, p in sorted(self._now().items())]

    def by_token(self, token: str) -> Person | None:
        """Whose token this is."""
        digest = _digest(token)  # what is compared is no secret: how long it takes tells nothing
        return next((p for p in self._now().values() if p.digest == digest), None)

    def by_name(self, name: str) -> Person | None:
        """Who is called so."""
        return self._now().get(name)

    def _now(self) -> dict[str, Person]:
        with self._lock:
            try:
                found = self._file.stat()
            except FileNotFoundError:
                self._all, self._read_of = {}, None
                return {}
            version = (found.st_mtime_ns, found.st_ino, found.st_size)
            if version != self._read_of:
                self._all, self._read_of = self._load(), version
            return dict(self._all)

    def _load(self) -> dict[str, Person]:
        try:
            told = json.loads(self._file.read_bytes())
            return {n: Person(n, Role[p["role"].upper()], str(p["sha256"]), int(p["made_at"])) for n, p in told.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(
                "is no list of people that can be read", path=str(self._file), remedy="restore it, or move it away"
            ) from error

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Person]]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.folder / ".people.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._read_of = None  # the file of this moment, whatever its time says
            people = self._now()
            yield people
            told = {
                n: {"role": p.role.name.lower(), "sha256": p.digest, "made_at": p.made_at} for n, p in people.items()
            }
            _write(self._file, json.dumps(told, indent=1) + "\n")
        finally:
            os.close(fd)


def _shell() -> str:
    """Who works on this machine; in brackets, which no name of a person of the console has."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"({name})"


def _write(file: Path, text: str) -> None:
    """The whole file or none of it; nobody else may read it at any moment."""
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(fd)
    part.rename(file)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class _Session(NamedTuple):
    name: str
    digest: str  # of the token it was opened with: another token ends it
    opened: float
    used: float


class Sessions:
    """Browsers that are logged in: in memory, so that a log-out is one. A console that is started anew asks again."""

    def __init__(self, people: People, clock: Callable[[], float] = time.monotonic):
        self._people, self._clock = people, clock
        self._lock = threading.Lock()
        self._open: dict[str, _Session] = {}

    def open(self, person: Person) -> str:
        """A new session; what to put into the cookie. His oldest ends where he has many."""
        secret, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._open = {k: s for k, s in self._open.items() if not _is_over(s, now)}
            of_him = [k for k, s in self._open.items() if s.name == person.name]
            for full, those in (len(of_him) >= MOST_OF_ONE, of_him), (len(self._open) >= MOST_SESSIONS, self._open):
                if full:
                    self._open.pop(min(those, key=lambda k: self._open[k].used))
                    break
            self._open[_digest(secret)] = _Session(person.name, person.digest, now, now)
        return secret

    def person(self, secret: str, *, uses: bool = True) -> Person | None:
        """Whose session it is, if it is one still. It lives on from here if he `uses` it, and not a page left open."""
        key, now = _digest(secret), self._clock()
        with self._lock:
            found = self._open.get(key)
            if found is None:
                return None
            if _is_over(found, now):
                del self._open[key]
                return None
            if uses:
                self._open[key] = found._replace(used=now)
        person = self._people.by_name(found.name)
        return person if person is not None and person.digest == found.digest else None

    def close(self, secret: str) -> None:
        """The session is over."""
        with self._lock:
            self._open.pop(_digest(secret), None)


def _is_over(session: _Session, now: float) -> bool:
    return now - session.used > IDLE_S or now - session.opened > LONGEST_S


class Throttle:
    """How often something may be done: an address be wrong, a person log in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = WRONG):
        self._clock, self._most = clock, most
        self._lock = threading.Lock()
        self._times: dict[str, deque[float]] = {}

    def wait_s(self, who: str) -> float:
        """So long they have to wait before they may try again; 0 if they may."""
        with self._lock:
            times = self._times.get(who)
            if not times or len(times) < self._most:
                return 0.0
            return max(0.0, times[0] + WITHIN_S - self._clock())

    def count(self, who: str) -> None:
        """They did it once more."""
        with self._lock:
            times = self._times.pop(who, None) or deque(maxlen=self._most)
            times.append(self._clock())
            self._times[who] = times  # as the last one
            if len(self._times) > MOST_ADDRESSES:
                del self._times[next(iter(self._times))]
