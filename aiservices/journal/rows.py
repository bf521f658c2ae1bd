"""One row of the file: what is encoded in it, and how it becomes a job again."""

from __future__ import annotations

from typing import Any

import msgspec

from aiservices.journal.blobs import Blobs
from aiservices.journal.encryption import KEY_VARIABLE, SecretBox
from aiservices.journal.events import StoredOutput
from aiservices.journal.records import JobRecord


class Output(msgspec.Struct, array_like=True):
    """An output as its row holds it: each payload as bytes, or as the name of its file."""

    fields: Any
    files: list[tuple[str, str, Any]]

    def names(self) -> list[str]:
        """Return the names of its files."""
        stored = [self.fields, *(content for _, _, content in self.files)]
        return [content for content in stored if isinstance(content, str)]


encode_output = msgspec.msgpack.Encoder().encode
_decode_output = msgspec.msgpack.Decoder(Output).decode
encode_request = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(dict[str, Any]).decode


def text(error: str | None) -> str | None:
    """Replace what UTF-8 cannot hold: one such text would refuse its whole transaction for ever."""
    return error.encode(errors="replace").decode() if error is not None else None


def read_row(
    row: tuple[Any, ...], blobs: Blobs, box: SecretBox | None, *, secrets: bool = True
) -> tuple[int, JobRecord, list[str], list[str]]:
    """Return its number, the job, and the names of files that its request and its output hold."""
    number, job_id, service, sequence, accepted_at, stored, sealed, state, attempt, queued_at, *times = row
    started_at, ended_at, packed, error, webhook_due = times
    request: dict[str, Any] = {}
    output = secret = unreadable = None
    kept = _decode_output(packed) if packed is not None else None
    try:
        request = _decode_request(blobs.get(stored))
        if kept is not None:
            files = tuple((name, kind, blobs.get(content)) for name, kind, content in kept.files)
            output = StoredOutput(fields=blobs.get(kept.fields), files=files)
    except (OSError, ValueError):
        unreadable = "a file of the journal that held a part of this job is missing or was changed"
    if sealed is not None and secrets:
        secret = box.unseal(job_id, sealed) if box is not None else None
        if secret is None:
            unreadable = f"the secrets of this job cannot be read: {KEY_VARIABLE} is missing or another one"
    record = JobRecord(
        job_id=job_id,
        service=service,
        sequence=sequence,
        accepted_at=accepted_at,
        queued_at=queued_at,
        request=request,
        secret=secret,
        state=state,
        attempt=attempt,
        started_at=started_at,
        ended_at=ended_at,
        output=output,
        error=error,
        webhook_due=bool(webhook_due),
        unreadable=unreadable,
    )
    return number, record, [stored] if isinstance(stored, str) else [], kept.names() if kept is not None else []
