"""SIGKILL at random moments, then again: what is at a final name is whole, and in the end each file is there once.

ONBLOCK_TEST_SEED repeats a sequence of moments; ONBLOCK_TEST_KILLS asks for more of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from flows.ledger import Ledger
from tests.faults.card import (
    MANIFEST,
    MIB,
    Truth,
    check_manifest,
    make_card,
    put,
    remove,
    temporary_files,
    until,
    walk,
    write_job,
)
from tests.faults.forker import Forker

KILLS = int(os.environ.get("ONBLOCK_TEST_KILLS", "50"))
SEED = int(os.environ.get("ONBLOCK_TEST_SEED") or random.SystemRandom().randrange(10**9))


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_card(tmp_path_factory.mktemp("source") / "card")


@pytest.fixture(scope="module")
def truth(card: Path) -> Truth:
    return Truth(card)


@pytest.mark.timeout(900)
def test_killed_at_random_moments(
    forker: Forker, card: Path, truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"ONBLOCK_TEST_SEED={SEED}")  # pytest shows it when this fails
    dice = random.Random(SEED)
    kills = turn = 0
    duration = None
    progress: Counter[str] = Counter()
    while kills < KILLS:
        turn += 1
        archive, home = tmp_path / f"archive-{turn}", tmp_path / f"home-{turn}"
        job = write_job(tmp_path / "job.yaml", card, archive)
        monkeypatch.setenv("ONBLOCK_HOME", str(home))
        if duration is not None:  # the first run tells how long it takes
            for _ in range(min(5, KILLS - kills)):
                child = forker.start("run", job, "--json", ONBLOCK_HOME=home)
                deadline = time.monotonic() + dice.uniform(0.02, duration)
                while time.monotonic() < deadline and child.running():
                    time.sleep(0.001)
                child.send(signal.SIGKILL)
                code = child.wait().code
                there = truth.check_whole(archive) if archive.exists() else 0
                left = len(temporary_files(archive)) if archive.exists() else 0
                if code != -signal.SIGKILL:
                    assert code == 0
                    break
                kills += 1
                progress["nothing there" if not there else "all there" if there == len(truth) else "some there"] += 1
                progress["temporary files left"] += bool(left)
        began = time.monotonic()
        ended = forker.start("run", job, "--json", ONBLOCK_HOME=home).wait(120)
        duration = duration or time.monotonic() - began
        assert ended.code == 0, f"turn {turn}: {ended}"
        truth.check_complete(archive)
        again = forker.start("run", job, "--json", ONBLOCK_HOME=home).wait(120)
        assert again.code == 0, f"turn {turn}: {again}"
        assert (again.summary["delivered"], again.summary["adopted"]) == (0, 0)
        assert again.summary["duplicates"] == len(truth)
        remove(archive)
        remove(home)
    print(f"{kills} kills over {turn} destinations, a run takes {duration:.2f} s: {dict(progress)}")
    assert progress["some there"], "no kill fell between the first file and the last"
    assert progress["temporary files left"], "no kill fell into the writing of a file"


@pytest.mark.parametrize("turn", range(5))
def test_the_source_changes_between_the_kill_and_the_next_run(
    forker: Forker, tmp_path: Path, onblock_home: Path, turn: int
) -> None:
    """Some of the files that were under way are replaced, some removed: nothing of the old ones stays behind."""
    print(f"ONBLOCK_TEST_SEED={SEED}")
    dice = random.Random(SEED + turn)
    card, archive = make_card(tmp_path / "card", small=400, large=(40 * MIB, 40 * MIB)), tmp_path / "archive"
    job = write_job(tmp_path / "job.yaml", card, archive)
    large = turn % 2  # kill while a large file is written, or while small ones are
    child = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home)
    until("a temporary file", lambda: not child.running() or _written(archive, large=bool(large)))
    time.sleep(dice.uniform(0, 0.02))
    child.send(signal.SIGKILL)
    assert child.wait().code == -signal.SIGKILL
    arrived = set(walk(archive))
    assert temporary_files(archive)

    with Ledger.open() as ledger:
        open_paths = [os.fsencode(r["path"]) for r in ledger.files() if r["state"] != "VERIFIED"]
    open_paths = [p for p in open_paths if p not in arrived]
    assert open_paths
    dice.shuffle(open_paths)
    third = max(1, len(open_paths) // 3)
    replaced, removed = open_paths[:third], open_paths[third : 2 * third]
    for path in replaced:
        put(card, path, b"another take of " + path)
    for path in removed:
        os.unlink(os.path.join(os.fsencode(card), path))

    ended = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home).wait()
    assert ended.code == (1 if removed else 0), ended
    assert ended.summary["failed"] == len(removed)
    assert temporary_files(archive) == []
    truth = Truth(card)
    assert truth.check_whole(archive) == len(truth)
    check_manifest(archive, set(truth.digests))
    with Ledger.open() as ledger:
        rows: dict[bytes, list[tuple[str, str | None]]] = {}
        for r in ledger.files():
            rows.setdefault(os.fsencode(r["path"]), []).append((r["state"], r["kind"]))
    for path in replaced:
        assert rows[path] == [("CANCELLED", "SOURCE_CHANGED"), ("VERIFIED", None)], path
    for path in removed:
        assert rows[path] == [("FAILED", "SOURCE_VANISHED")], path
    assert all(rows[p] == [("VERIFIED", None)] for p in truth.digests if p not in replaced)
    again = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home).wait()
    assert (again.code, again.summary["delivered"], again.summary["failed"]) == (0, 0, 0)
    assert set(walk(archive)) == set(truth.digests) | {MANIFEST}


def _written(archive: Path, *, large: bool) -> bool:
    if not archive.exists():
        return False
    for path in temporary_files(archive):
        try:
            size = os.stat(os.path.join(os.fsencode(archive), path)).st_size
        except FileNotFoundError:
            continue  # it has its final name by now
        if not large or size > MIB:
            return True
    return False
