"""JupyterHub's database, in memory."""

from __future__ import annotations

from typing import Any

from jupyterhub import orm

from gpuspawner.usage.database import MIGRATING


def in_memory() -> Any:
    """Return a session with a new database of JupyterHub's.

    It is made with Alembic, as the store that another test's hub may still make in its thread.
    """
    with MIGRATING:
        return orm.new_session_factory("sqlite:///:memory:")()
