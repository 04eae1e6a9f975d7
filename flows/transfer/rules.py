"""The rules of the gate: each looks at values only, and says in a few words what it found, or None.

Which of them a job asks for is in `gate_settings.py`; what follows from a finding, in `gate.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from blocks import names


class Tier(StrEnum):
    """How grave a finding is: `hard` keeps a file from being delivered, `soft` is noted."""

    HARD = "hard"
    SOFT = "soft"


class Finding(NamedTuple):
    """What a rule found about a file; `override` is the number of the override that lets it pass all the same."""

    rule: str
    tier: Tier
    text: str
    override: int | None = None


UNSAFE = "unsafe"
"""The storage itself cannot take or give the file under this name: nobody can override that."""
PLACEHOLDER, TEMPLATE, RESERVED, LENGTH, PREFIX, SIDECAR = (
    "placeholder", "template", "reserved", "length", "prefix", "sidecar",
)  # fmt: skip
RULES = (PLACEHOLDER, TEMPLATE, RESERVED, LENGTH, PREFIX, SIDECAR)
"""The names of the rules that can be overridden, beside a job's own."""

_PLACEHOLDER = re.compile(
    r"""
    (?<![{$%])\{                                    # {flight}, {}, {0}, but no {3F2504E0-4F89-...}
        (?![0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-)
        (?:[^\W\d][\w .:-]{0,40} | \d{0,2})
    \}(?!\})
    | <[^\W\d][\w .:-]{0,40}>                       # <flight>
    | %\(\w{1,40}\)[a-z]                            # %(flight)s
    | %[YmHMS][-_]?%[mdHMS]                         # %Y%m%d
    | (?<![^\W_])                                   # whole words, in capitals
        (?:TODO|FIXME|TBD|CHANGEME|PLACEHOLDER|X{3,}|YYYY([-_]?)MM\1DD|HHMMSS)
        (?![^\W_])
    """,
    re.VERBOSE,
)
_TEMPLATE = re.compile(r"\{\{|\}\}|\{%|%\}|\$\{|<%|%>")


def placeholder(path: str) -> str | None:
    """A placeholder that was never filled in: `{flight}`, `<flight>`, `%(flight)s`, `TODO`, `XXX`, `YYYYMMDD`."""
    found = _PLACEHOLDER.search(path)
    return found and f"the placeholder {names.display(found[0])!r} was never filled in"


def template(path: str) -> str | None:
    """Template syntax that is left over: `{{ }}`, `{% %}`, `${ }`, `<% %>`."""
    found = _TEMPLATE.search(path)
    return found and f"{found[0]!r} is left over from a template"


def reserved(path: str) -> str | None:
    """What Windows or SMB would not take: CON, NUL, a dot or space at the end, one of `<>:"|?*` and the backslash."""
    return "; ".join(names.portability(path)) or None


def too_long(path: str, soft: int | None, hard: int | None) -> tuple[Tier, str] | None:
    """A path of more than `soft` characters, or more than `hard` bytes."""
    if hard is not None and 4 * len(path) > hard and (size := len(path.encode("utf-8", "replace"))) > hard:
        return Tier.HARD, f"its path is {size} bytes long, {hard} is the most"
    if soft is not None and len(path) > soft:
        return Tier.SOFT, f"its path is {len(path)} characters long, {soft} is the most"
    return None


def prefix(path: str, any_of: Sequence[str]) -> str | None:
    """A name that begins with none of the given words."""
    if path.rpartition("/")[2].startswith(tuple(any_of)):
        return None
    return f"its name begins with none of {', '.join(any_of)}"


def own(path: str, must: str | None, must_not: str | None, message: str) -> str | None:
    """A regular expression of the job's own that is found where it must not be, or is not where it must be."""
    if must is not None and not re.search(must, path):
        return message or f"its path does not match {must}"
    if must_not is not None and (found := re.search(must_not, path)):
        return message or f"its path holds {names.display(found[0])!r}"
    return None


def needed(path: str, needs: Iterable[str]) -> list[str]:
    """The paths, one of which a file asks for beside itself: `{name}` and `{stem}` are those of the file."""
    folder, slash, name = path.rpartition("/")
    stem = name.rpartition(".")[0] or name
    return [folder + slash + n.replace("{name}", name).replace("{stem}", stem) for n in needs]


def sidecar(path: str, needs: Sequence[str], there: Collection[str]) -> str | None:
    """None of the files that belong beside it is `there` (paths)."""
    wanted = needed(path, needs)
    if any(w in there for w in wanted):
        return None
    return f"there is no {' or '.join(names.display(w.rpartition('/')[2]) for w in wanted)} beside it"


# -- as the ledger keeps them -----------------------------------------------------------------------------------------


def as_json(found: Sequence[Finding]) -> str | None:
    """Findings for the ledger; None where there are none."""
    if not found:
        return None
    return json.dumps([{k: v for k, v in f._asdict().items() if v is not None} for f in found])


def from_json(text: str | None) -> list[Finding]:
    """What `as_json` wrote."""
    return [Finding(f["rule"], Tier(f["tier"]), f["text"], f.get("override")) for f in json.loads(text or "[]")]
