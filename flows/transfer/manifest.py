"""The list of delivered files and their SHA-256 beside them, which `sha256sum -c checksums.sha256` reads.

Written from the ledger after the rows are, merged with lines of the file that the ledger does not know (of another
onblock, or written by hand). Sorted, so that the merge streams: memory does not grow with the number of files.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator

from blocks import names
from blocks.errors import HashMismatch, NotFound, OnblockError, SourceVanished
from blocks.storage.base import Session, aligned_buffer
from flows.ledger import Ledger
from flows.ledger.manifests import ManifestClaim
from flows.transfer.run import TransferRun

log = logging.getLogger("onblock.transfer")

Line = tuple[bytes, str, str]  # sort key, path below the manifest's folder, digest


def write_manifests(run: TransferRun) -> None:
    """Bring every manifest of the run's destinations up to the ledger. A failure is noted in `run.problems`, and the
    next run tries again."""
    for way in run.ways:
        place = way.storage.place()
        try:
            with run.pool.session(way.storage) as session:
                bring_up(run.ledger, run.id, place, session)
        except OnblockError as error:
            log.error("the manifest at %s is not up to date: %s", place, error)
            run.problems.append(f"the manifest at {place} is not up to date: {error}")


def bring_up(ledger: Ledger, run_id: str, place: str, session: Session) -> None:
    """The same for one destination, for any kind of run. Raises OnblockError."""
    while (found := ledger.claim_manifest(place, run_id)) is not None:
        _bring_up(ledger, run_id, session, found)


def _bring_up(ledger: Ledger, run_id: str, session: Session, found: ManifestClaim) -> None:
    """Write one manifest. Each run stages under a name of its own, and removes what dead ones left: one that was taken
    for dead and wakes cannot give what it staged the final name after its successor."""
    for writer in found.left:
        session.discard(found.path, _staging_key(writer))
    folder = found.path.rpartition("/")[0]
    lines = merge(known(ledger, found.id, folder), existing(session, found.path, folder))
    try:
        ours = _write(session, found.path, run_id, lines, lambda: ledger.holds_manifest(found.id, run_id))
    except OnblockError:
        if ledger.holds_manifest(found.id, run_id):
            raise
        ours = False  # its successor has removed what was staged here
    if not (ours and ledger.manifest_written(found.id, run_id, found.version)):
        log.warning("another run has taken over the manifest %s meanwhile", names.display(found.path))


def _staging_key(run_id: str) -> str:
    return f"manifest\0{run_id}"


def known(ledger: Ledger, manifest_id: int, folder: str) -> Iterator[Line]:
    """The lines that the ledger knows, sorted; without a digest for what it knows to be removed."""
    skip = len(folder) + 1 if folder else 0
    for path, sha256 in ledger.manifest_lines(manifest_id):
        yield names.to_text(path).encode(), path[skip:], sha256


def existing(session: Session, path: str, folder: str) -> Iterator[Line]:
    """The lines of the file as it is, sorted. Only a file that somebody has put out of order is held in memory."""
    last = b""
    for line in lines_of(session, path, folder):
        if line[0] < last:
            break
        last = line[0]
    else:
        return lines_of(session, path, folder)
    return iter(sorted(lines_of(session, path, folder)))


def merge(ours: Iterable[Line], theirs: Iterable[Line]) -> Iterator[Line]:
    """Both sorted streams as one; of one path, our line, and none if that has no digest."""
    left, right = iter(ours), iter(theirs)
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a[0] <= b[0]):
            assert a is not None
            if b is not None and a[0] == b[0]:
                b = next(right, None)
            if a[2]:
                yield a
            a = next(left, None)
        else:
            yield b
            b = next(right, None)


def lines_of(session: Session, path: str, folder: str) -> Iterator[Line]:
    """The lines of a manifest as it lies there, in its own order; none if there is no such file."""
    base = f"{folder}/" if folder else ""
    for raw in _lines(session, path):
        if (parsed := names.parse_manifest_line(raw)) is not None:
            yield names.to_text(base + parsed[1]).encode(), parsed[1], parsed[0]


def _lines(session: Session, path: str) -> Iterator[bytes]:
    """Lines of a file at the destination; none if there is no such file."""
    try:
        session.stat(path)
    except NotFound:
        return
    rest = b""
    buffer = aligned_buffer(1 << 20)
    try:
        with session.read(path) as reader:
            while n := reader.readinto(buffer):
                *whole, rest = (rest + buffer[:n]).split(b"\n")
                yield from whole
    except SourceVanished:
        return
    if rest:
        yield rest


def _write(
    session: Session, path: str, run_id: str, lines: Iterable[Line], still_ours: Callable[[], bool]
) -> bool:  # fmt: skip
    """Stage the lines, read them back, and give them the final name; False, and nothing done, if it is not `still_ours`
    by then. Raises HashMismatch."""
    upload = session.upload(path, 0, key=_staging_key(run_id))
    sha256 = hashlib.sha256()

    def send(chunk: bytes) -> None:
        sha256.update(chunk)
        upload.write(memoryview(chunk))

    try:
        chunk = bytearray()
        for _, name, digest in lines:
            chunk += names.manifest_line(digest, name)
            if len(chunk) >= 1 << 20:
                send(bytes(chunk))
                chunk.clear()
        send(bytes(chunk))
        same = upload.matches(sha256.hexdigest())
        if same is False:
            raise HashMismatch("did not arrive as it was written", path=path)
        if not still_ours():
            upload.abort()
            return False
        upload.commit(replace=True)
    except BaseException:
        upload.abort()
        raise
    if same is None and session.checksum(path) != sha256.hexdigest():
        raise HashMismatch("did not arrive as it was written", path=path)
    return True
