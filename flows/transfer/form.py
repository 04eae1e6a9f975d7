"""What the parts of the job form share: how they refuse unknown keys, and durations as people write them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"ms": 0.001, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)")


def _duration(value: Any) -> Any:
    """Durations as people write them: 30s, 10 min, 1h 30min, 7d; numbers are seconds; ISO 8601 is left to pydantic."""
    if isinstance(value, str) and re.fullmatch(rf"(?:{_DURATION.pattern}\s*)+", value.strip()):
        try:
            return timedelta(seconds=sum(float(n) * _UNITS[u] for n, u in _DURATION.findall(value)))
        except OverflowError:
            raise ValueError("the duration is longer than anything can be") from None
    return value


Duration = Annotated[timedelta, BeforeValidator(_duration), Field(ge=timedelta(0))]


class Form(BaseModel):
    """A part of the form: unknown keys are refused, by name."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
