"""The docs are true: pages that are made are up to date, examples are accepted, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from deployments.agent.settings import AgentSettings
from deployments.cli import app
from flows.transfer.job import job_of
from tests.docs.storages import FOLDER, pages

ROOT = Path(__file__).parents[2]
DOCS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(kind: str) -> list[tuple[Path, str]]:
    return [(doc, text) for doc in DOCS for of, text in _FENCE.findall(doc.read_text("utf-8")) if of == kind]


def test_the_pages_of_storages_are_those_that_the_blocks_make() -> None:
    made = pages()
    assert {p.name for p in FOLDER.glob("*.md")} == set(made), "run `make docs`"
    for name, text in made.items():
        assert (FOLDER / name).read_text("utf-8") == text, f"run `make docs`: {name} is an old one"


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(doc: Path) -> None:
    text = re.sub(_FENCE, "", doc.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (doc.parent / path).resolve() if path else doc
        assert file.exists(), f"{doc}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads}, f"{doc}: {target}"


@pytest.mark.parametrize(
    ("doc", "text"), [(d, t) for d, t in fences("yaml") if t.startswith("# ")], ids=lambda v: v.name if isinstance(v, Path) else ""
)  # fmt: skip
def test_files_in_the_docs_are_taken(doc: Path, text: str) -> None:
    """A block that begins with a file's name is that file."""
    name = text.split("\n")[0].removeprefix("# ").split()[0]
    data = yaml.safe_load(text)
    if name == "agent.yaml":
        assert AgentSettings.model_validate(data)
    elif not text.startswith("# added to"):
        environment = dict.fromkeys(re.findall(r"\{env: (\w+)\}", text), "x")
        assert job_of(data, environment).name


def test_commands_in_the_docs_are_there_with_their_options() -> None:
    tried = 0
    for doc, text in fences("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and (re.match(r"\w+=", words[0]) or words[0] == "sudo"):
                words = words[1:]
            if words[:1] != ["onblock"]:
                continue
            command, names = get_command(app), []
            for word in words[1:]:
                below = getattr(command, "commands", {})
                if word not in below:
                    break
                command, names = below[word], [*names, word]
            known = {o for p in command.params for o in p.opts} | {"--help"}
            given = {w.partition("=")[0] for w in words[1 + len(names) :] if w.startswith("--")}
            assert given <= known, f"{doc.name}: {line}"
            assert names or given, f"{doc.name}: {line}"
            tried += 1
    assert tried > 60
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
