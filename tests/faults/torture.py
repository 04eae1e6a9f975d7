"""Random schedules of kills and faults over mixed jobs, and what must be true whatever happened. `make torture`.

    python -m tests.faults.torture --count 1000            # seeds are drawn and printed
    python -m tests.faults.torture --seed 4711             # one schedule again

A schedule has a card, one or two archives and a few runs; every third one compresses what it brings. Each run is a real process, forked from this one, in which
faults strike at given steps: calls of the storage and of the ledger, counted. Between runs files change, and people
pause, cancel and resume. After each run every final name must hold a whole file. In the end, after runs without faults,
everything must be where it belongs, once, and nothing else.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import gzip
import hashlib
import importlib
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blocks.errors import DiskFull, NetworkError
from blocks.names import TEMPORARY
from blocks.storage import LocalStorage
from blocks.storage.base import aligned_buffer
from blocks.storage.local import LocalSession, LocalUpload
from flows.ledger import Ledger, State
from flows.ledger.rows import MADE
from flows.ledger.states import ACTIVE
from flows.ledger.wishes import Wish
from flows.transfer import senders, story
from flows.transfer.job import TransferJob

MIB = 1 << 20
MANIFEST = "checksums.sha256"
RUN_LIMIT_S = 240.0
FAULTS = ("kill before", "kill after", "network", "lost answer", "disk full", "short write", "flipped byte")
LEDGER_STEPS = (
    "claim", "finish", "note", "enter", "requeue", "mark_seen", "settle_rows", "manifest_written", "end_run", "link",
    "settle_origins", "unmake",
)  # fmt: skip


# -- in the run ---------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """Which fault strikes at which step; the steps of all threads are counted together."""

    faults: dict[int, str]
    struck: int = 0  # a pipe's end, to which the name of each fault is written
    count: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def step(self, may: tuple[str, ...]) -> str | None:
        """The fault of this step, if it is one that can happen here."""
        with self.lock:
            self.count += 1
            due = [n for n in self.faults if n <= self.count and self.faults[n] in may]
            fault = self.faults.pop(due[0]) if due else None
        if fault is not None:
            os.write(self.struck, f"{fault}\n".encode())
        if fault == "kill before":
            os.kill(os.getpid(), signal.SIGKILL)
        return fault


def done(fault: str | None) -> None:
    """After a step was carried out."""
    if fault == "kill after":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "lost answer":
        raise NetworkError("the answer was lost")


def refuse(fault: str | None) -> None:
    """Before a step is carried out."""
    if fault == "network":
        raise NetworkError("the cable was pulled")
    if fault == "disk full":
        raise DiskFull("the disk is full")


PLAN = Plan({})
KILLS = ("kill before", "kill after")
ANY = (*KILLS, "network", "lost answer")
WRITING = (*ANY, "disk full", "short write", "flipped byte")


class FaultyStorage(LocalStorage):
    """A folder on which the plan strikes."""

    _block_type_slug = "faulty-storage"

    def open(self) -> LocalSession:
        return FaultySession(self.root, direct=True)


class FaultySession(LocalSession):
    """Its calls are steps."""

    def upload(self, path: str, size: int, **options: Any) -> LocalUpload:  # type: ignore[override]
        fault = PLAN.step((*KILLS, "network", "disk full"))
        refuse(fault)
        upload = super().upload(path, size, **options)
        upload.__class__ = FaultyUpload  # type: ignore[assignment]
        done(fault)
        return upload

    def commit_all(self, uploads: Any) -> Any:
        fault = PLAN.step(ANY)
        refuse(fault)
        out = super().commit_all(uploads)
        done(fault)
        return out

    def discard(self, path: str, key: str, journal: str = "") -> None:
        fault = PLAN.step(ANY)
        refuse(fault)
        super().discard(path, key, journal)
        done(fault)


class FaultyUpload(LocalUpload):
    """Its calls are steps, too."""

    def write(self, chunk: memoryview) -> None:
        fault = PLAN.step(WRITING)
        refuse(fault)
        if fault == "short write":
            super().write(chunk[: len(chunk) // 2 // 4096 * 4096])
            raise NetworkError("the cable was pulled in the middle")
        if fault == "flipped byte" and len(chunk):  # on its way: what is read back is what arrived
            spoilt = aligned_buffer(len(chunk))
            spoilt[: len(chunk)] = chunk
            spoilt[len(chunk) - 1] ^= 1
            chunk = memoryview(spoilt)[: len(chunk)]
        super().write(chunk)
        done(fault)

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        fault = PLAN.step(ANY)
        refuse(fault)
        name = super().commit(path, replace=replace)
        done(fault)
        return name


def _as_step(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the ledger before or after which the process may be killed."""

    def step(*args: Any, **kwargs: Any) -> Any:
        fault = PLAN.step(KILLS)
        out = method(*args, **kwargs)
        done(fault)
        return out

    return step


def be_a_run(job: TransferJob, faults: dict[int, str], struck: int, clock_s: int) -> None:
    """In a process of its own: the job with its faults, then the end of the process."""
    global PLAN
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    PLAN = Plan(dict(faults), struck)
    for name in LEDGER_STEPS:
        setattr(Ledger, name, _as_step(getattr(Ledger, name)))
    senders.TASK_RETRY_DELAYS_S = (0.0, 0.0)  # type: ignore[assignment]
    importlib.import_module("flows.transfer.retry").delay_s = lambda tries: 0.0
    if clock_s:
        real = time.time_ns
        time.time_ns = lambda: real() + clock_s * 10**9
    code = 0
    try:
        story.run_here(job)
    except Exception as error:  # noqa: BLE001 - whatever it is, the next run must cope with what it left
        os.write(struck, f"raised {type(error).__name__}\n".encode())
        code = 1
    finally:
        os._exit(code)


# -- the schedule -------------------------------------------------------------------------------------------------------


class Wrong(AssertionError):
    """Something is not as it must be."""


class Schedule:
    """One seed: a card, archives, a ledger, and what happens to them."""

    def __init__(self, seed: int, folder: Path, counts: Counter[str]):
        self.dice, self.folder, self.counts = random.Random(seed), folder, counts
        self.card = folder / "card"
        self.archives = [folder / f"archive-{n}" for n in range(self.dice.choice([1, 1, 2]))]
        for path in (self.card, *self.archives):
            path.mkdir(parents=True)
        os.environ["ONBLOCK_HOME"] = str(folder / "home")
        self.contents: dict[str, set[str]] = {}  # by path: SHA-256 of all that ever lay there
        self.clock_s = 0
        self.looked: dict[tuple[int, int, int], str] = {}
        for n in range(self.dice.randint(3, 40)):
            self.put(f"DCIM/{n % 3}/f{n:02}.jpg", self.dice.randint(0, 20_000))
        for n in range(self.dice.choice([0, 1, 1, 2])):
            self.put(f"video-{n}.mp4", self.dice.randint(33, 49) * MIB + self.dice.randint(0, 5000))
        self.steps = seed % 3 == 0
        self.job = TransferJob(
            name="torture", source=LocalStorage(root=str(self.card)),
            destinations=[FaultyStorage(root=str(a)) for a in self.archives],
            settle={"quiet": 0}, verify=self.dice.choice(["checksum", "checksum", "size", "readback"]),
            shipping={"max_files": self.dice.choice([4, 16, 4096]), "at_once": self.dice.choice([1, 2])},
            steps=[{"kind": "compress", "format": "gzip"}] if self.steps else [],
        )  # type: ignore[arg-type]  # fmt: skip

    def put(self, path: str, size: int) -> None:
        full = self.card / path
        full.parent.mkdir(parents=True, exist_ok=True)
        head = self.dice.randbytes(min(size, 4096))
        data = head + hashlib.shake_128(head).digest(max(0, min(size, 8192) - len(head)))
        data = (data * (size // max(1, len(data)) + 1))[:size] + b"%d" % self.dice.randrange(10**9)
        full.write_bytes(data)
        then = time.time() - self.dice.randint(100, 100_000)
        os.utime(full, (then, then))
        self.contents.setdefault(path, set()).add(hashlib.sha256(data).hexdigest())

    def faults(self) -> dict[int, str]:
        kinds = [f for f in FAULTS if f != "flipped byte" or self.job.verify != "size"]  # which does not see it
        return {self.dice.randint(1, 50): self.dice.choice(kinds) for _ in range(self.dice.choice([1, 1, 2, 4]))}

    # runs

    def run(self, *, faults: bool, at_once: int = 1) -> None:
        """One run, or two at the same moment, each a process."""
        reader, writer = os.pipe()
        pids = []
        for _ in range(at_once):
            planned = self.faults() if faults else {}
            if not (pid := os.fork()):
                os.close(reader)
                be_a_run(self.job, planned, writer, self.clock_s)
            pids.append(pid)
        os.close(writer)
        locker = self.lock_the_ledger() if faults and self.dice.random() < 0.15 else None
        deadline = time.monotonic() + RUN_LIMIT_S
        for pid in pids:
            while not os.waitpid(pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGUSR1)  # where it stands, to standard error
                    time.sleep(1)
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    raise Wrong(f"a run had not ended after {RUN_LIMIT_S:.0f} s")
                time.sleep(0.002)
            self.counts["runs"] += 1
        if locker is not None:
            os.waitpid(locker, 0)
        with os.fdopen(reader) as told:
            for line in told:
                self.counts[line.strip()] += 1
                if not faults and line.startswith("raised"):
                    raise Wrong(f"a run without faults {line.strip()}")

    def lock_the_ledger(self) -> int:
        """Another program holds the database for a moment."""
        if pid := os.fork():
            self.counts["ledger locked"] += 1
            return pid
        try:
            path = self.folder / "home/ledger.db"
            if path.exists():
                held = sqlite3.connect(path, timeout=20, isolation_level=None)
                held.execute("BEGIN IMMEDIATE")
                time.sleep(0.3)
                held.execute("ROLLBACK")
        finally:
            os._exit(0)

    # what people do between runs

    def change_files(self) -> None:
        for path in sorted(self.current()):
            if self.dice.random() < 0.08:
                self.put(path, self.dice.randint(0, 20_000))
                self.counts["files replaced"] += 1
        if self.dice.random() < 0.5:
            self.put(f"DCIM/new/{self.dice.randrange(10**6)}.jpg", self.dice.randint(1, 9000))

    def wish(self) -> None:
        with Ledger.open() as ledger:
            wish = self.dice.choice([Wish.PAUSE, Wish.CANCEL, Wish.RESUME, Wish.RETRY])
            states, _ = importlib.import_module("flows.ledger.wishes").AT_REST[wish]
            rows = ledger.choose(job="torture", states=sorted(states - {State.VERIFIED, State.DUPLICATE}))
            some = [r for r in rows if self.dice.random() < 0.3]
            if some:
                ledger.grant(wish, some, who="torture")
                self.counts[f"{wish} wished"] += len(some)

    # what must be true

    def current(self) -> dict[str, str]:
        """SHA-256 by path of what lies on the card."""
        return {p: self.digest(self.card / p) for p in walk(self.card)}

    def digest(self, full: Path) -> str:
        """SHA-256 of a file on the card, or of that from which a file of an archive was made."""
        st = full.stat()
        key = (st.st_dev, st.st_ino, st.st_ctime_ns)
        if key not in self.looked:
            packed = self.steps and self.card not in full.parents
            try:
                with gzip.open(full) if packed else full.open("rb") as file:
                    self.looked[key] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise Wrong(f"{full} is not whole: {error}") from error
        return self.looked[key]

    def check_whole(self) -> None:
        """No final name holds anything but a whole file that once lay on the card under that name."""
        for archive in self.archives:
            for path in walk(archive):
                if path == MANIFEST or TEMPORARY.search(path):
                    continue
                known = self.contents.get(self.original(path), set())
                if self.digest(archive / path) not in known:
                    raise Wrong(f"{path} in {archive.name} holds what never lay on the card")

    def check_end(self) -> None:
        """Everything is where it belongs, once, and nothing else; the ledger says so."""
        current = self.current()
        with Ledger.open() as ledger:
            rows = list(ledger.files(job="torture"))
        if busy := [r for r in rows if State(r["state"]) in ACTIVE]:
            raise Wrong(f"nobody works, and a row is {busy[0]['state']}")
        for archive in self.archives:
            mine = [r for r in rows if r["destination"].endswith(f"/{archive.name}") and r["etag"] != MADE]
            cancelled = {r["path"] for r in mine if r["state"] == "CANCELLED" and r["kind"] == "CANCELLED"}
            arrived: Counter[str] = Counter()
            for path in walk(archive):
                if TEMPORARY.search(path):
                    raise Wrong(f"{path} was left in {archive.name}")
                if path != MANIFEST:
                    arrived[f"{self.original(path)} {self.digest(archive / path)}"] += 1
            if twice := [p for p, n in arrived.items() if n > 1]:
                raise Wrong(f"{twice[0]} is in {archive.name} twice")
            for path, digest in current.items():
                if path not in cancelled and not arrived[f"{path} {digest}"]:
                    states = [(r["state"], r["kind"], r["message"]) for r in mine if r["path"] == path]
                    raise Wrong(f"{path} is not in {archive.name}; the ledger says {states}")
            for row in mine:
                if row["state"] == "VERIFIED" and not arrived[f"{row['path']} {row['sha256']}"]:
                    raise Wrong(
                        f"the ledger says that {row['path']} was verified in {archive.name}, and it is not there"
                    )
            if self.steps and (left := list(walk(self.folder / "home/spool/files"))):
                raise Wrong(f"{left[0]} was left in the spool")
            if (archive / MANIFEST).exists():
                said = subprocess.run(
                    ["sha256sum", "-c", "--quiet", MANIFEST], cwd=archive, capture_output=True, text=True
                )
                if said.returncode:
                    raise Wrong(f"the manifest of {archive.name}: {said.stdout}{said.stderr}")

    def original(self, path: str) -> str:
        """The path on the card of what lies at one in an archive."""
        return original(path.removesuffix(".gz") if self.steps else path)

    def carry_out(self) -> None:
        for _ in range(self.dice.randint(2, 6)):
            if self.dice.random() < 0.15:
                self.clock_s = self.dice.choice([0, 86_400, -86_400, 7200])
                self.counts["clock jumps"] += 1
            self.run(faults=True, at_once=2 if self.dice.random() < 0.2 else 1)
            self.check_whole()
            if self.dice.random() < 0.3:
                self.change_files()
            if self.dice.random() < 0.3:
                self.wish()
        self.clock_s = 0
        with Ledger.open() as ledger:  # somebody looks after it
            rest = ledger.choose(job="torture", states=[State.PAUSED])
            ledger.grant(Wish.RESUME, rest, who="torture")
            rest = ledger.choose(job="torture", states=[State.QUARANTINED, State.FAILED])
            ledger.grant(Wish.RETRY, rest, who="torture")
        for _ in range(3):
            self.run(faults=False)
            self.check_whole()
        self.check_end()


def original(path: str) -> str:
    """The name on the card of a file that was given another one because its own was taken: clip~2.mp4 of clip.mp4."""
    stem, dot, ext = path.rpartition(".")
    base, tilde, number = stem.rpartition("~")
    return f"{base}{dot}{ext}" if tilde and number.isdecimal() else path


def walk(root: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), root)


def torture(seeds: list[int], work: Path | None = None) -> tuple[Counter[str], dict[int, str]]:
    """Carry the schedules out; what happened, and what was wrong by seed."""
    counts: Counter[str] = Counter()
    wrong: dict[int, str] = {}
    for seed in seeds:
        folder = Path(tempfile.mkdtemp(prefix="onblock-torture-", dir=work))
        try:
            Schedule(seed, folder, counts).carry_out()
        except Wrong as error:
            wrong[seed] = str(error)
            print(f"WRONG  --seed {seed}: {error}", flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        counts["schedules"] += 1
        if counts["schedules"] % 50 == 0:
            print(f"{counts['schedules']} schedules, {counts['runs']} runs, {len(wrong)} wrong", flush=True)
    return counts, wrong


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1, help="so many schedules (1)")
    parser.add_argument("--seed", type=int, help="the first of them; the others follow (drawn)")
    parser.add_argument("--work", type=Path, help="where to work (the folder for temporary files)")
    given = parser.parse_args(argv)
    for name in ("sqlalchemy.dialects.sqlite", "flows.upkeep.clean"):
        importlib.import_module(name)
    logging.disable(logging.CRITICAL)
    gc.freeze()
    first = random.SystemRandom().randrange(10**9) if given.seed is None else given.seed
    print(f"seeds {first} to {first + given.count - 1}", flush=True)
    began = time.monotonic()
    counts, wrong = torture(list(range(first, first + given.count)), given.work)
    print(", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    print(f"{len(wrong)} wrong of {given.count} schedules in {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
