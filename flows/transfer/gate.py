"""What may pass: a file is judged before it is delivered, and again before it is deleted at the source.

The rules are in `rules.py`, which of them apply in the job's `gate` (`gate_settings.py`). A finding that is hard, and
that nobody has overridden, keeps a file from being delivered (BLOCKED); what cannot be read at all FAILED at the scan.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from blocks import names
from blocks.errors import ConfigError, NotFound, OnblockError
from blocks.storage.base import Features, FileInfo, Session
from blocks.storage.pool import SessionPool
from flows.ledger.connections import now_ms
from flows.ledger.overrides import Override
from flows.ledger.states import State
from flows.transfer import rules
from flows.transfer.gate_settings import GateSettings
from flows.transfer.job import Target, TransferJob
from flows.transfer.patterns import compile_pattern
from flows.transfer.rules import UNSAFE, Finding, Tier

if TYPE_CHECKING:
    from flows.ledger import Ledger


class Passage(NamedTuple):
    """A file and where it goes, or why it does not."""

    file: FileInfo
    dest_path: str | None
    state: State = State.QUEUED
    failure: OnblockError | None = None
    stage: str | None = None
    findings: tuple[Finding, ...] = ()


class Gate:
    """The gate of one run: the job's rules, the overrides that hold, and where it looks for sidecars."""

    def __init__(self, job: TransferJob, target: Target, overrides: Sequence[Override], pool: SessionPool):
        self._job, self._target, self._overrides, self._pool = job, target, overrides, pool
        self._beside = Beside()
        self.withdrawn = 0
        """How often overrides have ended since the run began: what passed before is to be judged again."""
        self.remember = 0
        """So many files with findings are kept in `noted`, for a plan to show."""
        self.noted: dict[str, Passage] = {}

    def heed(self, overrides: Sequence[Override]) -> None:
        """These overrides hold now."""
        before, self._overrides = self._overrides, list(overrides)
        if {o.id for o in before} - {o.id for o in overrides}:
            self.withdrawn += 1

    def judge(self, files: Sequence[FileInfo], features: Features) -> list[Passage]:
        """Judge files for one destination. Takes a session of the source only where a sidecar is asked for."""
        if self._job.gate.sidecars:
            with self._pool.session(self._job.source) as source:
                passages = [self._judge(file, features, source) for file in files]
        else:
            passages = [self._judge(file, features, None) for file in files]
        if len(self.noted) < self.remember:
            found = ((p.file.path, p) for p in passages if p.findings and p.file.path not in self.noted)
            self.noted.update(islice(found, self.remember - len(self.noted)))
        return passages

    def judge_made(self, files: Sequence[FileInfo], features: Features, target: Target) -> list[Passage]:
        """Judge what steps made, under the paths it would have at the source. What is asked of the source was asked of
        the file that it was made of."""
        return [self._judge(file, features, None, target) for file in files]

    def _judge(
        self, file: FileInfo, features: Features, source: Session | None, made: Target | None = None
    ) -> Passage:  # fmt: skip
        if file.problem is not None:
            if isinstance(file.problem, ConfigError):
                return _unsafe(file, file.problem)
            return Passage(file, None, State.FAILED, file.problem, "scan")
        try:
            target = made or self._target
            dest_path = target.path_of(file)
            if dest_path == target.manifest:
                raise names.BadName(f"{names.display(dest_path)!r} is where the manifest of this job goes")
            if not features.byte_names and names.to_text(dest_path) != dest_path:
                raise names.BadName(f"{names.display(dest_path)!r} is no UTF-8, which this destination asks for")
        except ConfigError as error:
            error.path = file.path
            if isinstance(error, names.BadName):
                error.todo = "rename it with the job's `path` template, or `exclude` it"
            return _unsafe(file, error)
        settings, below = self._job.gate, _below(file.path, self._job)
        named_later = self._job.two_phases and made is None  # what is made of it is judged by its own name
        found = [] if named_later else list(of_name(below, dest_path, settings))
        if source is not None:
            for s in settings.sidecars:
                if _means(s.files, below):
                    there = self._beside.there(source, rules.needed(file.path, s.needs))
                    text = rules.sidecar(file.path, s.needs, there)
                    if text and self._beside.there(
                        source, [file.path]
                    ):  # else it is gone itself, as its delivery will tell
                        found.append(Finding(rules.SIDECAR, s.tier, text))
        if not found:
            return Passage(file, dest_path)
        noted = tuple(overridden(found, below, self._overrides, now_ms()))
        if stopped := [f for f in noted if blocks(f, settings)]:
            return Passage(file, None, State.BLOCKED, _refusal(file, self._job, stopped), "gate", noted)
        return Passage(file, dest_path, findings=noted)


def _unsafe(file: FileInfo, failure: ConfigError) -> Passage:
    """What nobody can override: the storages cannot take or give it so."""
    finding = Finding(UNSAFE, Tier.HARD, names.display(failure.what))
    return Passage(file, None, State.BLOCKED, failure, "gate", (finding,))


def _refusal(file: FileInfo, job: TransferJob, found: Sequence[Finding]) -> ConfigError:
    broken = list(dict.fromkeys(f.rule for f in found))
    which = broken[0] if len(broken) == 1 else "RULE"
    return ConfigError(
        "; ".join(f"{f.rule}: {f.text}" for f in found), path=file.path,
        remedy=f"cure it at the source or with the job's `path`, or take it on yourself: "
               f"`onblock overrides add {job.name} {which} PATTERN --why TEXT`",
    )  # fmt: skip


class Beside:
    """What lies beside a file in the source: each folder is listed once, and forgotten when the next ones come."""

    def __init__(self, most: int = 50_000):
        self._most = most  # names held in memory
        self._known: dict[str, frozenset[str] | None] = {}  # None: too many to hold
        self._held = 0

    def there(self, session: Session, wanted: Sequence[str]) -> Collection[str]:
        """Those of some paths in one folder that are there."""
        folder = wanted[0].rpartition("/")[0]
        if folder not in self._known:
            if self._held > self._most or len(self._known) > 1000:
                self._known.clear()
                self._held = 0
            self._known[folder] = self._list(session, folder)
        known = self._known[folder]
        return [path for path in wanted if (path in known if known is not None else _is_there(session, path))]

    def _list(self, session: Session, folder: str) -> frozenset[str] | None:
        found: set[str] = set()
        try:
            for file in session.scan(folder, enter=lambda _: False):
                if file.problem is None:
                    found.add(file.path)
                    if len(found) > self._most:  # then each is asked for by its name
                        return None
        except NotFound:
            pass  # the whole folder is gone
        self._held += len(found)
        return frozenset(found)


def _is_there(session: Session, path: str) -> bool:
    try:
        session.stat(path)
    except NotFound:
        return False
    return True


# -- without I/O --------------------------------------------------------------------------------------------------------


def still_passes(
    file: FileInfo,
    dest_path: str,
    job: TransferJob,
    overrides: Sequence[Override],
    now_ms: int,
    noted: str | None = None,
) -> bool:
    """Whether a delivered file would pass the gate now: asked before its source is deleted. No I/O.

    `overrides` are those of the job (`Ledger.overrides(job)`); which of them hold at `now_ms` (wall clock) is judged here.
    `noted` is `files.findings`: a sidecar that was missing at the delivery, and was overridden, counts as it was found
    then; one that was there may have been deleted first, and is not asked for again.
    """
    try:
        names.check_path(dest_path)
    except names.BadName:
        return False
    below = _below(file.path, job)
    beside: list[Finding] = []
    if any(_means(s.files, below) for s in job.gate.sidecars):
        beside = [f._replace(override=None) for f in rules.from_json(noted) if f.rule == rules.SIDECAR]
    # what another file had the name of was judged by that name, before it got a number
    for name in (dest_path, _unnumbered(dest_path, file.path)):
        found = overridden([*of_name(below, name, job.gate), *beside], below, overrides, now_ms)
        if not any(blocks(f, job.gate) for f in found):
            return True
    return False


def _unnumbered(dest_path: str, path: str) -> str:
    """A final name as it was before `on_conflict: rename` numbered it; itself if its file has that number at the source."""
    folder, slash, name = dest_path.rpartition("/")
    numbered = re.fullmatch(r"(.+)(~[0-9]+)(\.[^.]*)?", name, re.DOTALL)
    if numbered is None or numbered[2] in path.rpartition("/")[2]:
        return dest_path
    return f"{folder}{slash}{numbered[1]}{numbered[3] or ''}"


def of_name(below: str, dest_path: str, settings: GateSettings) -> Iterator[Finding]:
    """Findings about the path a file will have. `below` is its path in the job's folder, for patterns."""
    s = settings
    for rule, tier, check in (
        (rules.PLACEHOLDER, s.placeholder, rules.placeholder), (rules.TEMPLATE, s.template, rules.template),
        (rules.RESERVED, s.reserved, rules.reserved),
    ):  # fmt: skip
        if tier is not None and (text := check(dest_path)):
            yield Finding(rule, tier, text)
    if long := rules.too_long(dest_path, s.length_soft, s.length_hard):
        yield Finding(rules.LENGTH, *long)
    if s.prefix and _means(s.prefix.files, below) and (text := rules.prefix(dest_path, s.prefix.any_of)):
        yield Finding(rules.PREFIX, s.prefix.tier, text)
    for own in s.own:
        if _means(own.files, below) and (text := rules.own(dest_path, own.must, own.must_not, own.message)):
            yield Finding(own.name, own.tier, text)


def overridden(found: Sequence[Finding], below: str, overrides: Sequence[Override], now_ms: int) -> list[Finding]:
    """The findings, each with the override that holds for it now, if there is one."""
    return [
        next((f._replace(override=o.id) for o in overrides if o.rule == f.rule and o.is_active(now_ms)
              and compile_pattern(o.path).fullmatch(below)), f) if f.rule != UNSAFE else f
        for f in found
    ]  # fmt: skip


def blocks(finding: Finding, settings: GateSettings) -> bool:
    """Whether a finding keeps a file from being delivered."""
    return finding.override is None and (finding.tier is Tier.HARD or settings.soft_blocks)


def _below(path: str, job: TransferJob) -> str:
    return path[len(job.folder) + 1 :] if job.folder else path


def _means(patterns: Sequence[str], below: str) -> bool:
    """Whether patterns mean a file; no patterns mean all."""
    return not patterns or any(compile_pattern(p).fullmatch(below) for p in patterns)


# -- overrides --------------------------------------------------------------------------------------------------------


def override(
    ledger: Ledger, job: TransferJob | str, rule: str, pattern: str, *, who: str, why: str, expires_at: int | None = None
) -> Override:  # fmt: skip
    """Let files of a job that match a pattern pass in spite of what a rule finds. Raises ConfigError, and changes nothing,
    if it makes no sense.

    A job that is given by its name is one that has run; the rules of its own are those that have found something.
    """
    name = job if isinstance(job, str) else job.name
    if isinstance(job, str) and job not in ledger.jobs():
        raise ConfigError(
            f"there is no job {job!r} in the ledger",
            remedy="`onblock transfers` shows those there are; of one that has not run yet, give the JOB.yaml",
        )
    if rule == UNSAFE:
        raise ConfigError(
            f"findings of {UNSAFE!r} cannot be overridden: a storage cannot take the file so",
            remedy="rename it with the job's `path`, or `exclude` it",
        )
    known = rules.RULES if isinstance(job, str) else job.gate.rules()
    if rule not in known and not (isinstance(job, str) and ledger.was_found(job, rule)):
        raise ConfigError(
            f"job {name} has no rule {names.display(rule)!r}; there are {', '.join(known)}",
            remedy="a rule of the job's own is known once it has found something, or if the JOB.yaml is given"
            if isinstance(job, str) else "",
        )  # fmt: skip
    try:
        compile_pattern(pattern)
    except ValueError as error:
        raise ConfigError(f"the pattern is none: {error}", remedy="write it as in `include`: *.mp4, DCIM/**") from None
    if "\0" in pattern:
        raise ConfigError("the pattern holds a NUL byte, which no file name can")
    return ledger.override(name, rule, pattern, who=who, why=why, expires_at=expires_at)
