"""Uploads into the bucket of ``[outputs]``, which the operator named and trusts.

The S3 client reads files and computes on the loop it runs on, so it has a loop of its own.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from aiservices.errors import ServiceError
from aiservices.jobs import OutputFile
from aiservices.loops import LoopThread
from aiservices.settings import OutputsConfig, S3Config
from aiservices.storage.s3.session import bounded_session

ATTEMPTS = 2
"""Tries of one request: a second one helps over a connection that broke, and ``timeout_s`` bounds both."""

_CODE = re.compile(r"[A-Za-z0-9]{1,64}")


@attrs.frozen
class Bucket:
    """Where to put files, and how to get there."""

    name: str
    prefix: str
    endpoint_url: str | None
    region: str | None
    access_key_id: str | None = attrs.field(repr=False)
    secret_access_key: str | None = attrs.field(repr=False)
    session_token: str | None = attrs.field(repr=False)


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
    )


class Uploader:
    """Puts files into the bucket, a bounded number of jobs at a time, on an event loop of its own.

    Args:
        config: bounds and times.
        bucket: where to.
    """

    def __init__(self, config: OutputsConfig, bucket: Bucket) -> None:
        self._config = config
        self._bucket = bucket
        self._loop = LoopThread("outputs")
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._session: Any = None

    async def upload(self, files: tuple[OutputFile, ...], key_of: Callable[[OutputFile], str]) -> dict[str, str]:
        """Upload files; return signed URLs as ``NAME_url``.

        Args:
            files: what to upload.
            key_of: gives the key of a file in the bucket.

        Raises:
            Exception: whatever the client raised; :meth:`in_words` tells it without a secret.
        """
        return await self._loop.run(self._upload(files, key_of))

    def close(self) -> None:
        """Stop what still uploads."""
        self._loop.close()

    def in_words(self, error: Exception) -> str:
        """Say what went wrong without a secret."""
        if isinstance(error, TimeoutError):
            return f"it took longer than {self._config.timeout_s:g} s"
        if isinstance(error, ServiceError):
            return str(error)
        names = (cls.__name__ for cls in type(error).__mro__)
        found = next((_REASONS[name] for name in names if name in _REASONS), None)
        return found(error) if found else f"it failed ({type(error).__name__})"

    async def _upload(self, files: tuple[OutputFile, ...], key_of: Callable[[OutputFile], str]) -> dict[str, str]:
        """On the loop of its own."""
        async with self._slots, asyncio.timeout(self._config.timeout_s), self._client() as client:
            return {f"{file.name}_url": await self._put(client, key_of(file), file) for file in files}

    async def _put(self, client: Any, key: str, file: OutputFile) -> str:
        where = {"Bucket": self._bucket.name, "Key": key}
        # The store refuses a body that came broken: every store knows this header, few know the newer checksums.
        digest = base64.b64encode(hashlib.md5(file.data, usedforsecurity=False).digest()).decode()
        await client.put_object(**where, Body=file.data, ContentType=file.media_type, ContentMD5=digest)
        url = await client.generate_presigned_url("get_object", Params=where, ExpiresIn=self._config.url_lifetime_s)
        return str(url)

    def _client(self) -> Any:
        bucket = self._bucket
        try:
            import aioboto3
            from aiobotocore.config import AioConfig
        except ImportError:
            raise ServiceError("the package aioboto3 is not installed (scripts/install PROFILE --with s3)") from None
        self._session = self._session or aioboto3.Session()  # keeps the description of S3, which takes long to read
        config = AioConfig(
            http_session_cls=bounded_session(),
            connect_timeout=min(10.0, self._config.timeout_s),
            read_timeout=self._config.timeout_s,
            retries={"total_max_attempts": ATTEMPTS},
            signature_version="s3v4",
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
    "HTTPClientError": lambda _: "the connection broke",
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
