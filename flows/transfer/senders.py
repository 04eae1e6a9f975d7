"""Who carries shipments: threads of this process, or tasks of a Prefect flow run. A few at a time, either way.

A sender is a context manager. `send` waits while enough are under way, so that planning never runs ahead of moving;
leaving it by an exception stops what is under way.
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from flows.transfer.progress import Receipt
from flows.transfer.retry import TASK_JITTER, TASK_RETRY_DELAYS_S
from flows.transfer.run import TransferRun
from flows.transfer.shipment import Shipment

SLOT_WAIT_S = 5.0
"""How long a task may take to get its slot before the next one is begun all the same."""


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


class Sender(ABC):
    """The frame of both."""

    def __init__(self, run: TransferRun):
        self.run = run
        self._slots = threading.Semaphore(run.job.shipping.at_once)

    def send(self, shipment: Shipment) -> None:
        """Hand a shipment over, once there is a place for it. Raises what a shipment before it raised."""
        self.collect()
        self._slots.acquire()
        self.run.meter.planned(len(shipment.items), shipment.bytes)
        self.run.watcher.shipment("queued", shipment)
        self._start(shipment)

    @abstractmethod
    def _start(self, shipment: Shipment) -> None: ...

    @abstractmethod
    def collect(self, *, wait: bool = False) -> None:
        """Look at what is finished, all of it if `wait`. Raises what went wrong beyond single files."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, kind: object, *exc: object) -> None: ...


class Here(Sender):
    """Threads of this process, without Prefect's API. Retries as the task would."""

    def __init__(self, run: TransferRun, deliver: Callable[[TransferRun, Shipment], Receipt]):
        super().__init__(run)
        self._deliver = deliver
        self._threads = ThreadPoolExecutor(run.job.shipping.at_once, "onblock-mover")
        self._under_way: deque[Future[None]] = deque()

    def _start(self, shipment: Shipment) -> None:
        future = self._threads.submit(self._carry, shipment)
        future.add_done_callback(lambda _: self._slots.release())
        self._under_way.append(future)

    def _carry(self, shipment: Shipment) -> None:
        for delay in (*TASK_RETRY_DELAYS_S, None):
            try:
                self._deliver(self.run, shipment)
                return
            except Unfinished as error:
                if delay is None or not error.again or self.run.stop.wait(delay * (1 + random.random() * TASK_JITTER)):
                    return

    def collect(self, *, wait: bool = False) -> None:
        while self._under_way and (wait or self._under_way[0].done()):
            self._under_way.popleft().result()

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None:
            self.run.stop.set()
        self._threads.shutdown(wait=True)


class ByPrefect(Sender):
    """Tasks of the flow run we are in. The ledger, not the cache, has the last word on what is done."""

    def __init__(self, run: TransferRun, deliver: Any):
        super().__init__(run)
        tags = ["onblock"] + ([f"device:{run.device}"] if run.device else [])
        self._task = deliver.with_options(tags=tags)
        self._under_way: deque[tuple[Any, Shipment]] = deque()

    def _start(self, shipment: Shipment, *, refresh: bool = False) -> None:
        task = self._task.with_options(refresh_cache=True) if refresh else self._task
        future = task.submit(self.run, shipment)
        future.add_done_callback(lambda _: self._slots.release())
        future.add_done_callback(lambda _: shipment.begun.set())
        self._under_way.append((future, shipment))
        # one task at a time asks for its slot: two that ask at once collide in a server on SQLite, which answers 503,
        # and Prefect's client then sleeps 2 s
        shipment.begun.wait(SLOT_WAIT_S)

    def collect(self, *, wait: bool = False) -> None:
        while self._under_way and (wait or self._under_way[0][0].wrapped_future.done()):
            future, shipment = self._under_way.popleft()
            future.wait()
            state = future.state
            if state.name == "Cached" and self.run.ledger.still_queued(shipment.row_ids):
                self._slots.acquire()
                self._start(shipment, refresh=True)
            elif state.is_failed() or state.is_crashed():
                error = future.result(raise_on_failure=False)
                if isinstance(error, BaseException) and not isinstance(error, Unfinished):
                    raise error

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None:
            self.run.stop.set()
        for future, _ in self._under_way:
            future.wait()
