"""What is counted of many runs, beside their summaries, and an index that answers for it alone

Revision: 0006
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TOLD = sa.text("well IS NOT NULL")
COLUMNS = ("delivered", "bytes", "well")
PAGE = 1000


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column("runs", sa.Column(name, sa.Boolean() if name == "well" else sa.BigInteger()))
    _count()
    op.create_index(
        "ix_runs_told", "runs", ["ended_at", "job", "device", "well", "delivered", "bytes"],
        sqlite_where=TOLD, postgresql_where=TOLD,
    )  # fmt: skip


def _count() -> None:
    """From the summaries of transfers, which alone name their destinations."""
    runs = sa.table("runs", *(sa.column(name) for name in ("id", "summary", *COLUMNS)))
    c, last = op.get_bind(), ""
    put = sa.update(runs).where(runs.c.id == sa.bindparam("run")).values({n: sa.bindparam(n) for n in COLUMNS})
    while True:
        page = sa.select(runs.c.id, runs.c.summary).where(runs.c.id > last, runs.c.summary.is_not(None))
        found = c.execute(page.order_by(runs.c.id).limit(PAGE)).all()
        if not found:
            return
        last = found[-1].id
        told = [
            {
                "run": run, "delivered": summary.get("delivered", 0), "bytes": summary.get("bytes", 0),
                "well": not any(summary.get(k) for k in ("failed", "blocked", "deferred", "problems")),
            }
            for run, text in found if "destinations" in (summary := json.loads(text))
        ]  # fmt: skip
        if told:
            c.execute(put, told)


def downgrade() -> None:
    op.drop_index("ix_runs_told", "runs")
    for name in reversed(COLUMNS):
        op.drop_column("runs", name)
