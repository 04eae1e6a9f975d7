"""Who carries shipments: threads of this process, or tasks of a Prefect flow run. A few at a time, either way.

A sender is a context manager. Of each phase, a few shipments are at work at a time; what was fetched waits in the spool for
the rest, so that a slow step never blocks a camera. `send` waits while enough are under way, so that planning never runs
far ahead of moving; leaving the sender by an exception stops what is under way.
"""

from __future__ import annotations

import contextvars
import logging
import random
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from typing import Any, Protocol, Self

from flows.transfer.locker import files_root
from flows.transfer.progress import Receipt
from flows.transfer.reservations import free_at
from flows.transfer.retry import TASK_JITTER, TASK_RETRY_DELAYS_S
from flows.transfer.run import TransferRun
from flows.transfer.shipment import Shipment
from flows.transfer.turns import Turns

log = logging.getLogger("onblock.transfer")

SLOT_WAIT_S = 5.0
"""How long a task may take to get its slot before the next one is begun all the same."""


class Phase(StrEnum):
    """What a task does with a shipment. Jobs without steps have only the last one, straight from the source."""

    FETCH = "fetch"
    PROCESS = "process"
    DELIVER = "deliver"


Act = Callable[[TransferRun, Shipment], Receipt]
Do = Callable[[Phase, Shipment], None]
Part = Callable[[TransferRun, Shipment, Do], None]
"""What is done with a shipment without a break: one phase, or several."""
AHEAD = 64
"""So many shipments may lie fetched in the spool of a run, and wait for what follows."""
ROOM = 3
"""Times the size of a shipment that must be free in the spool before it is fetched, while others wait there."""


class Unfinished(Exception):
    """Some files of a shipment did not arrive; the ledger says which and why. `again` if that may pass by waiting."""

    def __init__(self, receipt: Receipt, kinds: list[str], *, again: bool):
        self.receipt, self.kinds, self.again = receipt, kinds, again
        super().__init__(
            f"{receipt.failed} failed and {receipt.deferred} deferred ({', '.join(kinds)}); "
            "`onblock transfers list` says which and why"
        )

    def __reduce__(self) -> Any:
        return _unfinished, (self.receipt, self.kinds, self.again)


def _unfinished(receipt: Receipt, kinds: list[str], again: bool) -> Unfinished:
    return Unfinished(receipt, kinds, again=again)


class Carrier(Protocol):
    """Somebody to whom shipments are given, one after the other: a sender, or a sender with a crew (`crew.py`)."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None: ...

    def send(self, shipment: Shipment) -> object:
        """Hand a shipment over. Raises what a shipment before it raised."""
        ...

    def collect(self, *, wait: bool = False) -> None:
        """Look at what is finished, all of it if `wait`. Raises what went wrong beyond single files."""
        ...


class Sender(ABC):
    """The frame of both. Use as a context manager. `parts` are done with each shipment in turn, each by threads of its
    own: of two, the first does not wait until the second is done with what came before."""

    def __init__(self, run: TransferRun, parts: Sequence[Part]):
        self.run, self._parts = run, parts
        shipping = run.job.shipping
        at_once = {Phase.DELIVER: shipping.at_once}
        if run.job.two_phases:
            at_once |= {Phase.FETCH: shipping.at_once, Phase.PROCESS: shipping.processing_at_once}
        self._soon = sum(at_once.values())
        self._slots = {phase: threading.Semaphore(n) for phase, n in at_once.items()}
        ahead = AHEAD if len(parts) > 1 else 0
        self._free = threading.Semaphore(shipping.at_once + ahead)
        self._threads = [ThreadPoolExecutor(shipping.at_once, "onblock-lane")]
        if len(parts) > 1:
            self._threads.append(ThreadPoolExecutor(sum(at_once.values()) - shipping.at_once, "onblock-lane"))
        self._under_way: deque[Future[None]] = deque()

    def send(self, shipment: Shipment, *, planned: bool = True) -> Future[None]:
        """Hand a shipment over, once there is a place for it; what is done when it is. `planned`: just now, and is to be
        told. Raises what a shipment before it raised."""
        self.collect()
        self._free.acquire()
        if planned:
            self.run.meter.planned(len(shipment.items), shipment.bytes)
            self.run.watcher.shipment("queued", shipment)
        whole: Future[None] = Future()
        whole.add_done_callback(lambda _: self._free.release())
        self._begin(0, shipment, whole, contextvars.copy_context())  # a task must know which flow run it belongs to
        self._under_way.append(whole)
        return whole

    def has_room(self) -> bool:
        """Whether another shipment would be begun soon."""
        return self.waiting() < self._soon

    def _begin(self, number: int, shipment: Shipment, whole: Future[None], context: contextvars.Context) -> None:
        def part() -> None:
            try:
                context.run(self._parts[number], self.run, shipment, self._do)
                if number + 1 < len(self._parts):
                    self._begin(number + 1, shipment, whole, context)
                else:
                    whole.set_result(None)
            except BaseException as error:  # noqa: BLE001 - raised again by who collects
                whole.set_exception(error)

        self._threads[number].submit(part)

    def waiting(self) -> int:
        """How many shipments are under way."""
        return sum(not whole.done() for whole in tuple(self._under_way))

    def _do(self, phase: Phase, shipment: Shipment) -> None:
        """One phase of a shipment, when it is its turn. Files that fail are in the ledger; raises what is beyond them."""
        if phase is Phase.FETCH:
            self._wait_for_room(shipment)
        with self._slots[phase]:
            self._act(phase, shipment)

    def _wait_for_room(self, shipment: Shipment) -> None:
        """While others are worked on, whose room in the spool will be free again."""
        while self.waiting() > self.run.job.shipping.at_once and free_at(files_root()) < ROOM * shipment.bytes:
            if self.run.stop.wait(0.5):
                return

    @abstractmethod
    def _act(self, phase: Phase, shipment: Shipment) -> None: ...

    def collect(self, *, wait: bool = False) -> None:
        """Look at what is finished, all of it if `wait`. Raises what went wrong beyond single files."""
        while self._under_way and (wait or self._under_way[0].done()):
            self._under_way[0].result()
            self._under_way.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None:
            self.run.stop.set()
        for threads in self._threads:  # in their order: the first hand on to the second
            threads.shutdown(wait=True)


class Here(Sender):
    """Without Prefect's API. Retries as the task would."""

    def __init__(self, run: TransferRun, parts: Sequence[Part], acts: Mapping[Phase, Act]):
        super().__init__(run, parts)
        self._acts = acts

    def _act(self, phase: Phase, shipment: Shipment) -> None:
        for delay in (*TASK_RETRY_DELAYS_S, None):
            try:
                self._acts[phase](self.run, shipment)
                return
            except Unfinished as error:
                if delay is None or not error.again or self.run.stop.wait(delay * (1 + random.random() * TASK_JITTER)):
                    return


class ByPrefect(Sender):
    """Tasks of the flow run we are in. The ledger, not the cache, has the last word on what is done."""

    def __init__(self, run: TransferRun, parts: Sequence[Part], tasks: Mapping[Phase, Any], turns: Turns):
        super().__init__(run, parts)
        self._tasks = {phase: task.with_options(tags=tags_of(run, phase)) for phase, task in tasks.items()}
        self._asking, self._turns = threading.Lock(), turns

    def __exit__(self, kind: object, *exc: object) -> None:
        super().__exit__(kind, *exc)
        self._turns.leave()

    def _act(self, phase: Phase, shipment: Shipment) -> None:
        with self._turns.turn(tags_of(self.run, phase)):
            self._carry_out(phase, shipment)

    def _carry_out(self, phase: Phase, shipment: Shipment) -> None:
        state = self._submit(phase, self._tasks[phase], shipment)
        if state.name == "Cached" and self.run.ledger.still_queued(shipment.row_ids):
            state = self._submit(phase, self._tasks[phase].with_options(refresh_cache=True), shipment)
        if state.is_failed() or state.is_crashed():
            error = state.result(raise_on_failure=False)
            if isinstance(error, BaseException) and not isinstance(error, Unfinished):
                raise error

    def _submit(self, phase: Phase, task: Any, shipment: Shipment) -> Any:
        # one task at a time asks for its slot: two that ask at once collide in a server on SQLite, which answers 503,
        # and Prefect's client then sleeps 2 s
        begun = threading.Event()
        shipment.begun = begun
        with self._asking:
            future = task.submit(self.run, shipment)
            future.add_done_callback(lambda _: begun.set())
            if phase is not Phase.PROCESS:  # which waits for its turn longer than the others
                begun.wait(SLOT_WAIT_S)
        future.wait()
        return future.state


def tags_of(run: TransferRun, phase: Phase) -> list[str]:
    """The tags whose limits a task of this phase asks for."""
    if phase is Phase.PROCESS:
        return [CPU]
    device, places = [f"device:{run.device}"] if run.device else [], destination_tags(run.job.destinations)
    if not run.job.two_phases:
        return ["onblock", *device, *places]
    return ["onblock", *(device if phase is Phase.FETCH else places)]


CPU = "cpu"
"""The tag of what works and moves nothing: it has the device's and the destination's places free for others."""


def destination_tags(storages: Any) -> list[str]:
    """A tag for each destination that is a block with a name; others have no limit of their own."""
    names = (getattr(storage, "_block_document_name", None) for storage in storages)
    return [f"destination:{name}" for name in names if name]
