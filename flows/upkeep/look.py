"""A fresh look at a delivered file, and what follows from it: shared by cleanup, retention and scrub."""

from __future__ import annotations

from collections.abc import Sequence

from blocks.errors import HashMismatch, NotFound, OnblockError, UnknownError
from blocks.storage.base import FileInfo, Session
from flows.ledger import Ledger
from flows.ledger.proofs import Proof
from flows.transfer.job import Verify
from flows.transfer.verify import prove_final

LOST = (HashMismatch, NotFound)
"""What says that a file is not there as it was delivered; after any other failure nobody can tell."""


def look(session: Session, proof: Proof) -> FileInfo:
    """Read a delivered file back from its destination and compare; the file as it was seen first. Raises HashMismatch, NotFound, and, where nobody can
    tell, other failures: so if its manifest is missing too, as at a mount point where nothing is mounted."""
    path, sha256 = proof.dest_path, proof.sha256
    if not path or sha256 is None:
        raise HashMismatch("there is no record of what was delivered", path=proof.path)
    try:
        found = session.stat(path)
        if found.size != proof.size:
            raise HashMismatch(f"has {found.size} bytes at the destination, was read with {proof.size}", path=path)
        prove_final(session, path, proof.size, sha256, Verify.READBACK)
        return found
    except NotFound as error:
        if proof.manifest is not None and not is_there(session, proof.manifest):
            raise UnknownError(
                "is not at the destination, and nor is the manifest that lists it", path=path,
                remedy="see that the destination is mounted; the next run of the job that delivers there writes the manifest",
            ) from error  # fmt: skip
        raise


def is_there(session: Session, path: str) -> bool:
    """Whether there is a file of this name. Raises OnblockError if nobody can tell."""
    try:
        session.stat(path)
    except NotFound:
        return False
    return True


def condemn(ledger: Ledger, lost: Sequence[tuple[Proof, OnblockError]]) -> list[tuple[Proof, OnblockError]]:
    """Write down what is damaged or lost; what really is: a file that the job itself has replaced since is not."""
    replaced = ledger.replaced([proof.id for proof, _ in lost])
    damaged = [(proof, failure) for proof, failure in lost if proof.id not in replaced]
    ledger.mark_damaged([(proof.id, failure) for proof, failure in damaged])
    return damaged
