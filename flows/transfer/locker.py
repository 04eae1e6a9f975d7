"""Where a file lies between fetch and deliver: a folder of its own in the spool, which outlives the run.

    spool/files/KEY/of.json        which file version of which job it is
    spool/files/KEY/in/NAME        the file as it was fetched, whole or not there
    spool/files/KEY/fetched.json   its SHA-256: what is written here is not fetched again
    spool/files/KEY/made-STEPS/    what the steps made of it
    spool/files/KEY/made-STEPS.json  ... all of it: what is written here is not made again

Who works in it is decided by the rows of the ledger. Nothing here reads or writes those.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blocks import names
from blocks.home import home
from blocks.storage.base import FileInfo
from blocks.storage.posix import sync_file, sync_folder
from flows.transfer.spool import spool_failure

log = logging.getLogger("onblock.transfer")


def files_root() -> Path:
    """The folder of all lockers."""
    return home() / "spool" / "files"


class Output(NamedTuple):
    """One file that steps gave: its path below the folder of all lockers, and the one that it keeps, from the folder
    that its source lies in."""

    path: str
    kept: str


class Locker:
    """The folder of one file version of one job. `owner` names the ledger and the job."""

    def __init__(self, owner: str, file: FileInfo):
        self.owner, self.file = owner, file
        version = f"{owner}\0{names.to_text(file.path)}\0{file.size}\0{file.mtime_ns}\0{file.etag}"
        self.key = hashlib.sha256(version.encode()).hexdigest()[:32]
        self.folder = files_root() / self.key
        self.name = file.path.rpartition("/")[2]
        self.path_in = f"{self.key}/in/{self.name}"

    @property
    def input(self) -> Path:
        """The file as it was fetched."""
        return self.folder / "in" / self.name

    def open(self) -> None:
        """Make the folder. Raises OnblockError."""
        try:
            self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        except OSError as error:
            raise spool_failure(error) from error
        _write(self.folder / "of.json", {"owner": self.owner, "version": _version(self.file)})

    def fetched(self) -> str | None:
        """The SHA-256 of the file if it lies here whole."""
        record = _read(self.folder / "fetched.json")
        if record is not None and isinstance(record.get("sha256"), str):
            with contextlib.suppress(OSError):
                if os.stat(self.input).st_size == record.get("bytes"):
                    return record["sha256"]
        return None

    def note_fetched(self, sha256: str) -> None:
        """It lies here whole. Raises OnblockError."""
        try:
            size = os.stat(self.input).st_size
        except OSError as error:
            raise spool_failure(error) from error
        _write(self.folder / "fetched.json", {"sha256": sha256, "bytes": size})

    def forget(self) -> None:
        """What lies here is not what was fetched: it is fetched again."""
        (self.folder / "fetched.json").unlink(missing_ok=True)

    def work(self, attempt: int) -> Path:
        """An empty folder to make something in, which no other attempt uses. Raises OnblockError."""
        folder = self.folder / f"work-{attempt}"
        try:
            for left in self.folder.glob("work-*"):  # of attempts that were killed; ours is the latest
                shutil.rmtree(left, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise spool_failure(error) from error
        return folder

    def made(self, steps: str) -> list[Output] | None:
        """What these steps have made of it, if they are done."""
        record = _read(self.folder / f"made-{steps}.json")
        if record is None:
            return None
        try:
            outputs = [Output(f"{self.key}/{o['path']}", o["kept"]) for o in record["outputs"]]
            sizes = [o["bytes"] for o in record["outputs"]]
        except (KeyError, TypeError):
            return None
        for output, size in zip(outputs, sizes, strict=True):
            try:
                if os.stat(files_root() / output.path).st_size != size:
                    return None
            except OSError:
                return None
        return outputs

    def keep(self, steps: str, work: Path, outputs: Sequence[tuple[Path, str]]) -> list[Output]:
        """What was made in `work`, durably and all at once: (file, path it keeps) each; or what another run, which may
        deliver it already, has made meanwhile. Raises OnblockError."""
        if (theirs := self.made(steps)) is not None:
            shutil.rmtree(work, ignore_errors=True)
            return theirs
        made = self.folder / f"made-{steps}"
        kept: list[dict[str, Any]] = []
        try:
            for path, keeps in outputs:
                sync_file(str(path))
                inside = path.relative_to(work) if path.is_relative_to(work) else None
                place = f"in/{path.name}" if inside is None else f"{made.name}/{inside}"
                kept.append({"path": place, "kept": keeps, "bytes": os.stat(path).st_size})
            (self.folder / f"made-{steps}.json").unlink(missing_ok=True)
            shutil.rmtree(made, ignore_errors=True)
            work.rename(made)
            for folder, _, _ in os.walk(made):
                sync_folder(folder)
        except OSError as error:
            raise spool_failure(error) from error
        _write(self.folder / f"made-{steps}.json", {"outputs": kept}, sync=True)
        return [Output(f"{self.key}/{o['path']}", o["kept"]) for o in kept]

    def remove(self) -> None:
        """It is delivered, or nobody wants it: gone in one step, for those who look for it."""
        gone = self.folder.with_name(f"{GONE}{self.key}-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):
            try:
                self.folder.rename(gone)
            except OSError as error:
                log.warning("%s stays in the spool: %s", self.folder, error)
        shutil.rmtree(gone, ignore_errors=True)


GONE = ".gone-"
"""Folders that begin so are what is left of removed lockers."""


def sweep() -> None:
    """Remove what somebody was about to remove when he died."""
    for folder in files_root().glob(f"{GONE}*"):
        shutil.rmtree(folder, ignore_errors=True)


def lockers_of(owner: str) -> Iterator[Locker]:
    """All lockers of an owner."""
    for record in files_root().glob("*/of.json"):
        if record.parent.name.startswith(GONE):
            continue
        found = _read(record)
        if found is not None and found.get("owner") == owner:
            try:
                path, size, mtime_ns, etag = found["version"]
                file = FileInfo(names.from_text(str(path)), int(size), int(mtime_ns), str(etag))
            except (KeyError, TypeError, ValueError) as error:
                log.warning("%s says nothing that can be understood (%s): left alone", record, error)
                continue
            yield Locker(owner, file)


def _version(file: FileInfo) -> list[Any]:
    return [names.to_text(file.path), file.size, file.mtime_ns, file.etag]


def _read(path: Path) -> dict[str, Any] | None:
    """A record; None if there is none, or none that can be read: then the work is done again."""
    try:
        found = json.loads(path.read_text("utf-8", "surrogateescape"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s): done again", path, error)
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, record: dict[str, Any], *, sync: bool = False) -> None:
    """A record, all of it or nothing."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(record), "utf-8", "surrogateescape")
        if sync:
            sync_file(str(part))
        part.replace(path)
        if sync:
            sync_folder(str(path.parent))
    except OSError as error:
        raise spool_failure(error) from error
