"""Names from outside: judged, and written down so that they come back (Hypothesis, and the real sha256sum)."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from blocks import names
from blocks.names import BadName
from tests.contract.data import BYTES, HOSTILE, ILLEGAL

COMPONENT = (
    (st.binary(min_size=1, max_size=255) | st.text(min_size=1, max_size=60).map(lambda t: t.encode("utf-8", "replace")))
    .map(lambda b: b.replace(b"\0", b"_").replace(b"/", b"\\"))
    .filter(lambda b: b not in (b".", b".."))
)
"""Any name a file can have, as bytes."""
PATH = st.lists(COMPONENT, min_size=1, max_size=4).map(lambda parts: os.fsdecode(b"/".join(parts)))
"""Any path a scan can give."""
ANYTHING = st.text(st.characters(exclude_categories=[]), max_size=40) | st.lists(
    st.sampled_from(["..", ".", "", "a", "/", "\0", "x" * 255, "\udc80", "\ud800", "-", "~", "\\"]), max_size=6
).map("/".join)
"""Any string whatever."""


# -- what may pass -----------------------------------------------------------------------------------------------------------


@given(PATH)
def test_every_real_name_passes(path: str) -> None:
    assert names.check_path(path) == path


@given(ANYTHING)
def test_what_passes_stays_below_its_root(path: str) -> None:
    try:
        names.check_path(path)
    except BadName as error:
        assert str(error).isprintable()  # safe in a log, whatever it was
        return
    for root in ("/srv/data", "/"):
        full = os.path.join(root, path)
        assert os.path.normpath(full) == full
        assert full.startswith(root.rstrip("/") + "/")
        assert len(full) > len(root)
    assert b"\0" not in os.fsencode(path)
    assert all(1 <= len(part) <= 255 for part in os.fsencode(path).split(b"/"))


@pytest.mark.parametrize("path", ILLEGAL, ids=ascii)
def test_illegal_names(path: str) -> None:
    with pytest.raises(BadName):
        names.check_path(path)


@pytest.mark.parametrize("path", HOSTILE + BYTES, ids=ascii)
def test_legal_names_however_odd(path: str) -> None:
    assert names.check_path(path) == path


@pytest.mark.parametrize("label", ["a", "A1", "x-ray_2.b", "7", "f" * 100, "CON", "a--b", "1.2.3"])
def test_labels(label: str) -> None:
    assert names.check_label(label) == label


@pytest.mark.parametrize(
    "label",
    ["", "-a", ".a", "_a", "a b", "a/b", "..", "a\n", "\na", "ä", "f" * 101, "a:b", "{flight}", "a\0", "٣", "\udcff"],
    ids=ascii,
)
def test_bad_labels(label: str) -> None:
    with pytest.raises(BadName, match="flight") as caught:
        names.check_label(label, "flight")
    assert str(caught.value).isprintable()


@given(ANYTHING)
def test_a_label_is_a_legal_path_and_a_legal_argument(label: str) -> None:
    try:
        names.check_label(label)
    except BadName:
        return
    assert names.check_path(label) == label
    assert "/" not in label
    assert label.isascii()
    assert not label.startswith(("-", "."))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("clip.mp4", []), ("DCIM/100/clip.mp4", []), ("con", ["reserved"]), ("a/NUL.txt", ["reserved"]),
        ("com1.tar.gz", ["reserved"]), ("COM0", []), ("console", []), ("COM12", []),
        ("con .txt", ["reserved"]), ("COM¹", ["reserved"]), ("conin$", ["reserved"]), ("dot.", ["dot or space"]), ("sp ", ["dot or space"]),
        ("a /b", ["dot or space"]), ("a:b", ["':'"]), ("a?b*c", ["'*' '?'"]), ("tab\t", ["'\\t'"]),
        ("back\\slash", ["'\\\\'"]), ("aux./x", ["reserved", "dot or space"]), ("x/y/<z>", ["'<' '>'"]),
    ],
)  # fmt: skip
def test_portability(path: str, words: list[str]) -> None:
    found = names.portability(path)
    assert len(found) == len(words), found
    assert all(word in sentence for word, sentence in zip(words, found, strict=True)), found


# -- temporary and other names -------------------------------------------------------------------------------------------------


@given(PATH, PATH, st.text(max_size=20), st.text(max_size=20))
def test_temporary_names(path: str, other: str, key: str, other_key: str) -> None:
    staged = names.temporary(path, key)
    folder, _, name = staged.rpartition("/")
    assert folder == path.rpartition("/")[0]
    assert names.TEMPORARY.fullmatch(name)
    assert names.check_path(staged)
    assert names.temporary(path, key) == staged
    if (path, key) != (other, other_key):
        assert names.temporary(other, other_key) != staged


@given(PATH)
@example("x" * 255)
@example("x" * 253 + "~2")
@example("a." + "e" * 253)
@example("ü" * 100 + "." + "e" * 50)
@example("\udcff" * 255)
@example("🎥" * 63 + ".x")
@example("." + "h" * 254)
@example("a." + "e" * 251)
@example("🎥." + "e" * 250)
def test_alternatives(path: str) -> None:
    found = list(itertools.islice(names.alternatives(path), 120))
    assert len({path, *found}) == 121, "not distinct"
    for other in found:
        assert names.check_path(other) == other
        assert other.rpartition("/")[0] == path.rpartition("/")[0]
        assert other.encode("utf-8", "surrogateescape")  # whole characters only


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("clip.mp4", "clip~2.mp4"), ("d.x/clip", "d.x/clip~2"), (".hidden", ".hidden~2"), ("a.tar.gz", "a~2.tar.gz"),
        ("a.b c.gz", "a.b c~2.gz"), (".x.gz", ".x~2.gz"), ("a.é.ZST", "a~2.é.ZST"), ("a.gz", "a~2.gz"),
        ("clip~2.mp4", "clip~2~2.mp4"), ("dot.", "dot~2."), ("a/.b.c", "a/.b~2.c"),
    ],
)  # fmt: skip
def test_alternatives_as_people_read_them(path: str, first: str) -> None:
    assert next(names.alternatives(path)) == first


def test_alternatives_are_many() -> None:
    assert sum(1 for _ in names.alternatives("clip.mp4")) > 9000


# -- written down --------------------------------------------------------------------------------------------------------------


@given(ANYTHING | PATH)
def test_display_is_one_printable_line(path: str) -> None:
    shown = names.display(path)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@given(PATH, PATH)
@example("a\\n", "a\n")
@example("a\\xff", "a\udcff")
@example("\\", "\\\\")
def test_display_never_shows_two_names_alike(one: str, other: str) -> None:
    assume(one != other)
    assert names.display(one) != names.display(other)


@given(PATH)
@example("%2e%2e/%00")
@example("\udcff%ff")
def test_ledger_text_comes_back(path: str) -> None:
    text = names.to_text(path)
    text.encode("utf-8")  # any database takes it
    assert "\0" not in text
    assert names.from_text(text) == path
    assert os.fsencode(names.from_text(text)) == os.fsencode(path)


@given(PATH, PATH)
def test_ledger_text_tells_names_apart(one: str, other: str) -> None:
    assert (names.to_text(one) == names.to_text(other)) == (one == other)


@given(PATH)
@example("a\\nb")
@example("a\r\n\\")
@example(" leading")
@example("*star")
def test_manifest_line_comes_back(path: str) -> None:
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    line = names.manifest_line(digest, path)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert names.parse_manifest_line(line) == (digest, path)
    assert names.parse_manifest_line(line[:-1]) == (digest, path)


@given(st.binary(max_size=200))
def test_any_line_is_parsed_or_is_none(line: bytes) -> None:
    found = names.parse_manifest_line(line)
    assert found is None or len(found[0]) == 64


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"x", b"0" * 64, b"0" * 64 + b"  ", b"g" * 64 + b"  x", b"0" * 63 + b"  x"]
)
def test_no_lines_of_a_manifest(line: bytes) -> None:
    assert names.parse_manifest_line(line) is None


def test_binary_mode_lines_are_read_too() -> None:
    assert names.parse_manifest_line(b"0" * 64 + b" *file\n") == ("0" * 64, "file")


# -- the real sha256sum -----------------------------------------------------------------------------------------------------------


def as_sha256sum(folder: Path, paths: list[str]) -> None:
    """Our lines are those of sha256sum, byte for byte; it accepts them; we read its."""
    lines = []
    for number, path in enumerate(paths):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data := f"{number}".encode())
        lines.append(names.manifest_line(hashlib.sha256(data).hexdigest(), path))
    theirs = subprocess.run(
        ["sha256sum", "--", *(p if p != "-" else "./-" for p in paths)], cwd=folder, capture_output=True, check=True
    ).stdout
    assert theirs == b"".join(lines)
    assert [names.parse_manifest_line(line)[1] for line in theirs.splitlines(keepends=False) if line] == paths  # type: ignore[index]
    (folder.parent / "list").write_bytes(b"".join(lines))
    check = subprocess.run(
        ["sha256sum", "-c", "--strict", "--status", str(folder.parent / "list")],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert check.returncode == 0, check.stderr
    (folder / paths[-1]).write_bytes(b"changed")
    check = subprocess.run(["sha256sum", "-c", "--status", str(folder.parent / "list")], cwd=folder)
    assert check.returncode == 1


def test_sha256sum_and_every_hostile_name(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    as_sha256sum(tmp_path / "files", HOSTILE + BYTES)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(COMPONENT.map(os.fsdecode), min_size=1, max_size=20, unique=True))
def test_sha256sum_and_any_name(tmp_path_factory: pytest.TempPathFactory, paths: list[str]) -> None:
    folder = tmp_path_factory.mktemp("sums")
    (folder / "files").mkdir()
    as_sha256sum(folder / "files", paths)
