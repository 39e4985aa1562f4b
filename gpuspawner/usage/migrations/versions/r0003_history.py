"""What each GPU did when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "gpuspawner_history",
        sa.Column("seconds", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("began", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("gpu", sa.String(255), primary_key=True),
        sa.Column("until", sa.Float(53), nullable=False),
        sa.Column("used_of", sa.Float(53), nullable=False),
        sa.Column("used", sa.Float(53), nullable=False),
        sa.Column("memory_of", sa.Float(53), nullable=False),
        sa.Column("memory", sa.Float(53), nullable=False),
        sqlite_with_rowid=False,
    )
