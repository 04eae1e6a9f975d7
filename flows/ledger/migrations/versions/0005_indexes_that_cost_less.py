"""Indexes that cost less when rows are claimed: one over all states, whose rows need no look at its condition, and one of
wishes that does not change with the run

Revision: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

OPEN = sa.text("state NOT IN ('CLEANED', 'CLEANUP_ELIGIBLE', 'DUPLICATE', 'VERIFIED')")
WISHED = sa.text("wish IS NOT NULL")


def upgrade() -> None:
    op.drop_index("ix_files_open", "files")
    op.create_index("ix_files_state", "files", ["route_id", "state"])
    op.drop_index("ix_files_wish", "files")
    op.create_index("ix_files_wish", "files", ["wish"], sqlite_where=WISHED, postgresql_where=WISHED)


def downgrade() -> None:
    op.drop_index("ix_files_wish", "files")
    op.create_index("ix_files_wish", "files", ["run_id"], sqlite_where=WISHED, postgresql_where=WISHED)
    op.drop_index("ix_files_state", "files")
    op.create_index("ix_files_open", "files", ["route_id", "state"], sqlite_where=OPEN, postgresql_where=OPEN)
