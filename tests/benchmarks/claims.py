"""Eight processes on one ledger on PostgreSQL: how many rows a second they claim, and claim and finish, in pages of a
shipment; and whether they ever wait for each other for good.

`drained`: rows that were entered before are claimed and finished as delivered, each once, by whoever comes first: the
processes share the pages, and reach for each other's. `storm`: the same rows are claimed, noted, put off, failed, put
back and asked for again for as long as is wanted, with heartbeats and recoveries beside. Deadlocks are those that
PostgreSQL counts. Its files are on the disk, with `fsync`, as packaged.

    python -m tests.benchmarks.run --only claims --storm 600
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.benchmarks.measure import BenchError
from tests.benchmarks.scenarios import Bench

PROCESSES = 8
ROWS = 400_000
PAGE = 1024
"""Small files of a shipment."""
MANIFESTS = 64
RATE = 5_000
"""Rows a second that are wanted."""
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["flows.ledger.store", "flows.ledger.migrate", "sqlalchemy.dialects.postgresql.psycopg"])


def claims(bench: Bench) -> None:
    """Both, on a server of its own."""
    from tests.servers.postgres import Postgres, installed

    if not installed():
        raise BenchError("PostgreSQL is not installed: python -m tests.servers.install")
    folder = bench.tools.fresh("postgres")
    folder.parent.chmod(0o755)  # it runs as another user
    with Postgres(folder, durable="yes") as server:
        url = server.info["url"]
        bench.tell(f"claims: entering {ROWS:,} rows")
        route, ids = _enter(url)
        _settle(url)
        for finish in (False, True):
            began_cpu, began = _server_cpu(server), time.monotonic()
            done = _all(_drain, url, route, ids, finish)
            wall = max(d["until"] for d in done) - min(d["since"] for d in done)
            taken = sum(d["rows"] for d in done)
            if taken != ROWS:
                raise BenchError(f"{taken:,} of {ROWS:,} rows were claimed")
            cpu, theirs = sum(d["cpu"] for d in done), _server_cpu(server) - began_cpu
            what = "claimed and finished" if finish else "claimed"
            wanted = f"at least {RATE:,}"
            bench.claim(f"(claims) rows a second that {PROCESSES} processes have {what}", f"{taken / wall:,.0f}", wanted, taken / wall >= RATE)  # fmt: skip
            bench.claim(f"(claims) processor time of a thousand rows {what}: ours, PostgreSQL's", f"{1e6 * cpu / taken:.0f} ms, {1e6 * theirs / taken:.0f} ms", None, True)  # fmt: skip
            bench.claim(f"(claims) rows that somebody else had first, {what}", f"{sum(d['lost'] for d in done):,}", None, True)  # fmt: skip
            bench.tell(f"claims: {taken / wall:,.0f} rows/s {what}, in {time.monotonic() - began:.1f} s")
            _back(url)
        _deadlocks(bench, url, route, ids)


def _deadlocks(bench: Bench, url: str, route: int, ids: list[int]) -> None:
    before, seconds = _counted(url), bench.storm_s
    bench.tell(f"claims: {seconds:.0f} s of everything at once")
    done = _all(_storm, url, route, ids, seconds)
    after, rows = _counted(url), sum(d["rows"] for d in done)
    wall = max(d["until"] for d in done) - min(d["since"] for d in done)
    errors = sum((Counter(d["errors"]) for d in done), Counter[str]())
    found = after["deadlocks"] - before["deadlocks"]
    bench.claim(f"(claims) deadlocks in {wall:.0f} s of claims, notes, outcomes, wishes and recoveries at once", str(found), "0", not found)  # fmt: skip
    bench.claim("(claims) calls that failed meanwhile", str(errors.total()) + "".join(f"; {n} x {e}" for e, n in errors.most_common(3)), "0", not errors)  # fmt: skip
    bench.claim("(claims) rows a second claimed meanwhile", f"{rows / wall:,.0f}", None, True)
    bench.claim("(claims) transactions, and those rolled back", f"{after['commits'] - before['commits']:,}, {after['rollbacks'] - before['rollbacks']:,}", None, True)  # fmt: skip


# -- in the processes -------------------------------------------------------------------------------------------------


def _drain(number: int, meet: Callable[[], None], url: str, route: int, ids: list[int], finish: bool) -> dict[str, Any]:
    """Claim all rows, page by page: ours first, then what others have left, which are many at the same pages."""
    from flows.ledger import Ledger
    from flows.ledger.states import State
    from flows.ledger.store import Outcome

    pages = [ids[start : start + PAGE] for start in range(0, len(ids), PAGE)]
    mine = pages[number::PROCESSES]
    random.Random(number).shuffle(mine)
    others = pages[(number + 1) % PROCESSES :: PROCESSES][: len(mine) // 10]
    rows = asked = 0
    with Ledger.open(url) as ledger:
        run = ledger.begin_run("bench", flight=None, device=None)
        ledger.claim(run, ids[:0])
        meet()
        since, cpu = time.monotonic(), time.process_time()
        for page in [*others, *mine]:
            taken = ledger.claim(run, page)
            rows, asked = rows + len(taken), asked + len(page)
            if finish and taken:
                ledger.finish([
                    Outcome(c.id, c.attempt, State.VERIFIED, sha256=f"{c.id:064x}", verified_by="read-back", bytes_done=1024)
                    for c in taken.values()
                ])  # fmt: skip
        told = {"since": since, "until": time.monotonic(), "cpu": time.process_time() - cpu, "rows": rows}
        return told | {"lost": asked - rows}


def _storm(
    number: int, meet: Callable[[], None], url: str, route: int, ids: list[int], seconds: float
) -> dict[str, Any]:
    from blocks.errors import ConfigError, NetworkError, OnblockError
    from flows.ledger import Ledger
    from flows.ledger.states import State
    from flows.ledger.store import Outcome
    from flows.ledger.wishes import Wish
    from tests.ledger.crowd import look

    dice, errors, rows = random.Random(number), Counter[str](), 0
    away = NetworkError("the destination does not answer")
    with Ledger.open(url) as ledger:
        run = ledger.begin_run("bench", flight=None, device=None)
        over = threading.Event()

        def beat() -> None:
            while not over.wait(2):
                ledger.heartbeat(run)
                ledger.recover()

        beating = threading.Thread(target=beat)
        meet()
        beating.start()
        since = time.monotonic()
        while time.monotonic() - since < seconds:
            begin = dice.randrange(len(ids) - PAGE)
            page = dice.sample(ids[begin : begin + 2 * PAGE], min(PAGE, len(ids[begin : begin + 2 * PAGE])))
            try:
                taken = ledger.claim(run, page)
                rows += len(taken)
                for claim in list(taken.values())[:3]:
                    ledger.note(claim, 512, "{}")
                if dice.random() < 0.2:
                    for wish in (Wish.PAUSE, Wish.RESUME):
                        with contextlib.suppress(ConfigError):  # one of them is in a state in which that makes no sense
                            ledger.grant(wish, ledger.choose(ids=page[:50]), who="bench")
                states = [dice.choice((State.FAILED, State.QUEUED)) for _ in taken]
                ledger.finish([
                    Outcome(c.id, c.attempt, s, failure=away, stage="write") for c, s in zip(taken.values(), states, strict=True)
                ])  # fmt: skip
                failed = [r for r in look(ledger, list(taken)) if r.state is State.FAILED]
                ledger.requeue(run, failed)
                ledger.mark_seen(run, failed)
            except OnblockError as error:
                errors[error.what[:100]] += 1
        over.set()
        beating.join()
        return {"since": since, "until": time.monotonic(), "rows": rows, "errors": dict(errors)}


def _all(work: Callable[..., dict[str, Any]], *args: Any) -> list[dict[str, Any]]:
    """What each of the processes tells."""
    barrier = CONTEXT.Barrier(PROCESSES)
    started: list[tuple[Any, Connection]] = []
    for number in range(PROCESSES):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_one, args=(theirs, barrier, work, number, args))
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        told = []
        for _, ours in started:
            fine, found = ours.recv()
            if not fine:
                raise BenchError(found)
            told.append(found)
        return told
    except EOFError:
        raise BenchError("a process of the bench died") from None
    finally:
        for process, _ in started:
            process.join(10)
            if process.is_alive():
                process.kill()


def _one(answer: Connection, barrier: Any, work: Callable[..., Any], number: int, args: tuple[Any, ...]) -> None:
    try:
        answer.send((True, work(number, lambda: barrier.wait(120), *args)))
    except BaseException:  # noqa: BLE001 - the parent tells
        answer.send((False, traceback.format_exc()))


# -- the database -----------------------------------------------------------------------------------------------------


def _enter(url: str) -> tuple[int, list[int]]:
    """Rows of one route that wait, as a run would have entered them."""
    from blocks.storage.base import FileInfo
    from flows.ledger import Ledger
    from flows.ledger.store import NewFile

    ids: list[int] = []
    with Ledger.open(url) as ledger:
        run, route = ledger.begin_run("bench", flight=None, device=None), ledger.route("bench", "s3:flights")
        manifests = [ledger.manifest("s3:flights", f"F{n}/checksums.sha256") for n in range(MANIFESTS)]
        for start in range(0, ROWS, 5000):
            files = [
                NewFile(route, FileInfo(f"DCIM/{n // 1000:04}/IMG_{n:07}.JPG", 1024, n, ""), f"F/{n}.JPG", manifests[start // 5000 % MANIFESTS])
                for n in range(start, min(ROWS, start + 5000))
            ]  # fmt: skip
            ids += [e.id for e in ledger.enter(run, files, flight="F0042", device=None)]
        ledger.end_run(run, {})
    return route, ids


def _back(url: str) -> None:
    """As they were, but for what a table keeps of its past."""
    _sql(url, "UPDATE files SET state='QUEUED', done_at=NULL, sha256=NULL, run_id=NULL")
    _settle(url)


def _settle(url: str) -> None:
    _sql(url, "VACUUM ANALYZE files")


def _sql(url: str, *statements: str) -> Any:
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as c:
        found = None
        for statement in statements:
            found = c.execute(statement)  # type: ignore[arg-type]
        return found.fetchall() if found is not None and found.description else None


def _counted(url: str) -> dict[str, int]:
    time.sleep(1.5)  # statistics are told once a second
    [[deadlocks, commits, rollbacks]] = _sql(
        url, "SELECT deadlocks, xact_commit, xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    )
    return {"deadlocks": deadlocks, "commits": commits, "rollbacks": rollbacks}


def _server_cpu(server: Any) -> float:
    """Processor seconds of the server until now, with those of connections that have ended."""
    from tests.servers.base import family

    ticks = 0
    for pid, _ in family(server.process.pid):
        try:
            fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()  # noqa: PTH123, SIM115
        except OSError:
            continue
        ticks += (
            int(fields[11]) + int(fields[12]) + (int(fields[13]) + int(fields[14]) if pid == server.process.pid else 0)
        )
    return ticks / os.sysconf("SC_CLK_TCK")


SCENARIOS: dict[str, Callable[[Bench], None]] = {"claims": claims}
