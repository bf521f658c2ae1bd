"""The rows: one a job, with its newest state. One thread, one connection."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from aiservices.errors import ServiceError
from aiservices.journal.blobs import Blobs
from aiservices.journal.changes import Change
from aiservices.journal.database import Lock, open_database, open_for_reading
from aiservices.journal.encryption import SecretBox
from aiservices.journal.events import Ended, Requeued, Started
from aiservices.journal.records import QUEUED, RUNNING, JobRecord
from aiservices.journal.rows import Output, encode_output, encode_request, read_row, text

VACUUM_PAGES = 2000
"""Free pages that one idle moment gives back to the file system: 8 MiB, a few milliseconds."""

_INSERT = "INSERT INTO jobs VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_UPDATE = """UPDATE jobs SET state=?, attempt=?, queued_at=coalesce(?, queued_at), started_at=?, ended_at=?, output=?,
    error=?, webhook_due=? WHERE number=?"""
_DELIVERED = "UPDATE jobs SET webhook_due=0 WHERE number=? AND attempt=?"
_DELETE = "DELETE FROM jobs WHERE number=?"

_State = tuple[str, int, float | None, float | None, bytes | None, str | None]
"""state, attempt, started_at, ended_at, output, error."""


class _Names(msgspec.Struct):
    """Names of files in a row."""

    request: list[str]
    output: list[str]


class _Batch:
    """The rows of one transaction, and what holds once it is committed."""

    def __init__(self) -> None:
        self.inserts: list[tuple[Any, ...]] = []
        self.updates: list[tuple[Any, ...]] = []
        self.delivered: list[tuple[int, int]] = []
        self.deletes: list[tuple[int]] = []
        self.added: dict[str, int] = {}
        self.removed: list[str] = []
        self.names: list[tuple[int, list[str] | None, list[str] | None]] = []


class Store:
    """The open journal. Everything on the writer's thread.

    Args:
        path: the file; its folder is made, for this user alone, if there is none.
        sync: ``normal`` or ``full``.
        box: what decrypts and encrypts; None reads and writes no secrets.

    Raises:
        ServiceError: it is in use, damaged, another program's, or newer than this program.
        OSError: the folder or the file cannot be made or read.
    """

    def __init__(self, path: Path, sync: str, box: SecretBox | None) -> None:
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, parents=True)
        self._path, self._box = path, box
        self._lock = Lock(path)
        try:
            self._connection = open_database(path, sync)
        except BaseException:
            self._lock.free()
            raise
        self._blobs = Blobs(_blob_folder(path))
        self._numbers: dict[str, int] = {}
        self._names: dict[int, _Names] = {}
        self._next = 1

    def read(self) -> list[JobRecord]:
        """Return every remembered job in the order of acceptance, and delete files that none names."""
        records = []
        for row in self._connection.execute("SELECT * FROM jobs ORDER BY number"):
            number, record, request, output = read_row(row, self._blobs, self._box)
            self._numbers[record.job_id] = number
            self._note(number, request, output)
            self._next = number + 1
            records.append(record)
        self._blobs.sweep()
        return records

    def commit(self, changes: Mapping[str, Change]) -> None:
        """Write them all or none.

        Raises:
            OSError, sqlite3.Error: nothing was written.
        """
        batch = _Batch()
        try:
            for job_id, change in changes.items():
                self._add(batch, job_id, change)
            self._transact(batch)
        except BaseException:
            self._blobs.collect()
            raise
        self._numbers.update(batch.added)
        for job_id in batch.removed:
            del self._numbers[job_id]
        for number, request, output in batch.names:
            self._note(number, request, output)
        self._blobs.collect()

    def tidy(self) -> None:
        """Fold the WAL into the file and give free pages back: for a moment without work."""
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._connection.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()

    def size_bytes(self) -> int:
        """Return what the file and its WAL take on the disk."""
        total = 0
        for path in (self._path, self._path.with_name(f"{self._path.name}-wal")):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    def close(self) -> None:
        """Fold the WAL in, as far as the disk allows, and free the file."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._connection.close()
        self._lock.free()

    def _add(self, batch: _Batch, job_id: str, change: Change) -> None:
        number = self._numbers.get(job_id)
        accepted = change.accepted
        if accepted is not None:
            if change.forgotten:
                return
            number = batch.added[job_id] = self._next
            self._next += 1
            stored = self._blobs.put(encode_request(accepted.request))
            sealed = self._box.seal(job_id, accepted.secret) if accepted.secret is not None and self._box else None
            (state, attempt, *rest), names = self._state(change.last)
            queued_at = accepted.at if change.queued_at is None else change.queued_at
            row = (number, job_id, accepted.service, accepted.sequence, accepted.at, stored, sealed)
            batch.inserts.append((*row, state, attempt, queued_at, *rest, change.webhook_due))
            if names or isinstance(stored, str):
                batch.names.append((number, [stored] if isinstance(stored, str) else [], names))
        elif number is None:
            return  # it is kept in memory only, or was refused or forgotten
        elif change.forgotten:
            batch.deletes.append((number,))
            batch.removed.append(job_id)
            batch.names.append((number, [], []))
        else:
            self._add_update(batch, number, change)

    def _add_update(self, batch: _Batch, number: int, change: Change) -> None:
        if change.last is not None:
            (state, attempt, *rest), names = self._state(change.last)
            batch.updates.append((state, attempt, change.queued_at, *rest, change.webhook_due, number))
            batch.names.append((number, None, names))
        if change.delivered is not None:
            batch.delivered.append((number, change.delivered))

    def _state(self, last: Started | Ended | Requeued | None) -> tuple[_State, list[str]]:
        if last is None:
            return (QUEUED, 1, None, None, None, None), []
        if isinstance(last, Started):
            return (RUNNING, last.attempt, last.at, None, None, None), []
        if isinstance(last, Requeued):
            return (QUEUED, last.attempt, None, None, None, None), []
        output, names = None, list[str]()
        if last.output is not None:
            put = self._blobs.put
            kept = Output(put(last.output.fields), [(name, kind, put(data)) for name, kind, data in last.output.files])
            output, names = encode_output(kept), kept.names()
        return (last.status, last.attempt, last.started_at, last.at, output, text(last.error)), names

    def _transact(self, batch: _Batch) -> None:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement, rows in (
                (_INSERT, batch.inserts),
                (_UPDATE, batch.updates),
                (_DELIVERED, batch.delivered),
                (_DELETE, batch.deletes),
            ):
                if rows:
                    connection.executemany(statement, rows)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite rolls some of its errors back itself
                connection.execute("ROLLBACK")
            raise

    def _note(self, number: int, request: list[str] | None, output: list[str] | None) -> None:
        """Count the names that a row holds now; None leaves the old ones."""
        old = self._names.pop(number, None)
        if old is None and not request and not output:
            return
        before = old or _Names([], [])
        after = _Names(
            before.request if request is None else request,
            before.output if output is None else output,
        )
        self._blobs.named([*after.request, *after.output])
        self._blobs.dropped([*before.request, *before.output])
        if after.request or after.output:
            self._names[number] = after


def read_offline(path: Path) -> list[JobRecord]:
    """Read a journal that no server uses, without changing it; secrets stay closed. Blocks.

    Raises:
        ServiceError: it is missing, in use, damaged, another program's, or of another version.
    """
    if not path.is_file():
        raise ServiceError(f"there is no journal {path}")
    lock = Lock(path, shared=True)
    try:
        with open_for_reading(path) as connection:
            blobs = Blobs(_blob_folder(path))
            rows = connection.execute("SELECT * FROM jobs ORDER BY number")
            return [read_row(row, blobs, None, secrets=False)[1] for row in rows]
    finally:
        lock.free()


def _blob_folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.blobs")
