"""The folder of onblock's own state on this machine: ledger, spool, recordings, logs."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """ONBLOCK_HOME, or ~/.onblock."""
    return Path(os.environ.get("ONBLOCK_HOME") or "~/.onblock").expanduser().resolve()
