"""What a handler gave becomes a job's output; large files go to a bucket, and signed URLs stand in their place.

A handler marks the fields that hold a file with :func:`aiservices.handler.output_file`. Such a field leaves the answer
when the job names a bucket of its own (``s3Config``) or when its base64 is longer than ``max_inline_bytes`` and a
bucket is set; so does the whole answer when what is left is still longer. ``audio`` becomes ``audio_url``, a whole
answer ``{"output_url": …}``. If an upload fails, its job does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import msgspec

from aiservices.errors import FetchError, InvalidInput, JobFailed
from aiservices.jobs import Destination, Job, JobOutput, OutputFile
from aiservices.logs import get_logger
from aiservices.outputs.bucket import Uploader, own_bucket
from aiservices.outputs.callers import ENDPOINT_FIELD, CallersBuckets, Putter
from aiservices.outputs.encoding import encode_output, file_fields, is_small
from aiservices.settings import OutputsConfig, S3Config

log = get_logger(__name__)

WHOLE = "output"
"""Name of a whole answer that went to a bucket."""


_EXTENSIONS: Mapping[str, str] = {
    "application/json": ".json",
    "audio/flac": ".flac",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/wav": ".wav",
    "image/jpeg": ".jpg",
    "image/png": ".png",
}
"""Of file names; for people only, the media type is stored beside the file."""

LIGHT_BYTES = 256 * 1024
"""No small output is longer: a character takes at most 6 bytes of JSON, and names and numbers little."""


@attrs.frozen
class Packed:
    """An output of which a part has to go to a bucket first: what stays, and the files that leave."""

    stays: JobOutput
    leaves: tuple[OutputFile, ...]


class OutputStore:
    """Encodes outputs and stores the large ones. ``pack`` runs in any thread, the rest on the event loop.

    Args:
        config: the bucket and the bounds.
        s3: stands in for what ``config`` leaves empty.
        putter: sends to endpoints that callers name, through the guard.
    """

    def __init__(self, config: OutputsConfig, s3: S3Config, putter: Putter) -> None:
        self._config = config
        self._own = own_bucket(config, s3)
        self._putter = putter
        self._callers = CallersBuckets(config, putter)
        self._uploader = Uploader(config, self._own) if self._own else None

    def check(self, destination: Destination) -> None:
        """Refuse a caller's bucket at submission, as far as its text tells.

        Raises:
            InvalidInput: naming the field.
        """
        try:
            self._putter.check_url(destination.endpoint_url, field=ENDPOINT_FIELD)
        except FetchError as error:
            raise InvalidInput(error.field, error.reason) from None
        if any(mark in destination.endpoint_url for mark in "?#"):
            raise InvalidInput(ENDPOINT_FIELD, "holds a query or a fragment")

    def pack_light(self, output: Any, destination: Destination | None) -> JobOutput | None:
        """Encode an output on the loop, if that takes microseconds and none of it goes to a bucket; else None.

        Raises:
            JobFailed: it is larger than ``max_output_bytes``.
        """
        if destination is not None or (self._own is not None and self._config.max_inline_bytes < LIGHT_BYTES):
            return None
        if file_fields(type(output)) or not is_small(output):
            return None
        made = encode_output(output)
        return made if self._own else self._bounded(made)

    def pack(self, output: Any, destination: Destination | None) -> JobOutput | Packed:
        """Encode an output; take out what has to go to a bucket. Heavy: runs in the pool.

        Args:
            output: as the handler gave it.
            destination: the job's own bucket.

        Raises:
            JobFailed: it is larger than ``max_output_bytes`` and does not go to a bucket.
        """
        made = encode_output(output)
        if destination is None and self._own is None:
            return self._bounded(made)
        longest = 0 if destination else self._config.max_inline_bytes
        leaves = tuple(file for file in made.files if len(file.data) * 4 // 3 > longest)
        stays = JobOutput(made.fields, tuple(file for file in made.files if file not in leaves))
        if stays.size_bytes > self._config.max_inline_bytes:
            whole = OutputFile(WHOLE, "application/json", stays.as_json())
            stays, leaves = JobOutput(b"{}"), (*leaves, whole)
        return Packed(stays, leaves) if leaves else stays

    async def store(self, packed: Packed, job: Job) -> JobOutput:
        """Upload the files; return the answer with their URLs.

        Raises:
            JobFailed: an upload failed; says why, without any secret.
        """
        destination, began = job.request.destination, time.monotonic()
        try:
            if destination is None:
                urls = await self._to_own_bucket(packed.leaves, job)
            else:
                key_of = _keys(destination.object_path, job)
                urls = await self._callers.upload(destination, packed.leaves, key_of)
        except JobFailed as error:
            bucket = destination.bucket_name if destination else self._config.bucket
            log.warning("output.not_stored", **job.log_fields, bucket=bucket, reason=str(error))
            raise JobFailed(f"the output could not be stored in the bucket {bucket!r}: {error}") from None
        size, seconds = sum(len(file.data) for file in packed.leaves), round(time.monotonic() - began, 3)
        log.info("output.stored", **job.log_fields, bytes=size, seconds=seconds)
        fields = msgspec.json.encode({**msgspec.json.decode(packed.stays.fields), **urls})
        return JobOutput(fields, packed.stays.files)

    def close(self) -> None:
        """Stop what still uploads."""
        if self._uploader is not None:
            self._uploader.close()

    async def _to_own_bucket(self, files: tuple[OutputFile, ...], job: Job) -> dict[str, str]:
        assert self._uploader is not None
        try:
            return await self._uploader.upload(files, _keys(self._config.prefix, job))
        except Exception as error:
            raise JobFailed(self._uploader.in_words(error)) from None

    def _bounded(self, made: JobOutput) -> JobOutput:
        limit = self._config.max_output_bytes
        if made.size_bytes > limit:
            raise JobFailed(
                f"the output has {made.size_bytes} bytes, more than the {limit} of max_output_bytes; a bucket takes it"
                " (s3Config of the job, or [outputs] bucket)"
            )
        return made


def _keys(folder: str, job: Job) -> Callable[[OutputFile], str]:
    """Return what gives each file of a job its key in a bucket."""
    start = "/".join(filter(None, (folder.strip("/"), job.service, job.id)))
    return lambda file: f"{start}/{file.name}{_EXTENSIONS.get(file.media_type, '')}"
