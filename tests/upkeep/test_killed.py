"""kill -9 before every single step of a cleanup, and two cleanups at once. Nothing is lost, and the next one ends it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.storage import LocalStorage
from flows.ledger import Ledger
from flows.upkeep.clean import clean
from flows.upkeep.retention import retain
from flows.upkeep.scrub import scrub
from tests.upkeep.conftest import Yard
from tests.upkeep.test_by_mistake import WatchedStorage

BACKUP = {"action": "backup", "backup_folder": "old"}
fork = multiprocessing.get_context("fork")


def in_a_process(work: Callable[[], object]) -> Any:
    """A child that does it, and ends without a word."""

    def call() -> None:
        code = 3
        try:
            work()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)

    child = fork.Process(target=call)
    child.start()
    return child


def code_of(child: Any) -> int:
    child.join(60)
    assert child.exitcode is not None
    return child.exitcode


class Steps:
    """Counts the steps at both storages, and kills the process before the n-th."""

    def __init__(self, fatal: int):
        self.fatal, self.count = fatal, 0

    def hook(self, step: str, path: str) -> None:
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


CONTENT = {"DCIM/a": b"take one", "DCIM/b": b"take two", "c": b"take three"}


def whole(yard: Yard) -> None:
    """Every file is whole at the archive; and at the source it is whole, hidden or not, in the backup, or gone."""
    assert yard.files() == CONTENT
    for path in yard.on_card():
        assert (yard.card / path).read_bytes() in CONTENT.values()


@pytest.mark.parametrize("cleanup", [{"action": "delete"}, BACKUP], ids=["delete", "backup"])
def test_killed_before_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cleanup: dict[str, Any]) -> None:
    fatal, aside, kills, unseen = 0, 0, 0, 0
    folder = tmp_path / "yard"
    folder.mkdir()
    yard = Yard(folder)
    yard.keys["cleanup"] = cleanup
    for path, content in CONTENT.items():
        yard.put(path, content)
    yard.proven()
    home = Path(os.environ["ONBLOCK_HOME"])
    saved = {p.name: p.read_bytes() for p in home.glob("ledger.db*")}
    while True:
        fatal += 1
        for path, content in CONTENT.items():
            yard.put(path, content)
        for name in list(home.glob("ledger.db*")):
            name.unlink()
        for name, data in saved.items():
            (home / name).write_bytes(data)
        for path in yard.on_card() - set(CONTENT):
            (yard.card / path).unlink()
        steps = Steps(fatal)

        def work(steps: Steps = steps) -> None:
            clean(yard.job(
                source=WatchedStorage.at(yard.card, steps.hook), destinations=[WatchedStorage.at(yard.archive, steps.hook)]
            ))  # fmt: skip

        code = code_of(in_a_process(work))
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        whole(yard)
        aside += any(".onblock-" in p for p in yard.on_card())
        found = {(yard.card / p).read_bytes() for p in yard.on_card()}
        ended = {path for path, state in yard.rows("path", "state") if state == "CLEANED"}
        summary = yard.clean()
        assert summary["damaged"] == summary["unverified"] == 0, summary
        whole(yard)
        expected = [
            ("CLEANED" if CONTENT[path] in found or path in ended else "VERIFIED")  # nobody saw it go
            for path in sorted(CONTENT)
        ]
        assert yard.states() == expected, fatal
        unseen += expected.count("VERIFIED")
        assert sum(summary["waiting"].values()) == expected.count("VERIFIED")
        if "VERIFIED" in expected:
            assert (yard.clean()["waiting"], yard.states()) == ({}, expected), "the next one has nothing to say"
        if cleanup is BACKUP:
            assert {p: (yard.card / p).read_bytes() for p in yard.on_card()} == {
                f"old/{p}": c for p, c in CONTENT.items()
            }
            assert yard.rows("journal") == [f"old/{p}" for p in sorted(CONTENT)]
        else:
            assert yard.on_card() == set()
        if code == 0:
            break
    print(f"{kills} kills, in {aside} of them a file was aside")
    assert kills > 25
    assert (aside > 2) == (unseen > 2) == (cleanup is not BACKUP)


@pytest.mark.parametrize("cleanup", [{"action": "delete"}, BACKUP], ids=["delete", "backup"])
def test_killed_and_then_another_card(yard: Yard, cleanup: dict[str, Any]) -> None:
    """Nothing is found, and so nothing is said of files that lie on the card that is away."""
    yard.keys["cleanup"] = cleanup
    for path, content in CONTENT.items():
        yard.put(path, content)
    yard.proven()
    steps = Steps(8)
    job = yard.job(source=WatchedStorage.at(yard.card, steps.hook))
    assert code_of(in_a_process(lambda: clean(job))) == -signal.SIGKILL
    assert "CLEANUP_ELIGIBLE" in yard.states()
    away = yard.folder / "away"
    yard.card.rename(away)
    yard.card.mkdir()
    summary = yard.clean()
    assert (summary["cleaned"], yard.states()) == (0, ["VERIFIED"] * 3)
    yard.card.rmdir()
    away.rename(yard.card)
    yard.clean()
    whole(yard)


@pytest.mark.parametrize("cleanup", [{"action": "delete"}, BACKUP], ids=["delete", "backup"])
def test_what_lies_aside_on_the_right_card_is_found_after_another(yard: Yard, cleanup: dict[str, Any]) -> None:
    """Killed with a file put aside, then a cleanup with another card, twice, then the right one again."""
    yard.keys["cleanup"] = cleanup
    yard.put("DCIM/a", b"take one")
    yard.proven()

    def hook(step: str, path: str) -> None:
        if yard.on_card() and "DCIM/a" not in yard.on_card():
            os.kill(os.getpid(), signal.SIGKILL)

    job = yard.job(source=WatchedStorage.at(yard.card, hook), destinations=[WatchedStorage.at(yard.archive, hook)])
    assert code_of(in_a_process(lambda: clean(job))) == -signal.SIGKILL
    aside = yard.on_card()
    assert len(aside) == 1 and aside != {"DCIM/a"}
    away = yard.folder / "away"
    yard.card.rename(away)
    yard.card.mkdir()
    assert sum(yard.clean()["waiting"].values()) == 1
    assert (yard.clean()["waiting"], yard.states()) == ({}, ["VERIFIED"]), "said once"
    yard.card.rmdir()
    away.rename(yard.card)
    off = yard.clean(cleanup={**cleanup, "action": "off"})  # settles what was left, and does nothing else
    if cleanup is BACKUP:
        assert (off["cleaned"], yard.on_card()) == (1, {"old/DCIM/a"})
        assert yard.rows("state", "journal") == [("CLEANED", "old/DCIM/a")]
    else:
        assert (off["cleaned"], yard.on_card(), yard.states()) == (0, {"DCIM/a"}, ["VERIFIED"])
        assert yard.clean()["cleaned"] == 1
        assert yard.on_card() == set()
    assert yard.files() == {"DCIM/a": b"take one"}


def test_nobody_looks_for_ever_for_what_was_deleted_before_the_kill(yard: Yard) -> None:
    """Nobody saw it go: each cleanup looks for it, until somebody says that it is gone."""
    yard.put("DCIM/a", b"take one")
    yard.put("DCIM/b", b"take two")
    yard.proven()

    def hook(step: str, path: str) -> None:
        if step == "delete":
            (yard.card / path).unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    job = yard.job(source=WatchedStorage.at(yard.card, hook))
    assert code_of(in_a_process(lambda: clean(job))) == -signal.SIGKILL
    assert len(yard.on_card()) == 1
    summary = yard.clean()
    assert (summary["cleaned"], sum(summary["waiting"].values())) == (1, 1)
    assert sorted(yard.rows("state", "journal"), key=str) == [("CLEANED", None), ("VERIFIED", "?")]
    limits = {"retention": {"backup": {"max_age": "30 d"}}, "cleanup": BACKUP}
    assert retain(yard.job(**limits), dry=True, forget=True)["forgotten"] == 1
    assert retain(yard.job(**limits), forget=True)["forgotten"] == 1
    assert sorted(yard.rows("state", "journal"), key=str) == [("CLEANED", None), ("VERIFIED", None)]
    assert retain(yard.job(**limits), forget=True)["forgotten"] == 0


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_several_cleanups_at_once(
    yard: Yard, database: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each file one of them takes care; a scrub and a run of the job go on beside them."""
    if database == "postgresql":
        monkeypatch.setenv("ONBLOCK_LEDGER_URL", request.getfixturevalue("postgres_url"))
    for n in range(60):
        yard.put(f"{n}", b"%d" % n)
    yard.proven()

    def work() -> None:
        clean(yard.job())

    children = [in_a_process(work) for _ in range(3)]
    children.append(in_a_process(lambda: scrub(yard.job(), part="1/1")))
    children.append(in_a_process(yard.deliver))
    assert [code_of(child) for child in children] == [0] * 5
    yard.clean()
    assert yard.on_card() == set()
    assert yard.states() == ["CLEANED"] * 60
    assert len(yard.files()) == 60
    with Ledger.open() as ledger:
        assert {r["attempt"] for r in ledger.files()} == {2}, "one delivery and one cleanup each"


def test_one_stops_and_another_takes_over(yard: Yard) -> None:
    """A cleanup that is held up with a file in hand, and taken for dead by its lease, can change nothing any more."""
    for n in range(3):
        yard.put(f"{n}", b"%d" % n)
    yard.proven()
    seen: list[str] = []

    def take_over(step: str, path: str) -> None:
        if step == "checksum" and not seen:
            seen.append(path)
            with Ledger.open() as ledger, ledger.engine.begin() as c:
                from sqlalchemy import update

                from flows.ledger.models import File, Run

                c.execute(update(Run).values(ended_at=1))
                held = [r["id"] for r in ledger.files() if r["state"] == "CLEANUP_ELIGIBLE"]
                assert len(held) == 3
                c.execute(update(File).values(attempt=File.attempt + 1, run_id="another"))

    from flows.upkeep import remove

    before, remove.SURE_S = remove.SURE_S, 0.0
    try:
        summary = yard.clean(source=WatchedStorage.at(yard.card, take_over))
    finally:
        remove.SURE_S = before
    assert summary["cleaned"] == 0
    assert "taken it over" in summary["files"]["kept"][0]["why"]
    assert yard.on_card() == {"0", "1", "2"}
    assert set(yard.states()) == {"CLEANUP_ELIGIBLE"}
    assert yard.clean()["cleaned"] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end(yard: Yard, number: signal.Signals) -> None:
    """What it has done is written down, the rest is as before."""
    from deployments import interrupt

    for n in range(3):
        yard.put(f"{n}", b"%d" % n)
    yard.proven()
    count: list[str] = []

    def hook(step: str, path: str) -> None:
        if step == "delete":
            count.append(path)
            if len(count) == 2:
                os.kill(os.getpid(), number)

    def work() -> None:
        interrupt.listen()
        try:
            clean(yard.job(source=WatchedStorage.at(yard.card, hook)))
        except SystemExit as end:
            os._exit(int(str(end.code)))

    assert code_of(in_a_process(work)) == 128 + number
    assert sorted(yard.states()) == ["CLEANED", "VERIFIED", "VERIFIED"]
    assert len(yard.on_card()) == 2
    assert not any(".onblock" in p for p in yard.on_card())
    assert yard.clean()["cleaned"] == 2
    assert isinstance(yard.job().source, LocalStorage)
