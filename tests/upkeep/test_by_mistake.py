"""Each test tries to have a file deleted that must stay. Everything is proven and due; then something happens."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr
from sqlalchemy import Engine, event, update

from blocks.errors import ConfigError, NetworkError, OnblockError
from blocks.storage import LocalStorage
from blocks.storage.local import LocalSession
from flows.ledger import Ledger, connections
from flows.ledger.models import File
from tests.upkeep.conftest import HOUR, Yard

Hook = Callable[[str, str], None]


class WatchedStorage(LocalStorage):
    """A folder where something may happen just before each step: `hook(step, path)`."""

    _block_type_slug = "watched-storage"
    _hooks: list[Hook] = PrivateAttr(default_factory=list)

    @classmethod
    def at(cls, folder: Path, hook: Hook) -> WatchedStorage:
        made = cls(root=str(folder))
        made._hooks.append(hook)
        return made

    def open(self) -> LocalSession:
        return WatchedSession(self.root, self._hooks)


class WatchedSession(LocalSession):
    def __init__(self, root: str, hooks: list[Hook]):
        super().__init__(root)
        self.hooks = hooks

    def _before(self, step: str, path: str) -> None:
        for hook in self.hooks:
            hook(step, path)

    def stat(self, path: str) -> Any:
        self._before("stat", path)
        return super().stat(path)

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        self._before("checksum", path)
        return super().checksum(path, kind, fresh=fresh)

    def move(self, path: str, to: str) -> None:
        self._before("move", path)
        super().move(path, to)

    def delete(self, path: str) -> None:
        self._before("delete", path)
        super().delete(path)


class CachingStorage(LocalStorage):
    """A folder that answers every look but the first from memory, as network mounts do for a while."""

    _block_type_slug = "caching-storage"

    def open(self) -> LocalSession:
        return CachingSession(self.root)


class CachingSession(LocalSession):
    def __init__(self, root: str):
        super().__init__(root)
        self.seen: dict[str, Any] = {}

    def stat(self, path: str) -> Any:
        if path not in self.seen:
            self.seen[path] = super().stat(path)
        return self.seen[path]


def once(at: str, act: Callable[[], object], path: str = "a") -> Hook:
    """Do something before the first step of this name."""
    done: list[str] = []

    def hook(step: str, where: str) -> None:
        if step == at and where == path and not done:
            done.append(where)
            act()

    return hook


def why(summary: dict[str, Any], outcome: str = "kept") -> str:
    (entry,) = summary["files"][outcome]
    return entry["why"]


# -- the source ---------------------------------------------------------------------------------------------------------


def test_another_content_of_the_same_size_and_time(yard: Yard) -> None:
    path = yard.put("a", b"take one")
    yard.proven()
    path.write_bytes(b"take two")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    summary = yard.clean()
    assert (summary["cleaned"], summary["kept"]) == (0, 1)
    assert "other content" in why(summary)
    assert path.read_bytes() == b"take two"
    assert yard.states() == ["VERIFIED"]


def test_changed_after_the_passes(yard: Yard) -> None:
    path = yard.put("a", b"take one")
    yard.proven()
    path.write_bytes(b"take two")
    summary = yard.clean()
    assert summary["waiting"] == {"is unknown: this version was never delivered": 1}
    assert path.read_bytes() == b"take two"


@pytest.mark.parametrize("step", ["checksum", "move"])
def test_changed_at_the_last_moment(yard: Yard, step: str) -> None:
    path = yard.put("a", b"take one")
    source = WatchedStorage.at(yard.card, once(step, lambda: path.write_bytes(b"take two")))
    yard.proven()
    summary = yard.clean(source=source)
    assert (summary["cleaned"], path.read_bytes()) == (0, b"take two")
    assert yard.on_card() == {"a"}, "it has its name again"
    assert yard.states() == ["VERIFIED"]


class TimelessSession(WatchedSession):
    """A place that keeps no times of its own accord: what was moved aside cannot be told from another of its size."""

    features = dataclasses.replace(LocalSession.features, mtime_set=False)


class TimelessStorage(WatchedStorage):
    _block_type_slug = "timeless-storage"

    def open(self) -> LocalSession:
        return TimelessSession(self.root, self._hooks)


def test_changed_while_the_ledger_is_asked(yard: Yard) -> None:
    """The last of all looks is the one at the source: nothing is between it and the removal."""
    paths = {name: yard.put(name, b"take one") for name in ("a.mp4", "TODO.mp4")}
    yard.keys["gate"] = {"placeholder": "hard"}
    with Ledger.open() as ledger:
        ledger.override("job", "placeholder", "*.mp4", who="me", why="it is called so")
    yard.proven()
    read: list[str] = []

    def change(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if "TODO.mp4" in read and "override" in statement and paths["TODO.mp4"].read_bytes() != b"take two":
            paths["TODO.mp4"].write_bytes(b"take two")

    def hook(step: str, path: str) -> None:
        if step == "checksum":
            read.append(path)

    event.listen(Engine, "before_cursor_execute", change)
    try:
        summary = yard.clean(source=TimelessStorage.at(yard.card, hook))
    finally:
        event.remove(Engine, "before_cursor_execute", change)
    assert (summary["cleaned"], summary["kept"]) == (1, 1)
    assert "has changed since" in why(summary)
    assert paths["TODO.mp4"].read_bytes() == b"take two"


def test_grown_at_the_last_moment_in_backup_mode(yard: Yard) -> None:
    path = yard.put("a", b"take one")
    yard.keys["cleanup"] = {"action": "backup", "backup_folder": "old"}
    yard.proven()
    summary = yard.clean(source=WatchedStorage.at(yard.card, once("move", lambda: path.write_bytes(b"take one, two"))))
    assert summary["cleaned"] == 0
    assert (yard.on_card(), path.read_bytes()) == ({"a"}, b"take one, two")


def test_a_file_that_was_added_since(yard: Yard) -> None:
    yard.put("DCIM/a")
    yard.proven()
    yard.put("DCIM/b", b"never delivered")
    (yard.archive / "DCIM/b").write_bytes(b"never delivered")
    with (yard.archive / "checksums.sha256").open("a") as file:
        file.write("0" * 64 + "  DCIM/b\n")
    assert yard.clean()["cleaned"] == 1
    assert yard.on_card() == {"DCIM/b"}


def test_gone_by_itself(yard: Yard) -> None:
    path = yard.put("a")
    yard.put("b")
    yard.proven()
    source = WatchedStorage.at(yard.card, once("checksum", path.unlink))
    assert yard.clean(source=source)["cleaned"] == 1
    assert yard.rows("path", "state") == [("a", "VERIFIED"), ("b", "CLEANED")], "we did not do it"


@pytest.mark.parametrize("target", ["twin", "outside", "the copy itself"])
def test_a_link_in_its_place(yard: Yard, tmp_path: Path, target: str) -> None:
    """With the same size and time. No file but the link may be touched."""
    path = yard.put("a", b"take one")
    yard.proven()
    where = {"twin": yard.card / "sub/twin", "outside": tmp_path / "x", "the copy itself": yard.archive / "a"}[target]
    if target != "the copy itself":
        where.parent.mkdir(exist_ok=True)
        where.write_bytes(b"take two")
        os.utime(where, (1_700_000_000, 1_700_000_000))
    path.unlink()
    path.symlink_to(where)
    content = where.read_bytes()
    assert yard.clean()["cleaned"] == 0
    assert where.read_bytes() == content
    assert path.is_symlink()


def test_the_folder_became_a_link_to_the_archive(yard: Yard, tmp_path: Path) -> None:
    """What would be deleted at the source is the only copy, at the destination."""
    yard.put("DCIM/a", b"take one")
    yard.put("DCIM/b", b"take two")
    yard.proven()
    moved = tmp_path / "moved"
    yard.card.rename(moved)
    yard.card.symlink_to(yard.archive)
    with pytest.raises(ConfigError, match="both are one place, or it was removed"):
        yard.clean()
    assert yard.files() == {"DCIM/a": b"take one", "DCIM/b": b"take two"}
    assert yard.states() == ["VERIFIED", "VERIFIED"]


def test_source_and_destination_were_one_place_from_the_first(tmp_path: Path) -> None:
    """A share that is mounted twice: every file is found at the destination at once, "delivered", and proven."""
    yard = Yard(tmp_path)
    yard.archive.rmdir()
    yard.archive.symlink_to(yard.card)
    yard.put("a", b"the only copy")
    for action in ({"action": "delete"}, {"action": "backup", "backup_folder": "old"}):
        yard.keys["cleanup"] = action
        yard.proven()
        with pytest.raises(ConfigError, match="both are one place, or it was removed"):
            yard.clean()
        assert yard.on_card() - {"checksums.sha256"} == {"a"}
        assert yard.states()[0] == "VERIFIED"


@pytest.mark.parametrize("action", ["delete", "backup"])
@pytest.mark.parametrize("below", ["", "archive"])
def test_one_place_and_a_mount_that_answers_from_its_cache(tmp_path: Path, action: str, below: str) -> None:
    """The destination says that it still has the file, after it was moved at the source."""
    yard = Yard(tmp_path)
    yard.archive.rmdir()
    yard.archive.symlink_to(yard.card)
    if below:  # the destination is the folder above
        yard.keys["source"] = LocalStorage(root=str(yard.card / below))
        yard.keys["path"] = below + "/{path}"
    path = yard.put(f"{below}/DCIM/a" if below else "DCIM/a", b"the only copy")
    yard.keys["cleanup"] = {"action": action, "backup_folder": "old" if action == "backup" else None}
    yard.proven()
    with pytest.raises(ConfigError, match="both are one place, or it was removed"):
        yard.clean(destinations=[CachingStorage(root=str(yard.archive))])
    assert path.read_bytes() == b"the only copy"
    assert len([p for p in yard.on_card() if "checksums" not in p]) == 1


def test_a_source_that_cannot_be_written_to(yard: Yard) -> None:
    def refuse() -> None:
        raise NetworkError("read-only")

    yard.put("a")
    yard.proven()
    summary = yard.clean(source=WatchedStorage.at(yard.card, once("move", refuse)))
    assert (summary["cleaned"], summary["unverified"]) == (0, 1)
    assert (yard.on_card(), yard.states()) == ({"a"}, ["VERIFIED"])
    assert yard.clean()["cleaned"] == 1


def test_the_source_goes_away_between_aside_and_deleted(yard: Yard) -> None:
    """Nothing can be put back; the next cleanup finds it aside, and begins anew."""
    away: list[bool] = []

    def hook(step: str, path: str) -> None:
        if step == "delete":
            away.append(True)
        if away:
            raise NetworkError("pulled out")

    yard.put("a", b"take one")
    yard.put("b", b"take two")
    yard.proven()
    with pytest.raises(NetworkError):
        yard.clean(source=WatchedStorage.at(yard.card, hook))
    assert len(yard.on_card()) == 2
    assert sorted(yard.states()) == ["CLEANUP_ELIGIBLE", "VERIFIED"]
    with pytest.raises(ConfigError, match="cannot be asked to retry"), Ledger.open() as ledger:
        from flows.ledger.wishes import Wish

        ledger.grant(Wish.RETRY, ledger.choose(job="job"), who="me")
    assert yard.deliver()["delivered"] == 0
    assert yard.clean()["cleaned"] == 2
    assert (yard.on_card(), set(yard.states())) == (set(), {"CLEANED"})


# -- the destination ----------------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    st = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


@pytest.mark.parametrize("loss", ["damaged", "shorter", "gone"])
def test_lost_at_the_destination(yard: Yard, loss: str) -> None:
    yard.put("a", b"take one")
    yard.put("b", b"take two")
    yard.proven()
    copy = yard.archive / "a"
    {"damaged": lambda: damage(copy), "shorter": lambda: copy.write_bytes(b""), "gone": copy.unlink}[loss]()
    summary = yard.clean()
    assert (summary["cleaned"], summary["damaged"]) == (1, 1)
    assert yard.on_card() == {"a"}
    assert yard.rows("path", "state", "stage", "verify_passes") == [
        ("a", "QUARANTINED", "clean", 0),
        ("b", "CLEANED", None, 2),
    ]


@pytest.mark.parametrize("loss", ["damaged", "gone"])
def test_lost_while_it_is_proven(yard: Yard, loss: str) -> None:
    yard.put("a", b"take one")
    yard.deliver()
    yard.later()
    damage(yard.archive / "a") if loss == "damaged" else (yard.archive / "a").unlink()
    summary = yard.clean()
    assert (summary["passes"], summary["damaged"]) == (0, 1)
    assert (yard.on_card(), yard.states()) == ({"a"}, ["QUARANTINED"])


def test_gone_just_before_it_is_read_back(yard: Yard) -> None:
    yard.put("a", b"take one")
    yard.proven()
    copy = yard.archive / "a"
    summary = yard.clean(destinations=[WatchedStorage.at(yard.archive, once("checksum", copy.unlink))])
    assert (summary["cleaned"], summary["damaged"]) == (0, 1)
    assert (yard.on_card(), yard.states()) == ({"a"}, ["QUARANTINED"])


def test_gone_after_it_was_read_back(yard: Yard) -> None:
    yard.put("a", b"take one")
    yard.proven()
    copy = yard.archive / "a"
    with pytest.raises(ConfigError, match="is gone from the destination"):
        yard.clean(source=WatchedStorage.at(yard.card, once("move", copy.unlink)))
    assert (yard.on_card(), yard.states()) == ({"a"}, ["VERIFIED"])
    assert yard.clean()["damaged"] == 1


def test_a_destination_that_does_not_answer(yard: Yard) -> None:
    def refuse() -> None:
        raise NetworkError("no answer")

    yard.put("a", b"take one")
    yard.proven()
    summary = yard.clean(destinations=[WatchedStorage.at(yard.archive, once("checksum", refuse))])
    assert (summary["cleaned"], summary["unverified"]) == (0, 1)
    assert (yard.on_card(), yard.states()) == ({"a"}, ["VERIFIED"])
    yard.archive.rename(yard.folder / "unplugged")
    with pytest.raises(OnblockError):
        yard.clean()
    assert yard.on_card() == {"a"}
    assert yard.states() == ["VERIFIED"]


def test_replaced_at_the_destination_by_another_version(yard: Yard) -> None:
    path = yard.put("a", b"take one")
    keys = {"on_conflict": "replace"}
    yard.proven(**keys)
    path.write_bytes(b"take two")
    os.utime(path, (1_700_000_100, 1_700_000_100))
    yard.deliver(**keys)
    path.write_bytes(b"take one")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    summary = yard.clean(**keys)
    assert (summary["cleaned"], summary["damaged"]) == (0, 0)
    assert "not in the manifest" in why(summary), "it names the other one"
    assert yard.on_card() == {"a"}
    assert yard.states() == ["VERIFIED", "VERIFIED"]


# -- the manifest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", ["missing", "empty", "another hash", "both hashes", "another name"])
def test_the_manifest_says_something_else(yard: Yard, edit: str) -> None:
    yard.put("a", b"take one")
    yard.proven()
    manifest = yard.archive / "checksums.sha256"
    line = manifest.read_text()
    other = "0" * 64 + "  a\n"
    if edit == "missing":
        manifest.unlink()
    else:
        manifest.write_text(
            {
                "empty": "",
                "another hash": other,
                "both hashes": line + other,
                "another name": line.replace("  a", "  b"),
            }[edit]
        )
    summary = yard.clean()
    assert (summary["cleaned"], summary["kept"]) == (0, 1)
    assert "is not in the manifest" in why(summary)
    assert (yard.on_card(), yard.states()) == ({"a"}, ["VERIFIED"])
    manifest.write_text("not a line\n" + line)
    assert yard.clean()["cleaned"] == 1


def test_the_manifest_changes_at_the_last_moment(yard: Yard) -> None:
    yard.put("a", b"take one")
    yard.proven()
    manifest = yard.archive / "checksums.sha256"
    source = WatchedStorage.at(yard.card, once("checksum", lambda: manifest.write_text("gone\n")))
    assert yard.clean(source=source)["cleaned"] == 0
    assert yard.on_card() == {"a"}


def test_delivered_without_a_manifest(yard: Yard) -> None:
    yard.put("a")
    yard.deliver(manifest=None, cleanup={})
    with Ledger.open() as ledger, ledger.engine.begin() as c:
        c.execute(update(File).values(verify_passes=9, proven_at=File.done_at))
    yard.later()
    assert yard.clean()["waiting"] == {"was delivered without a manifest": 1}
    assert yard.on_card() == {"a"}


# -- the gate -----------------------------------------------------------------------------------------------------------


def test_an_override_that_was_revoked(yard: Yard) -> None:
    yard.put("TODO.mp4", b"take one")
    yard.keys["gate"] = {"placeholder": "hard"}
    assert yard.deliver()["blocked"] == 1
    with Ledger.open() as ledger:
        given = ledger.override("job", "placeholder", "*.mp4", who="me", why="it is called so")
    yard.proven()
    with Ledger.open() as ledger:
        ledger.revoke(given.id, who="you", why="it is not")
    summary = yard.clean()
    assert (summary["cleaned"], summary["kept"]) == (0, 1)
    assert "would not pass the gate" in why(summary)
    assert (yard.on_card(), yard.states()) == ({"TODO.mp4"}, ["VERIFIED"])


def test_an_override_that_is_revoked_at_the_last_moment(yard: Yard) -> None:
    yard.put("TODO.mp4", b"take one")
    yard.keys["gate"] = {"placeholder": "hard"}
    with Ledger.open() as ledger:
        given = ledger.override("job", "placeholder", "*.mp4", who="me", why="it is called so")
    yard.proven()

    def revoke() -> None:
        with Ledger.open() as ledger:
            ledger.revoke(given.id, who="you", why="it is not")

    summary = yard.clean(source=WatchedStorage.at(yard.card, once("checksum", revoke, "TODO.mp4")))
    assert (summary["cleaned"], summary["kept"]) == (0, 1)
    assert yard.on_card() == {"TODO.mp4"}


def test_an_override_that_holds(yard: Yard) -> None:
    yard.put("TODO.mp4", b"take one")
    yard.keys["gate"] = {"placeholder": "hard"}
    with Ledger.open() as ledger:
        ledger.override("job", "placeholder", "*.mp4", who="me", why="it is called so")
    yard.proven()
    assert yard.clean()["cleaned"] == 1


def test_a_rule_that_came_later(yard: Yard) -> None:
    yard.put("a.mp4", b"take one")
    yard.proven()
    keys = {"gate": {"prefix": {"any_of": ["MAP_"]}}}
    summary = yard.clean(**keys)
    assert (summary["cleaned"], summary["kept"]) == (0, 1)
    assert yard.on_card() == {"a.mp4"}


# -- clocks -------------------------------------------------------------------------------------------------------------


def test_the_clock_is_set_back(yard: Yard) -> None:
    yard.put("a")
    yard.proven()
    yard.later(-100)
    assert yard.clean()["waiting"] == {"the ledger's clock was set back: it was delivered or proven in the future": 1}
    assert yard.on_card() == {"a"}


def test_the_clock_of_this_machine_leaps_and_the_ledger_is_elsewhere(
    yard: Yard, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Age is judged by the clock of the database, whatever this machine believes."""
    monkeypatch.setenv("ONBLOCK_LEDGER_URL", postgres_url)
    yard.put("a")
    yard.deliver()
    real = connections.now_ms
    monkeypatch.setattr(connections, "now_ms", lambda: real() + 1000 * HOUR)
    for _ in range(3):
        assert yard.clean()["passes"] == 0
    assert yard.on_card() == {"a"}
    monkeypatch.undo()


def test_the_clock_leaps_forward_and_every_other_look_is_still_taken(yard: Yard) -> None:
    """With SQLite the clock is this machine's. A leap shortens the wait, and proves nothing."""
    yard.put("a", b"take one")
    yard.deliver()
    yard.later(1_000_000)
    assert yard.clean()["cleaned"] == 0
    damage(yard.archive / "a")
    yard.later(1_000_000)
    assert yard.clean()["damaged"] == 1
    assert yard.on_card() == {"a"}


# -- a ledger that says what is not true --------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["sha256", "dest_path", "size"])
def test_a_row_that_speaks_of_another_file(yard: Yard, column: str) -> None:
    yard.put("a", b"take one")
    yard.put("b", b"take two")
    yard.proven()
    with Ledger.open() as ledger, ledger.engine.begin() as c:
        other = c.execute(File.__table__.select().where(File.path == "b")).one()
        value = other.size + 1 if column == "size" else getattr(other, column)
        c.execute(update(File).where(File.path == "a").values({column: value}))
    yard.clean()
    assert "a" in yard.on_card()


def test_a_full_disk_in_backup_mode(yard: Yard) -> None:
    def full() -> None:
        from blocks.storage.local import os_failure

        raise os_failure(OSError(errno.ENOSPC, "full"), "cannot move it", "a")

    yard.put("a")
    yard.keys["cleanup"] = {"action": "backup", "backup_folder": "old"}
    yard.proven()
    assert yard.clean(source=WatchedStorage.at(yard.card, once("move", full)))["cleaned"] == 0
    assert (yard.on_card(), yard.states()) == ({"a"}, ["VERIFIED"])
