"""The programs that are compared, each as a function that moves a material once and gives its Sample.

Before each run all dirty pages are written out: onblock makes its files durable and would otherwise pay for what the
program before it left in memory. The others do not sync; that is part of the comparison.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.material import Material
from tests.benchmarks.measure import BenchError, Sample, run

REPOSITORY = Path(__file__).parents[2]


def program(name: str) -> str:
    """The path of a program: beside this Python (rclone comes as a package), or on the PATH."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    if found := shutil.which(name):
        return found
    raise BenchError(f"the program {name} is missing; `make install` brings rclone, the system's packages the others")


def local(folder: Path) -> dict[str, Any]:
    """The block of a folder."""
    return {"type": "local-storage", "root": str(folder), "create_root": True}


@dataclass
class Tools:
    """Runs programs inside a work folder."""

    work: Path

    def __post_init__(self) -> None:
        self._logs = self.work / "logs"
        self._logs.mkdir(parents=True)
        self._count = 0
        drop = {"PREFECT_API_URL", "PREFECT_PROFILE", "ONBLOCK_LEDGER_URL", "ONBLOCK_HOME"}
        self.env = {k: v for k, v in os.environ.items() if k not in drop} | {
            "LC_ALL": "C.UTF-8",
            "PREFECT_HOME": str(self.work / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "RCLONE_CONFIG": str(self.work / "rclone.conf"),
        }
        (self.work / "rclone.conf").touch()

    def log(self, name: str) -> Path:
        self._count += 1
        return self._logs / f"{self._count:04}-{name}"

    def fresh(self, name: str) -> Path:
        """A name for a folder that was never there: names are not used twice."""
        self._count += 1
        return self.work / f"{self._count:04}-{name}"

    def run(self, name: str, argv: list[str], cwd: Path | None = None, **env: str) -> Sample:
        """One program, once."""
        os.sync()
        return run(argv, cwd=cwd or self.work, env=self.env | env, log=self.log(name))

    def rclone(self, what: Material, to: Path) -> Sample:
        return self.run("rclone", [program("rclone"), "copy", "--transfers", "8", str(what.folder), str(to)])

    def rsync(self, what: Material, to: Path) -> Sample:
        return self.run("rsync", [program("rsync"), "-a", f"{what.folder}/", f"{to}/"])

    def cp(self, what: Material, to: Path) -> Sample:
        return self.run("cp", [program("cp"), "-r", str(what.folder), str(to)])

    def sha256sum(self, folder: Path) -> Sample:
        """Hash all files below `folder` into a list beside it."""
        find = 'find . -type f -print0 | xargs -0 sha256sum > "$0"'
        return self.run("sha256sum", [program("sh"), "-c", find, f"{folder}.sha256"], folder)

    def onblock(
        self, what: Material, to: Path, home: Path, *, known: bool = False, api: str | None = None
    ) -> tuple[Sample, dict[str, Any]]:
        """`onblock run` from folder to folder; `known`: all of it was delivered before, so nothing is."""
        return self.job(what, local(what.folder), local(to), home, known=known, api=api)

    def job(
        self, what: Material, source: dict[str, Any], destination: dict[str, Any], home: Path, *,
        known: bool = False, api: str | None = None, **keys: Any,
    ) -> tuple[Sample, dict[str, Any]]:  # fmt: skip
        """`onblock run` with the defaults of a job, but for `keys`."""
        os.sync()
        job = self.written(source, destination, **keys)
        env = self.env | {"ONBLOCK_HOME": str(home)} | ({"PREFECT_API_URL": api} if api else {})
        log = self.log("onblock")
        argv = [sys.executable, "-m", "deployments.cli", "run", str(job), "--json"]
        sample = run(argv, cwd=REPOSITORY, env=env, log=log)
        said = log.with_suffix(".out").read_text("utf-8")
        try:
            summary = json.loads(said)
        except ValueError:
            raise BenchError(f"`onblock run --json` printed no JSON: {said[:300]!r}") from None
        wanted = {"scanned": what.files, "delivered": 0 if known else what.files, "failed": 0}
        wanted["duplicates"] = what.files if known else 0
        if wrong := {k: summary.get(k) for k, v in wanted.items() if summary.get(k) != v}:
            raise BenchError(f"onblock said {wrong}, expected {wanted}")
        return replace(sample, job=float(summary["seconds"])), summary

    def written(self, source: dict[str, Any], destination: dict[str, Any], **keys: Any) -> Path:
        """A JOB.yaml."""
        job = self.log("job").with_suffix(".yaml")
        job.write_text(
            json.dumps({
                "name": "bench", "source": source, "destination": destination, "verify": "checksum",
                "settle": {"quiet": "0s"}, "exclude": ["checksums.sha256"], **keys,
            })
        )  # fmt: skip
        return job

    def share(self, what: Material, to: Path, home: Path) -> dict[str, float]:
        """How much of a job goes into the ledger, and what for; see `share.py`."""
        os.sync()
        log = self.log("share")
        argv = [sys.executable, "-m", "tests.benchmarks.share", str(self.written(local(what.folder), local(to)))]
        run(argv, cwd=REPOSITORY, env=self.env | {"ONBLOCK_HOME": str(home)}, log=log)
        said = json.loads(log.with_suffix(".out").read_text("utf-8"))
        if said["delivered"] != what.files:
            raise BenchError(f"onblock delivered {said['delivered']} of {what.files} files")
        return {what: seconds / said["cpu"] for what, seconds in said["share"].items()}


def must_hold(folder: Path, what: Material, tool: str) -> None:
    """The work was done; else the time counts nothing."""
    if not what.is_at(folder):
        raise BenchError(f"{tool} did not deliver all {what.files} files of {what.size} bytes")
