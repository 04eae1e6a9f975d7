"""The ledger: one row per file version and destination, the truth about files. Prefect holds the truth about runs."""

from flows.ledger.states import State
from flows.ledger.store import Ledger

__all__ = ["Ledger", "State"]
