"""What a flow run needs, imported ahead: loaded once by the server of forks, run by each fork. See `worker.py`.

Importing this starts no thread and opens no connection: a fork would inherit locks that nobody frees.
"""

from __future__ import annotations

import gc
import os
from uuid import UUID

import prefect.context
import prefect.engine
from prefect._internal import control_listener, metrics
from prefect._internal.plugins.collections import load_prefect_collections
from prefect.events import clients, worker
from prefect.flow_engine import _run_flow_from_runtime_entrypoint
from prefect.logging.configuration import setup_logging

import flows.ledger.store
import flows.transfer.flow
import flows.transfer.report
import flows.upkeep.flow
from deployments.lasting import outlast_restarts

__all__ = ["clients", "control_listener", "flows", "metrics", "run", "worker"]

outlast_restarts()
load_prefect_collections()  # prefect-aws, 1 s: else the first block that a run loads does it
gc.collect()
gc.freeze()  # what is here stays, in pages that all forks share


def _log_settings() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith("PREFECT_LOGGING")}


_BEFORE = _log_settings()


def run(flow_run_id: str) -> None:
    """In a fork whose environment is that of the flow run: run it, as `python -m prefect.engine` would."""
    prefect.context.refresh_global_settings_context()
    if _log_settings() != _BEFORE:
        setup_logging(incremental=False)
    _run_flow_from_runtime_entrypoint(UUID(flow_run_id), os.environ["PREFECT__FLOW_ENTRYPOINT"])
