"""The file's form: how it is opened, locked, checked, made and migrated."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from aiservices.errors import ServiceError
from aiservices.journal.blobs import sync_folder

APPLICATION_ID = 0x41495356
"""Marks the file as ours (``AISV``), for SQLite and for file(1)."""

VERSION = 1
"""The form this program reads and writes."""

SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL,
    service TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    accepted_at REAL NOT NULL,
    request NOT NULL,
    secret BLOB,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    queued_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    output BLOB,
    error TEXT,
    webhook_due INTEGER NOT NULL
)
"""
"""``number`` is the writer's own: rows are appended, and no second index has to be kept."""

MIGRATIONS: dict[int, tuple[str, ...]] = {}
"""The statements that lead from each older version to the next one."""

WAL_PAGES = 1000
"""A checkpoint follows after this many pages of 4 KiB; the WAL's file is cut back to four times that."""


class Lock:
    """The right to the file, for one process. Freed by the system however the process ends.

    Args:
        path: the journal; the lock is a file beside it, which stays.
        shared: for readers: together with others, but not with a server.

    Raises:
        ServiceError: another process has it.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        file = path.with_name(f"{path.name}.lock")
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.free()
            wanted = "ask that server instead" if shared else "stop that process, or set another [journal] path"
            raise ServiceError(f"the journal {path} is in use by another process: {wanted}") from None

    def free(self) -> None:
        """Give it back."""
        os.close(self._descriptor)


def open_database(path: Path, sync: str) -> sqlite3.Connection:
    """Open the journal for writing; make it if there is none, migrate it if it is older.

    Args:
        path: the file; the caller has its lock.
        sync: ``normal`` survives the end of the process, ``full`` the loss of power too.

    Raises:
        ServiceError: it is damaged, another program's, or newer than this program.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
    with _readable(path):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path, sync)
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def open_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the journal for a look that changes nothing; the caller has its lock.

    Raises:
        ServiceError: it is damaged, another program's, or of another version.
    """
    with _readable(path), contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as it:
        version = _version(it, path)
        if version != VERSION:
            raise ServiceError(f"the journal {path} has the older form {version}: start the server once to migrate it")
        yield it


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise ServiceError(f"the journal {path} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> ServiceError:
    return ServiceError(
        f"the journal {path} is damaged ({reason}): move it, with {path.name}-wal and {path.name}-shm, out of the "
        "way to start with an empty one; the jobs in it are lost to the server then"
    )


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the file's version; 0 for an empty one."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not (application or version or tables):
        return 0
    if application != APPLICATION_ID:
        raise ServiceError(f"{path} is not a journal: set another [journal] path")
    if version > VERSION:
        raise ServiceError(
            f"the journal {path} has form {version}, and this program reads up to {VERSION}: start the newer program, "
            "or set another [journal] path"
        )
    return int(version)


def _prepare(connection: sqlite3.Connection, path: Path, sync: str) -> None:
    version = _version(connection, path)
    if version == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {'FULL' if sync == 'full' else 'NORMAL'}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {4 * WAL_PAGES * 4096}")
    if version == 0:
        _run(connection, (SCHEMA, f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {VERSION}"))
        sync_folder(path.parent)
        return
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _damaged(path, found.splitlines()[0])
    if version < VERSION:
        _migrate(connection, path, version)


def _migrate(connection: sqlite3.Connection, path: Path, version: int) -> None:
    copy = path.with_name(f"{path.name}.v{version}")
    half = copy.with_name(f"{copy.name}.half")
    half.unlink(missing_ok=True)
    os.close(os.open(half, os.O_RDWR | os.O_CREAT, 0o600))
    connection.execute("VACUUM INTO ?", (str(half),))
    half.rename(copy)
    sync_folder(path.parent)
    for older in range(version, VERSION):
        _run(connection, (*MIGRATIONS[older], f"PRAGMA user_version = {older + 1}"))


def _run(connection: sqlite3.Connection, statements: tuple[str, ...]) -> None:
    """Run them all or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
