"""A camera, a NAS that can be away, and a job in two phases between them: what the tests of both phases share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import NetworkError
from blocks.storage import LocalStorage
from blocks.storage.local import LocalSession
from flows.ledger import Ledger
from flows.ledger.rows import MADE
from flows.transfer.locker import files_root
from flows.transfer.steps.base import Step
from flows.transfer.steps.compress import Compress
from flows.transfer.story import run_here
from tests.transfer.conftest import Bench

ZSTD: list[Any] = [{"kind": "compress", "format": "zstd"}]


def unzstd(data: bytes) -> bytes:
    from backports import zstd

    return zstd.decompress(data)


def rows(*, made: bool = False) -> dict[str, dict[str, Any]]:
    """Rows of the ledger: of the files of the source by path, or of what was made by its final name."""
    with Ledger.open() as ledger:
        found = list(ledger.files())
    return {r["dest_path" if made else "path"]: r for r in found if (r["etag"] == MADE) is made}


def spooled() -> list[str]:
    return sorted(str(p.relative_to(files_root())) for p in files_root().rglob("*") if p.is_file())


class Counting(LocalStorage):
    """A camera: a folder that counts what is read of it, and can be away."""

    _block_type_slug = "counting-storage"

    def open(self) -> LocalSession:
        if (Path(self.root).parent / "away").exists():
            raise NetworkError("the camera is away")
        return CountingSession(self.root)


READ: list[str] = []


class CountingSession(LocalSession):
    def read(self, path: str, offset: int = 0) -> Any:
        READ.append(path)
        return super().read(path, offset)

    def local_path(self, path: str) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None


class Away(LocalStorage):
    """A NAS that can be away while it is written to."""

    _block_type_slug = "away-storage"

    def open(self) -> LocalSession:
        return AwaySession(self.root)


class AwaySession(LocalSession):
    def upload(self, path: str, *args: Any, **keys: Any) -> Any:
        if (Path(str(self.root)).parent / "nas-away").exists() and not path.endswith(".sha256"):
            raise NetworkError("the NAS is away", path=path)
        return super().upload(path, *args, **keys)


@pytest.fixture
def camera(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    READ.clear()
    monkeypatch.setattr("flows.transfer.senders.TASK_RETRY_DELAYS_S", ())
    for n in range(3):
        bench.put(f"DCIM/100/clip{n}.txt", os.urandom(1000) * (1100 + n))
    bench.put("DCIM/101/clip0.txt", b"another of that name" * 100_000)
    bench.put("notes", b"small")
    return bench


class Steps:
    """What a test does to the steps."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()

    def fail(self, with_: Callable[[str], Exception | None], wait: Callable[[str], bool] | None = None) -> None:
        """The step raises what `with_(name)` gives; with `wait`, it works on a file until it is stopped."""
        whole = Compress.run

        def run(self: Step, inputs: list[Path], work: Path, ask: Any) -> list[Path]:
            if (error := with_(inputs[0].name)) is not None:
                raise error
            while wait is not None and wait(inputs[0].name):
                ask.check()
                threading.Event().wait(0.01)
            return whole(self, inputs, work, ask)  # pyright: ignore[reportArgumentType]

        self._patch.setattr(Compress, "run", run)

    def heal(self) -> None:
        """The step works again."""
        self._patch.undo()


@pytest.fixture
def steps() -> Iterator[Steps]:
    steps = Steps()
    yield steps
    steps.heal()


def run(bench: Bench, **keys: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "source": Counting(root=str(bench.card)), "destinations": [LocalStorage(root=str(bench.archive))], "steps": ZSTD,
    }  # fmt: skip
    return run_here(bench.job(**(defaults | keys)))


def card_files(bench: Bench) -> dict[str, bytes]:
    return bench.files(bench.card)


def check(bench: Bench) -> None:
    """Everything of the card is in the archive, once, compressed; nothing is left in the spool."""
    assert {p: unzstd(c) for p, c in bench.files().items()} == {f"{p}.zst": c for p, c in card_files(bench).items()}
    bench.check_manifest()
    assert spooled() == []


def nas_away(camera: Bench, **keys: Any) -> LocalStorage:
    """A run while the NAS is away; it is back then, and what was deferred is due."""
    nas = Away(root=str(camera.archive))
    (camera.folder / "nas-away").touch()
    run(camera, destinations=[nas], **keys)
    (camera.folder / "nas-away").unlink()
    ready()
    return nas


def ready() -> None:
    """What was deferred is due."""
    with Ledger.open() as ledger, ledger._write() as c:
        c.exec_driver_sql("UPDATE files SET next_attempt_at = 0 WHERE next_attempt_at IS NOT NULL")
