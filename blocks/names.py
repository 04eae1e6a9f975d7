"""The one place that judges and writes names that come from outside.

Devices name files as they like: `..`, newlines, leading dashes, bytes that are no UTF-8. Inside onblock a name
is a relative POSIX path as Python's `os.fsdecode` gives it (bytes that are no UTF-8 are lone surrogates). Here
stand the rules for what may pass, and the four ways such a name is written down: for people (`display`), for the
ledger (`to_text`), for `sha256sum -c` (`manifest_line`) and on disk while it is not whole yet (`temporary`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote_from_bytes, unquote_to_bytes

from blocks.errors import ConfigError

NAME_MAX = 255
"""Bytes in one component of a path on every file system onblock writes to."""

TEMPORARY = re.compile(r"\.onblock-[0-9a-f]{16}\.part\Z")
"""The form of our temporary names. A scan never lists them."""

_PLAIN = re.compile(r"[\w+ -][\w+ .-]{0,199}(?:/[\w+ -][\w+ .-]{0,199})*\Z", re.ASCII)
"""Most paths: short ASCII components that do not begin with a dot. They need no closer look."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_RESERVED = {
    "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *(f"{d}{i}" for d in ("COM", "LPT") for i in "123456789¹²³")
}  # fmt: skip
"""What Windows reads as a device, whatever follows the first dot ("Naming Files, Paths, and Namespaces", Microsoft)."""


class BadName(ConfigError):
    """A name that may not be used; says which and why."""


def check_label(value: str, what: str = "name") -> str:
    """A job, device or flight name: letters, digits, dot, dash, underscore; at most 100, not led by a dash or dot."""
    if not _LABEL.match(value):
        raise BadName(
            f"{what} {display(value)!r} may hold only letters, digits, '.', '-' and '_', "
            "begin with a letter or digit, and be at most 100 long"
        )
    return value


@lru_cache(8192)  # each path passes here when it is planned, read and written
def check_path(path: str) -> str:
    """`path` itself if it is a relative path that stays below its root.

    Newlines, leading dashes, spaces and bytes that are no UTF-8 are legal file names and pass.
    Raises BadName for an empty or absolute path, `.`, `..`, empty components, NUL, components over 255 bytes,
    and for lone surrogates that stand for no byte.
    """
    if _PLAIN.match(path):
        return path
    if not path:
        raise BadName("the path is empty")
    if path[0] == "/":
        raise BadName(f"path {display(path)!r} is absolute; it must be relative to its storage")
    if "\0" in path:
        raise BadName(f"path {display(path)!r} holds a NUL byte")
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise BadName(f"path {display(path)!r} holds the component {part!r}: it could leave its folder")
        try:
            size = len(os.fsencode(part))
        except UnicodeEncodeError:
            raise BadName(f"path {display(path)!r} holds a character that no file name can hold") from None
        if size > NAME_MAX:
            raise BadName(f"name {display(part)!r} is {size} bytes long; {NAME_MAX} is the most a file system takes")
    return path


def portability(path: str) -> list[str]:
    """What would not survive a Windows or SMB file system in this path: one sentence each, empty if all is well."""
    found = []
    for part in path.split("/"):
        if part.split(".")[0].rstrip(" ").upper() in _RESERVED:
            found.append(f"{display(part)!r} is a reserved name on Windows")
        if part[-1:] in (".", " "):
            found.append(f"{display(part)!r} ends in a dot or space")
        if bad := sorted({c for c in part if c in '<>:"\\|?*' or ord(c) < 32}):
            found.append(f"{display(part)!r} holds {' '.join(map(repr, bad))}")
    return found


def temporary(path: str, key: str) -> str:
    """Where `path` is written until it is whole: same folder, fixed short name, the same for the same `key`."""
    folder, slash, _ = path.rpartition("/")
    digest = hashlib.blake2b(os.fsencode(f"{key}\0{path}"), digest_size=8).hexdigest()
    return f"{folder}{slash}.onblock-{digest}.part"


PACKED = frozenset({".gz", ".bz2", ".xz", ".zst"})
"""Extensions after which the one before them says what the file is."""


def alternatives(path: str) -> Iterator[str]:
    """Other names for `path` when something is there: `clip.mp4` -> `clip~2.mp4`, `clip~3.mp4` ..., each legal.
    `log.txt.gz` -> `log~2.txt.gz`."""
    folder, slash, name = path.rpartition("/")
    stem, dot, ext = name.rpartition(".")
    if not stem:
        stem, dot, ext = name, "", ""
    inner, inner_dot, inner_ext = stem.rpartition(".")
    if inner and f".{ext.lower()}" in PACKED and 0 < len(inner_ext) <= 5 and inner_ext.isalnum():
        stem, ext = inner, f"{inner_ext}{inner_dot}{ext}"  # what is unpacked keeps its extension
    for n in range(2, 10_000):
        tail = f"~{n}{dot}{ext}"
        keep = NAME_MAX - len(os.fsencode(tail))
        if keep < 1:  # an "extension" of 250 bytes is part of the name
            stem, tail = name, f"~{n}"
            keep = NAME_MAX - len(tail)
        short = stem
        while len(os.fsencode(short)) > keep:  # whole characters only
            short = short[:-1]
        if f"{short}{tail}" != name:  # 255 bytes that end in ~2 already
            yield f"{folder}{slash}{short}{tail}"


def display(path: str) -> str:
    """For people, logs and JSON: control characters, backslashes and bytes that are no UTF-8 are written as escapes."""
    if path.isprintable() and "\\" not in path:
        return path
    return "".join(
        c if c.isprintable() and c != "\\" else f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else
        c.encode("unicode_escape").decode("ascii")
        for c in path
    )  # fmt: skip


def to_text(path: str) -> str:
    """For the ledger: the path itself where it is Unicode, else `/` and the percent-encoded bytes (no path starts so)."""
    if path.isascii():
        return path
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "/" + quote_from_bytes(os.fsencode(path))
    return path


def from_text(text: str) -> str:
    """The path that `to_text` wrote."""
    return os.fsdecode(unquote_to_bytes(text[1:])) if text.startswith("/") else text


def manifest_line(digest: str, path: str) -> bytes:
    """One line as GNU `sha256sum` writes it: a leading backslash announces escaped newlines and backslashes.

    A file named `-` is written `./-`: the bare dash means standard input to `sha256sum -c`.
    """
    raw = os.fsencode(path if path != "-" else "./-")
    escaped = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != raw else b"") + digest.encode() + b"  " + escaped + b"\n"


_MANIFEST = re.compile(rb"(\\?)([0-9a-f]{64}) [ *](.+)\Z", re.DOTALL)
_ESCAPES = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}


def parse_manifest_line(line: bytes) -> tuple[str, str] | None:
    """(digest, path) of one line of a manifest; None where it is not one."""
    m = _MANIFEST.match(line.rstrip(b"\n"))
    if not m:
        return None
    raw = m[3]
    if m[1]:
        raw = re.sub(rb"\\[\\nr]", lambda e: _ESCAPES[e[0]], raw)
    return m[2].decode(), os.fsdecode(raw) if raw != b"./-" else "-"
