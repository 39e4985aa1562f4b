"""Reserved hours that are asked for and granted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "gpuspawner_reserved_hours",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("hub", sa.String(255), nullable=False),
        sa.Column("course", sa.String(255), nullable=False),
        sa.Column("hours", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("asked_by", sa.String(255), nullable=False),
        sa.Column("asked_at", sa.Float(53), nullable=False),
        sa.Column("over_at", sa.Float(53), nullable=False),
        sa.Column("note", sa.String(1000), nullable=False),
        sa.Column("decided_by", sa.String(255), nullable=False),
        sa.Column("decided_at", sa.Float(53)),
        sa.Column("why", sa.String(1000), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
    )
    op.create_index("gpuspawner_reserved_hours_hub", "gpuspawner_reserved_hours", ["hub", "state"])
