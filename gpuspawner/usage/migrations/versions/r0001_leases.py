"""Leases with their units and groups, readings, and what is settled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "gpuspawner_leases",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("hub", sa.String(255), nullable=False),
        sa.Column("server_id", sa.String(255), nullable=False),
        sa.Column("started", sa.Float(53), nullable=False),
        sa.Column("user", sa.String(1000), nullable=False),
        sa.Column("server", sa.String(1000), nullable=False),
        sa.Column("course", sa.String(1000)),
        sa.Column("image", sa.String(1000), nullable=False),
        sa.Column("share_part", sa.Integer, nullable=False),
        sa.Column("share_of", sa.Integer, nullable=False),
        sa.Column("waited", sa.Float(53)),
        sa.Column("began", sa.Float(53), nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("until", sa.Float(53), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.Column("until_steady", sa.Float(53), nullable=False),
        sa.Column("is_over", sa.Boolean, nullable=False),
        sa.Column("why", sa.String(32)),
        sa.Column("exit_code", sa.Integer),
        sa.Column("sampled_steady", sa.Float(53)),
        sa.Column("measured", sa.Float(53)),
        sa.Column("idle", sa.Float(53)),
        sa.Column("used_of", sa.Float(53)),
        sa.Column("used", sa.Float(53)),
        sa.Column("memory_of", sa.Float(53)),
        sa.Column("memory", sa.Float(53)),
        sa.Column("memory_peak", sa.Integer),
        sa.UniqueConstraint("hub", "server_id", "started", name="gpuspawner_leases_server"),
    )
    op.create_index("gpuspawner_leases_began", "gpuspawner_leases", ["began"])
    op.create_index("gpuspawner_leases_seconds", "gpuspawner_leases", ["seconds"])
    op.create_index("gpuspawner_leases_until_steady", "gpuspawner_leases", ["until_steady"])
    op.create_index("gpuspawner_leases_user", "gpuspawner_leases", ["user"])
    op.create_index(
        "gpuspawner_leases_open",
        "gpuspawner_leases",
        ["hub"],
        sqlite_where=sa.text("is_over = 0"),
        postgresql_where=sa.text("NOT is_over"),
    )
    lease = sa.ForeignKey("gpuspawner_leases.id", ondelete="CASCADE")
    op.create_table(
        "gpuspawner_units",
        sa.Column("lease", sa.Integer, lease, primary_key=True),
        sa.Column("unit", sa.String(255), primary_key=True),
        sa.Column("gpu", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255)),
        sa.Column("share_part", sa.Integer, nullable=False),
        sa.Column("share_of", sa.Integer, nullable=False),
    )
    lease = sa.ForeignKey("gpuspawner_leases.id", ondelete="CASCADE")
    op.create_table(
        "gpuspawner_groups",
        sa.Column("lease", sa.Integer, lease, primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
    )
    op.create_table(
        "gpuspawner_readings",
        sa.Column("hub", sa.String(255), primary_key=True),
        sa.Column("wall", sa.Float(53), nullable=False),
        sa.Column("steady", sa.Float(53), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
    )
    op.create_table(
        "gpuspawner_settled",
        sa.Column("hub", sa.String(255), primary_key=True),
        sa.Column("server_id", sa.String(255), primary_key=True),
    )
