"""Several real processes that do something to one ledger at the same moment, and rows to do it to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from sqlalchemy import select, update

from blocks.errors import Kind
from blocks.names import from_text
from blocks.storage.base import FileInfo
from flows.ledger import Ledger, State
from flows.ledger.models import File, Run
from flows.ledger.store import NewFile, Row
from flows.ledger.worker import this_worker

CONTEXT = multiprocessing.get_context("forkserver")  # forks of a process that has imported everything, and no threads
CONTEXT.set_forkserver_preload(["flows.ledger.store", "flows.ledger.migrate", "sqlalchemy.dialects.postgresql.psycopg"])


def at_once(count: int, work: Callable[..., Any], *args: Any, seconds: float = 120) -> list[Any]:
    """What `work(number, meet, *args)` returned in each of `count` processes; `meet()` waits until all have come so far."""
    barrier = CONTEXT.Barrier(count)
    crowd = []
    for number in range(count):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_one, args=(theirs, barrier, work, number, args))
        process.start()
        theirs.close()
        crowd.append((process, ours))
    results, deadline = [], time.monotonic() + seconds
    try:
        for _, ours in crowd:
            assert ours.poll(max(0.0, deadline - time.monotonic())), f"no answer in {seconds:.0f} s: a deadlock?"
            fine, result = ours.recv()
            assert fine, result
            results.append(result)
    finally:
        for process, _ in crowd:
            process.join(0 if len(results) < count else 10)
            if process.is_alive():
                process.kill()
                process.join()
    return results


def _one(answer: Connection, barrier: Any, work: Callable[..., Any], number: int, args: tuple[Any, ...]) -> None:
    try:
        answer.send((True, work(number, lambda: barrier.wait(60), *args)))
    except BaseException:  # noqa: BLE001 - the parent tells
        answer.send((False, traceback.format_exc()))


class Held:
    """A process that holds rows and then does nothing, until it is told to end or is killed."""

    def __init__(self, url: str, route: int, versions: Sequence[FileInfo]):
        self._ours, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_hold, args=(theirs, url, route, versions))
        self._process.start()
        assert self._ours.poll(60)
        self.run_id: str
        self.run_id, self.ids = self._ours.recv()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(10)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.join(10)


def _hold(there: Connection, url: str, route: int, versions: Sequence[FileInfo]) -> None:
    with Ledger.open(url) as ledger:
        run_id = ledger.begin_run("job", flight=None, device=None)
        rows = enter(ledger, run_id, route, versions)
        ledger.claim(run_id, [r.id for r in rows])
        there.send((run_id, [r.id for r in rows]))
        there.recv()  # never comes


def version(path: str, size: int = 1, mtime_ns: int = 1, etag: str = "") -> FileInfo:
    return FileInfo(path, size, mtime_ns, etag)


def enter(
    ledger: Ledger, run_id: str, route: int, versions: Iterable[FileInfo], manifest: int | None = None
) -> list[Row]:
    """Enter versions under their own path; their rows, in the order given."""
    files = [NewFile(route, v, v.path, manifest) for v in versions]
    entered = ledger.enter(run_id, files, flight=None, device=None)
    return look(ledger, [e.id for e in entered])


def look(ledger: Ledger, ids: Sequence[int]) -> list[Row]:
    """Rows as they are."""
    found: dict[int, Row] = {}
    with ledger.engine.begin() as c:
        for start in range(0, len(ids), 1000):
            query = select(*[getattr(File, f) for f in Row._fields]).where(File.id.in_(ids[start : start + 1000]))
            for values in c.execute(query):
                row = Row(*values)
                found[row.id] = row._replace(
                    path=from_text(row.path), state=State(row.state), kind=Kind(row.kind) if row.kind else None,
                    dest_path=None if row.dest_path is None else from_text(row.dest_path),
                )  # fmt: skip
    return [found[i] for i in ids]


def table(ledger: Ledger, *columns: str, route: int | None = None) -> list[tuple[Any, ...]]:
    """Columns of all rows, by id, as the database has them."""
    query = select(*[getattr(File, c) for c in columns]).order_by(File.id)
    if route is not None:
        query = query.where(File.route_id == route)
    with ledger.engine.begin() as c:
        return [tuple(r) for r in c.execute(query)]


def states(ledger: Ledger, ids: Iterable[int] | None = None) -> list[str]:
    wanted = None if ids is None else set(ids)
    return [s for i, s in table(ledger, "id", "state") if wanted is None or i in wanted]


def killed(ledger: Ledger, run_id: str) -> None:
    """Make it a run of a process of this machine that is gone: its process id was given away again."""
    machine, pid, started = this_worker().rsplit(":", 2)
    change_run(ledger, run_id, worker=f"{machine}:{pid}:{int(started) - 1}")


def elsewhere(ledger: Ledger, run_id: str, *, silent_s: float = 0) -> None:
    """Make it a run of a container beside us, of which nothing has been heard for so long. Only the lease can tell."""
    host, boot, rest = this_worker().split("/")
    namespace, process = rest.split(":", 1)
    change_run(
        ledger, run_id, worker=f"{host}/{boot}/{int(namespace) - 1}:{process}",
        heartbeat_at=Run.heartbeat_at - int(silent_s * 1000),
    )  # fmt: skip


def change_run(ledger: Ledger, run_id: str, **values: Any) -> None:
    with ledger.engine.begin() as c:
        c.execute(update(Run).where(Run.id == run_id).values(**values))
