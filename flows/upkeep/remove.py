"""The one step that takes a file away from its source, and the last looks before it. `clean.py` says which files.

    looked at     unchanged at the source, in the manifest as it lies there, read back from every destination,
                  read once more at the source, through the gate, still ours, and still unchanged
    put aside     moved to another name in its folder (or into the backup folder)
    looked again  what was moved is what was looked at, and every destination still has its file: where source and
                  destination turn out to be one place (a link, a second mount, another login), it is put back
    gone          deleted, unless it is a backup

Whatever stops it in between, the file is put back; after `kill -9` the next cleanup finds it aside, and does so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

from blocks import names
from blocks.errors import (
    ConfigError,
    Conflict,
    NotFound,
    OnblockError,
    SourceChanged,
    SourceVanished,
)
from blocks.storage.base import FileInfo, Session
from flows.ledger.proofs import Proof
from flows.transfer.aftercare import Action
from flows.transfer.gate import still_passes
from flows.transfer.manifest import lines_of
from flows.upkeep.look import LOST, look
from flows.upkeep.shift import Shift

log = logging.getLogger("onblock.upkeep")

SURE_S = 1.0
"""So long after the ledger said that rows are ours we take them for ours: a lease lasts much longer."""


class Spared(Exception):
    """A file is not cleaned up now, and why: `lost` rows have a damaged file, `rows` are as they were. `unsure` if
    something could not be looked at."""

    def __init__(
        self, why: str, rows: Sequence[Proof], lost: Sequence[tuple[Proof, OnblockError]] = (), *, unsure: bool = False
    ):
        super().__init__(why)
        self.rows, self.lost, self.unsure = list(rows), list(lost), unsure


class Settled(NamedTuple):
    """What became of a file that a cleanup had in hand when it died."""

    rows: list[Proof]
    gone: bool  # into the backup folder
    nowhere: bool = False  # it was not found: deleted, or the source is another card or an empty mount point


class Removal:
    """Takes files away, one at a time, of which the rows are claimed."""

    def __init__(self, shift: Shift):
        self.shift, self.job, self.settings = shift, shift.job, shift.job.cleanup
        self._ours: list[Proof] = []  # all that is claimed and still open
        self._sure_at = -SURE_S
        self._lists = [Listed(session) for session in shift.sessions]
        self._aside: set[int] = set()  # rows whose file may have left its place
        self._two_places = False  # source and destination were seen to be apart

    def begin(self, groups: Sequence[Sequence[Proof]]) -> None:
        """These are claimed now."""
        self._ours = [proof for group in groups for proof in group]
        self._sure_at = time.monotonic()
        for number, listed in enumerate(self._lists):
            route = self.shift.routes[number]
            listed.expect([d for p in self._ours if p.route_id == route for d in p.delivered])

    def aside(self, group: Sequence[Proof]) -> bool:
        """Whether the file of a group may lie aside, where only `look_after` finds it."""
        return any(proof.id in self._aside for proof in group)

    def remove(self, group: list[Proof]) -> list[Proof]:
        """Take one file away; its rows, with the backup they have now. Raises Spared."""
        first, source = group[0], self.shift.source
        self._look_everywhere(group, first.path)
        ids = {proof.id for proof in group}
        self._aside |= ids  # until it is known where the file is, whatever happens
        try:
            to = self._put_aside(first)
        except BaseException as error:
            if self._is_there(first.path):
                self._aside -= ids
                if isinstance(error, OnblockError):
                    raise Spared(str(error), group, unsure=not isinstance(error, SourceChanged)) from error
            raise
        if to is None:
            return self._closed(group, ids)
        try:
            self._look_again(group, to)
            if self.settings.action is Action.DELETE:
                source.delete(to)
        except BaseException as error:
            if self._put_back(to, first):
                self._aside -= ids
                if isinstance(error, OnblockError) and not isinstance(error, SameFile):
                    raise Spared(str(error), group, unsure=not isinstance(error, SourceChanged)) from error
            raise
        backup = to if self.settings.action is Action.BACKUP else None
        return [p._replace(backup=backup) for p in self._closed(group, ids)]

    def _closed(self, group: list[Proof], ids: set[int]) -> list[Proof]:
        """The file is gone, or in the backup folder."""
        self._aside -= ids
        self._ours = [p for p in self._ours if p.id not in ids]
        return group

    # -- the last looks -------------------------------------------------------------------------------------------------

    def _look_everywhere(self, group: list[Proof], at: str) -> None:
        """Everything that must be true. Raises Spared."""
        first, source = group[0], self.shift.source
        if len({p.route_id for p in group}) < len(self.shift.routes) or len({p.sha256 for p in group}) != 1:
            raise Spared("is not proven at every destination", group)
        with _sparing(group):
            self._unchanged(first, at)
            self._listed(group)
            lost = self._lost(group)
            if lost:
                ids = {proof.id for proof, _ in lost}
                raise Spared("is damaged at a destination", [p for p in group if p.id not in ids], lost)
            if source.checksum(at, fresh=True) != first.sha256:
                raise SourceChanged("has other content than was delivered, with the same size and time", path=at)
            self._listed(group)  # all of that took its time
        for proof in group:
            if not self._passes_gate(proof):
                raise Spared("would not pass the gate now, or its override was revoked", group)
        self._still_ours(group)
        with _sparing(group):
            self._unchanged(first, at)  # the very last: what is written from here on, a source without times hides

    def _unchanged(self, proof: Proof, at: str) -> None:
        found = self.shift.source.stat(at)
        if found.version != proof.version:
            raise SourceChanged("has changed since it was delivered", path=at)

    def _listed(self, group: Sequence[Proof]) -> None:
        for proof in (one for origin in group for one in origin.delivered):
            if not self._lists[self.shift.routes.index(proof.route_id)].holds(proof):
                raise Spared(f"is not in the manifest {names.display(proof.manifest or '')} as it lies there", group)

    def _lost(self, group: Sequence[Proof]) -> list[tuple[Proof, OnblockError]]:
        """The rows whose file is not what was delivered. Raises OnblockError if a destination cannot be looked at."""
        lost: list[tuple[Proof, OnblockError]] = []
        for proof in (one for origin in group for one in origin.delivered):
            try:
                look(self.shift.sessions[self.shift.routes.index(proof.route_id)], proof)
            except LOST as error:
                if self.shift.ledger.replaced([proof.id]):
                    raise Spared("was replaced at the destination by another version", group) from error
                lost.append((proof, error))
        return lost

    def _passes_gate(self, proof: Proof) -> bool:
        ledger = self.shift.ledger
        delivered = [(self._as_judged(proof, one), one.dest_path) for one in proof.delivered]
        if all(still_passes(file, to, self.job, [], 0, proof.findings) for file, to in delivered):
            return True
        overrides, now = ledger.overrides(self.job.name), ledger.clock()  # as they are at this moment
        return all(still_passes(file, to, self.job, overrides, now, proof.findings) for file, to in delivered)

    @staticmethod
    def _as_judged(origin: Proof, one: Proof) -> FileInfo:
        """A delivered file as the gate saw it: what was made of a file lay beside it."""
        if one is origin:
            return FileInfo(origin.path, *origin.version)
        folder, name = origin.path.rpartition("/")[0], one.dest_path.rpartition("/")[2]
        return FileInfo(f"{folder}/{name}" if folder else name, *one.version)

    def _still_ours(self, group: list[Proof]) -> None:
        if time.monotonic() - self._sure_at < SURE_S:
            return
        if not self.shift.ledger.holds_cleanup(self.shift.id, self._ours):
            raise Spared("another cleanup has taken it over", group)
        self._sure_at = time.monotonic()

    # -- aside, and back ------------------------------------------------------------------------------------------------

    def _put_aside(self, proof: Proof) -> str | None:
        """Give the file another name at its source; which. Never over anything. None if it was deleted at once."""
        if self.settings.action is not Action.BACKUP:
            features = self.shift.source.features
            if not features.renames or (self._two_places and not features.mtime_set):
                self.shift.source.delete_seen(
                    FileInfo(proof.path, *proof.version)
                )  # where a rename copies all the bytes, one in each run is enough
                return None
            to = hidden(proof)
            self.shift.source.move(proof.path, to)
            return to
        for to in self._backups(proof):
            try:
                self.shift.source.move(proof.path, to)
                return to
            except Conflict:
                if not self._is_there(to):
                    raise
        raise Conflict("there are too many backups of this name", path=proof.path)

    def _backups(self, proof: Proof) -> Iterator[str]:
        """Where a file may go in the backup folder: its own path, then with a number."""
        path = f"{self.settings.backup_folder}/{proof.path}"
        return chain([path], names.alternatives(path))

    def _look_again(self, group: Sequence[Proof], at: str) -> None:
        """What was moved is what was looked at, and the destinations have not lost it by that."""
        first, source = group[0], self.shift.source
        moved = source.stat(at)
        if moved.size != first.size or (source.features.mtime_set and moved.mtime_ns != first.mtime_ns):
            raise SourceChanged("changed in the moment it was to be cleaned up", path=first.path)
        self._apart(group, at)

    def _apart(self, group: Sequence[Proof], to: str) -> None:
        """Every destination still has its file, although the one at the source has moved `to` there; and has nothing
        where that would be if both were one place: of the file itself a mount may answer from its cache, which knows
        nothing of a name that was never asked for. Raises SameFile."""
        for proof, one in [(origin, one) for origin in group for one in origin.delivered]:
            session = self.shift.sessions[self.shift.routes.index(proof.route_id)]
            moved = _moved_to(proof._replace(dest_path=one.dest_path), to)
            if _has(session, one.dest_path, one.size) and (moved is None or not _has(session, moved, proof.size)):
                continue
            raise SameFile(
                "is gone from the destination when it is moved at the source: both are one place, or it was removed "
                "there in this moment; it was put back", path=proof.path,
                remedy="see that the destination is not the source under another name before you clean up again",
            )  # fmt: skip
        self._two_places = True

    def _put_back(self, at: str, proof: Proof) -> bool:
        """Give the file its name again; whether it has it, or is gone for good as it should."""
        try:
            self.shift.source.move(at, proof.path)
            return True
        except OnblockError as error:
            log.error("%s lies at %s, and could not be put back: %s", proof.path, at, error)
            return False

    def _is_there(self, path: str) -> bool:
        try:
            self.shift.source.stat(path)
        except NotFound:
            return False
        except Conflict:
            return True  # a folder
        return True

    # -- after a cleanup that died --------------------------------------------------------------------------------------

    def look_after(self, group: list[Proof]) -> Settled | None:
        """What a cleanup that died has done with a file: put back what it left aside. None if that cannot be done."""
        first = group[0]
        aside = hidden(first)
        if self._is_there(aside):
            if self._is_there(first.path) or not self._put_back(aside, first):
                return None
            return Settled(group, False)
        if self._is_there(first.path):
            return Settled(group, False)
        if self.settings.backup_folder is not None:
            for to in self._backups(first):
                if not self._is_there(to):
                    break
                if self._is_it(first, to):
                    try:
                        self._apart(group, to)
                    except OnblockError:
                        return Settled(group, False) if self._put_back(to, first) else None
                    return Settled([p._replace(backup=to) for p in group], True)
        return Settled(group, False, nowhere=True)

    def _is_it(self, proof: Proof, at: str) -> bool:
        source = self.shift.source
        try:
            return source.stat(at).size == proof.size and source.checksum(at) == proof.sha256
        except OnblockError:
            return False


class SameFile(ConfigError):
    """Source and destination are one place: nothing more is cleaned up."""


@contextmanager
def _sparing(group: list[Proof]) -> Iterator[None]:
    """A failure spares the file."""
    try:
        yield
    except (SourceChanged, SourceVanished, NotFound, ConfigError) as error:
        raise Spared(error.what, group) from error
    except OnblockError as error:
        raise Spared(str(error), group, unsure=True) from error


def hidden(proof: Proof) -> str:
    """Where a file lies for a moment before it is deleted: a name that no listing shows, the same for the same version."""
    return names.temporary(proof.path, f"clean\0{proof.version}")


def _moved_to(proof: Proof, to: str) -> str | None:
    """The name at the destination of what was moved `to` at the source, if both are one place. None if it has none."""
    folder, slash, _ = proof.dest_path.rpartition("/")
    if to == hidden(proof):
        return f"{folder}{slash}{to.rpartition('/')[2]}"
    root = proof.dest_path.removesuffix(proof.path)  # where the source's root is at the destination
    return f"{root}{to}" if proof.dest_path.endswith(proof.path) and (not root or root.endswith("/")) else None


def _has(session: Session, path: str, size: int) -> bool:
    try:
        return session.stat(path).size == size
    except NotFound:
        return False


class Listed:
    """The lines of the manifests of one destination, as they lie there, for the files that are expected."""

    def __init__(self, session: Session):
        self._session = session
        self._wanted: dict[str, set[str]] = {}  # by manifest: final names
        self._known: dict[str, tuple[tuple[int, int, str], dict[str, set[str]]]] = {}

    def expect(self, proofs: Sequence[Proof]) -> None:
        """Only these are asked for from now on. What was read of manifests is forgotten."""
        self._wanted, self._known = {}, {}
        for proof in proofs:
            if proof.manifest is not None:
                self._wanted.setdefault(proof.manifest, set()).add(proof.dest_path)

    def holds(self, proof: Proof) -> bool:
        """Whether the manifest names this file with this checksum, and with no other. Read again if it has changed."""
        if proof.manifest is None:
            return False
        try:
            version = self._session.stat(proof.manifest).version
        except NotFound:
            return False
        known = self._known.get(proof.manifest)
        if known is None or known[0] != version:
            known = self._known[proof.manifest] = (version, self._read(proof.manifest))
        return known[1].get(proof.dest_path) == {proof.sha256}

    def _read(self, manifest: str) -> dict[str, set[str]]:
        folder = manifest.rpartition("/")[0]
        base = f"{folder}/" if folder else ""
        wanted = self._wanted.get(manifest, set())
        found: dict[str, set[str]] = {}
        for _, below, digest in lines_of(self._session, manifest, folder):
            if (path := base + below) in wanted:
                found.setdefault(path, set()).add(digest)
        return found
