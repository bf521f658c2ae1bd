"""The S3 client: how it is set up, what is retried, and its errors in words that an operator can act on."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any, TypeVar

import aiohttp
import attrs

from aiservices.errors import ServiceError
from aiservices.logs import get_logger
from aiservices.settings import S3Config
from aiservices.storage.s3.location import Location
from aiservices.storage.s3.session import bounded_session

T = TypeVar("T")

MAX_WAIT_S = 20.0
"""The longest pause before a retry."""

TRANSIENT_CODES = frozenset(
    [
        "InternalError",
        "ServiceUnavailable",
        "SlowDown",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "OperationAborted",
    ]
)
"""Codes of errors that a retry may overcome; https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html."""

REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "InvalidAccessKeyId": "the store does not know the access key (AISERVICES_S3_ACCESS_KEY_ID)",
    "SignatureDoesNotMatch": "the secret key does not match the access key (AISERVICES_S3_SECRET_ACCESS_KEY)",
    "AccessDenied": "the keys may not read there",
    "403": "the keys may not read there",
    "ExpiredToken": "the credentials have expired; get new ones",
    "ExpiredTokenException": "the credentials have expired; get new ones",
    "TokenRefreshRequired": "the credentials have expired; get new ones",
    "InvalidToken": "the session token is not valid (AISERVICES_S3_SESSION_TOKEN)",
    "RequestTimeTooSkewed": "this machine's clock is wrong: the store refuses the signature's time",
    "AuthorizationHeaderMalformed": "the bucket is in another region (AISERVICES_S3_REGION)",
    "PermanentRedirect": "the bucket is in another region (AISERVICES_S3_REGION)",
    "IllegalLocationConstraintException": "the bucket is in another region (AISERVICES_S3_REGION)",
}
"""What S3's error codes mean to an operator."""

log = get_logger(__name__)


class Truncated(Exception):
    """Fewer bytes came than were announced."""


class Changed(Exception):
    """The object is no longer the one that was listed: it was replaced or removed meanwhile."""


class Unreachable(ServiceError):
    """The store did not answer, in any attempt."""


@asynccontextmanager
async def connect(settings: S3Config) -> AsyncIterator[Any]:
    """Open a client; keys that are not set are looked up where AWS tools do: environment, files, role.

    Raises:
        ServiceError: ``aioboto3`` is not installed.
    """
    try:
        import aioboto3
        from aiobotocore.config import AioConfig
        from aiobotocore.session import AioSession
    except ImportError:
        raise ServiceError("the package aioboto3 is not installed (scripts/install PROFILE --with s3)") from None
    inner = AioSession()
    inner.register_component("data_loader", _api_loader())
    session = aioboto3.Session(
        botocore_session=inner,
        aws_access_key_id=settings.access_key_id or None,
        aws_secret_access_key=settings.secret_access_key or None,
        aws_session_token=settings.session_token or None,
        region_name=settings.region or None,
    )
    config = AioConfig(
        http_session_cls=bounded_session(),
        max_pool_connections=settings.max_concurrency,
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        retries={"total_max_attempts": 1},  # those of this package know how far a body came
        parameter_validation=False,  # it is a tenth of the work of a small request
        signature_version="s3v4",
        s3={"addressing_style": settings.addressing_style},
        # Stores other than AWS do not know these, and this package checks more than they would.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    async with session.client("s3", endpoint_url=settings.endpoint_url or None, config=config) as client:
        client.meta.events.register_last("before-parameter-build.s3", _ask_region_once)
        yield client


def _ask_region_once(model: Any, context: dict[str, Any], **_: Any) -> None:
    """Let botocore ask for a bucket's region once: where the answer names none, it would ask again for ever."""
    if model.name == "HeadBucket":
        context["s3_redirect"]["redirected"] = True


@cache
def _api_loader() -> Any:
    """Cache the description of S3's API, which takes a tenth of a second to read."""
    from botocore.loaders import create_loader

    return create_loader()


@attrs.define
class Attempts:
    """Counts failures in a row; whoever makes progress resets ``failed`` to 0.

    Args:
        settings: how many attempts there are, and how long the first pause is.
    """

    settings: S3Config
    failed: int = 0

    async def after(self, error: Exception) -> None:
        """Pause before the next attempt: a random time below a bound that doubles each time.

        "Full jitter" of https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.

        Raises:
            Exception: the error itself, if a retry cannot overcome it or it was the last attempt.
        """
        self.failed += 1
        if not is_transient(error) or self.failed >= self.settings.attempts:
            raise error
        wait_s = random.uniform(0, min(MAX_WAIT_S, self.settings.retry_wait_s * 2 ** (self.failed - 1)))
        log.info("s3.retry", attempt=self.failed, wait_s=round(wait_s, 3), error=_describe(error))
        await asyncio.sleep(wait_s)


async def retried(settings: S3Config, operation: Callable[[], Awaitable[T]]) -> T:
    """Await an operation, with retries after transient errors."""
    attempts = Attempts(settings)
    while True:
        try:
            return await operation()
        except Exception as error:
            await attempts.after(error)


def is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed a moment later."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    if isinstance(error, exceptions.ClientError):
        return status_of(error) >= 500 or status_of(error) == 429 or code_of(error) in TRANSIENT_CODES
    if isinstance(error, exceptions.ProxyConnectionError | exceptions.SSLError):
        return False
    by_botocore = (exceptions.HTTPClientError, exceptions.ConnectionError, ResponseParserError)
    return isinstance(error, (Truncated, aiohttp.ClientError, ConnectionError, TimeoutError, *by_botocore))


def code_of(error: Exception) -> str:
    """Return the store's error code; "" for other errors."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def status_of(error: Exception) -> int:
    """Return the HTTP status of the store's response; 0 for other errors."""
    response = getattr(error, "response", None)
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0


@contextmanager
def explained(location: Location, what: str = "model") -> Iterator[None]:
    """Turn the client's errors into one line.

    Args:
        what: what the line calls the location.

    Raises:
        ServiceError: with the reason; an :class:`Unreachable` where the network may be the reason.
    """
    try:
        yield
    except ServiceError as error:
        raise type(error)(f"{what} {location.uri!r}: {error}") from None
    except (ExceptionGroup, OSError) as error:
        raise _explain(location, what, _first(error)) from error
    except Exception as error:
        if not type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "aiservices")):
            raise
        raise _explain(location, what, error) from error


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _explain(location: Location, what: str, error: Exception) -> ServiceError:
    kind: type[ServiceError] = ServiceError
    if isinstance(error, ServiceError):
        kind, reason = type(error), str(error)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        reason = "the disk is full"
    elif code_of(error) in REASONS:
        reason = REASONS[code_of(error)]
    elif type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        reason = "no keys are set (AISERVICES_S3_ACCESS_KEY_ID and AISERVICES_S3_SECRET_ACCESS_KEY, or a role)"
    elif 300 <= status_of(error) < 400:
        reason = f"the store redirects elsewhere ({status_of(error)}), which is not followed: name its own address"
    elif is_transient(error):
        kind, reason = Unreachable, f"the store gave no usable answer in any attempt: {_describe(error)}"
    else:
        reason = _describe(error)
    return kind(f"{what} {location.uri!r}: {reason}")


def _describe(error: Exception) -> str:
    """Return one line, also for an exception without a text."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
