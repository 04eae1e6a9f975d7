"""What one task moves: a file version with its ways, and the shipments they are packed into."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from blocks import names
from blocks.storage.base import FileInfo, Session, Storage
from flows.transfer.job import Shipping
from flows.transfer.resume import Journal

LEAST_PART = 4
"""Files for which it is worth to work side by side."""
LOOK_BACK = 50
"""How many attempts back a temporary file is looked for: all but the last few have removed their own."""


class Leg(NamedTuple):
    """One file's way to one destination: the row that stands for it, and where it goes."""

    way: int
    row_id: int
    attempt: int  # before the claim
    dest_path: str


class Item(NamedTuple):
    """A file version to move, to one or several destinations."""

    file: FileInfo
    legs: tuple[Leg, ...]


class Shipment:
    """What one task moves: one large file, or many small ones."""

    def __init__(
        self, number: int, items: Sequence[Item], *, large: bool = False, source: Storage | None = None,
        origins: Mapping[int, Sequence[int]] | None = None, ways: Sequence[Any] = (),
    ):  # fmt: skip
        self.number, self.items, self.large = number, items, large
        self.ways = list(ways)  # `run.Way`s, if not all of the run
        self.source = source  # where the files lie, if not at the source of the job
        self.origins = origins or {}  # by row: the rows that it was made of
        self.bytes = sum(i.file.size for i in items)
        self.deferred = 0  # files that the last try put off
        self.begun = threading.Event()  # somebody moves it, or is done with it
        self.tried: set[str] = set()  # phases that have begun
        self.fetched: list[Any] = []  # what lies in the spool (`fetch.Fetched`)
        self.made: list[Shipment] = []  # what the steps made of it
        self.held_rows: list[tuple[int, int, str]] = []  # (row, attempt, SHA-256) whose fate that decides

    @property
    def row_ids(self) -> list[int]:
        """The rows of the ledger, for all destinations."""
        return [leg.row_id for item in self.items for leg in item.legs]

    def key(self, namespace: str) -> str:
        """A fingerprint of the file versions, their destinations and how often each was tried: the cache key of the
        task. Two runs that plan the same work get the same key; a file that is asked for again gets another."""
        digest = hashlib.sha256(namespace.encode())
        for file, legs in self.items:
            digest.update(f"{names.to_text(file.path)}\0{file.size}\0{file.mtime_ns}\0{file.etag}\0".encode())
            for leg in legs:
                digest.update(f"{leg.row_id}\0{leg.attempt}\0{names.to_text(leg.dest_path)}\0".encode())
        return digest.hexdigest()

    def split(self, most: int) -> list[Shipment]:
        """The same files in at most so many parts, of about equal numbers."""
        parts = max(1, min(most, len(self.items) // LEAST_PART))
        if parts == 1:
            return [self]
        return [
            Shipment(self.number, self.items[n::parts], source=self.source, origins=self.origins, ways=self.ways)
            for n in range(parts)
        ]

    def __str__(self) -> str:
        file, legs = self.items[0]
        first = names.display(file.path if self.source is None or not legs else legs[0].dest_path)
        return first if len(self.items) == 1 else f"{len(self.items)} files from {first}"


def staging_key(path: str, version: tuple[int, int, str], attempt: int) -> str:
    """Names one attempt at a file version to `Session.upload`. No two attempts share a temporary file: a worker that was
    taken for dead and wakes may only ever give its own bytes the final name."""
    return f"{path}\0{version}\0{attempt}"


def discard_staged(
    session: Session, dest_path: str, path: str, version: tuple[int, int, str], before: int, left: Journal | None = None
) -> None:
    """Remove what attempts before this one may have left behind when they were killed, or kept for a resume (`left`)."""
    for attempt in range(max(1, before - LOOK_BACK), before):
        token = left.token if left is not None and left.attempt == attempt else ""
        session.discard(dest_path, staging_key(path, version, attempt), token)


def pack(items: Iterable[Item], rules: Shipping, **given: Any) -> Iterator[Shipment]:
    """Gather files into shipments: large ones alone, small ones together, in the order they come. `given` is what the
    shipments have in common."""
    number = size = 0
    small: list[Item] = []
    for item in items:
        if item.file.size >= rules.large:
            number += 1
            yield Shipment(number, [item], large=True, **given)
            continue
        if small and (len(small) >= rules.max_files or size + item.file.size > rules.max_bytes):
            number += 1
            yield Shipment(number, small, **given)
            small, size = [], 0
        small.append(item)
        size += item.file.size
    if small:
        yield Shipment(number + 1, small, **given)
