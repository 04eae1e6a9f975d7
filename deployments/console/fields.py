"""Forms of the pages, as strict as the API is: their fields are taken by the models of `forms.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import parse_qs

from fastapi import Request
from pydantic import BaseModel, ValidationError

from deployments.console import forms
from deployments.console.problems import Problem
from deployments.wanted import Meant

M = TypeVar("M", bound=BaseModel)


class Given:
    """The fields of a form."""

    def __init__(self, fields: Mapping[str, list[str]]):
        self._fields = fields

    def one(self, name: str) -> str:
        """The first of a name, or an empty text."""
        return next(iter(self._fields.get(name, ())), "")

    def all(self, name: str) -> list[str]:
        """All of a name that are not empty."""
        return [v for v in self._fields.get(name, ()) if v]


async def form(request: Request) -> Given:
    """That of a request. Raises Problem 400."""
    try:
        body = (await request.body()).decode()
        return Given(parse_qs(body, keep_blank_values=True, max_num_fields=6000, errors="strict"))
    except ValueError:
        raise Problem(400, "the body is no form") from None


def asked(model: type[M], given: Given, *fields: str, **more: str) -> M:
    """Fields of a form as the API takes them. Raises Problem 422."""
    try:
        return model.model_validate({name: given.one(name) for name in fields if given.one(name)} | more)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise Problem(422, wrong) from None


def meant(all_of: Callable[[str], list[str]]) -> Meant:
    """All files that fit a filter. Raises Problem 422."""
    if any(all_of("q")):
        raise Problem(422, "all files that a search finds cannot be meant at once: tick them")
    one = {k: (next(filter(None, all_of(k)), "") or None) for k in ("job", "flight", "device")}
    wanted = asked(forms.Action, Given({k: [v] for k, v in one.items() if v}), *one, action="pause")
    states = [s for s in all_of("state") if s]
    if not (any(one.values()) or states):
        raise Problem(422, "say which files first: filter by job, state, flight or device")
    return Meant((), wanted.job, wanted.flight, wanted.device, states)


def number_in(text: str) -> int:
    """That of a transfer, or a time in ms. Raises Problem 422."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise Problem(422, "that is no number of a transfer")
    return int(text)


def one_of(what: str, *known: str) -> str:
    """`what`, if it is known. Raises Problem 404."""
    if what not in known:
        raise Problem(404, f"there is nothing called {what!r}")
    return what
