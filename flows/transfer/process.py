"""The second phase: what was fetched goes through the job's steps, and what they make becomes shipments of their own.

The steps themselves are in `steps/`; how products are delivered is in `move.py`. A file's outputs lie in its locker, and
are not made again if they are all there. What failed is written down as any failure is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from blocks import names
from blocks.errors import Cancelled, ConfigError, Corrupt, Kind, NetworkError, OnblockError, Paused, as_onblock
from blocks.storage.base import FileInfo
from flows.ledger.rows import MADE, Claim, NewFile, Outcome
from flows.ledger.states import DONE, State
from flows.ledger.wishes import Wish
from flows.transfer.accounts import Accounts
from flows.transfer.fetch import Fetched
from flows.transfer.gate import Passage
from flows.transfer.job import Dedup, TransferJob
from flows.transfer.locker import Output, files_root
from flows.transfer.progress import Receipt
from flows.transfer.reservations import PROCESSING, disk_of, does_not_fit, free_at, needed
from flows.transfer.run import TransferRun, Way
from flows.transfer.shipment import Item, Leg, Shipment, pack
from flows.transfer.spool import spool_failure
from flows.transfer.steps.base import Ask, Step, kept_path, lineage, run_steps

log = logging.getLogger("onblock.transfer")

LINEAGE = ".onblock.json"
"""The ending of the sidecar that tells where a file comes from."""


Label = tuple[str | None, str | None]
"""Flight and device."""


def steps_key(job: TransferJob, label: Label = (None, None)) -> str:
    """Names what the steps make: other steps, a newer version of one, or another flight make it anew."""
    told = json.dumps([lineage(job.steps), job.lineage, label], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def unit_key(steps: Sequence[Step], path: str) -> tuple[str, str] | None:
    """What a file has in common with the others that a step wants together with it; None if it goes by itself."""
    folder, _, name = path.rpartition("/")
    for step in steps:
        if step.applies(name) and (key := step.group(name)) is not None:
            return folder, key
    return None


class Unit(NamedTuple):
    """What goes through the steps together: as a rule one file."""

    files: list[Fetched]

    @property
    def path(self) -> str:
        """That of its first file."""
        return self.files[0].file.path

    @property
    def claims(self) -> list[tuple[Leg, Claim]]:
        """Its rows, as they were claimed for the fetch."""
        return [pair for f in self.files for pair in zip(f.legs, f.claims, strict=True)]


class Made(NamedTuple):
    """What was made of a unit."""

    unit: Unit
    outputs: list[Output]


class Process(Accounts):
    """What was fetched of one shipment, on its way through the steps, by one thread.

    After `process()`, `made` holds the shipments of what was made, and `origins` the rows, (row, attempt, SHA-256),
    whose fate they decide.
    """

    def __init__(self, run: TransferRun, shipment: Shipment, fetched: Sequence[Fetched]):
        super().__init__(run, shipment)
        self._fetched = list(fetched)
        self._claims = {c.id: c for f in fetched for c in f.claims}
        self._sha256 = {c.id: f.sha256 for f in fetched for c in f.claims}
        self.made: list[Shipment] = []
        self.origins: list[tuple[int, int, str]] = []
        self._labels: dict[int, Label] = {}
        self._made_before: set[int] = set()  # rows of which everything that is to be made was delivered before

    def process(self) -> Receipt:
        """Make what is to be delivered. Raises Cancelled when the run is stopped, and what the ledger raises."""
        made: list[Made] = []
        units = self._units()
        ledger = self.run.ledger
        try:
            self._labels = ledger.labels_of(list(self._claims))
            self._made_before = ledger.made_before({c.id: self._key(u) for u in units for _, c in u.claims})
            self._move_on(State.PROCESSING, [claim for unit in units for _, claim in unit.claims])
            with self._room(units) as roomy:
                for unit in units:
                    made += self._one(unit, roomy)
            self._write_down()
            self._enter(made)
        except Exception as error:
            failure = as_onblock(error)
            for unit in units:
                self._fail_all(unit, failure)
            self._write_down()
            if not isinstance(error, OnblockError) or error.kind is Kind.CANCELLED:
                raise
        return self.receipt

    def _label(self, unit: Unit) -> Label:
        """The flight and device of a unit: those it was entered for, whatever this run is for."""
        flight, device = self._labels.get(unit.files[0].claims[0].id, (None, None))
        return flight, device or self.job.device

    def _key(self, unit: Unit) -> str:
        key = steps_key(self.job, self._label(unit))
        if len(unit.files) == 1:
            return key
        return f"{key}-{hashlib.sha256(''.join(f.locker.key for f in unit.files).encode()).hexdigest()[:8]}"

    @contextlib.contextmanager
    def _room(self, units: Sequence[Unit]) -> Iterator[bool]:
        """Room in the spool for what is made of all of these, while this lasts; False if there is not so much."""
        place = disk_of(files_root())
        need = sum(self._need(unit) for unit in units)
        hold, short = self.run.room.take(place, [need], lambda: free_at(files_root()))
        try:
            yield short[0] is None
        finally:
            self.run.room.release(place, hold)

    def _need(self, unit: Unit) -> int:
        return sum(needed(f.file.size, unknown=self.job.unknown_size, factor=PROCESSING) for f in unit.files)

    def _units(self) -> list[Unit]:
        units: list[Unit] = []
        groups: dict[tuple[str, str], Unit] = {}
        for one in sorted(self._fetched, key=lambda f: f.file.path):
            key = unit_key(self.job.steps, one.file.path)
            if key is not None and key in groups:
                groups[key].files.append(one)
                continue
            units.append(Unit([one]))
            if key is not None:
                groups[key] = units[-1]
        return units

    def _move_on(self, state: State, claims: Iterable[Claim]) -> None:
        """Rows of ours go to another state; those that are no longer ours are no longer our affair."""
        claims = list(claims)
        ours = self.run.ledger.finish([
            Outcome(c.id, c.attempt, state, sha256=self._sha256[c.id], tries=c.tries, journal=None) for c in claims
        ])  # fmt: skip
        for claim in claims:
            if claim.id not in ours:
                self._claims.pop(claim.id, None)

    # -- one unit -----------------------------------------------------------------------------------------------------------

    def _one(self, unit: Unit, roomy: bool) -> list[Made]:
        try:
            self._whole(unit)
            self._known(unit)
            self._wanted(unit)
            ours = self._ours(unit)
            if not ours:
                return []
            if all(claim.id in self._made_before for _, claim in ours):
                return [Made(unit, [])]
            if roomy:
                return [Made(unit, self._outputs(unit))]
            with self._room([unit]) as fits:
                if not fits:
                    raise does_not_fit(unit.path, "the spool", self._need(unit), free_at(files_root()))
                return [Made(unit, self._outputs(unit))]
        except Exception as error:
            failure = as_onblock(error)
            if self.run.stop.is_set() and failure.kind is Kind.CANCELLED:
                raise
            if failure is not error:
                log.exception("%s could not be processed", names.display(unit.path))
            self._fail_all(unit, failure)
            return []

    def _whole(self, unit: Unit) -> None:
        """A step that wants several files together gets all of them that are there, or none."""
        key = unit_key(self.job.steps, unit.path)
        if key is None:
            return
        listed = {item.file.path for item in self.shipment.items if unit_key(self.job.steps, item.file.path) == key}
        if missing := sorted(listed - {f.file.path for f in unit.files}):
            raise NetworkError(f"waits for {names.display(missing[0])}, which could not be fetched", path=unit.path)

    def _ours(self, unit: Unit) -> list[tuple[Leg, Claim]]:
        return [(leg, claim) for leg, claim in unit.claims if claim.id in self._claims]

    def _known(self, unit: Unit) -> None:
        """With dedup by content, what was made of the same content is not made again."""
        if self.job.dedup is not Dedup.CONTENT or len(unit.files) > 1:
            return
        for leg, claim in self._ours(unit):
            route_id = self.ways[leg.way].route_id
            assert route_id is not None  # a dry run processes nothing
            if self.run.ledger.same_origin(route_id, unit.files[0].sha256, claim.id) is not None:
                del self._claims[claim.id]
                self.receipt.duplicates += 1
                self._outcomes.append(Outcome(
                    claim.id, claim.attempt, State.DUPLICATE, sha256=unit.files[0].sha256, verified_by="content",
                    tries=claim.tries,
                ))  # fmt: skip

    def _wanted(self, unit: Unit) -> None:
        """Rows that somebody wants paused or cancelled are; the unit goes on for the others. Raises Cancelled if the run
        is stopped."""
        if self.run.stop.is_set():
            raise Cancelled("the run was stopped", path=unit.path)
        for leg, claim in self._ours(unit):
            match self.run.wish(claim.id):
                case Wish.PAUSE:
                    self._fail(leg, Paused("was paused", path=unit.path), "process")
                case Wish.CANCEL:
                    self._withdraw(leg, unit.files[0].file)
                case _:
                    continue

    def _check(self, unit: Unit) -> None:
        self._wanted(unit)
        if not self._ours(unit):
            raise Cancelled("nobody wants it any more", path=unit.path)

    def _outputs(self, unit: Unit) -> list[Output]:
        locker, key = unit.files[0].locker, self._key(unit)
        if (there := locker.made(key)) is not None:
            return there
        work = locker.work(max(claim.attempt for _, claim in self._ours(unit)))
        flight, device = self._label(unit)
        ask = Ask(
            work=work, mtime_ns=unit.files[0].file.mtime_ns, zone=self.job.zone(), flight=flight, device=device,
            job=self.job.name, told=self._progress(unit), asked=lambda: self._check(unit),
        )  # fmt: skip
        try:
            inputs = [f.locker.input for f in unit.files]
            found = run_steps(self.job.steps, inputs, work, ask)
            if any(path in inputs for path in found) or any(step.MAY_HURT for step in self.job.steps):
                self._unharmed(unit)
            outputs = [(path, kept_path(path, work)) for path in found]
            if self.job.lineage:
                outputs += self._sidecars(unit, outputs, work)
            return locker.keep(key, work, outputs)
        except OSError as error:
            raise spool_failure(error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _unharmed(self, unit: Unit) -> None:
        """What was fetched is still what was fetched: it may be delivered as it is, or be the only copy."""
        for one in unit.files:
            with one.locker.input.open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == one.sha256
            if not same:
                one.locker.forget()
                raise Corrupt(
                    "a step has changed the file it was to read; it is fetched again", path=one.file.path,
                    remedy="have the script write to its own folder, then `onblock transfers retry`",
                )  # fmt: skip

    def _progress(self, unit: Unit) -> Callable[[float], None]:
        return lambda done: self.run.watcher.progress("process", unit.path, done)

    def _sidecars(self, unit: Unit, outputs: Sequence[tuple[Path, str]], work: Path) -> list[tuple[Path, str]]:
        """A sidecar beside each output; of those in a folder of its own, one beside the folder."""
        beside: dict[str, list[tuple[Path, str]]] = {}
        for path, kept in outputs:
            beside.setdefault(kept.partition("/")[0], []).append((path, kept))
        made: list[tuple[Path, str]] = []
        for name, files in beside.items():
            told = json.loads(self._lineage(unit)) | {"files": [_described(path, kept) for path, kept in files]}
            if len(os.fsencode(name + LINEAGE)) > 255:
                short = os.fsencode(name)[: 255 - len(LINEAGE) - 9].decode("utf-8", "ignore")
                name = f"{short}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
            sidecar = work / "out" / f"{name}{LINEAGE}"
            sidecar.parent.mkdir(parents=True, exist_ok=True)
            sidecar.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
            mtime_ns = unit.files[0].file.mtime_ns
            os.utime(sidecar, ns=(mtime_ns, mtime_ns))
            made.append((sidecar, sidecar.name))
        return made

    def _lineage(self, unit: Unit) -> str:
        """Where what is made of a unit comes from, as JSON."""
        flight, device = self._label(unit)
        told: dict[str, Any] = {
            "onblock": metadata.version("onblock"), "job": self.job.name, "flight": flight, "device": device,
            "run": self.run.id, "key": self._key(unit),
            "sources": [
                {
                    "place": self.job.source.place(), "path": names.display(f.file.path), "size": f.file.size,
                    "mtime_ns": f.file.mtime_ns, "etag": f.file.etag, "sha256": f.sha256,
                }
                for f in unit.files
            ],
            "steps": lineage(self.job.steps),
        }  # fmt: skip
        return json.dumps(told)

    def _fail_all(self, unit: Unit, error: OnblockError) -> None:
        for leg, _ in self._ours(unit):
            self._fail(leg, error, "process")

    # -- what was made --------------------------------------------------------------------------------------------------------

    def _enter(self, made: Sequence[Made]) -> None:
        """Rows for the products, linked with those they were made of; and the shipments that bring them."""
        left = [claim for m in made for _, claim in self._ours(m.unit)]
        self._move_on(State.PROCESSED, left)  # who has lost his rows meanwhile changes nothing from here on
        for number, way in enumerate(self.ways):
            try:
                self._enter_way(number, way, made)
            except NetworkError as error:  # the others get theirs
                for m in made:
                    for leg, _ in self._ours(m.unit):
                        if leg.way == number:
                            self._fail(leg, error, "write")
        self._write_down()
        left = [claim for claim in left if claim.id in self._claims]
        self._move_on(State.DELIVERING, left)
        self.origins = [(c.id, c.attempt, self._sha256[c.id]) for c in left if c.id in self._claims]

    def _enter_way(self, number: int, way: Way, made: Sequence[Made]) -> None:
        assert way.route_id is not None  # a dry run makes nothing
        with self.run.pool.session(way.storage) as session:
            features = session.features
        entering: dict[Label, list[tuple[Made, list[Claim], list[FileInfo], list[Passage]]]] = {}
        for m in made:
            mine = [claim for leg, claim in self._ours(m.unit) if leg.way == number]
            if not mine or not m.outputs:
                continue
            label = self._label(m.unit)
            there = [_file(output) for output in m.outputs]
            seen_as = [f._replace(path=_virtual(m.unit, o)) for f, o in zip(there, m.outputs, strict=True)]
            passages = self.run.gate.judge_made(seen_as, features, self.run.target_of(*label))
            stopped = next((p for p in passages if p.dest_path is None), None)
            if stopped is not None:
                self._block(mine, stopped)
            else:
                entering.setdefault(label, []).append((m, mine, there, passages))
        items: list[Item] = []
        origins: dict[int, list[int]] = {}
        for label, group in entering.items():
            manifest_id = self.run.manifest_of(way, self.run.target_of(*label))
            rows = iter(self.run.ledger.enter(
                self.run.id,
                [NewFile(way.route_id, f, p.dest_path, manifest_id) for _, _, there, passages in group
                 for f, p in zip(there, passages, strict=True)],
                flight=label[0], device=label[1],
            ))  # fmt: skip
            links: list[tuple[dict[int, int], list[tuple[int, str]]]] = []
            coming: list[Item] = []
            for m, mine, there, passages in group:
                told, entered = self._lineage(m.unit), [next(rows) for _ in there]
                links.append(({c.id: c.attempt for c in mine}, [(row.id, told) for row in entered]))
                for file, passage, row in zip(there, passages, entered, strict=True):
                    to = row.dest_path or passage.dest_path
                    assert to is not None  # it would have been stopped
                    origins[row.id] = [c.id for c in mine]
                    if row.state not in DONE:
                        coming.append(Item(file, (Leg(0, row.id, row.attempt, to),)))
            ours = self.run.ledger.link(links)
            for _, mine, _, _ in group:
                for claim in mine:
                    if claim.id not in ours:
                        self._claims.pop(claim.id, None)
            items += [i for i in coming if ours.intersection(origins[i.legs[0].row_id])]
        source = self.run.spool_way.storage
        self.made += pack(items, self.job.shipping, source=source, origins=origins, ways=[way])

    def _block(self, claims: Sequence[Claim], passage: Passage) -> None:
        failure = passage.failure or ConfigError("may not be delivered")
        for claim in claims:
            self._claims.pop(claim.id)
            self.receipt.blocked += 1
            self._outcomes.append(Outcome(
                claim.id, claim.attempt, State.BLOCKED, sha256=self._sha256[claim.id], failure=failure, stage="gate",
                tries=claim.tries,
            ))  # fmt: skip


def _described(path: Path, kept: str) -> dict[str, Any]:
    """An output, as a sidecar names it."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": names.display(kept), "size": path.stat().st_size, "sha256": sha256}


def _virtual(unit: Unit, output: Output) -> str:
    """Where an output would lie at the source, had it been made there."""
    folder = unit.path.rpartition("/")[0]
    return f"{folder}/{output.kept}" if folder else output.kept


def _file(output: Output) -> FileInfo:
    st = os.stat(files_root() / output.path)
    return FileInfo(output.path, st.st_size, st.st_mtime_ns, MADE)
