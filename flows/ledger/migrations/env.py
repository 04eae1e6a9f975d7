"""How alembic reaches the ledger: over the connection that `migrate.upgrade` hands it."""

from alembic import context

from flows.ledger.models import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
