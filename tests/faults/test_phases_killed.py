"""SIGKILL at random moments of a job in two phases: what is at a final name is whole, each file is made and delivered once
in the end, and nothing is left in the spool.

ONBLOCK_TEST_SEED repeats a sequence of moments; ONBLOCK_TEST_PHASE_KILLS asks for more of them.
"""

from __future__ import annotations

import gzip
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from flows.ledger import Ledger
from flows.ledger.rows import MADE
from tests.faults.card import MANIFEST, MIB, check_manifest, put, temporary_files, walk, write_job
from tests.faults.forker import Forker

KILLS = int(os.environ.get("ONBLOCK_TEST_PHASE_KILLS", "20"))
SEED = int(os.environ.get("ONBLOCK_TEST_SEED") or random.SystemRandom().randrange(10**9))
PHASES = ("FETCHING", "FETCHED", "PROCESSING", "PROCESSED", "DELIVERING")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source") / "card"
    dice = random.Random(5)
    for path in (b"DCIM/two\nlines.jpg", b"DCIM/no-\xff\xfeutf8.jpg", b"-rf", b"empty"):
        put(root, path, b"" if path == b"empty" else path * 100)
    for n in range(60):
        put(root, b"DCIM/IMG_%03d.jpg" % n, dice.randbytes(10_000))
    for n in range(8):
        put(root, b"DCIM/clip%d.mp4" % n, dice.randbytes(MIB) * (2 + n))
    return root


def check_whole(card: Path, archive: Path) -> int:
    """Every final name holds what the step makes of its file, all of it; how many there are."""
    count = 0
    for path in walk(archive):
        if path == MANIFEST or path in temporary_files(archive):
            continue
        source = Path(os.fsdecode(os.path.join(os.fsencode(card), path.removesuffix(b".gz"))))
        made = Path(os.fsdecode(os.path.join(os.fsencode(archive), path)))
        assert gzip.decompress(made.read_bytes()) == source.read_bytes(), f"{path!r} is not whole"
        count += 1
    return count


@pytest.mark.timeout(900)
def test_killed_in_every_phase(forker: Forker, card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"ONBLOCK_TEST_SEED={SEED}")  # pytest shows it when this fails
    dice = random.Random(SEED)
    total = len(list(walk(card)))
    kills = turn = 0
    duration: float | None = None
    left_in: Counter[str] = Counter()
    while kills < KILLS:
        turn += 1
        archive, home = tmp_path / f"archive-{turn}", tmp_path / f"home-{turn}"
        job = write_job(tmp_path / "job.yaml", card, archive, steps=[{"kind": "compress", "format": "gzip"}])
        monkeypatch.setenv("ONBLOCK_HOME", str(home))
        if duration is not None:  # the first run tells how long it takes
            for _ in range(min(5, KILLS - kills)):
                child = forker.start("run", job, "--json", ONBLOCK_HOME=home)
                deadline = time.monotonic() + dice.uniform(0.05, duration)
                while time.monotonic() < deadline and child.running():
                    time.sleep(0.001)
                child.send(signal.SIGKILL)
                code = child.wait().code
                if archive.exists():
                    check_whole(card, archive)
                if code != -signal.SIGKILL:
                    assert code == 0
                    break
                kills += 1
                if (home / "ledger.db").exists():
                    with Ledger.open() as ledger:
                        left_in.update({r["state"] for r in ledger.files()} & set(PHASES))
        began = time.monotonic()
        ended = forker.start("run", job, "--json", ONBLOCK_HOME=home).wait(120)
        duration = duration or time.monotonic() - began
        assert ended.code == 0, f"turn {turn}: {ended}"
        assert check_whole(card, archive) == total
        assert temporary_files(archive) == []
        check_manifest(archive, {path + b".gz" for path in walk(card)})
        with Ledger.open() as ledger:
            rows = list(ledger.files())
        assert {r["state"] for r in rows} == {"VERIFIED"}
        assert (sum(r["etag"] != MADE for r in rows), sum(r["etag"] == MADE for r in rows)) == (total, total)
        assert list(walk(home / "spool" / "files")) == []
        again = forker.start("run", job, "--json", ONBLOCK_HOME=home).wait(120)
        assert (again.code, again.summary["delivered"], again.summary["duplicates"]) == (0, 0, total), again
    print(f"{kills} kills over {turn} destinations, a run takes {duration:.2f} s; states they left: {dict(left_in)}")
    assert left_in["FETCHING"] + left_in["FETCHED"], "no kill fell into the fetching"
    assert left_in["PROCESSING"] + left_in["PROCESSED"], "no kill fell into the processing"
    assert left_in["DELIVERING"], "no kill fell into the delivering"
