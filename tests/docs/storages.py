"""Makes `docs/storages/*.md`, a page for each storage and device, from the fields of their blocks: `make docs`."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from blocks.devices import DEVICES
from blocks.storage import STORAGES
from blocks.storage.base import Storage

FOLDER = Path(__file__).parents[2] / "docs" / "storages"
README = FOLDER.parents[1] / "README.md"
EXAMPLES = {"device": "cam-01", "url": "http://192.168.42.1", "mount": "/media/card"}
"""What an example says for keys."""


def pages() -> dict[str, str]:
    """All pages, by their file names."""
    made = {f"{slug}.md": page(slug, cls) for slug, cls in {**STORAGES, **DEVICES}.items()}
    lines = [
        "# Storages and devices", "", "Made by `make docs` from the blocks; edit those.", "",
        "Each page lists what may be said in a JOB.yaml (`{type: TYPE, ...}`) and in the form of the block in Prefect's UI.",
        "What each can, where the server plays along, is in the [README](../../README.md#storages).", "",
        "| storage | what |", "|---|---|", *(f"| [`{slug}`]({slug}.md) | {doc(cls)} |" for slug, cls in STORAGES.items()), "",
        "| device | what |", "|---|---|", *(f"| [`{slug}`]({slug}.md) | {doc(cls)} |" for slug, cls in DEVICES.items()), "",
    ]  # fmt: skip
    return made | {"README.md": "\n".join(lines)}


def page(slug: str, cls: type[Storage]) -> str:
    """The page of one."""
    side = "source" if slug in DEVICES else "destination"
    lines = [
        f"# `{slug}`", "", doc(cls), "", "```yaml", f"{side}: {example(slug, cls)}", "```", "",
        "| key | what | type | without it |", "|---|---|---|---|",
        *(row(name, field) for name, field in cls.model_fields.items()), "",
    ]  # fmt: skip
    if slug in STORAGES:
        lines += abilities(slug)
    if any(is_secret(f) for f in cls.model_fields.values()):
        lines += [
            "A secret is better kept in a block: make one in Prefect's UI (Blocks), or in a terminal where `PREFECT_API_URL` is",
            f"set with `prefect block create {slug}`, which says where; then write its name: `{side}: {slug}/NAME`. Or leave it",
            "in the environment of whoever runs the job: `{env: NAME}`.", "",
        ]  # fmt: skip
    lines += ["[All storages](README.md). Made by `make docs` from the block; edit that.", ""]
    return "\n".join(lines)


def doc(cls: type) -> str:
    """What the block is, in a line."""
    return cell(" ".join((cls.__doc__ or "").split()))


def abilities(slug: str) -> list[str]:
    """Its line of the README's table, which is held against real servers, with the heading."""
    lines = README.read_text("utf-8").splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("| storage | goes on"))
    mine = [line for line in lines[head + 2 :] if line.startswith(f"| `{slug}` |")][:1]
    return ["What it can, where the server plays along:", "", *lines[head : head + 2], *mine, ""] if mine else []


def row(name: str, field: FieldInfo) -> str:
    """A line of the table."""
    required = field.is_required()
    value = field.get_default(call_default_factory=True) if not required else PydanticUndefined
    without = "**must be said**" if required else "" if value in (None, "", {}, []) else f"`{told(value)}`"
    return f"| `{name}` | {cell(field.description or '')} | {kind(field.annotation)} | {without} |"


def told(value: Any) -> str:
    """A default, as YAML writes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def kind(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(kind(a) for a in inner if a is not type(None))
    if origin is Literal:
        return ", ".join(f"`{a}`" if a != "" else "nothing" for a in inner)
    if origin is list:
        return f"list of {kind(inner[0])}"
    if origin is dict:
        return "keys and values"
    if annotation is Any:
        return "block"
    words = {str: "text", bool: "`true`, `false`", int: "number", float: "number", SecretStr: "secret"}
    return words[annotation]


def is_secret(field: FieldInfo) -> bool:
    """Whether it may hold a secret."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


def example(slug: str, cls: type[Storage]) -> str:
    """The README's line for it, or one of what is required."""
    found = re.search(
        rf"^(?:source|destination): (\{{type: {slug}[,}}].*\}})$", README.read_text("utf-8"), re.MULTILINE
    )
    if found:
        return found[1]
    return yaml.safe_dump(
        {"type": slug} | {n: v for n, v in EXAMPLES.items() if n in cls.model_fields},
        default_flow_style=True,
        sort_keys=False,
        width=1000,
    ).strip()


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write them, and take away those of storages that are no more."""
    made = pages()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")
    print(f"{len(made)} pages in {FOLDER}")


if __name__ == "__main__":
    main()
