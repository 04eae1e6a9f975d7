"""The system calls that Python lacks: renaming without overwriting."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks.storage import posix

# -- renaming without overwriting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rename", [posix.rename_exclusive, posix.rename_by_link])
def test_rename_never_overwrites(tmp_path: Path, rename: Callable[[str, str], None]) -> None:
    old, new = tmp_path / "old\n", tmp_path / "new"
    old.write_bytes(b"old")
    for make in (lambda: new.write_bytes(b"there"), new.mkdir, lambda: new.symlink_to("none"), lambda: os.mkfifo(new)):
        make()
        with pytest.raises(FileExistsError):
            rename(str(old), str(new))
        assert old.read_bytes() == b"old"
        assert new.is_symlink() or new.exists()
        if new.is_dir():
            new.rmdir()
        else:
            new.unlink()
    rename(str(old), str(new))
    assert (new.read_bytes(), old.exists()) == (b"old", False)
    with pytest.raises(FileNotFoundError):
        rename(str(old), str(tmp_path / "x"))
    with pytest.raises(FileNotFoundError):
        rename(str(new), str(tmp_path / "none/x"))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL])
def test_rename_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """FAT and exFAT answer link(2) so; this kernel has no vfat to show it."""

    def link(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    new.symlink_to("none")
    with pytest.raises(FileExistsError):
        posix.rename_by_link(str(old), str(new))
    assert new.is_symlink()
    new.unlink()
    posix.rename_by_link(str(old), str(new))
    assert (new.read_bytes(), old.exists()) == (b"old", False)


def test_rename_by_link_hides_no_other_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(OSError, match="broken"):
        posix.rename_by_link(str(tmp_path / "old"), str(tmp_path / "new"))
    assert (tmp_path / "old").exists()


@pytest.mark.parametrize("rename", [posix.rename_exclusive, posix.rename_by_link])
def test_rename_by_many_has_one_winner(tmp_path: Path, rename: Callable[[str, str], None]) -> None:
    """By processes: no lock of Python's orders them."""
    for turn in range(10):
        new, children = str(tmp_path / f"new{turn}"), []
        start, go = os.pipe()
        for number in range(8):
            (tmp_path / f"{number}").write_bytes(b"%d" % number)
            if not (pid := os.fork()):
                code = 9
                try:
                    os.close(go)
                    os.read(start, 1)  # returns when the parent closes its end
                    rename(str(tmp_path / f"{number}"), new)
                    code = 0
                except FileExistsError:
                    code = 1
                finally:
                    os._exit(code)
            children.append(pid)
        os.close(start)
        os.close(go)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert sorted(codes) == [0] + [1] * 7
        assert Path(new).read_bytes() == b"%d" % codes.index(0)
