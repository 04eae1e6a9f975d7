"""Opening a ledger: its tables, its migrations, and everything that is wrong with where it should be."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, make_url, text

from blocks.errors import AuthError, ConfigError, NetworkError, OnblockError
from flows.ledger import Ledger, migrate
from flows.ledger.models import Base
from tests.ledger import crowd

REPOSITORY = Path(__file__).parents[2]
SECRET = "hunter2-Zk9q"


def config(connection: Any = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def told(error: BaseException) -> str:
    """Everything that could be printed of an error, its causes included."""
    parts, seen = [], error
    while seen is not None:
        parts += [str(seen), repr(seen)]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "\n".join(parts)


def refused(url: str, kind: type[OnblockError], *, create: bool = True) -> str:
    """Opening fails with this class of the taxonomy; its message."""
    with pytest.raises(OnblockError) as caught:
        Ledger.open(url, create=create)
    assert type(caught.value) is kind, f"{caught.value!r}: {caught.value}"
    assert SECRET not in told(caught.value)
    message = str(caught.value)
    assert "\n" not in message, f"one line: {message!r}"
    return message


# -- tables and migrations ----------------------------------------------------------------------------------------


def test_migrations_make_what_the_models_say(ledger: Ledger) -> None:
    with ledger.engine.connect() as c:
        context = MigrationContext.configure(c, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
        assert context.get_current_revision() == migrate.HEAD


def test_head_is_the_newest_script() -> None:
    """HEAD is named in code so that opening need not import alembic; it must not lag behind."""
    assert ScriptDirectory.from_config(config()).get_heads() == [migrate.HEAD]


def test_upgrading_twice_does_nothing(url: str) -> None:
    with Ledger.open(url) as ledger:
        identity = ledger.identity
        with ledger.engine.connect() as c:
            assert migrate.upgrade(c) is False
    with Ledger.open(url) as ledger:
        assert ledger.identity == identity


def test_opening_again_does_not_import_alembic(url: str) -> None:
    Ledger.open(url).close()
    code = (
        "import sys; from flows.ledger import Ledger; Ledger.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "False"


def test_down_and_up_again(ledger: Ledger) -> None:
    with ledger._write() as c:
        command.downgrade(config(c), "base")
    with ledger.engine.connect() as c:
        assert set(inspect(c).get_table_names()) == {"alembic_version"}
    with ledger._write() as c:
        assert migrate.upgrade(c) is True
    with ledger.engine.connect() as c:
        assert set(inspect(c).get_table_names()) == {"alembic_version", *Base.metadata.tables}


def test_each_step_down_keeps_the_files_and_up_again(ledger: Ledger) -> None:
    """One revision back, and one more, as far as it goes: what was delivered stays delivered. Going back a release is a
    restore all the same (`docs/fleet.md`): what the newer tables held is gone."""
    run_id, route = ledger.begin_run("job", flight=None, device=None), ledger.route("job", "local:/archive")
    crowd.enter(ledger, run_id, route, [crowd.version("a"), crowd.version("b")])
    steps = [script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()]
    assert steps[0] == migrate.HEAD and len(steps) >= 6
    for below in steps[1:]:
        with ledger._write() as c:
            command.downgrade(config(c), below)
        with ledger.engine.connect() as c:
            assert migrate.revision(c) == below
            assert sorted(c.execute(text("SELECT path FROM files")).scalars()) == ["a", "b"]
    with ledger._write() as c:
        assert migrate.upgrade(c) is True
    assert sorted(row["path"] for row in ledger.files()) == ["a", "b"]


def test_two_ledgers_have_two_identities(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path / 'a'}") as a, Ledger.open(f"sqlite:///{tmp_path / 'b'}") as b:
        assert len(a.identity) == len(b.identity) == 36
        assert a.identity != b.identity


def test_a_ledger_of_a_newer_onblock_is_refused_and_left_alone(url: str) -> None:
    with Ledger.open(url) as ledger, ledger._write() as c:
        c.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    message = refused(url, ConfigError)
    assert "9999" in message
    assert "install the newer onblock" in message
    engine = crowd_engine(url)
    with engine.connect() as c:
        assert c.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    engine.dispose()


def crowd_engine(url: str) -> Any:
    from sqlalchemy import create_engine

    return create_engine(url)


@pytest.mark.parametrize("turn", range(3))
def test_many_processes_open_an_empty_database_at_once(url: str, turn: int) -> None:
    count = 4 if url.startswith("sqlite") else 8
    assert len(set(crowd.at_once(count, _open, url))) == 1


def _open(number: int, meet: Callable[[], object], url: str) -> str:
    meet()
    with Ledger.open(url) as ledger:
        return ledger.identity


# -- where no ledger is -------------------------------------------------------------------------------------------


def test_without_create_a_missing_file_stays_missing(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path / 'deep' / 'ledger.db'}", create=False) as ledger:
        assert ledger.counts() == []
        assert ledger.find_route("job", "local:/x") is None
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_a_file_in_onblock_home(onblock_home: Path) -> None:
    with Ledger.open(create=False):
        assert not onblock_home.exists()
    with Ledger.open():
        assert (onblock_home / "ledger.db").is_file()


def test_an_empty_file_is_an_empty_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        assert ledger.counts() == []


# -- files that are no ledger -------------------------------------------------------------------------------------


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is somebody's diary, and it must not be touched\n" * 100)
    before = path.read_bytes()
    assert "damaged" in refused(f"sqlite:///{path}", ConfigError, create=create)
    assert path.read_bytes() == before


def test_a_damaged_database(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.open(f"sqlite:///{path}").close()
    content = bytearray(path.read_bytes())
    content[100:4096] = os.urandom(3996)  # the header is whole, the schema is not
    path.write_bytes(content)
    message = refused(f"sqlite:///{path}", ConfigError)
    assert "damaged" in message
    assert "restore it" in message


def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        other.execute("INSERT INTO alembic_version VALUES ('a1b2c3d4e5f6')")
        other.execute("CREATE TABLE flow_run (id TEXT)")
    assert "a1b2c3d4e5f6" in refused(f"sqlite:///{path}", ConfigError)
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM sqlite_master WHERE type='table'").fetchone() == (2,)


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    refused(f"sqlite:///{tmp_path}", ConfigError)


def test_below_a_file_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "ONBLOCK_HOME" in refused(f"sqlite:///{tmp_path / 'file' / 'deep' / 'ledger.db'}", ConfigError)


def without_root(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program for which permission bits count, also when the tests are root's."""
    drop = "-dac_override,-dac_read_search"
    prefix = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*prefix, *argv], capture_output=True, text=True, cwd=REPOSITORY, timeout=120, env={**os.environ, **env}
    )


@pytest.mark.parametrize("what", ["no folder can be made", "no file can be made", "the file is read-only"])
def test_where_nothing_can_be_written_the_command_line_says_so(tmp_path: Path, what: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if what == "the file is read-only":
        Ledger.open(f"sqlite:///{home / 'ledger.db'}").close()
        (home / "ledger.db").chmod(stat.S_IRUSR)
    home.chmod(stat.S_IRUSR | stat.S_IXUSR)
    where = home / "deeper" if what == "no folder can be made" else home
    try:
        done = without_root(
            sys.executable, "-m", "deployments.cli", "transfers", "retry", "1", ONBLOCK_HOME=str(where)
        )  # fmt: skip
    finally:
        home.chmod(stat.S_IRWXU)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("onblock: ")
    assert "set ONBLOCK_HOME to a folder you may write to" in done.stderr


# -- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        f"postgresql:/onblock:{SECRET}@host/db",
        f"mysql://onblock:{SECRET}@host/db",
        f"oracle://onblock:{SECRET}@host/db",
        f"carrier-pigeon://onblock:{SECRET}@host/db",
        f"postgresql+psycopg2://onblock:{SECRET}@host/db",
        f"postgresql+asyncpg://onblock:{SECRET}@host/db",
        f"postgresql+pg8000://onblock:{SECRET}@host/db",
        f"postgresql://onblock:{SECRET}@host:port/db",
        f"postgresql://onblock:{SECRET}@host:54{SECRET}/db",
        f"postgresql://onblock:{SECRET}@127.0.0.1:1/db?colour=blue",
        f"postgresql://onblock:p@{SECRET}@host/db",
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    assert "ONBLOCK_LEDGER_URL" in refused(url, ConfigError)


def test_nobody_listens_there() -> None:
    with socket.socket() as taken:  # bound, not listening: refuses
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        refused(f"postgresql://onblock:{SECRET}@127.0.0.1:{port}/db", NetworkError)


def test_no_such_host() -> None:
    refused(f"postgresql://onblock:{SECRET}@no-such-host.invalid/db", NetworkError)


def test_a_wrong_password(postgres_url: str) -> None:
    url = make_url(postgres_url).set(password=SECRET).render_as_string(hide_password=False)
    assert "ONBLOCK_LEDGER_URL" in refused(url, AuthError)


def test_a_wrong_user(postgres_url: str) -> None:
    refused(make_url(postgres_url).set(username="nobody").render_as_string(hide_password=False), AuthError)


def test_a_database_that_is_not_there(postgres_url: str) -> None:
    url = make_url(postgres_url).set(database="not_there").render_as_string(hide_password=False)
    assert "not_there" in refused(url, ConfigError)


def test_no_connection_is_left(postgres_url: str) -> None:
    """As when more runs are begun at once than PostgreSQL was made for."""
    import psycopg

    role = f"r{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}' CONNECTION LIMIT 0")  # type: ignore[arg-type]
        try:
            url = make_url(postgres_url).set(username=role, password=SECRET).render_as_string(hide_password=False)
            assert "max_connections" in refused(url, NetworkError)
        finally:
            admin.execute(f"DROP ROLE {role}")  # type: ignore[arg-type]


def test_two_that_wait_for_each_other(postgres_url: str) -> None:
    """PostgreSQL gives up one of them after a second: it is worth another try."""
    meet, failed = threading.Barrier(2), list[OnblockError]()
    with Ledger.open(postgres_url) as ledger:
        with ledger._write() as c:
            c.execute(text("CREATE TABLE crosswise (n INT)"))
            c.execute(text("INSERT INTO crosswise VALUES (0), (1)"))

        def lock(first: int) -> None:
            try:
                with ledger._write() as c:
                    for number in (first, 1 - first):
                        c.execute(text("UPDATE crosswise SET n = n WHERE n = :n"), {"n": number})
                        if number == first:
                            meet.wait(60)
            except OnblockError as error:
                failed.append(error)

        both = [threading.Thread(target=lock, args=(n,)) for n in (0, 1)]
        for one in both:
            one.start()
        for one in both:
            one.join(60)
    (error,) = failed
    assert type(error) is NetworkError and "wait for each other" in str(error), error
    assert "address" not in str(error), "nothing is wrong with that"


def test_the_plain_url_of_postgresql_works(postgres_url: str) -> None:
    with Ledger.open(postgres_url.replace("postgresql+psycopg://", "postgresql://")) as ledger:
        assert ledger.identity


@pytest.mark.parametrize("debug", ["", "1"])
def test_the_command_line_never_prints_a_password(postgres_url: str, debug: str) -> None:
    url = make_url(postgres_url).set(password=SECRET).render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "transfers"], capture_output=True, text=True, cwd=REPOSITORY,
        env={**os.environ, "ONBLOCK_LEDGER_URL": url, "ONBLOCK_DEBUG": debug}, timeout=120,
    )  # fmt: skip
    assert SECRET not in done.stdout + done.stderr
    assert re.match(r"onblock: .*password", done.stderr), done.stderr
    if not debug:
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
