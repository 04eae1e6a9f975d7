"""Any sequence of the contract's verbs, against a dictionary that says what must be there (Hypothesis)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from blocks.errors import Conflict, NotFound, SourceVanished
from blocks.storage.base import Session, Upload
from tests.contract.data import fetch
from tests.contract.places import Place

PATHS = st.sampled_from(["a", "b", "d/a", "d/e/a", "-x", "d/ü\n"])
KEYS = st.sampled_from(["", "v1", "v2"])
CHUNKS = st.lists(st.binary(max_size=5000) | st.integers(1, 3).map(lambda n: b"p" * 4096 * n), max_size=3)


@dataclass
class Moving:
    """An open upload and what it must hold."""

    upload: Upload
    path: str
    key: str
    data: bytes


class Contract(RuleBasedStateMachine):
    """`files` is what must lie there; `kept` what a resume must find."""

    open_ones: Bundle[Moving] = Bundle("open_ones")

    def __init__(self, place: Place, session: Session, root: str):
        super().__init__()
        self.place, self.session, self.root = place, session, root
        self.files: dict[str, bytes] = {}
        self.kept: dict[tuple[str, str], bytes] = {}
        self.busy: set[tuple[str, str]] = set()

    def at(self, path: str) -> str:
        return f"{self.root}/{path}"

    @rule(target=open_ones, path=PATHS, key=KEYS, size=st.sampled_from([0, 9 << 20]), resume=st.booleans())
    def begin(self, path: str, key: str, size: int, resume: bool):
        if (path, key) in self.busy:  # the ledger's lease sees to that
            return multiple()
        upload = self.session.upload(self.at(path), size, key=key, resume=resume)
        kept = self.kept.pop((path, key), b"")
        if resume and self.session.features.resume_write:
            assert len(kept) - self.session.features.resume_step < upload.offset <= len(kept)
        else:
            assert upload.offset == 0 or resume
        self.busy.add((path, key))
        return Moving(upload, path, key, kept[: upload.offset])

    @rule(one=open_ones, parts=CHUNKS)
    def write(self, one: Moving, parts: list[bytes]) -> None:
        for part in parts:
            one.upload.write(memoryview(part))
            one.data += part

    @rule(one=open_ones, fresh=st.booleans())
    def digest(self, one: Moving, fresh: bool) -> None:
        assert one.upload.digest(fresh=fresh) in (hashlib.sha256(one.data).hexdigest(), None)

    @rule(one=consumes(open_ones), other=st.none() | PATHS, replace=st.booleans(), seal=st.booleans())
    def commit(self, one: Moving, other: str | None, replace: bool, seal: bool) -> None:
        if other is not None and other.rpartition("/")[0] != one.path.rpartition("/")[0]:
            other = None  # another name, not another folder
        name = other or one.path
        if seal:
            one.upload.seal()
        try:
            assert one.upload.commit(other and self.at(other), replace=replace) == self.at(name)
        except Conflict:
            assert name in self.files
            assert not replace
            one.upload.abort()
        else:
            assert replace or name not in self.files
            self.files[name] = one.data
        self.busy.discard((one.path, one.key))

    @rule(one=consumes(open_ones))
    def keep(self, one: Moving) -> None:
        one.upload.keep()
        self.kept[one.path, one.key] = one.data
        self.busy.discard((one.path, one.key))

    @rule(one=consumes(open_ones))
    def abort(self, one: Moving) -> None:
        one.upload.abort()
        self.busy.discard((one.path, one.key))

    @rule(path=PATHS)
    def delete(self, path: str) -> None:
        if path in self.files:
            self.session.delete(self.at(path))
            del self.files[path]
        else:
            with pytest.raises(NotFound):
                self.session.delete(self.at(path))

    @rule(path=PATHS, to=PATHS)
    def move(self, path: str, to: str) -> None:
        if path not in self.files:
            with pytest.raises((NotFound, SourceVanished, Conflict)):
                self.session.move(self.at(path), self.at(to))
        elif to in self.files:
            with pytest.raises(Conflict):
                self.session.move(self.at(path), self.at(to))
        else:
            self.session.move(self.at(path), self.at(to))
            self.files[to] = self.files.pop(path)

    @invariant()
    def what_lies_there_is_what_was_committed(self) -> None:
        for path in ("a", "b", "d/a", "d/e/a", "-x", "d/ü\n"):
            assert self.place.get(self.at(path)) == self.files.get(path)
        try:
            found = {f.path: f.size for f in self.session.scan(self.root)}
        except NotFound:
            found = {}
        assert found == {self.at(p): len(data) for p, data in self.files.items()}

    def teardown(self) -> None:
        for path, data in self.files.items():
            assert fetch(self.session, self.at(path)) == data


def test_any_sequence(place: Place, session: Session) -> None:
    runs = iter(range(1 << 30))
    run_state_machine_as_test(
        lambda: Contract(place, session, f"run{next(runs)}"),  # type: ignore[arg-type]
        settings=settings(
            max_examples=place.sequences,
            stateful_step_count=30,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
