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
APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER overrides_no_{what} BEFORE {what} ON overrides "
        "BEGIN SELECT RAISE(ABORT, 'overrides are only ever added'); END"
        for what in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        "CREATE FUNCTION overrides_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'overrides are only ever added'; END $$",
        "CREATE TRIGGER overrides_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON overrides "
        "FOR EACH STATEMENT EXECUTE FUNCTION overrides_append_only()",
    ],
}


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
        sa.UniqueConstraint("revokes", name=op.f("uq_overrides_revokes")),
    )
    for statement in APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)
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
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION overrides_append_only()")
