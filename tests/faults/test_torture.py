"""Fifty schedules of kills and faults, always the same; `make torture` draws a thousand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCHEDULES = int(os.environ.get("ONBLOCK_TEST_SCHEDULES", "50"))
FIRST = "109090423"  # some of these have found something


@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_or_half_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.faults.torture",
            "--seed", FIRST, "--count", str(SCHEDULES), "--work", str(tmp_path),
        ],
        capture_output=True, text=True, timeout=880,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {what: int(n) for n, what in re.findall(r"(\d+) ([a-z ]+)(?:, |\n)", done.stdout)}
    assert counts["kill before"] + counts["kill after"] >= SCHEDULES / 5, done.stdout
    assert counts["network"] and counts["lost answer"] and counts["ledger locked"], done.stdout
