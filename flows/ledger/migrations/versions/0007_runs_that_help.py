"""Runs that help another one, and the shipments that they are offered

Revision: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("runs", sa.Column("leader_id", sa.String(36)))
    helps = sa.text("leader_id IS NOT NULL")
    op.create_index("ix_runs_leader_id", "runs", ["leader_id"], sqlite_where=helps, postgresql_where=helps)
    op.create_table(
        "offers",
        sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
        sa.Column("leader_id", sa.String(36), nullable=False),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("large", sa.Boolean, nullable=False),
        sa.Column("taker_id", sa.String(36)),
        sa.Column("done", sa.Boolean, nullable=False),
    )
    op.create_index("ix_offers_leader_id", "offers", ["leader_id", "id"])


def downgrade() -> None:
    op.drop_table("offers")
    op.drop_index("ix_runs_leader_id", "runs")
    op.drop_column("runs", "leader_id")
