"""What people want of files, and what is promised of them: wishes, holds, overrides, verify passes, berths

Revision: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WISHED = sa.text("wish IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "berths",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_berths_run_id")),
        sa.PrimaryKeyConstraint("run_id", "place", name=op.f("pk_berths")),
    )
    op.create_table(
        "holds",
        sa.Column("job", sa.String(length=100), nullable=False),
        sa.Column("who", sa.String(length=100), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job", name=op.f("pk_holds")),
    )
    op.create_table(
        "overrides",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("revokes", BIG_ID, nullable=True),
        sa.Column("job", sa.String(length=100), nullable=False),
        sa.Column("rule", sa.String(length=100), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("who", sa.String(length=100), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["revokes"], ["overrides.id"], name=op.f("fk_overrides_revokes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_overrides")),
    )
    # plain ADD COLUMN, which does not copy a large table
    op.add_column("files", sa.Column("wish", sa.String(length=8), nullable=True))
    op.add_column("files", sa.Column("findings", sa.Text(), nullable=True))
    op.add_column("files", sa.Column("verify_passes", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("files", sa.Column("proven_at", sa.BigInteger(), nullable=True))
    op.create_index("ix_files_wish", "files", ["run_id"], sqlite_where=WISHED, postgresql_where=WISHED)


def downgrade() -> None:
    op.drop_index("ix_files_wish", "files", sqlite_where=WISHED, postgresql_where=WISHED)
    for name in ("proven_at", "verify_passes", "findings", "wish"):
        op.drop_column("files", name)
    for name in ("overrides", "holds", "berths"):
        op.drop_table(name)
