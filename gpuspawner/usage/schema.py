"""The tables of the store. Migrations make them; a test keeps both alike.

Times with `_steady` are by a machine's clock since its boot `boot`, others in seconds since the
epoch. What isn't known or can't be measured is NULL, never 0.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

# What names begin with: JupyterHub's own database may be the one.
PREFIX = "gpuspawner_"
VERSION_TABLE = f"{PREFIX}version"

metadata = MetaData()

# One lease: one run of a server with GPUs.
leases = Table(
    f"{PREFIX}leases",
    metadata,
    Column("id", Integer, primary_key=True),
    # Whose lease it is: the hub by its address, and the backend's id of the server.
    Column("hub", String(255), nullable=False),
    Column("server_id", String(255), nullable=False),
    # When the backend says that the server was started. A server that is started again has another.
    Column("started", Float(53), nullable=False),
    Column("user", String(1000), nullable=False),
    Column("server", String(1000), nullable=False),
    Column("course", String(1000)),
    Column("image", String(1000), nullable=False),
    # Its part of a GPU, exact: 2 GPUs are 2/1, a slot of eight is 1/8.
    Column("share_part", Integer, nullable=False),
    Column("share_of", Integer, nullable=False),
    # How long its request waited, in seconds.
    Column("waited", Float(53)),
    # Its time: when it began, for how many seconds it has been held, and the sum of both. While
    # it isn't over, as of when the server was last seen to run.
    Column("began", Float(53), nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("until", Float(53), nullable=False),
    Column("boot", String(64), nullable=False),
    Column("until_steady", Float(53), nullable=False),
    Column("is_over", Boolean, nullable=False),
    # Why it ended, or is about to (`endings.WHYS`), and the exit code of its server.
    Column("why", String(32)),
    Column("exit_code", Integer),
    # What was sampled, up to which steady time. `measured` are the seconds in which it was known
    # whether its GPUs did something, `idle` those of them in which they did nothing.
    Column("sampled_steady", Float(53)),
    Column("measured", Float(53)),
    Column("idle", Float(53)),
    # Seconds with a known utilization, and that many times the utilization (from 0 to 1).
    Column("used_of", Float(53)),
    Column("used", Float(53)),
    # Seconds with known memory in use, that many times MiB, and the most.
    Column("memory_of", Float(53)),
    Column("memory", Float(53)),
    Column("memory_peak", Integer),
    UniqueConstraint("hub", "server_id", "started", name=f"{PREFIX}leases_server"),
    Index(f"{PREFIX}leases_began", "began"),
    # The longest lease says how far before a period one may have begun that lies in it.
    Index(f"{PREFIX}leases_seconds", "seconds"),
    Index(f"{PREFIX}leases_until_steady", "until_steady"),
    Index(f"{PREFIX}leases_user", "user"),
    # Those that aren't over: a few of many.
    Index(
        f"{PREFIX}leases_open",
        "hub",
        sqlite_where=text("is_over = 0"),
        postgresql_where=text("NOT is_over"),
    ),
)

# The units of a lease. `gpu` is the UUID of the physical one.
units = Table(
    f"{PREFIX}units",
    metadata,
    Column("lease", ForeignKey(leases.c.id, ondelete="CASCADE"), primary_key=True),
    Column("unit", String(255), primary_key=True),
    Column("gpu", String(255), nullable=False),
    Column("model", String(255)),
    Column("share_part", Integer, nullable=False),
    Column("share_of", Integer, nullable=False),
)

# The groups of a lease's user at the spawn.
groups = Table(
    f"{PREFIX}groups",
    metadata,
    Column("lease", ForeignKey(leases.c.id, ondelete="CASCADE"), primary_key=True),
    Column("name", String(255), primary_key=True),
)

# When a hub last wrote what there was.
readings = Table(
    f"{PREFIX}readings",
    metadata,
    Column("hub", String(255), primary_key=True),
    Column("wall", Float(53), nullable=False),
    Column("steady", Float(53), nullable=False),
    Column("boot", String(64), nullable=False),
)

# Servers that have ended and are still there: what there was to write of them is written.
settled = Table(
    f"{PREFIX}settled",
    metadata,
    Column("hub", String(255), primary_key=True),
    Column("server_id", String(255), primary_key=True),
)

# Reserved hours that were asked for or made on the dashboard. What was decided stays.
reserved_hours = Table(
    f"{PREFIX}reserved_hours",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hub", String(255), nullable=False),
    Column("course", String(255), nullable=False),
    # A `ReservedHours`, as JSON.
    Column("hours", Text, nullable=False),
    # One of `hours_request.STATES`.
    Column("state", String(16), nullable=False),
    Column("asked_by", String(255), nullable=False),
    Column("asked_at", Float(53), nullable=False),
    Column("over_at", Float(53), nullable=False),
    Column("note", String(1000), nullable=False),
    Column("decided_by", String(255), nullable=False),
    Column("decided_at", Float(53)),
    Column("why", String(1000), nullable=False),
    # The order in which they were granted, of each hub's.
    Column("rank", Integer, nullable=False),
    Index(f"{PREFIX}reserved_hours_hub", "hub", "state"),
)

# What each physical GPU did in a span of time. By time first: that is how it is read and thinned.
history = Table(
    f"{PREFIX}history",
    metadata,
    # The span's length and its beginning.
    Column("seconds", Integer, primary_key=True, autoincrement=False),
    Column("began", BigInteger, primary_key=True, autoincrement=False),
    Column("gpu", String(255), primary_key=True),
    # The last reading that is in the sums. It takes only later ones.
    Column("until", Float(53), nullable=False),
    # Seconds with a known utilization, and that many times the utilization (from 0 to 1).
    Column("used_of", Float(53), nullable=False),
    Column("used", Float(53), nullable=False),
    # Seconds with known memory in use, and that many times MiB.
    Column("memory_of", Float(53), nullable=False),
    Column("memory", Float(53), nullable=False),
    # The key is the table: half the size.
    sqlite_with_rowid=False,
)

# What the migrations are compared with.
TABLES: tuple[Table, ...] = (leases, units, groups, readings, settled, reserved_hours, history)
