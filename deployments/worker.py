"""The worker of `onblock up`: Prefect's process worker, whose runs begin warm. `python -m deployments.worker POOL [LIMIT]`.

A flow run in a new Python spends 4-7 s on imports. Here a server of forks (Python's own `forkserver`) has imported all
of it, and each run is a fork of it: a process and a session of its own, as with Prefect's worker. Everything else is
Prefect's: polling, heartbeats, cancelling (SIGTERM, then SIGKILL), Crashed for a run that died. A deployment that is not
ours, or that wants a command or a folder of its own, starts as with Prefect's worker.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
from prefect.flows import load_flow_from_flow_run
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._process_manager import ProcessHandle, create_isolated_termination_scope
from prefect.runner._state_proposer import StateProposer
from prefect.settings import get_current_settings
from prefect.utilities.processutils import sanitize_subprocess_env, setup_signal_handlers_worker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from deployments import anew, records, trust
from deployments.calls import RESTS, Calls
from deployments.lasting import outlast_restarts
from deployments.server import POOL

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.runner._control_channel import ControlChannel
    from prefect.workers.base import BaseWorkerResult

WARM = "deployments.warm"
"""What the server of forks imports."""


class WarmStarter:
    """Starts a flow run as a fork. Has the form of Prefect's own starters."""

    def __init__(
        self, forks: ForkServerContext, entrypoint: str, env: Mapping[str, str | None], folder: Path,
        control: ControlChannel,
    ):  # fmt: skip
        self._forks, self._entrypoint, self._env, self._folder, self._control = forks, entrypoint, env, folder, control

        self.over = False
        """Its process has ended."""

    async def start(
        self, flow_run: FlowRun, task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Start it, tell its handle, and wait until it is over."""
        env = {
            **os.environ, **self._env, **get_current_settings().to_environment_variables(exclude_unset=True),
            "PREFECT__FLOW_RUN_ID": str(flow_run.id), "PREFECT__FLOW_ENTRYPOINT": self._entrypoint,
            "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",
        }  # fmt: skip
        try:
            port, token = self._control.register(flow_run.id)
            env |= {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}
        except RuntimeError:  # no channel: a cancel is then told by its signal alone
            token = None
        handed_off = False
        try:
            process = self._forks.Process(
                target=_run, args=(str(flow_run.id), sanitize_subprocess_env(env), str(self._folder)),
                name=f"onblock-run-{flow_run.id}",
            )  # fmt: skip
            threads = anyio.CapacityLimiter(1)  # its own: a run must not wait for a thread until others have ended
            await anyio.to_thread.run_sync(process.start, limiter=threads)
            assert process.pid is not None
            # killed with its group: what a step started is gone with it
            task_status.started(ProcessHandle(process, create_isolated_termination_scope(process.pid)))  # pyright: ignore
            handed_off = True
            await anyio.to_thread.run_sync(process.join, abandon_on_cancel=True, limiter=threads)
            self.over = True
        except BaseException:
            if token is not None and not handed_off:
                self._control.unregister(flow_run.id)
            raise


class OneReport(StateProposer):
    """Of a process that ended badly the worker itself tells the server, last of all. Prefect's worker tells it twice: in
    between the automation may have started the run again, and the second report would call that one dead which lives."""

    starter: WarmStarter | None = None

    async def propose_crashed(self, flow_run: FlowRun, message: str) -> State[Any] | None:
        """See Prefect's."""
        if self.starter is not None and self.starter.over:
            return None
        return await super().propose_crashed(flow_run, message)


PR_SET_PDEATHSIG = 1
"""Of prctl(2): a signal for when the process that forked us is gone."""


def _run(flow_run_id: str, env: dict[str, str], folder: str) -> None:
    """In the fork: become a process like any other, and do what `python -m prefect.engine` does."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # nobody would hear how it ends
    gc.enable()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    from deployments import warm

    try:
        warm.run(flow_run_id)
    finally:
        # a fork of `multiprocessing` ends without these: the last lines of the log are sent there
        atexit._run_exitfuncs()


class Rests(Exception):
    """There was nothing to do for long."""


class WarmWorker(ProcessWorker):
    """Prefect's process worker, but for how a run of ours begins. Its `type` is the same: the pool is a process pool."""

    _display_name = "Process, warm"
    calls: Calls | None = None
    rests_after_s: float | None = None
    """Nothing to do for so long ends it, if this is given: `Rests`."""
    _in_hand = 0
    _idle_since = 0.0

    @classmethod
    def __dispatch_key__(cls) -> str:
        return "onblock-warm"  # Prefect's own keeps its key

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Ask for runs, where it is time to."""
        if self.calls is None:
            return await super().get_and_submit_flow_runs()
        full = self._limiter is not None and self._limiter.available_tokens < 1
        if not self.calls.due(full=full):
            return []
        if found := await super().get_and_submit_flow_runs():
            self.calls.wake()
        if found or self._in_hand or self._submitting_flow_run_ids or self._work_pool is None:  # not asked yet
            self._idle_since = time.monotonic()
        elif self.rests_after_s is not None and time.monotonic() - self._idle_since >= self.rests_after_s:
            raise Rests
        return found

    async def _submit_run_and_capture_errors(
        self, flow_run: FlowRun, task_status: anyio.abc.TaskStatus[int | Exception] | None = None
    ) -> BaseWorkerResult | Exception:
        self._in_hand += 1
        try:
            return await super()._submit_run_and_capture_errors(flow_run, task_status)
        finally:
            self._in_hand -= 1
            self._idle_since = time.monotonic()
            if self.calls is not None:
                self.calls.wake()  # there is room for what waits

    async def run(
        self, flow_run: FlowRun, configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:  # fmt: skip
        """See Prefect's, whose story this follows."""
        entrypoint = await self._entrypoint(flow_run)
        if entrypoint is None or configuration._command_configured or configuration.working_dir:
            return await super().run(flow_run, configuration, task_status)
        execution: FlowRunExecutionResult | None = None
        with tempfile.TemporaryDirectory(suffix="onblock") as folder:
            async with FlowRunExecutorContext() as context:
                starter = WarmStarter(forks(), entrypoint, configuration.env, Path(folder), context.control_channel)
                context._state_proposer = proposer = OneReport(client=context.client)
                proposer.starter = starter
                executor = context.create_executor(
                    flow_run, starter, resolve_flow=load_flow_from_flow_run, propose_submitting=False
                )

                async def execute(
                    *, task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED
                ) -> None:
                    nonlocal execution
                    execution = await executor.submit(task_status=task_status)

                async with anyio.create_task_group() as group:
                    handle: ProcessHandle = await group.start(execute)
                    if task_status is not None:
                        task_status.started(handle.pid or 0)
        if execution is None or execution.status_code is None:
            raise RuntimeError("the process of the flow run did not start")
        return ProcessWorkerResult(status_code=execution.status_code, identifier=str(execution.handle.pid))

    async def _entrypoint(self, flow_run: FlowRun) -> str | None:
        """The module entrypoint of the run's deployment, if it is one of ours that needs nothing else to be done."""
        if flow_run.deployment_id is None:
            return None
        deployment = await self.client.read_deployment(flow_run.deployment_id)
        entrypoint = deployment.entrypoint or ""
        ours = entrypoint.startswith("flows.") and ":" not in entrypoint
        return entrypoint if ours and not deployment.pull_steps and not deployment.storage_document_id else None


_forks: ForkServerContext | None = None


def forks() -> ForkServerContext:
    """The server of forks; begun by the first call, and again should it have died."""
    global _forks
    if _forks is None:
        _forks = multiprocessing.get_context("forkserver")
        _forks.set_forkserver_preload([WARM])
    return _forks


def _begin_to_warm() -> None:
    """Start the server of forks now, and not with the first run."""
    from multiprocessing import forkserver

    forks()
    forkserver.ensure_running()


async def work(pool: str, limit: int | None = None, rests_after_s: float | None = None) -> int:
    """Poll a pool until a signal ends it, and have so many of its runs at a time. RESTS when there was nothing to do for
    `rests_after_s`."""
    settings: Any = get_current_settings().worker
    worker = WarmWorker(
        work_pool_name=pool, limit=limit, prefetch_seconds=settings.prefetch_seconds,
        heartbeat_interval_seconds=int(settings.heartbeat_seconds),
    )  # fmt: skip
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    worker.calls, worker.rests_after_s, worker._idle_since = Calls(), rests_after_s, time.monotonic()
    beside = [asyncio.create_task(what) for what in (worker.calls.listen(), anew.watch(pool), records.watch())]
    code = 0
    try:
        await worker.start(printer=print)
    except* Rests:
        print("nothing to do: the worker rests", flush=True)
        code = RESTS
    finally:
        for one in beside:
            one.cancel()
    return code


def main(pool: str, limit: int | None = None, rests_after_s: float | None = None) -> int:
    """Work until it is over; the exit code."""
    # Prefect makes of every signal to end a SIGINT, which a shell's background jobs ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _begin_to_warm()
    if trust.told_if_refused():  # before it waits for a server, as for one that is away
        return 2
    outlast_restarts()
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(work(pool, limit, rests_after_s))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else POOL, int(sys.argv[2]) if len(sys.argv) > 2 else None))
