"""`onblock demo`: a flight in miniature, delivered by the same command a user types, through Prefect, and checked.

Here is the story told around three runs of `onblock run`. The flight is recorded in `demo_capture.py` and made in
`flight.py`; folders and Prefect server are those of `demo_stage.py`. How files are moved is not here either: the demo
starts the program as a child and believes its summary only where `sha256sum`, Prefect and its own look at the folders agree.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from deployments.demo_camera import fly
from deployments.demo_capture import FOLDER, SECONDS, record
from deployments.demo_stage import (
    DEVICE,
    FLIGHT,
    DemoFailed,
    Places,
    Prefect,
    fresh_folder,
    leave,
    left,
    prefect_server,
)
from deployments.flight import CLIPS, PHOTOS, TELEMETRY, correct_altitudes, make_card

LARGE, MAX_FILES = 450_000, 200
"""Files of that many bytes travel alone, smaller ones with so many at most: what each of the job's tasks moves. Not many
tasks: each may wait 2 s for its slots, when SQLite is locked as it asks."""
TIME_LIMIT = 120
"""Seconds after which a child counts as hung."""

HOW = {
    "checksum": "SHA-256 taken while reading, the copy read back and compared",
    "readback": "SHA-256 taken while reading, the copy read back from the medium and compared",
    "size": "size compared",
    "exists": "seen at the destination",
}


def demo(home: Path | None = None) -> int:
    """Run the demo below `home`/demo (default: below ONBLOCK_HOME). 0 if all was as it must be, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        at = fresh_folder(home)
        with prefect_server(at) as prefect:
            _tell(console, at, prefect)
    except DemoFailed as failure:
        if left:  # what was under way took the interruption for a failure of its own
            leave(left[0], None)
        console.print(Text(f"\nThe demo FAILED: {failure}", "bold red"))
        return 1
    except OSError as error:
        if left:
            leave(left[0], None)
        console.print(Text(f"\nThe demo FAILED: {error.filename or 'a file'}: {error.strerror}", "bold red"))
        return 1
    return 0


# -- the story --------------------------------------------------------------------------------------------------


def _tell(console: Console, at: Places, prefect: Prefect) -> None:
    def step(number: int, title: str) -> None:
        console.print(Text(f"\n{number}. {title}", "bold cyan"))

    def say(text: str) -> None:
        console.print(Text(f"   {text}"))

    say(f"A Prefect server of the demo's own is starting: {prefect.url}")
    step(1, f"In flight: two cameras and an inertial sensor are recorded, for {SECONDS} s. On a device you would type:")
    recorded = record(console, at.root, at.card, prefect.env)

    step(2, "The flight has ended: its recordings are on a card")
    with console.status("encoding video and photos"):
        make_card(at.card)
    before = _files(at.card)
    count, size = len(before), sum(p.stat().st_size for p in before.values())
    say(f"{count} files, {decimal(size)}, in {at.card}")
    say(f"{recorded} and what belongs to it, {len(CLIPS)} H.264 clips, {PHOTOS} photos, {TELEMETRY}")
    say(f"one name has spaces and umlauts: {list(CLIPS)[-1]!r}")

    step(3, "A job says what goes where")
    at.job.write_text(_job(at), "utf-8")
    say(f"{at.job} holds:")
    console.print(
        Text("".join(f"     {line}\n" for line in at.job.read_text("utf-8").splitlines()).rstrip("\n"), "dim")
    )

    step(4, "Get the Prefect server ready: limits for the tags of the job's tasks")
    with console.status("waiting for the Prefect server"):
        prefect.wait()
    say(f"up after {time.monotonic() - prefect.started:.1f} s; its state is in {at.prefect}")
    say("limits   " + ", ".join(f"{tag}: {slots} at a time" for tag, slots in prefect.make_limits().items()))

    step(5, "Deliver it. Where PREFECT_API_URL is set, this is a flow run. You would type:")
    _show(console, f"export PREFECT_API_URL={prefect.url}/api")
    first = _run(console, at, prefect)
    _expect("first run", first, scanned=count, delivered=count, duplicates=0)
    if first["bytes"] != size:
        raise DemoFailed(f"first run: {first['bytes']} bytes reported, the card holds {size}")
    console.print(_summary(first, at))
    if set(copies := _files(at.delivered)) - {at.manifest.name} != set(before):
        odd = sorted(set(before) ^ (set(copies) - {at.manifest.name}))
        raise DemoFailed(f"card and archive do not hold the same names, for example {odd[0]!r}")
    large = sum(p.stat().st_size >= LARGE for p in before.values())
    _seen(console, prefect, large + -(-(count - large) // MAX_FILES))

    step(6, "Do not believe it: check with a program that knows nothing of onblock. You would type:")
    _sha256sum(console, at, at.delivered, count)
    say("The same list holds for the card, so what arrived is what was recorded:")
    _sha256sum(console, at, at.card, count)

    step(7, "Run the job again: there is nothing to do")
    again = _run(console, at, prefect)
    _expect("second run", again, scanned=count, delivered=0, duplicates=count)
    say(f"0 delivered, all {count} known (duplicates), {again['seconds']:.2f} s. Nothing was read or written twice.")
    _seen(console, prefect, 0)

    step(8, f"Change one file, keeping its size ({TELEMETRY}), and run again")
    old = before[TELEMETRY].read_bytes()
    correct_altitudes(before[TELEMETRY])
    new = before[TELEMETRY].read_bytes()
    say(f"altitudes corrected: still {len(new)} bytes, other content, a new time of modification")
    third = _run(console, at, prefect)
    _expect("third run", third, scanned=count, delivered=1, duplicates=count - 1)
    after = _files(at.delivered)
    added = sorted(set(after) - set(copies))
    if len(added) != 1 or after[added[0]].read_bytes() != new:
        raise DemoFailed(f"the changed file should be the one new file in the archive; new there: {added}")
    if after[TELEMETRY].read_bytes() != old:
        raise DemoFailed(f"the older version of {TELEMETRY} is no longer what it was in the archive")
    say(f"1 delivered, {count - 1} known: just the changed file was sent, as {added[0]}")
    say(f"The older version is kept as well, as {TELEMETRY}, because the job says `on_conflict: rename`.")
    say("The manifest lists both:")
    _sha256sum(console, at, at.delivered, count + 1)

    flown = fly(console, step, 9, at.root, prefect.url, prefect.env)

    console.print(Text("\nAll as it must be.", "bold green"))
    say(f"recording {at.delivered / FOLDER}")
    say(f"clips     {flown}")
    say(f"archive   {at.delivered}")
    say(f"manifest  {at.manifest}")
    say("Have a look, put a file on the card and run the job again: without PREFECT_API_URL it needs no server.")
    say(f"Then delete {at.root}")
    say("The demo's Prefect server ends with it. `onblock up` keeps such a server running, with its UI and a worker.")


def _job(at: Places) -> str:
    job = {
        "name": "demo",
        "source": {"type": "local-storage", "root": str(at.card)},
        "destination": {"type": "local-storage", "root": str(at.archive), "create_root": True},
        "device": DEVICE,
        "exclude": [".*"],
        "path": "{flight}/{path}",
        "verify": "checksum",
        "on_conflict": "rename",
        "settle": {"quiet": "200 ms"},
        "shipping": {"large": f"{LARGE // 1000} kB", "max_files": MAX_FILES},
    }
    return yaml.safe_dump(job, sort_keys=False, allow_unicode=True)


def _run(console: Console, at: Places, prefect: Prefect) -> dict[str, Any]:
    """Run the job as a user does, in a process of its own; its summary."""
    words = ["run", str(at.job), "--flight", FLIGHT]
    _show(console, f"ONBLOCK_HOME={shlex.quote(str(at.home))} {shlex.join(['onblock', *words])}")
    with console.status("onblock run"):
        child = _child([sys.executable, "-P", "-m", "deployments.cli", *words, "--json"], env=prefect.env, cwd=at.root)
    if child.returncode:
        said = (child.stderr.strip() or child.stdout.strip()).splitlines()
        raise DemoFailed("\n".join([f"`onblock run` ended with exit code {child.returncode}:", *said[-15:]]))
    try:
        summary = json.loads(child.stdout)
    except ValueError:
        raise DemoFailed(f"`onblock run --json` printed something else than JSON: {child.stdout[:300]!r}") from None
    if not isinstance(summary, dict):
        raise DemoFailed(f"`onblock run --json` printed no object: {child.stdout[:300]!r}")
    return summary


def _child(argv: list[str], *, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
            errors="replace", timeout=TIME_LIMIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"`{shlex.join(argv)}` had not ended after {TIME_LIMIT} s") from None


def _expect(which: str, summary: dict[str, Any], **counts: int) -> None:
    """The counts of a summary are these, and nothing failed or waits."""
    for key, wanted in (counts | dict.fromkeys(("failed", "blocked", "deferred", "settling"), 0)).items():
        if (got := summary.get(key)) != wanted:
            raise DemoFailed(f"{which}: {key} is {got}, expected {wanted}")
    proven = sum((summary.get("verified_by") or {}).values())
    if proven != counts["delivered"]:
        raise DemoFailed(f"{which}: {proven} files verified, {counts['delivered']} delivered")


def _summary(summary: dict[str, Any], at: Places) -> Text:
    """One fact a line, unwrapped: paths can be copied."""
    lines = Text()

    def row(name: str, value: str) -> None:
        lines.append(f"   {name:<10}", "bold").append(f"{value}\n")

    row("files", f"{summary['delivered']} delivered of {summary['scanned']} found, {summary['failed']} failed")
    row("bytes", f"{decimal(summary['bytes'])} ({summary['bytes']} bytes)")
    row("seconds", f"{summary['seconds']:.2f}, from the first listing to the last verified file")
    for how, files in summary["verified_by"].items():
        row("verified", f"{files} by {how}: {HOW.get(how, how)}")
    row("where", str(at.delivered))
    row("manifest", str(at.manifest))
    lines.rstrip()
    return lines


def _seen(console: Console, prefect: Prefect, tasks: int) -> None:
    """Show what Prefect wrote down of the last run: a flow run that ended well, and so many tasks that did."""
    console.print(Text("   Prefect, asked through its API:", "bold"))
    flow, runs = prefect.last_run(tasks)
    if flow["state"]["type"] != "COMPLETED" or {r["state"]["type"] for r in runs} - {"COMPLETED"}:
        raise DemoFailed(f"flow run {flow['name']!r} or a task of it did not end well: {flow['state'].get('message')}")
    console.print(
        Text(f"     flow run  {flow['name']}: {flow['state']['name']}, {flow['state'].get('message')}", "green")
    )
    for run in runs:
        tags = ", ".join(sorted(run["tags"]))
        console.print(Text(f"     task run  {run['name']}: {run['state']['name']}, tags {tags}", "dim"))
    if not runs:
        console.print(Text("     no task runs: there was nothing to do", "dim"))


def _sha256sum(console: Console, at: Places, folder: Path, expected: int) -> None:
    """`sha256sum -c` of the manifest in `folder`: all `expected` files are OK."""
    if not at.manifest.is_file():
        raise DemoFailed(f"there is no manifest at {at.manifest}")
    argv = ["sha256sum", "--check", "--strict", str(at.manifest)]
    _show(console, f"cd {shlex.quote(str(folder))} && {shlex.join(argv)}")
    if not shutil.which("sha256sum"):
        raise DemoFailed("the program sha256sum is missing; install coreutils")
    child = _child(argv, env={**os.environ, "LC_ALL": "C"}, cwd=folder)
    lines = child.stdout.splitlines()
    good = [line for line in lines if line.endswith(": OK")]
    if child.returncode or len(good) != len(lines):
        wrong = [line for line in lines if line not in good] + child.stderr.splitlines()
        raise DemoFailed(f"sha256sum -c in {folder} ended with {child.returncode}: {'; '.join(wrong[:5])}")
    if len(good) != expected:
        raise DemoFailed(f"the manifest lists {len(good)} files, expected {expected}")
    for line in sorted(good, key=str.isascii)[:2]:  # the one with umlauts first
        console.print(Text(f"     {line}", "dim"))
    console.print(Text(f"     ... sha256sum: {len(good)} of {expected} OK", "green"))


def _show(console: Console, command: str) -> None:
    console.print(Text(f"   $ {command}", "yellow"))


def _files(folder: Path) -> dict[str, Path]:
    """All files below a folder by relative path, without locks."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(folder).as_posix(): p for p in found}
