"""What a step is, and how a chain of steps turns one unit (as a rule one file) into what is delivered.

Here are the contract (`Step`, `Ask`), the chain (`run_steps`), and what is written down about it (`lineage`). What each
step does is in its own file. Where inputs come from and where outputs go, claims, rows and retries are not here.

A failure leaves a step as a class of `blocks.errors`: by its kind the engine knows whether trying again can help
(Corrupt, ConfigError, ToolMissing and DiskFull are not retried by themselves).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pydantic import Field, field_validator

from blocks import names
from blocks.errors import ConfigError, Conflict, DiskFull, OnblockError, as_onblock
from blocks.storage.local import os_failure
from flows.transfer.form import Form
from flows.transfer.patterns import compile_pattern

OUTPUTS = "out"
"""The folder, below the work folder of `run_steps`, in which the outputs lie with the path they keep."""
CHUNK = 1 << 20
"""Bytes that are read at a time."""


def _no_one_cares(done: float) -> None:
    """Progress that is told to nobody."""


def _never() -> None:
    """A run that nobody stops."""


@dataclass(frozen=True)
class Ask:
    """What a step may ask of the run it works for."""

    work: Path
    """A folder on the disk where the work is done."""
    mtime_ns: int
    """The time of the source file (of the first one, if several are one unit), ns since 1970."""
    zone: tzinfo = UTC
    """The job's time zone."""
    flight: str | None = None
    device: str | None = None
    job: str | None = None
    told: Callable[[float], None] = _no_one_cares
    """Is given the progress of the whole, 0 to 1; does its own throttling."""
    asked: Callable[[], None] = _never
    """Raises Cancelled (or Paused) when the run was stopped."""

    def progress(self, done: float) -> None:
        """Tell how much is done, 0 to 1."""
        self.told(min(max(done, 0.0), 1.0))

    def check(self) -> None:
        """Raise Cancelled when the run was stopped. Steps call it at least every 0.2 s of work."""
        self.asked()

    def free(self) -> int:
        """Bytes free where the work is done."""
        there = os.statvfs(self.work)
        return there.f_bavail * there.f_frsize

    def share(self, begin: float, end: float) -> Ask:
        """The same, for a part of the work that takes the progress from `begin` to `end`."""
        return replace(self, told=lambda done: self.progress(begin + done * (end - begin)))

    def silent(self) -> Ask:
        """The same, for work beside other work that tells the progress."""
        return replace(self, told=_no_one_cares)


class Step(Form):
    """One thing that is done with files between fetch and deliver. Each subclass has a `kind`."""

    VERSION: ClassVar[int] = 1
    """Part of the lineage; raised when the same input gives another output."""
    SUFFIXES: ClassVar[frozenset[str]] = frozenset()
    """Endings (lower case, with the dot) of the files it takes by itself; empty for all."""

    PRIVATE: ClassVar[frozenset[str]] = frozenset()
    """Parameters that are no affair of whoever gets the file: the lineage holds their SHA-256."""
    MAY_HURT: ClassVar[bool] = False
    """Whether somebody else's program gets at the inputs, which then are looked at once more."""

    WHOLE: ClassVar[bool] = False
    """Whether what it makes refers to each other by name: later steps leave it alone, unless their `only` names it."""

    only: list[str] = Field(default=[])
    """Patterns of file names the step is for, such as `*.csv`; other files pass by. Empty: those the step is made for."""

    @field_validator("only")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        for pattern in value:
            compile_pattern(pattern)
        return value

    def applies(self, name: str) -> bool:
        """Whether a file of this name is for this step."""
        if self.only:
            return any(compile_pattern(p).fullmatch(name) for p in self.only)
        return not self.SUFFIXES or PurePosixPath(name).suffix.lower() in self.SUFFIXES

    def room(self, size: int) -> int:
        """Bytes that must be free in the work folder for inputs of `size` bytes in all."""
        return 2 * size

    def group(self, name: str) -> str | None:
        """Files of one folder with the same key are one unit for this step; None: the file is one by itself."""
        return None

    @abstractmethod
    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        """Make what replaces `inputs` (read-only, one unit) in the empty folder `work`.

        Returns files below `work`, whose path below it is kept, or some of `inputs` unchanged.
        Raises Corrupt, DiskFull, ToolMissing, ConfigError, UnknownError (may pass), Cancelled.
        """


def lineage(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Kind, version and parameters of each step, as they can be written down."""
    return [
        {
            "kind": _kind(step), "version": step.VERSION,
            "parameters": {k: _told(step, k, v) for k, v in step.model_dump(mode="json", exclude={"kind"}).items()},
        }
        for step in steps
    ]  # fmt: skip


def _told(step: Step, name: str, value: Any) -> Any:
    if name not in step.PRIVATE:
        return value
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _File:
    """A file on its way through the chain; `folder` is where it goes, relative to the folder of the first input."""

    path: Path
    folder: PurePosixPath
    whole: bool = False  # part of something whose parts refer to each other by name

    @property
    def target(self) -> str:
        return str(self.folder / self.path.name)


def run_steps(steps: Sequence[Step], unit: list[Path], work: Path, ask: Ask) -> list[Path]:
    """Send one unit through the chain; what comes out replaces it.

    Returned are files of `unit` that were left as they are, and files below `work/out`, whose path below that folder
    (see `kept_path`) is to be kept at the destination; these have the mtime of the source. Nothing else is left in
    `work`, also after a failure. The files of `unit` are never touched. Raises what `Step.run` raises, and Conflict
    where two outputs would get one name.
    """
    files = [_File(path, PurePosixPath()) for path in unit]
    made = _Made(work)
    whole = False
    try:
        for number, step in enumerate(steps):
            part = ask.share(number / len(steps), (number + 1) / len(steps))
            files = _one_step(step, files, made, part)
        result = [made.put(file) if made.holds(file.path) else file.path for file in files]
        whole = True
    except OSError as error:
        raise failure(error, "cannot be worked on", _shown(unit)) from error
    finally:
        made.clear(outputs=not whole)
    ask.progress(1.0)
    return result


def kept_path(output: Path, work: Path) -> str:
    """The path of an output of `run_steps(.., work, ..)` that is kept at the destination, from the folder of its unit."""
    base = work / OUTPUTS
    return str(output.relative_to(base)) if output.is_relative_to(base) else output.name


def failure(error: OSError, doing: str, path: str = "") -> OnblockError:
    """What went wrong with the disk the work is done on."""
    found = os_failure(error, doing, path)
    if isinstance(found, DiskFull):
        found.todo = "make room where ONBLOCK_HOME is, then run the job again"
    return found


class _Made:
    """The folders of the chain in its work folder."""

    def __init__(self, work: Path):
        self.work, self._count = work, 0

    def fresh(self) -> Path:
        """An empty folder for one unit of one step."""
        self._count += 1
        folder = self.work / str(self._count)
        folder.mkdir(parents=True)
        return folder

    def holds(self, path: Path) -> bool:
        return path.is_relative_to(self.work)

    def put(self, file: _File) -> Path:
        """Give an output its place."""
        place = self.work / OUTPUTS / file.target
        place.parent.mkdir(parents=True, exist_ok=True)
        return file.path.rename(place)

    def clear(self, *, outputs: bool) -> None:
        for number in range(1, self._count + 1):
            shutil.rmtree(self.work / str(number), ignore_errors=True)
        if outputs:
            shutil.rmtree(self.work / OUTPUTS, ignore_errors=True)


def _one_step(step: Step, files: list[_File], made: _Made, ask: Ask) -> list[_File]:
    """One step over all files there are so far."""
    units = _units(step, files)
    sizes = [sum(f.path.stat().st_size for f in unit) or 1 for unit, taken in units if taken]
    out: list[_File] = []
    done = 0
    for unit, taken in units:
        if not taken:
            out += unit
            continue
        ask.check()
        size = sizes.pop(0)
        rest = done + size + sum(sizes)
        out += _one_unit(step, unit, made, ask.share(done / rest, (done + size) / rest))
        done += size
    seen: set[str] = set()
    for file in out:
        if file.target in seen:
            raise Conflict(
                f"the step {_kind(step)} gives two files this name", path=names.display(file.target),
                remedy="give them names of their own with a step `rename`, or limit the step with `only`",
            )  # fmt: skip
        seen.add(file.target)
    return out


def _units(step: Step, files: list[_File]) -> list[tuple[list[_File], bool]]:
    """The files in the portions the step takes them in, each with whether it takes it."""
    units: list[tuple[list[_File], bool]] = []
    groups: dict[tuple[PurePosixPath, str], list[_File]] = {}
    for file in files:
        if not step.applies(file.path.name) or (file.whole and not step.only):
            units.append(([file], False))
        elif (key := step.group(file.path.name)) is None:
            units.append(([file], True))
        elif (unit := groups.get((file.folder, key))) is not None:
            unit.append(file)
        else:
            groups[file.folder, key] = unit = [file]
            units.append((unit, True))
    return units


def _one_unit(step: Step, unit: list[_File], made: _Made, ask: Ask) -> list[_File]:
    """Run the step on one unit, look at what it gives, and remove inputs of ours that are no longer needed."""
    inputs = [file.path for file in unit]
    shown = _shown(inputs)
    need, free = step.room(sum(path.stat().st_size for path in inputs)), ask.free()
    if need > free:
        raise DiskFull(
            f"the step {_kind(step)} needs {need} bytes free to work on it, there are {free}", path=shown,
            remedy="make room where ONBLOCK_HOME is, then run the job again",
        )  # fmt: skip
    folder = made.fresh()
    try:
        outputs = step.run(inputs, folder, ask)
    except OnblockError as error:
        error.path = error.path or shown
        raise
    except OSError as error:
        raise failure(error, f"the step {_kind(step)} failed", shown) from error
    except Exception as error:
        raise as_onblock(error, shown) from error
    out: list[_File] = []
    for path in dict.fromkeys(outputs):
        if path in inputs:
            out.append(unit[inputs.index(path)])
        else:
            kept = PurePosixPath(_checked(step, path, folder))
            if path.stat().st_mtime_ns != ask.mtime_ns:
                os.utime(path, ns=(ask.mtime_ns, ask.mtime_ns))
            out.append(_File(path, unit[0].folder / kept.parent, step.WHOLE or unit[0].whole))
    if not out:
        raise ConfigError(f"the step {_kind(step)} gave nothing that could be delivered", path=shown)
    for path in inputs:
        if path not in outputs and made.holds(path):
            path.unlink()
    return out


def _checked(step: Step, path: Path, folder: Path) -> str:
    """The path of an output below its folder; ConfigError where it is no plain file in there."""
    if not path.is_relative_to(folder):
        raise ConfigError(f"the step {_kind(step)} gave a file outside its folder", path=names.display(str(path)))
    kept = names.check_path(str(path.relative_to(folder)))
    if not stat.S_ISREG(path.lstat().st_mode) or path.parent.resolve() != folder.resolve() / Path(kept).parent:
        raise ConfigError(f"the step {_kind(step)} gave something that is no plain file", path=names.display(kept))
    return kept


def _kind(step: Step) -> str:
    return getattr(step, "kind", type(step).__name__)


def _shown(unit: Sequence[Path]) -> str:
    return ", ".join(names.display(path.name) for path in unit)
