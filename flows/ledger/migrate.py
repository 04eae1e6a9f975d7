"""Bringing a ledger to the tables of this version. The steps themselves are alembic's, in `migrations/versions`."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from blocks.errors import ConfigError

HEAD = "0008"
"""The newest revision. Named here so that opening a ledger that is up to date need not import alembic (0.4 s)."""


def upgrade(connection: Connection) -> bool:
    """Bring the ledger to HEAD; whether there was anything to do. Raises ConfigError for a ledger of a newer onblock."""
    found = revision(connection)
    if found == HEAD:
        return False
    if connection.dialect.name == "postgresql":  # SQLite's writer is alone already
        connection.execute(text("SELECT pg_advisory_xact_lock(7162014)"))
        if (found := revision(connection)) == HEAD:
            return False  # another process was faster
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigError(
            f"the ledger is at revision {found}, which this onblock does not know", remedy="install the newer onblock"
        ) from error
    return True


def revision(connection: Connection) -> str | None:
    """The revision a ledger is at; None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
