"""How a delivery is proven, and proven again.

`prove` runs before the final name is given where the storage can read back what is staged, `prove_final` after it
elsewhere. `verify_route` is `onblock verify`: everything delivered, held against the destination as it is now.
It never writes to the destination. Looking in parts, and what follows from it, is in `flows/upkeep`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from blocks import names
from blocks.errors import HashMismatch, NotFound, OnblockError, SourceVanished
from blocks.storage.base import Session, Storage, Upload
from flows.ledger.looking import DELIVERED, PAGE
from flows.ledger.proofs import APART_MS
from flows.ledger.store import Ledger
from flows.transfer.job import Verify


def prove(upload: Upload, sha256: str, verify: Verify) -> str | None:
    """Read back what was staged and compare; how it was proven, or None if that has to wait for the final name.

    Raises HashMismatch.
    """
    if verify not in (Verify.CHECKSUM, Verify.READBACK):
        return None
    same = upload.matches(sha256, fresh=verify is Verify.READBACK)
    if same is None:
        return None
    if not same:
        raise HashMismatch(f"did not arrive as it was read, with SHA-256 {sha256[:16]}...", path=upload.path)
    return str(verify)


def prove_final(session: Session, path: str, size: int, sha256: str, verify: Verify) -> str:
    """Look at a file under its final name; how it was proven. Raises HashMismatch or NotFound."""
    if verify in (Verify.EXISTS, Verify.SIZE):
        found = session.stat(path)
        if verify is Verify.SIZE and found.size != size:
            raise HashMismatch(f"has {found.size} bytes at the destination, was read with {size}", path=path)
    else:
        try:
            digest = session.checksum(path, fresh=verify is Verify.READBACK)
        except SourceVanished as error:
            raise NotFound("is not there", path=path) from error
        if digest != sha256:
            raise HashMismatch(f"has SHA-256 {digest[:16]}... now, was delivered with {sha256[:16]}...", path=path)
    return str(verify)


@dataclass
class Verified:
    """The outcome of verifying a route."""

    checked: int = 0
    bytes: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)  # (path, what is wrong)
    unverified: list[tuple[str, str]] = field(default_factory=list)  # could not be looked at: no verdict

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "checked": self.checked, "bytes": self.bytes, "ok": self.checked - len(self.damaged),
            "damaged": [{"path": names.display(p), "problem": w} for p, w in self.damaged],
            "unverified": [{"path": names.display(p), "problem": w} for p, w in self.unverified],
        }  # fmt: skip


def verify_route(ledger: Ledger, job: str, storage: Storage, *, apart_ms: int = APART_MS) -> Iterator[Verified]:
    """Hash every delivered file at the destination and compare with the ledger; the state of things after each file.

    A file that is missing or different becomes QUARANTINED in the ledger, a page of them at a time, and is counted
    then; one that could not be read keeps its state. For the others this is a verify pass, `apart_ms` after the last.
    """
    outcome = Verified()
    route_id = ledger.find_route(job, storage.place())
    if route_id is None:
        yield outcome
        return
    suspects: list[Suspect] = []
    proven: list[tuple[int, int]] = []  # row, attempt
    with storage.open() as session:
        try:
            for row in ledger.files(route_id=route_id, states=DELIVERED):
                path = row["dest_path"]
                if path is None:  # what was made of it is delivered
                    continue
                try:
                    prove_final(session, path, row["size"], row["sha256"], Verify.READBACK)
                    outcome.checked += 1
                    proven.append((row["id"], row["attempt"]))
                except (HashMismatch, NotFound) as error:
                    suspects.append(Suspect(row["id"], path, error))
                except OnblockError as error:
                    outcome.unverified.append((path, str(error)))
                outcome.bytes += row["size"]
                if len(suspects) >= PAGE:
                    _condemn(ledger, suspects, outcome)
                if len(proven) >= PAGE:
                    ledger.proven(proven, apart_ms)
                    proven.clear()
                yield outcome
        finally:  # also when somebody stops it: what was found is written down
            _condemn(ledger, suspects, outcome)
            ledger.proven(proven, apart_ms)
    yield outcome


class Suspect(NamedTuple):
    """A delivered file that is not what was delivered, unless the job itself has replaced it since."""

    id: int
    path: str
    failure: OnblockError


def _condemn(ledger: Ledger, suspects: list[Suspect], outcome: Verified) -> None:
    """Write down what is damaged, in one transaction; `suspects` is empty then."""
    replaced = ledger.replaced([s.id for s in suspects])  # these rows speak of a version that is no longer due there
    damaged = [s for s in suspects if s.id not in replaced]
    ledger.mark_damaged([(s.id, s.failure) for s in damaged])
    outcome.checked += len(damaged)
    outcome.damaged += [(s.path, s.failure.what) for s in damaged]
    suspects.clear()
