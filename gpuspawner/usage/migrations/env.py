"""How Alembic runs the migrations: on a connection of ours, in its transaction."""

from __future__ import annotations

from alembic import context

from gpuspawner.usage.schema import PREFIX, VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # JupyterHub's own tables may be in the same database.
    include_name=lambda name, kind, parents: kind != "table" or str(name).startswith(PREFIX),
    # SQLite can't change a column: its table is made anew.
    render_as_batch=True,
)
context.run_migrations()
