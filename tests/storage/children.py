"""Tests that need a mount or fewer rights run in a child process.

`unshare` gives it a mount namespace that dies with it, `setpriv` takes from root what makes root ignore permission
bits. The child runs a function of the test's module.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

MOUNTS = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
"""A mount namespace of its own, also for who is not root."""
DROPPED = ",".join(f"-{c}" for c in ("dac_override", "dac_read_search", "fowner"))
BARE = ["setpriv", f"--bounding-set={DROPPED}", f"--inh-caps={DROPPED}"] if os.geteuid() == 0 else []
"""Without the capabilities by which root ignores modes and owners."""


def in_child(prefix: list[str], function: Callable[[Path], None], folder: Path) -> None:
    code = f"import sys; from pathlib import Path; import {function.__module__} as t; "
    code += f"t.{function.__name__}(Path(sys.argv[1])); print('all of it ran')"
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.endswith("all of it ran\n"), done.stderr


def mount(folder: Path, options: str) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def files_in(folder: Path) -> set[str]:
    return {os.path.relpath(os.path.join(base, n), folder) for base, _, names in os.walk(folder) for n in names}
