"""What may leave this machine in a support bundle: words that everybody can read in the source of onblock, Prefect and
what they stand on, numbers, and names that were allowed one by one. Every other word becomes a mark.

A list of what is allowed, and not of what a secret looks like: nobody knows how all secrets look. A mark, such as
`[3f2a91].mp4`, is the same for the same word in one bundle, and another in the next: its key is thrown away.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import os
import re
import secrets
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import blocks
import deployments
import flows
from blocks import names
from blocks.home import home

OTHERS = ("prefect", "uvicorn", "httpx", "sqlalchemy", "alembic", "paramiko", "psycopg")
"""Packages beside ours whose words logs are made of."""
MOST_DIGITS = 6
"""Of one word, however they are grouped: more may be a key. In JSON, numbers are numbers."""
NUMBER = re.compile(
    rf"\d{{1,{MOST_DIGITS}}}(?:[kKMGT]?i?B|[kKMGT]i?|[num]?s|[mhdxpVAWC]|Hz|px|st|nd|rd|th)?\Z", re.ASCII
)
"""With its unit, such as `30s`, `12MB`, `720p`."""
_BYTE, _DAY, _TIME = (
    r"(?:25[0-5]|2[0-4]\d|1?\d?\d)",
    r"(?:19|20)\d\d([-./])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])",
    r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?",
)
_SHAPE = re.compile(
    rf"(?<![\w.-])(?:{_DAY}(?:T{_TIME})?|{_TIME}|{_BYTE}(?:\.{_BYTE}){{3}}(?::\d{{1,5}}|/\d\d?)?|\d{{1,3}}(?:,\d{{3}})+)"
    r"(?![\w-]|\.\d)",
    re.ASCII,
)
"""What has more digits and is no key: a day, a time, an address (IP) with its port, a number in groups such as `1,234,567`."""
_SECRET = r"(?:pass|secret|token|key|auth|cred|cookie|signature|private)"
SUSPICIOUS = re.compile(_SECRET, re.IGNORECASE)
"""In the name of a variable whose value is looked for wherever it may stand."""
SHORTEST = 6
"""Of what is looked for so: a shorter one is in half of all words."""
_WORD = re.compile(r"\S+")
_PART = re.compile(r"\W+")
_BETWEEN = re.compile(r"([/=:,])")
_LOGIN = re.compile(r"(?<=://)\S+(?=@)")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_DIGITS = "0123456789"
_WRAPPING = "\"'`()[]{}<>,;:.!?*|=…"
_AFTER = re.compile(
    rf"(\w*{_SECRET}\w*[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|digest|negotiate)\s+)?|\bbearer\s+)([^\s\"',;]+)",
    re.IGNORECASE,
)
"""What follows `password=`, `token:` or `Bearer` is marked, though it be a word like any other."""
_MARK = re.compile(r"\[[0-9a-f]{6}\](?:\.\w{1,5})?")
_EXTENSION = re.compile(r"\.([A-Za-z0-9]{1,5})\Z", re.ASCII)


class Redaction:
    """Makes texts fit to leave. `environment` is where secrets of this process are: they are looked for as they stand, too."""

    def __init__(self, environment: Mapping[str, str] = os.environ):
        self._words = _vocabulary()
        self._allowed: set[str] = set()
        self._key = secrets.token_bytes(16)
        self._known: set[str] = set()
        self._roots = _roots()
        self.learn(environment)

    def learn(self, environment: Mapping[str, str]) -> None:
        """Variables of which those that look like secrets are, and logins in addresses."""
        for name, value in environment.items():
            if SUSPICIOUS.search(name) and not (os.path.isabs(value) and os.path.lexists(value)):  # no name of a file
                self.never(value)
            self.never(*_login(value))

    def never(self, *values: str | None) -> None:
        """These are secrets, whatever they look like, in whatever they stand."""
        self._known |= {form for v in values if v and len(v) >= SHORTEST for form in (v, unquote(v), names.display(v))}

    def allow(self, given: Iterable[Any]) -> None:
        """Names that people gave to jobs, devices, pools and blocks, and ids that were made by Prefect and the ledger."""
        self._allowed |= {str(name) for name in given if name} - self._known

    def leaks(self, text: str) -> bool:
        """Whether a known secret stands in it."""
        return any(secret in text for secret in self._known)

    def text(self, text: str) -> str:
        """Lines of text, word by word."""
        for secret in sorted(self._known, key=len, reverse=True):
            text = text.replace(secret, self._mark(secret))
        for root, name in self._roots:
            text = text.replace(root, name)
        return "\n".join(self._line(names.display(line.expandtabs(4))) for line in text.splitlines())

    def value(self, value: Any) -> Any:
        """Something for JSON: texts in it, and keys; numbers, and what is true or not, as they are."""
        if isinstance(value, Mapping):
            return {self.text(str(k)): self.value(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.text(str(value))

    def _line(self, line: str) -> str:
        line = _LOGIN.sub(lambda m: self._mark(m[0]), line)
        line = _AFTER.sub(lambda m: m[1] + (m[2] if _MARK.match(m[2]) else self._mark(m[2])), line)
        return _WORD.sub(lambda m: self._word(m[0]), line)

    def _word(self, word: str) -> str:
        bare = _MARK.sub("", word).strip(_WRAPPING)
        if not bare or self._harmless(bare):
            return word
        bare = word.strip(_WRAPPING)
        return self._mark(bare).join(word.partition(bare)[::2])

    def _harmless(self, word: str) -> bool:
        if word in self._allowed:
            return True
        rest = _SHAPE.sub("", "".join(part for part in _BETWEEN.split(word) if part not in self._allowed))
        return sum(c in _DIGITS for c in rest) <= MOST_DIGITS and all(map(self._public, _PART.split(rest)))

    def _public(self, part: str) -> bool:
        return not part or NUMBER.match(part) is not None or part in self._words or part.lower() in self._words

    def _mark(self, word: str) -> str:
        digest = hmac.new(self._key, word.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:6]
        found = _EXTENSION.search(word)
        kept = f".{found[1]}" if found and found[1].lower() in self._words else ""
        return f"[{digest}]{kept}"


def _roots() -> list[tuple[str, str]]:
    """Folders that everybody has somewhere else; what lies in them is named like everywhere."""
    site = Path(sysconfig.get_path("purelib"))
    found = {f"{site}/": "PYTHON/", f"{site.resolve()}/": "PYTHON/", f"{Path(blocks.__file__).parents[1]}/": "ONBLOCK/"}
    found |= {f"{Path(os.__file__).parent}/": "PYTHON/", f"{home()}/": "ONBLOCK_HOME/", str(home()): "ONBLOCK_HOME"}
    return sorted(found.items(), key=lambda root: -len(root[0]))


def _login(value: str) -> tuple[str | None, ...]:
    """What is secret of an address: what stands before the last `@`, as a whole and in its parts, and what is asked for."""
    if "://" not in value:
        return ()
    rest = value.partition("://")[2]
    login = rest.rpartition("@")[0]
    try:
        query = urlsplit(value).query
    except ValueError:
        query = ""
    asked = [pair.partition("=")[2] for pair in query.split("&")]
    return (login, login.partition(":")[2], *(a for a in asked if len(a) > 7))


def _vocabulary() -> frozenset[str]:
    """All words in the source of ours and of the others; as they stand, and in small letters."""
    roots = [Path(p) for package in (blocks, flows, deployments) for p in package.__path__]
    for name in OTHERS:
        if (spec := importlib.util.find_spec(name)) is not None:
            roots += map(Path, spec.submodule_search_locations or ())
    words: set[str] = set()
    for root in roots:
        for file in root.rglob("*.py"):
            words.update(_IDENTIFIER.findall(file.read_text("utf-8", "replace")))
    return frozenset(words | {w.lower() for w in words})
