"""What steps make of files: products, and their lineage

Revision: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "products",
        sa.Column("origin_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("product_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["origin_id"], ["files.id"], name=op.f("fk_products_origin_id")),
        sa.ForeignKeyConstraint(["product_id"], ["files.id"], name=op.f("fk_products_product_id")),
        sa.PrimaryKeyConstraint("origin_id", "product_id", name=op.f("pk_products")),
    )
    op.create_index("ix_products_product_id", "products", ["product_id"])
    op.add_column("files", sa.Column("lineage", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("files", "lineage")
    op.drop_table("products")
