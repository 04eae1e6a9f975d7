"""The gate's part of the job form: which rules apply, and how grave each is. The rules themselves are in `rules.py`."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from blocks import names
from blocks.errors import OnblockError
from flows.transfer.form import Form
from flows.transfer.patterns import compile_pattern
from flows.transfer.rules import RULES, UNSAFE, Tier


def _patterns(value: list[str]) -> list[str]:
    for pattern in value:
        compile_pattern(pattern)
    return value


class Prefix(Form):
    """Names have to begin with one of several words, such as the mode of a survey."""

    any_of: list[str] = Field(min_length=1)
    """The words, such as `MAP_` and `CAL_`."""
    files: list[str] = Field(default=[])
    """Only of files that match these patterns, in the form of `include`; empty means all."""
    tier: Tier = Tier.HARD
    """`hard` blocks a file, `soft` is noted."""

    _files = field_validator("files")(_patterns)

    @field_validator("any_of")
    @classmethod
    def _words(cls, value: list[str]) -> list[str]:
        for word in value:
            if not word or "/" in word or not word.isprintable():
                raise ValueError(f"{word!r} is no beginning of a file name")
        return value


class Sidecar(Form):
    """A file needs another one beside it."""

    files: list[str] = Field(min_length=1)
    """Files that match these patterns, in the form of `include`, such as `*.mp4`."""
    needs: list[str] = Field(min_length=1)
    """Names, one of which has to be in the same folder of the source; {stem} and {name} are those of the file: `{stem}.json`."""
    tier: Tier = Tier.HARD
    """`hard` blocks a file, `soft` is noted."""

    _files = field_validator("files")(_patterns)

    @field_validator("needs")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        for name in value:
            plain = name.replace("{stem}", "x").replace("{name}", "x.y")
            if "/" in plain or "{" in plain or "}" in plain:
                raise ValueError(f"{name!r} is no name of a file beside another; write such as {{stem}}.json or DONE")
            try:
                names.check_path(plain)
            except OnblockError as error:
                raise ValueError(error.what) from None
        return value


class OwnRule(Form):
    """A rule of the job's own: a regular expression, looked for anywhere in the path that a file will have."""

    name: str
    """Names the rule in messages and overrides."""
    must: str | None = None
    """A regular expression that has to be found."""
    must_not: str | None = None
    """One that must not be found."""
    files: list[str] = Field(default=[])
    """Only of files that match these patterns, in the form of `include`; empty means all."""
    message: str = ""
    """What to say of a file that breaks the rule."""
    tier: Tier = Tier.HARD
    """`hard` blocks a file, `soft` is noted."""

    _files = field_validator("files")(_patterns)

    @field_validator("name")
    @classmethod
    def _label(cls, value: str) -> str:
        try:
            names.check_label(value, "rule")
        except OnblockError as error:
            raise ValueError(error.what) from None
        if value in (*RULES, UNSAFE):
            raise ValueError(f"{value!r} is the name of a rule that is there already; choose another")
        return value

    @field_validator("must", "must_not")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"bad regular expression {value!r}: {error}") from None
        return value

    @field_validator("message")
    @classmethod
    def _line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("the message has to be one line of text")
        return value

    @model_validator(mode="after")
    def _one_of_them(self) -> OwnRule:
        if (self.must is None) == (self.must_not is None):
            raise ValueError(f"rule {self.name!r} needs `must` or `must_not`, and not both")
        return self


class GateSettings(Form):
    """What a file has to be like before it is delivered. Where nothing is said, a rule is off."""

    placeholder: Tier | None = None
    """Names in which a placeholder was never filled in: `{flight}`, `<flight>`, `TODO`, `XXX`, `YYYYMMDD`."""
    template: Tier | None = None
    """Names with template syntax left over: `{{ }}`, `{% %}`, `${ }`."""
    reserved: Tier | None = None
    """Names that Windows and SMB do not take: CON, NUL, a dot or space at the end, one of `<>:"|?*`."""
    length_soft: int | None = Field(default=260, ge=1)
    """Paths of more characters are noted: 260 is what Windows takes unless told otherwise."""
    length_hard: int | None = Field(default=4096, ge=1)
    """Paths of more bytes are blocked: 4096 is what Linux takes."""
    prefix: Prefix | None = None
    """Names have to begin with one of several words."""
    sidecars: list[Sidecar] = Field(default=[])
    """Files that need another one beside them, such as a `*.mp4` its `{stem}.json`."""
    own: list[OwnRule] = Field(default=[])
    """Rules of your own, as regular expressions."""
    soft_blocks: bool = False
    """Soft findings block too."""

    @model_validator(mode="after")
    def _sense(self) -> GateSettings:
        given = [rule.name for rule in self.own]
        if twice := sorted({n for n in given if given.count(n) > 1}):
            raise ValueError(f"there are two rules {twice[0]!r}")
        return self

    def rules(self) -> list[str]:
        """The names of all rules that can be overridden: those there are, and the job's own."""
        return [*RULES, *(rule.name for rule in self.own)]
