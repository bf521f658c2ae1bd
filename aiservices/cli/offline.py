"""The jobs of a journal that no server uses, as a server would show them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiservices.errors import ServiceError, UnknownService
from aiservices.jobs import JobOutput, JobStatus, OutputFile, Wanted
from aiservices.journal import QUEUED, RUNNING, JobRecord, read_offline

_STATUSES = {QUEUED: JobStatus.IN_QUEUE, RUNNING: JobStatus.IN_PROGRESS}

Json = dict[str, Any]


class JournalFile:
    """What a file can be asked.

    Args:
        path: of the journal. Read whole, now.
        service: whose jobs are wanted; None: every service's.

    Raises:
        UnknownService: the file has no jobs of it.
        ServiceError: it cannot be read, or a server uses it.
    """

    def __init__(self, path: Path, service: str | None) -> None:
        self._path = path
        try:
            records = read_offline(path)
        except OSError as error:
            raise ServiceError(f"the journal {path} cannot be read: {error.strerror}") from None
        services = sorted({record.service for record in records})
        if service is not None and services and service not in services:
            raise UnknownService(service, services)
        found = [record for record in records if service in (None, record.service)]
        self._records = sorted(found, key=lambda record: record.accepted_at, reverse=True)

    def jobs(self, wanted: Wanted) -> tuple[Sequence[Json], bool]:
        """Return the newest jobs, and whether there are older ones."""
        fit = [record for record in self._records if not wanted.statuses or _status(record) in wanted.statuses]
        return [_entry(record) for record in fit[: wanted.limit]], len(fit) > wanted.limit

    def job(self, job_id: str) -> Json:
        """Return a job with its output.

        Raises:
            ServiceError: it is not in the file.
        """
        for record in self._records:
            if record.job_id == job_id:
                output = record.output
                if output is None:
                    return _entry(record)
                files = tuple(OutputFile(*file) for file in output.files)
                return {**_entry(record), "output": JobOutput(output.fields, files).as_dict()}
        raise ServiceError(f"no job {job_id} in {self._path} ('aiservices jobs list --journal' shows those there are)")


def _status(record: JobRecord) -> JobStatus:
    return _STATUSES.get(record.state) or JobStatus(record.state)


def _entry(record: JobRecord) -> Json:
    created_at = datetime.fromtimestamp(record.accepted_at, UTC).isoformat(timespec="microseconds")
    shown: Json = {"id": record.job_id, "status": _status(record).value, "createdAt": created_at}
    started_at, ended_at = record.started_at, record.ended_at
    until = started_at if started_at is not None else ended_at
    if until is not None:
        shown["delayTime"] = _milliseconds(record.queued_at, until)
    if ended_at is not None:
        shown["executionTime"] = 0 if started_at is None else _milliseconds(started_at, ended_at)
    if record.attempt > 1:
        shown["retries"] = record.attempt - 1
    if (error := record.error or record.unreadable) is not None:
        shown["error"] = error
    owner = {key: record.request[key] for key in ("tenant", "key") if key in record.request}
    return {**shown, **owner, "service": record.service}


def _milliseconds(since: float, until: float) -> int:
    """Never less than none, though a clock may have been set back between the two."""
    return round(1000 * max(0.0, until - since))
