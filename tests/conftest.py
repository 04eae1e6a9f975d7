"""What every test stands on: a home of its own, no Prefect server but its own, PostgreSQL, and no skip in CI."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# before anything imports Prefect: whoever runs the tests may have a server and profiles of their own
os.environ.pop("PREFECT_API_URL", None)
os.environ["PREFECT_PROFILES_PATH"] = str(Path(tempfile.gettempdir(), f"onblock-tests-{os.getpid()}-no-profiles.toml"))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

import pytest
from hypothesis import settings

from tests.servers import postgres

pytest_plugins = ["tests.servers.fixtures", "tests.servers.hdfs_fixtures", "tests.servers.rclone"]

settings.register_profile("onblock", deadline=None, print_blob=True, database=None)
settings.register_profile("ci", settings.get_profile("onblock"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "onblock")


# -- in CI a test that did not run is a failure -------------------------------------------------------------------


def _no_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"in CI nothing is skipped, and this was: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    _no_skip(report)
    return report  # type: ignore[return-value]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Iterator[None]:
    report: pytest.CollectReport = yield  # type: ignore[assignment]
    _no_skip(report)
    return report  # type: ignore[return-value]


SHORT = 2500
"""Characters of a failure that are told once more at the end, where a long log was cut."""


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How each failure ended, each cause once: a fixture that failed is told for all tests that wanted it."""
    told: set[str] = set()
    for report in terminalreporter.getreports("failed") + terminalreporter.getreports("error"):
        text = report.longreprtext[-SHORT:]
        if text not in told:
            told.add(text)
            terminalreporter.section(f"in short: {report.nodeid}")
            terminalreporter.write_line(text)


# -- two at a time ------------------------------------------------------------------------------------------------


FIRST = ("prefect", "hdfs", "hosts")
"""The groups that take longest: one for each of the two, and then the others fill up."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares a server, or a file, stays in one process; the rest is dealt out (`--dist loadgroup`)."""
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
        if group in ("prefect", "hosts"):  # whose server may stand still for a minute, more than once
            item.add_marker(pytest.mark.timeout(900))
    items.sort(key=lambda item: FIRST.index(groups[item]) if groups[item] in FIRST else len(FIRST))


HDFS = {"test_howto", "test_webhdfs", "test_hadoop_cli", "test_kerberos", "test_any_two", "test_network"}


def _group(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    place = callspec.params.get("place") if callspec else None
    if place in ("webhdfs", "hadoop-cli") or item.path.stem in HDFS:
        return "hdfs"
    if item.path.parent.name == "deployments":
        return "prefect"
    if item.path.parent.name == "hosts":
        return "hosts"
    return f"{item.path.stem} {place or ''}"


# -- fixtures -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def onblock_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ONBLOCK_HOME of this test alone; not there yet."""
    home = tmp_path_factory.mktemp("home") / "onblock"
    monkeypatch.setenv("ONBLOCK_HOME", str(home))
    monkeypatch.delenv("ONBLOCK_LEDGER_URL", raising=False)
    return home


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[postgres.Postgres]:
    """One PostgreSQL for the session, started by the first test that asks."""
    if not postgres.installed():
        pytest.skip("PostgreSQL is not installed: python -m tests.servers.install")
    with tempfile.TemporaryDirectory(prefix="onblock-pg-") as folder:  # the server's user must reach it
        Path(folder).chmod(0o755)
        with postgres.Postgres(Path(folder, "server")) as server:
            yield server


@contextmanager
def _database(server: postgres.Postgres, name: str) -> Iterator[str]:
    """An empty database, while this lasts; its SQLAlchemy URL."""
    import psycopg  # not every run of the tests needs it
    from psycopg import sql

    info = server.info
    where = {key: info[key] for key in ("host", "port", "user", "password")}
    with psycopg.connect(**where, dbname="postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield info["url"].removesuffix("postgres") + name
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def postgres_url(postgres_server: postgres.Postgres) -> Iterator[str]:
    """SQLAlchemy URL of an empty database, this test's own."""
    with _database(postgres_server, f"t{uuid.uuid4().hex}") as url:
        yield url


@pytest.fixture(scope="session")
def prefect_database(postgres_server: postgres.Postgres) -> Iterator[str]:
    """The same for a Prefect server of the session."""
    with _database(postgres_server, "prefect") as url:
        yield url.replace("+psycopg:", "+asyncpg:")
