"""Patterns of paths, as `include`, `exclude`, the gate and its overrides have them."""

from __future__ import annotations

import re
from functools import lru_cache


@lru_cache(1024)  # a cleanup asks again for every file
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A glob or `re:` pattern as a regular expression for `fullmatch` on a relative path.

    Globs: `*` and `?` stay inside a folder, `**` crosses folders, `[abc]` and `[!abc]` are sets. A glob without a
    slash matches the name in any folder; one that ends in a slash matches all below that folder. Raises ValueError.
    """
    if not pattern:
        raise ValueError("a pattern is empty")
    if pattern.startswith("re:"):
        try:
            return re.compile(pattern[3:])
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"bad regular expression {pattern!r}: {error}") from None
    glob = pattern.lstrip("/")
    if not glob:
        raise ValueError("a pattern is empty: to take or leave everything, write `**`")
    if glob.endswith("/"):
        glob += "**"
    if "/" not in glob:
        glob = "**/" + glob
    out, i = "", 0
    while i < len(glob):
        if glob.startswith("**/", i) and (i == 0 or glob[i - 1] == "/"):
            out, i = out + "(?:.*/)?", i + 3
        elif glob.startswith("**", i):
            out, i = out + ".*", i + 2
        elif glob[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif glob[i] == "?":
            out, i = out + "[^/]", i + 1
        elif glob[i] == "[" and (end := glob.find("]", i + 2 + glob.startswith("!", i + 1))) > 0:
            body = glob[i + 1 : end]
            negated = body.startswith("!")
            body = re.sub(r"([\\\[\]^&~|])", r"\\\1", body[negated:])
            out, i = out + f"(?!/)[{'^' if negated else ''}{body}]", end + 1
        else:
            out, i = out + re.escape(glob[i]), i + 1
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise ValueError(f"bad pattern {pattern!r}: {error}") from None
