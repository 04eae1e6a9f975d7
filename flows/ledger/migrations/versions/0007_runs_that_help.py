"""Runs that help another one, and the shipments that they are offered

Revision: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("leader_id", sa.String(36)))
    helps = sa.text("leader_id IS NOT NULL")
    op.create_index("ix_runs_leader_id", "runs", ["leader_id"], sqlite_where=helps, postgresql_where=helps)
    op.create_table(
        "offers",
        sa.Column("leader_id", sa.String(36), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("large", sa.Boolean, nullable=False),
        sa.Column("taker_id", sa.String(36)),
        sa.Column("done", sa.Boolean, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("offers")
    op.drop_index("ix_runs_leader_id", "runs")
    op.drop_column("runs", "leader_id")
