"""What the command line says to people: each thing once, and what to do next."""

from __future__ import annotations

from typer.testing import CliRunner

from deployments.cli import MOST_WARNINGS, app
from tests.transfer.conftest import Bench, Cli


def said(*args: object) -> str:
    """What a command prints, run in this process."""
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False).output


def test_a_disk_full_of_trouble_is_told_in_few_lines(bench: Bench, onblock: Cli) -> None:
    """Each warning once, and not one for each of ten thousand files."""
    for n in range(MOST_WARNINGS + 15):
        bench.put(f"f{n:02}")
        (bench.archive / f"f{n:02}").mkdir()
    done = onblock("run", bench.yaml(on_conflict="fail"))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == MOST_WARNINGS + 1, done.stderr
    assert len(set(lines)) == len(lines)
    assert "`onblock transfers list` shows them all" in lines[-1]
    assert done.stdout.splitlines()[-1] == "  see `onblock transfers list --job job --state FAILED --state QUARANTINED`"


def test_nothing_to_take_is_said(bench: Bench) -> None:
    assert "the source shows no files that this job takes" in said("run", bench.yaml())
    bench.put("a")
    assert "no files" not in said("run", bench.yaml())
    assert "no files" not in said("run", bench.yaml())
    assert "the source shows no files that this job takes" in said("run", bench.yaml(include=["*.mp4"]))


def test_what_was_there_already_is_called_that(bench: Bench) -> None:
    bench.put("a", b"1")
    (bench.archive / "a").write_bytes(b"1")
    assert "1 already there with the same content" in said("run", bench.yaml())


def test_lists_of_nothing_are_no_empty_tables(bench: Bench) -> None:
    bench.put("a")
    bench.put("b")
    assert "2 to deliver" in said("plan", bench.yaml())
    assert "2 scanned, 1 shipment\n" in said("plan", bench.yaml())
    said("run", bench.yaml())
    assert said("transfers", "list", "--state", "FAILED").startswith("there are no such files")
    assert "these are the first 1;" in said("transfers", "list", "--limit", "1")
    assert "these are" not in said("transfers", "list", "--limit", "3")
