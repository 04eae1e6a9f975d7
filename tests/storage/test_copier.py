"""The program that copies small local files: what happens when it dies, when its parent dies, and when files change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from blocks.errors import UnknownError
from blocks.storage import LocalStorage
from blocks.storage.copier import Copier
from blocks.storage.local import LocalSession


def children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if any(a.endswith("copier.py") for a in process.cmdline()):
                found.append(process)
    return found


def files(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    found = [folder / str(n) for n in range(count)]
    for n, path in enumerate(found):
        path.write_bytes(b"%d" % n * n)
        os.utime(path, ns=(n, n))
    return found


def one(source: Path, staged: Path) -> tuple[str, str, int, int]:
    st = source.stat()
    return str(source), str(staged), st.st_size, st.st_mtime_ns


def test_copies_hash_and_time(tmp_path: Path) -> None:
    copier = Copier()
    sources = files(tmp_path / "s", 200)
    found = [h for page in copier.copy([one(s, tmp_path / s.name) for s in sources]) for h in page]
    assert found == [hashlib.sha256(s.read_bytes()).hexdigest() for s in sources]
    for source in sources:
        copy = tmp_path / source.name
        assert copy.read_bytes() == source.read_bytes()
        assert copy.stat().st_mtime_ns == source.stat().st_mtime_ns
    copier.close()
    assert not children()


@pytest.mark.parametrize("what", ["size", "time", "gone", "folder", "fifo", "link", "no right to write"])
def test_what_is_not_as_it_should_be_is_left_to_others(tmp_path: Path, what: str) -> None:
    source, staged = tmp_path / "source", tmp_path / "to" / "staged"
    staged.parent.mkdir()
    source.write_bytes(b"1234")
    path, to, size, mtime_ns = one(source, staged)
    match what:
        case "size":
            source.write_bytes(b"12345")
            os.utime(source, ns=(mtime_ns, mtime_ns))
        case "time":
            os.utime(source, ns=(mtime_ns, mtime_ns + 1))
        case "gone":
            source.unlink()
        case "folder":
            source.unlink()
            source.mkdir()
        case "fifo":
            source.unlink()
            os.mkfifo(source)
        case "link":
            source.rename(tmp_path / "elsewhere")
            source.symlink_to(tmp_path / "elsewhere")
        case _:
            staged.mkdir()
    copier = Copier()
    assert list(copier.copy([(path, to, size, mtime_ns)])) == [[None]]
    copier.close()


def test_renames_never_overwrite(tmp_path: Path) -> None:
    for name in ("a", "b", "there"):
        (tmp_path / name).write_text(name)
    copier = Copier()
    wanted = [(str(tmp_path / a), str(tmp_path / b)) for a, b in (("a", "new\n\udcff"), ("b", "there"), ("none", "x"))]
    assert list(copier.rename(wanted)) == [[True, False, False]]
    copier.close()
    assert (tmp_path / "new\n\udcff").read_text() == "a"
    assert (tmp_path / "there").read_text() == "there"


def test_when_it_is_killed_while_it_copies(tmp_path: Path) -> None:
    """What it had not done is told apart, and the next use starts another one."""
    sources = files(tmp_path / "s", 300)
    (tmp_path / "d").mkdir()
    with LocalStorage(root=str(tmp_path / "d")).open() as session:
        assert isinstance(session, LocalSession)
        uploads = [
            (str(s), session.upload(s.name, s.stat().st_size, key="k", mtime_ns=s.stat().st_mtime_ns)) for s in sources
        ]

        def kill(moved: int) -> None:
            if child := children():
                child[0].kill()

        found = session.push(uploads, kill, threading.Event())
        assert len(found) == 300
        assert found[0] is not None
        assert found[-1] is None
        for (_, upload), sha256 in zip(uploads, found, strict=True):
            if sha256 is None:
                upload.abort()
        kept = [u for (_, u), sha256 in zip(uploads, found, strict=True) if sha256 is not None]
        assert all(isinstance(name, str) for name in session.commit_all(kept))
    assert {p.name for p in (tmp_path / "d").iterdir()} == {u.path for u in kept}
    assert not children()


def test_when_it_is_killed_before_it_renames(tmp_path: Path) -> None:
    """Nobody knows which files have their names: a failure for all, which is tried again."""
    sources = files(tmp_path / "s", 50)
    (tmp_path / "d").mkdir()
    with LocalStorage(root=str(tmp_path / "d")).open() as session:
        uploads = [(str(s), session.upload(s.name, s.stat().st_size, key="k")) for s in sources]
        session.push(uploads, lambda n: None, threading.Event())
        os.kill(children()[0].pid, signal.SIGKILL)
        results = session.commit_all([u for _, u in uploads])
        assert {type(r) for r in results} == {UnknownError}


def test_who_stops_reading_gets_no_old_answers(tmp_path: Path) -> None:
    sources = files(tmp_path / "s", 200)
    copier = Copier()
    work = [one(s, tmp_path / s.name) for s in sources]
    asked = copier.copy(work)
    next(asked)
    asked.close()  # type: ignore[attr-defined]
    assert list(copier.copy(work[-1:])) == [[hashlib.sha256(sources[-1].read_bytes()).hexdigest()]]
    copier.close()


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """SIGKILL of the parent while it copies: at most the file in hand is written after that."""
    sources = files(tmp_path / "s", 2000)
    to = tmp_path / "d"
    to.mkdir()
    code = (
        "import sys; from pathlib import Path; from blocks.storage.copier import Copier\n"
        "c = Copier(); n = 0\n"
        f"work = [(str(p), {str(to)!r} + '/' + p.name, p.stat().st_size, None) for p in Path({str(tmp_path / 's')!r}).iterdir()]\n"
        "for page in c.copy(work * 100):\n"
        "    print(c._process.pid, flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()
    assert len(list(to.iterdir())) <= len(sources)


def test_idle_it_ends_with_its_parent(tmp_path: Path) -> None:
    source = files(tmp_path / "s", 1)[0]
    code = (
        "import time; from blocks.storage.copier import Copier\n"
        f"c = Copier(); list(c.copy([({str(source)!r}, {str(tmp_path / 'x')!r}, 0, None)])); print(c._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.02)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
