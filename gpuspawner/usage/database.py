"""The database of the store: its address, its engine, and its migrations."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.util
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ..errors import GPUSpawnerError
from .schema import VERSION_TABLE

DIALECTS = ("sqlite", "postgresql")
# How long to wait for a database, and for another hub that writes to it, in seconds.
WAIT_SECONDS = 10
# Whoever holds it writes, one at a time, as SQLite has it anyway. Any number but another lock's.
LOCK = 0x6770_7573_6167_65
# Alembic keeps what it works on in its modules: in a process one can do so at a time.
MIGRATING = threading.Lock()


class StoreError(GPUSpawnerError):
    """The store can't be read or written. `str()` is a sentence for administrators."""


def check(url: str) -> URL:
    """Return the address of a store, with a relative path of a file made absolute.

    Raises:
        ValueError: it is none. The message has no password of it.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("it is no URL of SQLAlchemy's, as sqlite:///usage.sqlite is") from None
    name = parsed.get_backend_name()
    if name not in DIALECTS:
        raise ValueError(f"it begins with {name!r}, and must with {' or '.join(DIALECTS)}")
    if name == "sqlite":
        if not parsed.database or parsed.database.startswith(":") or parsed.query:
            raise ValueError("it names no file, as sqlite:///usage.sqlite does")
        return parsed.set(database=os.path.abspath(parsed.database))  # noqa: PTH100 - keeps links
    if parsed.drivername == "postgresql":
        # The default is another one from SQLAlchemy 2.1 on.
        parsed = parsed.set(drivername="postgresql+psycopg2")
    try:
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        raise ValueError(
            f"the package {error.name!r} isn't installed: pip install 'gpuspawner[postgresql]'"
        ) from None
    except SQLAlchemyError as error:
        raise ValueError(f"its driver can't be loaded: {error}") from None
    return parsed


def relative_to(url: str, folder: Path) -> str:
    """Return an address whose file, if it has a relative one, is below a folder.

    Raises:
        StoreError: it is none of a store.
    """
    try:
        parsed = check(url)
    except ValueError as error:
        raise StoreError(f"c.GPUSpawner.usage_db: {error}") from None
    if file_of(parsed):
        parsed = parsed.set(database=os.path.join(folder, make_url(url).database or ""))  # noqa: PTH118
    return parsed.render_as_string(hide_password=False)


def file_of(url: URL) -> Path | None:
    """Return the file of a SQLite database; None: it is in none."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def shown(url: URL) -> str:
    """Return an address without its password."""
    return url.render_as_string(hide_password=True)


def engine_for(url: URL, *, writes: bool) -> Engine:
    """Return an engine for a store.

    Args:
        url: as `check` returns it.
        writes: whether something is to be written; else nothing can be.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, writes)
    waits = {"connect_timeout": WAIT_SECONDS} if "psycopg" in url.drivername else {}
    reads = {} if writes else {"postgresql_readonly": True}
    return create_engine(url, pool_pre_ping=True, connect_args=waits, execution_options=reads)


def _sqlite(url: URL, writes: bool) -> Engine:
    # ref: https://docs.sqlalchemy.org/en/20/dialects/sqlite.html, "Serializable isolation"
    arguments: dict[str, Any] = {"timeout": WAIT_SECONDS, "isolation_level": None}
    if not writes:
        path = Path(url.database or "").as_uri()
        url = URL.create("sqlite", database=path, query={"mode": "ro", "uri": "true"})
    engine = create_engine(url, connect_args=arguments)

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        if writes:
            # Who reads delays nobody who writes.
            connection.execute("PRAGMA journal_mode = WAL")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def create_file(url: URL) -> None:
    """Make the file of a SQLite database where there is none: it has names, so it is nobody else's.

    Raises:
        OSError: it can't be made.
    """
    if (path := file_of(url)) and not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction in which nobody else writes; commit it, or roll it back on an error."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        yield connection


@contextmanager
def _quiet_alembic() -> Iterator[None]:
    """Keep what Alembic has to say of each step out of the log, in this thread and this block.

    Whoever has given its loggers a level wants to read it.
    """
    loggers = [logging.getLogger(name) for name in ("alembic", "alembic.runtime.migration")]
    if any(each.level for each in loggers):
        yield
        return
    here = threading.get_ident()

    def matters(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.thread != here

    loggers[1].addFilter(matters)
    try:
        yield
    finally:
        loggers[1].removeFilter(matters)


def migrations() -> Config:
    """Return Alembic's configuration of our migrations."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def migrate(engine: Engine, to: str = "head") -> None:
    """Bring a database's tables up to date, or make them.

    Args:
        engine: one that writes.
        to: the revision.

    Raises:
        StoreError: a newer version of ours has written it.
    """
    with MIGRATING, transaction(engine) as connection:
        _refuse_newer(connection)
        config = migrations()
        config.attributes["connection"] = connection
        with _quiet_alembic():
            alembic.command.upgrade(config, to)


def _refuse_newer(connection: Connection) -> None:
    found = revision_of(connection)
    known = {each.revision for each in ScriptDirectory.from_config(migrations()).walk_revisions()}
    if found is not None and found not in known:
        raise StoreError(
            f"the store is of revision {found}, which only a newer version of gpuspawner knows"
        )


def newest_revision() -> str | None:
    """Return the revision that this version of ours writes."""
    return ScriptDirectory.from_config(migrations()).get_current_head()


def revision_of(connection: Connection) -> str | None:
    """Return the revision of a database's tables; None: it has none."""
    with _quiet_alembic():
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()
