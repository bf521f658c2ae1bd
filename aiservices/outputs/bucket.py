"""Uploads into a bucket: the one of ``[outputs]``, or one that a job names.

The S3 client reads files and computes on the loop it runs on, so it has a loop of its own. The endpoint of a job's own
bucket is a URL that a caller chose: its text and each address it resolves to pass the guard of :mod:`aiservices.fetch`,
it is used with the caller's keys only, and no proxy stands between.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import attrs
from aiohttp.abc import AbstractResolver

from aiservices.errors import ServiceError
from aiservices.jobs import Destination, OutputFile
from aiservices.loops import LoopThread
from aiservices.settings import OutputsConfig, S3Config

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
    """What uploads need of :class:`aiservices.fetch.Fetcher`."""

    def check_url(self, url: str, *, field: str) -> None:
        """Raise FetchError for a URL that the guard forbids by its text alone."""

    def guarded_resolver(self) -> AbstractResolver:
        """Return a resolver that gives allowed addresses only."""


@attrs.frozen
class Bucket:
    """Where to put files, and how to get there.

    Attributes:
        of_caller: whether a job named it, so that its endpoint has to pass the guard.
    """

    name: str
    prefix: str
    endpoint_url: str | None
    region: str | None
    access_key_id: str | None = attrs.field(repr=False)
    secret_access_key: str | None = attrs.field(repr=False)
    session_token: str | None = attrs.field(repr=False)
    of_caller: bool


def own_bucket(config: OutputsConfig, s3: S3Config) -> Bucket | None:
    """Return the bucket of ``[outputs]``; None if there is none."""
    if not config.bucket:
        return None
    return Bucket(
        name=config.bucket,
        prefix=config.prefix,
        endpoint_url=config.endpoint_url or s3.endpoint_url or None,
        region=config.region or s3.region or None,
        access_key_id=config.access_key_id or s3.access_key_id or None,
        secret_access_key=config.secret_access_key or s3.secret_access_key or None,
        session_token=(not config.access_key_id and s3.session_token) or None,  # it belongs to those keys
        of_caller=False,
    )


def callers_bucket(destination: Destination) -> Bucket:
    """Return the bucket that a job names."""
    region = _AWS_REGION.search(destination.endpoint_url)
    return Bucket(
        name=destination.bucket_name,
        prefix=destination.object_path,
        endpoint_url=destination.endpoint_url,
        region=region[1] if region else "us-east-1",
        access_key_id=destination.access_id,
        secret_access_key=destination.access_secret,
        session_token=None,
        of_caller=True,
    )


class Uploader:
    """Puts files into buckets, a bounded number of jobs at a time, on an event loop of its own.

    Args:
        config: bounds and times.
        guard: of endpoints that callers name.
    """

    def __init__(self, config: OutputsConfig, guard: Guard) -> None:
        self._config = config
        self._guard = guard
        self._loop = LoopThread("outputs")
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._session: Any = None

    async def upload(self, bucket: Bucket, folder: str, files: tuple[OutputFile, ...]) -> dict[str, str]:
        """Upload files; return signed URLs as ``NAME_url``.

        Raises:
            Exception: whatever the client raised; :meth:`in_words` tells it without a secret.
        """
        return await self._loop.run(self._upload(bucket, folder, files))

    def close(self) -> None:
        """Stop what still uploads."""
        self._loop.close()

    def in_words(self, error: Exception) -> str:
        """Say what went wrong without a word of the store's own, which a caller may have chosen."""
        if isinstance(error, TimeoutError):
            return f"it took longer than {self._config.timeout_s:g} s"
        if isinstance(error, ServiceError):
            return str(error)
        names = (cls.__name__ for cls in type(error).__mro__)
        found = next((_REASONS[name] for name in names if name in _REASONS), None)
        return found(error) if found else f"it failed ({type(error).__name__})"

    async def _upload(self, bucket: Bucket, folder: str, files: tuple[OutputFile, ...]) -> dict[str, str]:
        """On the loop of its own."""
        async with self._slots, asyncio.timeout(self._config.timeout_s), self._connect(bucket) as client:
            return {f"{file.name}_url": await self._put(client, bucket, folder, file) for file in files}

    async def _put(self, client: Any, bucket: Bucket, folder: str, file: OutputFile) -> str:
        where = {"Bucket": bucket.name, "Key": f"{folder}/{file.name}{_EXTENSIONS.get(file.media_type, '')}"}
        # The store refuses a body that came broken: every store knows this header, few know the newer checksums.
        digest = base64.b64encode(hashlib.md5(file.data, usedforsecurity=False).digest()).decode()
        await client.put_object(**where, Body=file.data, ContentType=file.media_type, ContentMD5=digest)
        url = await client.generate_presigned_url("get_object", Params=where, ExpiresIn=self._config.url_lifetime_s)
        return str(url)

    @contextlib.asynccontextmanager
    async def _connect(self, bucket: Bucket) -> AsyncIterator[Any]:
        if bucket.of_caller:
            # Checked again: what was allowed when the job came may have been changed by its retry.
            self._guard.check_url(bucket.endpoint_url or "", field=ENDPOINT_FIELD)
        resolver = self._guard.guarded_resolver() if bucket.of_caller else None
        try:
            async with self._client(bucket, resolver) as client:
                yield client
        finally:
            if resolver is not None:
                await resolver.close()

    def _client(self, bucket: Bucket, resolver: AbstractResolver | None) -> Any:
        try:
            import aioboto3
            from aiobotocore.config import AioConfig
        except ImportError:
            raise ServiceError("the package aioboto3 is not installed (scripts/install PROFILE --with s3)") from None
        self._session = self._session or aioboto3.Session()  # keeps the description of S3, which takes long to read
        config = AioConfig(
            connector_args={"resolver": resolver, "use_dns_cache": False} if resolver else None,
            **({"proxies": {}} if bucket.of_caller else {}),
            connect_timeout=min(10.0, self._config.timeout_s),
            read_timeout=self._config.timeout_s,
            retries={"total_max_attempts": ATTEMPTS},
            signature_version="s3v4",
            # The host stays what was checked: no bucket's name before it.
            s3={"addressing_style": "path"} if bucket.of_caller else None,
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


def _code(error: Any) -> str:
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if _CODE.fullmatch(code) else "an error"
