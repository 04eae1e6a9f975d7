"""The ground the other tests stand on holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from prefect.settings import PREFECT_API_URL

REPOSITORY = Path(__file__).parents[1]

KINDS = {
    "test_body": "def test_skips(): pytest.skip('no server')",
    "test_mark": "@pytest.mark.skipif(True, reason='no server')\ndef test_skips(): pass",
    "test_fixture": "@pytest.fixture\ndef server(): pytest.skip('no server')\ndef test_skips(server): pass",
    "test_module": "pytest.skip('no server', allow_module_level=True)",
    "test_import": "pytest.importorskip('onblock_no_such_module', reason='no server')",
}
EXPECTED = "@pytest.mark.xfail\ndef test_known(): assert 0\ndef test_runs(): pass"


def pytest_with_our_conftest(folder: Path, ci: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull, "-rfE",
         "--continue-on-collection-errors", "--rootdir", str(folder), *more, str(folder)],
        cwd=REPOSITORY, env={**os.environ, "CI": ci, "PYTHONPATH": str(REPOSITORY), "PYTEST_ADDOPTS": ""}, capture_output=True, text=True,
    )  # fmt: skip


def test_a_skip_is_a_failure_in_ci_and_only_there(tmp_path: Path) -> None:
    for name, text in {**KINDS, "test_expected": EXPECTED}.items():
        (tmp_path / f"{name}.py").write_text(f"import pytest\n{text}\n")
    done = pytest_with_our_conftest(tmp_path, "true")
    assert done.returncode == 1, done.stdout
    summary = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR "))]
    assert {name for name in KINDS if any(f"{name}.py" in line for line in summary)} == set(KINDS), done.stdout
    assert len(summary) == len(KINDS), done.stdout  # an expected failure is no skip
    assert done.stdout.count("in CI nothing is skipped, and this was: ") >= len(KINDS)

    done = pytest_with_our_conftest(tmp_path, "")
    assert done.returncode == 0, done.stdout
    assert "5 skipped" in done.stdout


def test_what_shares_a_server_runs_in_one_process(tmp_path: Path) -> None:
    """xdist takes its groups from names of tests, and newer pytests give it no say in those."""
    folder = tmp_path / "deployments"
    folder.mkdir()
    for name in ("test_one", "test_two"):
        (folder / f"{name}.py").write_text(
            "import os, pathlib, pytest\n@pytest.mark.parametrize('n', range(10))\n"
            f"def test_it(n): pathlib.Path({str(tmp_path)!r}, os.environ['PYTEST_XDIST_WORKER']).touch()\n"
        )
    done = pytest_with_our_conftest(tmp_path, "", "-n", "2", "--dist", "loadgroup")
    assert "20 passed" in done.stdout, done.stdout
    assert len(list(tmp_path.glob("gw*"))) == 1


def test_home_is_this_tests_own_and_prefect_has_no_server(onblock_home: Path) -> None:
    assert os.environ["ONBLOCK_HOME"] == str(onblock_home)
    assert not onblock_home.exists()
    assert "PREFECT_API_URL" not in os.environ
    assert not PREFECT_API_URL.value()


_seen: list[str] = []


@pytest.mark.parametrize("turn", [1, 2])
def test_postgres_databases_are_fresh(postgres_url: str, turn: int) -> None:
    assert postgres_url not in _seen
    _seen.append(postgres_url)
    engine = sqlalchemy.create_engine(postgres_url)
    with engine.begin() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []
        connection.execute(sqlalchemy.text("CREATE TABLE left_over (n int)"))
    # not disposed of: the fixture drops the database even where a test left a connection open
