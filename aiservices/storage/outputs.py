"""Large outputs: their files go to a bucket, and the answer holds signed URLs instead.

A handler marks the fields that hold a file with :func:`aiservices.handler.base64_file`. Such a field leaves the answer
when the job brings a bucket of its own (``s3Config``) or when it is longer than ``max_inline_bytes`` and a bucket is
set; so does the whole answer when what is left is still longer. ``audio`` becomes ``audio_url``, a whole answer
``{"output_url": …}``. If an upload fails, its job does.

The S3 client reads files and computes on the loop it runs on, so it has a loop of its own. The endpoint of a job's own
bucket is a stranger's URL: its text and each address it resolves to pass the guard of :mod:`aiservices.fetch`, it is
used with the stranger's keys only, and no proxy stands between.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache
from typing import Any, Protocol, get_type_hints

import attrs
import msgspec
from aiohttp.abc import AbstractResolver
from msgspec import Meta

from aiservices.errors import FetchError, InvalidInput, JobFailed, ServiceError
from aiservices.handler import FILE_MARK
from aiservices.job import Destination, Job, OutputFile, Packed
from aiservices.logs import get_logger
from aiservices.loops import LoopThread
from aiservices.settings import OutputsConfig, S3Config

log = get_logger(__name__)

WHOLE = "output"
"""Name of a whole answer that went to a bucket."""

ENDPOINT_FIELD = "$.s3Config.endpointUrl"
ATTEMPTS = 2
"""Tries of one request: a second one helps over a connection that broke, and ``timeout_s`` bounds both."""

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

_AWS_REGION = re.compile(r"//(?:[^/]*\.)?s3[.-]([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com")
_CODE = re.compile(r"[A-Za-z0-9]{1,64}")


class Guard(Protocol):
    """What a store needs of :class:`aiservices.fetch.Fetcher`."""

    def check_url(self, url: str, *, field: str) -> None:
        """Raise FetchError for a URL that the guard forbids by its text alone."""

    def guarded_resolver(self) -> AbstractResolver:
        """Return a resolver that gives allowed addresses only."""


@attrs.frozen
class _Bucket:
    """Where to put files, and how to get there."""

    name: str
    prefix: str
    endpoint_url: str | None
    region: str | None
    access_key_id: str | None = attrs.field(repr=False)
    secret_access_key: str | None = attrs.field(repr=False)
    session_token: str | None = attrs.field(repr=False)
    stranger: bool


class OutputStore:
    """Encodes outputs and stores the large ones. ``pack`` runs in any thread, the rest on the event loop.

    Args:
        config: the bucket and the bounds.
        s3: stands in for what ``config`` leaves empty.
        guard: of strangers' endpoints.
    """

    def __init__(self, config: OutputsConfig, s3: S3Config, guard: Guard) -> None:
        self._config = config
        self._own = _own_bucket(config, s3)
        self._guard = guard
        self._loop = LoopThread("outputs")
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._session: Any = None

    def check(self, destination: Destination) -> None:
        """Refuse a stranger's bucket at submission, as far as its text tells.

        Raises:
            InvalidInput: naming the field.
        """
        try:
            self._guard.check_url(destination.endpoint_url, field=ENDPOINT_FIELD)
        except FetchError as error:
            raise InvalidInput(error.field, error.reason) from None

    def pack(self, output: Any, destination: Destination | None) -> bytes | Packed:
        """Encode an output; take out what has to go to a bucket. Heavy: runs in the pool.

        Args:
            output: as the handler gave it.
            destination: the job's own bucket.
        """
        fields = _as_dict(output)
        files = [_take(fields, name, mark) for name, mark in self._leaving(output, fields, destination)]
        encoded = msgspec.json.encode(
            fields if isinstance(output, msgspec.Struct) or attrs.has(type(output)) else output
        )
        if len(encoded) > self._config.max_inline_bytes and (destination or self._own):
            return Packed({}, (*files, OutputFile(WHOLE, "application/json", encoded)))
        return Packed(fields, tuple(files)) if files else encoded

    async def store(self, packed: Packed, job: Job) -> bytes:
        """Upload the files; return the answer with their URLs.

        Raises:
            JobFailed: an upload failed; says why, without any secret.
        """
        bucket = _strangers_bucket(job.destination) if job.destination else self._own
        assert bucket is not None
        folder = "/".join(filter(None, (bucket.prefix.strip("/"), job.service, job.id)))
        began = time.monotonic()
        try:
            urls = await self._loop.run(self._upload(bucket, folder, packed.files))
        except Exception as error:
            reason = self._in_words(error)
            log.warning("output.not_stored", service=job.service, job=job.id, bucket=bucket.name, reason=reason)
            raise JobFailed(f"the output could not be stored in the bucket {bucket.name!r}: {reason}") from None
        size, seconds = sum(len(file.data) for file in packed.files), round(time.monotonic() - began, 3)
        log.info("output.stored", service=job.service, job=job.id, bytes=size, seconds=seconds)
        return msgspec.json.encode({**packed.rest, **urls})

    def close(self) -> None:
        """Stop what still uploads."""
        self._loop.close()

    def _leaving(
        self, output: Any, fields: Mapping[str, Any], destination: Destination | None
    ) -> list[tuple[str, str]]:
        if destination is None and self._own is None:
            return []
        longest = 0 if destination else self._config.max_inline_bytes
        return [(name, mark) for name, mark in file_fields(type(output)) if len(fields[name] or "") > longest]

    async def _upload(self, bucket: _Bucket, folder: str, files: tuple[OutputFile, ...]) -> dict[str, str]:
        """On the store's own loop."""
        async with self._slots, asyncio.timeout(self._config.timeout_s), self._connect(bucket) as client:
            return {f"{file.name}_url": await self._put(client, bucket, folder, file) for file in files}

    async def _put(self, client: Any, bucket: _Bucket, folder: str, file: OutputFile) -> str:
        where = {"Bucket": bucket.name, "Key": f"{folder}/{file.name}{_EXTENSIONS.get(file.media_type, '')}"}
        # The store refuses a body that came broken: every store knows this header, few know the newer checksums.
        digest = base64.b64encode(hashlib.md5(file.data, usedforsecurity=False).digest()).decode()
        await client.put_object(**where, Body=file.data, ContentType=file.media_type, ContentMD5=digest)
        url = await client.generate_presigned_url("get_object", Params=where, ExpiresIn=self._config.url_lifetime_s)
        return str(url)

    @contextlib.asynccontextmanager
    async def _connect(self, bucket: _Bucket) -> AsyncIterator[Any]:
        if bucket.stranger:
            # Checked again: what was allowed when the job came may have been changed by its retry.
            self._guard.check_url(bucket.endpoint_url or "", field=ENDPOINT_FIELD)
        resolver = self._guard.guarded_resolver() if bucket.stranger else None
        try:
            async with self._client(bucket, resolver) as client:
                yield client
        finally:
            if resolver is not None:
                await resolver.close()

    def _client(self, bucket: _Bucket, resolver: AbstractResolver | None) -> Any:
        try:
            import aioboto3
            from aiobotocore.config import AioConfig
        except ImportError:
            raise ServiceError("the package aioboto3 is not installed (scripts/install PROFILE --with s3)") from None
        self._session = self._session or aioboto3.Session()  # keeps the description of S3, which takes long to read
        config = AioConfig(
            connector_args={"resolver": resolver, "use_dns_cache": False} if resolver else None,
            **({"proxies": {}} if bucket.stranger else {}),
            connect_timeout=min(10.0, self._config.timeout_s),
            read_timeout=self._config.timeout_s,
            retries={"total_max_attempts": ATTEMPTS},
            signature_version="s3v4",
            # The host stays what was checked: no bucket's name before it.
            s3={"addressing_style": "path"} if bucket.stranger else None,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return self._session.client(
            "s3",
            endpoint_url=bucket.endpoint_url,
            region_name=bucket.region,
            aws_access_key_id=bucket.access_key_id,
            aws_secret_access_key=bucket.secret_access_key,
            aws_session_token=bucket.session_token,
            config=config,
        )

    def _in_words(self, error: Exception) -> str:
        """Say what went wrong without a word of the store's own, which may be a stranger's."""
        if isinstance(error, TimeoutError):
            return f"it took longer than {self._config.timeout_s:g} s"
        if isinstance(error, ServiceError):
            return str(error)
        names = (cls.__name__ for cls in type(error).__mro__)
        found = next((_REASONS[name] for name in names if name in _REASONS), None)
        return found(error) if found else f"it failed ({type(error).__name__})"


_REASONS: Mapping[str, Callable[[Any], str]] = {
    "ClientError": lambda error: f"the store answered {_code(error)}",
    "EndpointConnectionError": lambda _: "the store cannot be reached",
    "ConnectionClosedError": lambda _: "the store closed the connection",
    # The guard's own errors, out of the resolver, bear a reason.
    "HTTPClientError": lambda error: getattr(error.kwargs.get("error"), "reason", None) or "the connection broke",
    "ConnectTimeoutError": lambda _: "the store did not answer in time",
    "ReadTimeoutError": lambda _: "the store did not answer in time",
    "SSLError": lambda _: "the store's TLS certificate is not trusted",
    "NoCredentialsError": lambda _: "no keys are set for it",
    "ResponseParserError": lambda _: "the store did not answer as S3 does",
}
"""Errors of botocore by the names of their classes."""


def file_fields(cls: type[Any]) -> tuple[tuple[str, str], ...]:
    """Return the fields of an Output that hold files, and for each the field with its media type."""
    return _file_fields(cls)  # type: ignore[arg-type]  # every class is hashable


@cache
def _file_fields(cls: type[Any]) -> tuple[tuple[str, str], ...]:
    if not attrs.has(cls):
        return ()
    hints = get_type_hints(cls, include_extras=True)
    marks = ((name, meta) for name, kind in hints.items() for meta in getattr(kind, "__metadata__", ()))
    return tuple((n, m.extra[FILE_MARK]) for n, m in marks if isinstance(m, Meta) and m.extra and FILE_MARK in m.extra)


def _as_dict(output: Any) -> dict[str, Any]:
    """The fields in the order of their class, which msgspec alone does not promise for attrs classes."""
    return attrs.asdict(output) if attrs.has(type(output)) else {}


def _take(fields: dict[str, Any], name: str, media_type_field: str) -> OutputFile:
    media_type = str(fields.get(media_type_field) or "application/octet-stream")
    return OutputFile(name, media_type, base64.b64decode(fields.pop(name)))


def _own_bucket(config: OutputsConfig, s3: S3Config) -> _Bucket | None:
    if not config.bucket:
        return None
    return _Bucket(
        name=config.bucket,
        prefix=config.prefix,
        endpoint_url=config.endpoint_url or s3.endpoint_url or None,
        region=config.region or s3.region or None,
        access_key_id=config.access_key_id or s3.access_key_id or None,
        secret_access_key=config.secret_access_key or s3.secret_access_key or None,
        session_token=(not config.access_key_id and s3.session_token) or None,  # it belongs to those keys
        stranger=False,
    )


def _strangers_bucket(destination: Destination) -> _Bucket:
    region = _AWS_REGION.search(destination.endpoint_url)
    return _Bucket(
        name=destination.bucket_name,
        prefix=destination.object_path,
        endpoint_url=destination.endpoint_url,
        region=region[1] if region else "us-east-1",
        access_key_id=destination.access_id,
        secret_access_key=destination.access_secret,
        session_token=None,
        stranger=True,
    )


def _code(error: Any) -> str:
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if _CODE.fullmatch(code) else "an error"
