"""Manifests in the ledger: which are behind, who writes them, and what is to stand in them.

The file itself is written by `flows/transfer/manifest.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection, select, update

from blocks import names
from flows.ledger.looking import NAMED
from flows.ledger.models import File, Manifest, Route, Run
from flows.ledger.runs import Runs
from flows.ledger.states import State

LOOK_BACK = 50
"""How many dead runs are looked back upon: all but the last few have had a successor that cleared up."""


class ManifestClaim(NamedTuple):
    """A manifest that is ours to write for now. `left` names runs that may have left a staged one when they died."""

    id: int
    path: str
    version: int
    left: tuple[str, ...]


class Manifests(Runs):
    """The manifests of a ledger: the writer of one is a run, which may die like any other."""

    def manifest(self, destination: str, path: str) -> int:
        """The id of a manifest, made at need."""
        text = names.to_text(path)
        with self._write() as c:
            self._insert_new(c, Manifest, [{"destination": destination, "path": text, "version": 0, "written": 0}])
            return c.execute(
                select(Manifest.id).where(Manifest.destination == destination, Manifest.path == text)
            ).scalar_one()

    def claim_manifest(self, destination: str, run_id: str) -> ManifestClaim | None:
        """A manifest that is behind the ledger and that nobody alive is writing."""
        behind = (
            select(Manifest.id, Manifest.path, Manifest.version, Manifest.writer)
            .where(Manifest.destination == destination, Manifest.written < Manifest.version)
            .order_by(Manifest.id)
        )
        with self._write() as c:
            if not self._sqlite:
                behind = behind.with_for_update()
            for found in c.execute(behind).all():  # its writer is looked at only now that nobody else can take it
                before = None if found.writer == run_id else found.writer
                if before is None or self._has_ended(c, before):
                    c.execute(update(Manifest).where(Manifest.id == found.id).values(writer=run_id))
                    left = () if before is None else self._dead_writers(c, destination, before, run_id)
                    return ManifestClaim(found.id, names.from_text(found.path), found.version, left)
        return None

    def _dead_writers(self, c: Connection, destination: str, writer: str, run_id: str) -> tuple[str, ...]:
        """The last writer, and runs to this destination that died: one may have died before it could clear up after
        the one before. A run that has ended in order has cleared up after itself."""
        jobs = select(Route.job).where(Route.destination == destination)
        others = c.execute(
            select(Run.id)
            .where(Run.job.in_(jobs), Run.summary.is_(None), Run.id.not_in((writer, run_id)))
            .order_by(Run.started_at.desc()).limit(LOOK_BACK)
        )  # fmt: skip
        return writer, *(i for i in others.scalars().all() if self._has_ended(c, i))

    def holds_manifest(self, manifest_id: int, run_id: str) -> bool:
        """Whether it is still this run that writes it."""
        with self._read() as c:
            return c.execute(select(Manifest.writer).where(Manifest.id == manifest_id)).scalar_one() == run_id

    def manifest_written(self, manifest_id: int, run_id: str, version: int) -> bool:
        """The file on the destination now holds `version`. False for a run that was taken for dead meanwhile: its file
        may lack what its successor wrote, so that the manifest is behind once more."""
        with self._write() as c:
            mine = c.execute(
                update(Manifest).where(Manifest.id == manifest_id, Manifest.writer == run_id)
                .values(written=version, writer=None)
            ).rowcount  # fmt: skip
            if not mine:
                c.execute(update(Manifest).where(Manifest.id == manifest_id).values(version=Manifest.version + 1))
            return bool(mine)

    def manifest_lines(self, manifest_id: int) -> Iterator[tuple[str, str]]:
        """(dest_path, sha256) of all verified files of a manifest, in the order of the path's text, streaming; with ""
        for those that retention has removed, which are to be left out."""
        key = File.dest_path if self._sqlite else File.dest_path.collate("C")
        last: str | None = None
        query = (
            select(File.dest_path, File.sha256, File.state)
            .where(File.manifest_id == manifest_id, File.state.in_(NAMED))
            .order_by(key, File.done_at.desc(), File.id.desc())
        )
        with self._read() as c:
            if not self._sqlite:  # between two pages they go over a link that may be slow; and this holds no locks
                c.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            for path, sha256, state in c.execution_options(yield_per=2000).execute(query):
                if path != last and sha256 is not None:  # a replaced file: what was delivered last
                    yield names.from_text(path), "" if state == State.RETIRED else sha256
                last = path
