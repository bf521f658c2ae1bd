"""Everything below a prefix of an S3 bucket, through ``aioboto3``; blocking, so called in a thread.

::

    model_dir/s3/BUCKET/PREFIX/DIGEST        a whole copy; DIGEST stands for every name, size and ETag of the listing
    model_dir/s3/BUCKET/PREFIX/DIGEST.part   one that is being downloaded, or was; files in it are whole and are kept
    model_dir/s3/BUCKET/PREFIX/latest        the digest of the last whole copy, for when the bucket cannot be reached

A copy appears under its name by one rename, so whatever is there is whole. A changed object makes another digest.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import importlib
import math
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import attrs

from aiservices.config import S3Config
from aiservices.errors import ServiceError
from aiservices.logs import get_logger

MAX_OBJECTS = 10_000
"""More below one prefix is no model."""
PAGE_SIZE = 1000
MAX_PARALLEL = 8
CHUNK_BYTES = 1024 * 1024
ATTEMPTS = 3
RETRY_WAIT_S = 1.0
LOCK_POLL_S = 0.2
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60

_OF_THE_DISK = frozenset(
    {errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR, errno.EROFS}
)
_URI = re.compile(r"^s3://(?P<bucket>[A-Za-z0-9][\w.-]{1,62})(?:/(?P<prefix>.*))?$", re.ASCII)
_PLAIN_ETAG = re.compile(r"^[0-9a-f]{32}$")
_PARTS_ETAG = re.compile(r"^[0-9a-f]{32}-(?P<parts>\d+)$")

log = get_logger(__name__)


@attrs.frozen
class Place:
    """What ``s3://bucket/prefix/`` names. The prefix ends with a slash, unless it is the whole bucket."""

    uri: str
    bucket: str
    prefix: str


@attrs.frozen
class Item:
    """One object below the prefix.

    Attributes:
        path: relative to the prefix; checked to stay below it.
    """

    key: str
    path: PurePosixPath
    size: int
    etag: str


def parse(uri: str) -> Place:
    """Read an ``s3://`` URI.

    Raises:
        ServiceError: it is none.
    """
    match = _URI.match(uri)
    prefix = (match["prefix"] or "").strip("/") if match else ""
    if match is None or not _is_safe(prefix or "x"):
        raise ServiceError(f"model {uri!r}: expected s3://bucket/prefix/")
    return Place(uri, match["bucket"], f"{prefix}/" if prefix else "")


def download(uri: str, folder: Path, settings: S3Config) -> Path:
    """Return a local folder that holds everything below the prefix; download what is not there.

    Raises:
        ServiceError: it cannot be had; says what to do.
    """
    place = parse(uri)
    home = folder / place.bucket / place.prefix
    with _explained(place):
        try:
            return asyncio.run(_download(place, home, settings))
        except Exception as error:
            if not _is_unreachable(error) or (last := _last_copy(home)) is None:
                raise
            log.warning("model.bucket_unreachable", model=uri, folder=str(last), reason=str(error))
            return last


def describe(uri: str, folder: Path, settings: S3Config) -> str:
    """Say where it is, or how much would be downloaded.

    Raises:
        ServiceError: it is neither here nor to be had.
    """
    place = parse(uri)
    home = folder / place.bucket / place.prefix
    with _explained(place):
        try:
            items = asyncio.run(_list(place, settings))
        except Exception as error:
            if not _is_unreachable(error) or (last := _last_copy(home)) is None:
                raise
            return f"in {last}; whether it is the newest is not known: {_reason(error)}"
    copy = home / _digest(items)
    if copy.is_dir():
        return f"in {copy}"
    return f"to be downloaded: {len(items)} files, {sum(item.size for item in items) / 2**30:.1f} GiB"


# --- what is there ---


async def _list(place: Place, settings: S3Config) -> list[Item]:
    async with _client(settings) as client:
        return await _list_with(client, place)


async def _list_with(client: Any, place: Place) -> list[Item]:
    items: list[Item] = []
    listing = client.get_paginator("list_objects_v2")
    wanted = {"Bucket": place.bucket, "Prefix": place.prefix, "PaginationConfig": {"PageSize": PAGE_SIZE}}
    async for page in listing.paginate(**wanted):
        items += [_item(entry, place) for entry in page.get("Contents", ()) if not entry["Key"].endswith("/")]
        if len(items) > MAX_OBJECTS:
            raise ServiceError(f"model {place.uri!r}: more than {MAX_OBJECTS} objects; is the prefix right?")
    if not items:
        raise ServiceError(f"model {place.uri!r}: there is nothing below this prefix")
    return items


def _item(entry: dict[str, Any], place: Place) -> Item:
    key = entry["Key"]
    name = key[len(place.prefix) :]
    if not _is_safe(name):
        raise ServiceError(f"model {place.uri!r}: the key {key!r} cannot be a file below the model's folder")
    return Item(key, PurePosixPath(name), entry["Size"], entry["ETag"].strip('"'))


def _is_safe(name: str) -> bool:
    """Whether a key names a file below its folder, and no file of our own bookkeeping."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\0" in part or part.endswith(".partial") for part in parts)


def _digest(items: Sequence[Item]) -> str:
    lines = sorted(f"{item.key}\0{item.size}\0{item.etag}\n" for item in items)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _last_copy(home: Path) -> Path | None:
    try:
        copy = home / (home / "latest").read_text(encoding="utf-8")
    except OSError:
        return None
    return copy if copy.is_dir() else None


# --- bringing it here ---


async def _download(place: Place, home: Path, settings: S3Config) -> Path:
    async with _client(settings) as client:
        items = await _list_with(client, place)
        copy = home / _digest(items)
        if not copy.is_dir():
            home.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 (this loop serves nothing else)
            async with _lock(copy.with_suffix(".lock")):
                if not copy.is_dir():  # whoever held the lock has brought it
                    await _fetch_all(client, place, items, copy)
    latest = home / "latest"
    latest.with_suffix(".new").write_text(copy.name, encoding="utf-8")
    latest.with_suffix(".new").replace(latest)
    return copy


async def _fetch_all(client: Any, place: Place, items: Sequence[Item], copy: Path) -> None:
    part = copy.with_suffix(".part")
    part.mkdir(exist_ok=True)
    # What an earlier run finished is kept: a file gets its name only once it was checked.
    missing = [item for item in items if not _is_there(part / item.path, item)]
    _check_space(place, part, sum(item.size for item in missing))
    log.info("model.downloading", model=place.uri, files=len(missing), bytes=sum(item.size for item in missing))
    slots = asyncio.Semaphore(MAX_PARALLEL)
    try:
        async with asyncio.TaskGroup() as group:
            for item in missing:
                group.create_task(_fetch(client, place, item, part / item.path, slots))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    part.rename(copy)


def _is_there(path: Path, item: Item) -> bool:
    return path.is_file() and path.stat().st_size == item.size


def _check_space(place: Place, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ServiceError(
            f"model {place.uri!r}: {needed / 2**30:.1f} GiB are missing and {folder} has room for {free / 2**30:.1f}"
        )


async def _fetch(client: Any, place: Place, item: Item, path: Path, slots: asyncio.Semaphore) -> None:
    """Download one object; what breaks off on the way is tried again, what stays wrong is an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    async with slots:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await _fetch_once(client, place, item, partial)
                break
            except Exception as error:
                if attempt == ATTEMPTS or not _is_transient(error):
                    raise
                log.warning("model.download_retried", key=item.key, attempt=attempt, reason=str(error))
                await asyncio.sleep(RETRY_WAIT_S * 2 ** (attempt - 1))
    partial.replace(path)


async def _fetch_once(client: Any, place: Place, item: Item, partial: Path) -> None:
    answer = await client.get_object(Bucket=place.bucket, Key=item.key, IfMatch=f'"{item.etag}"')
    checksum = await _checksum(client, place, item, answer)
    size = 0
    with partial.open("wb") as file:
        body = answer["Body"]
        async with body:
            async for chunk in body.iter_chunks(CHUNK_BYTES):
                size += len(chunk)
                await asyncio.to_thread(_take, chunk, file, checksum)
        file.flush()
        os.fsync(file.fileno())
    if size != item.size or not checksum.fits(item.etag):
        raise DamagedError(f"{item.key}: {size} of {item.size} bytes came, or others than the bucket's ETag says")


def _take(chunk: bytes, file: Any, checksum: Checksum) -> None:
    file.write(chunk)
    checksum.update(chunk)


class DamagedError(Exception):
    """What came is not what the bucket holds."""


class Checksum(Protocol):
    """Sums what arrives up, and compares it with an ETag."""

    def update(self, chunk: bytes) -> None:
        """Take the next bytes."""

    def fits(self, etag: str) -> bool:
        """Whether all bytes together are those of the ETag."""


class NoChecksum:
    """Where the ETag says nothing about the bytes (encrypted with a key of KMS, or parts of unknown size)."""

    def update(self, chunk: bytes) -> None:
        """Take the next bytes."""

    def fits(self, etag: str) -> bool:
        """Always: there is nothing to compare."""
        return True


class PartsChecksum:
    """The ETag of an upload in parts: the MD5 of the parts' MD5s, and their number; of one part, its MD5.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html.

    Args:
        part_size: bytes of every part but the last; None for an upload in one piece.
    """

    def __init__(self, part_size: int | None) -> None:
        self._part_size = part_size
        self._done: list[bytes] = []
        self._running = hashlib.md5(usedforsecurity=False)
        self._room = part_size or math.inf

    def update(self, chunk: bytes) -> None:
        """Take the next bytes."""
        while len(chunk) > self._room:
            head, chunk = chunk[: int(self._room)], chunk[int(self._room) :]
            self._running.update(head)
            self._done.append(self._running.digest())
            self._running, self._room = hashlib.md5(usedforsecurity=False), self._part_size or math.inf
        self._running.update(chunk)
        self._room -= len(chunk)

    def fits(self, etag: str) -> bool:
        """Whether all bytes together are those of the ETag."""
        if self._part_size is None:
            return self._running.hexdigest() == etag
        digests = [*self._done, self._running.digest()]
        whole = hashlib.md5(b"".join(digests), usedforsecurity=False)
        return f"{whole.hexdigest()}-{len(digests)}" == etag


async def _checksum(client: Any, place: Place, item: Item, answer: Any) -> Checksum:
    """Choose how to check the object, by the form of its ETag."""
    if str(answer.get("ServerSideEncryption", "")).startswith("aws:kms"):
        return NoChecksum()
    if _PLAIN_ETAG.match(item.etag):
        return PartsChecksum(None)
    if not (match := _PARTS_ETAG.match(item.etag)):
        return NoChecksum()
    first = await client.head_object(Bucket=place.bucket, Key=item.key, PartNumber=1)
    part_size = int(first["ContentLength"])
    # A store that ignores PartNumber, or parts of different sizes: then the size alone is checked.
    alike = part_size > 0 and math.ceil(item.size / part_size) == int(match["parts"])
    return PartsChecksum(part_size) if alike else NoChecksum()


@asynccontextmanager
async def _lock(path: Path) -> AsyncIterator[None]:
    """Let one process at a time download this copy."""
    with path.open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_POLL_S)
        yield


# --- the client, and what it says when something is wrong ---


@asynccontextmanager
async def _client(settings: S3Config) -> AsyncIterator[Any]:
    # Not "import": the package is optional and has no types of its own.
    aioboto3: Any = importlib.import_module("aioboto3")
    client_config: Any = importlib.import_module("botocore.config").Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "max_attempts": ATTEMPTS},
        max_pool_connections=MAX_PARALLEL,
        # Bucket names as part of the host name work at AWS; other stores seldom have names for them.
        s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
    )
    session = aioboto3.Session(
        aws_access_key_id=settings.access_key_id or None,
        aws_secret_access_key=settings.secret_access_key or None,
        region_name=settings.region or None,
    )
    async with session.client("s3", endpoint_url=settings.endpoint_url or None, config=client_config) as client:
        yield client


_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "404": "there is no such bucket",
    "AccessDenied": "the key may not read there",
    "403": "the key may not read there",
    "InvalidAccessKeyId": "the store does not know the access key (AISERVICES_S3_ACCESS_KEY_ID)",
    "SignatureDoesNotMatch": "the secret key is wrong (AISERVICES_S3_SECRET_ACCESS_KEY)",
    "PermanentRedirect": "the bucket is in another region (AISERVICES_S3_REGION)",
    "AuthorizationHeaderMalformed": "the bucket is in another region (AISERVICES_S3_REGION)",
    "PreconditionFailed": "it was changed while it was downloaded; start again",
    "412": "it was changed while it was downloaded; start again",
}


@contextmanager
def _explained(place: Place) -> Iterator[None]:
    """Turn the client's errors into what an operator can do about them."""
    try:
        yield
    except ServiceError:
        raise
    except ModuleNotFoundError as error:
        raise ServiceError(
            f"model {place.uri!r}: the package {error.name} is not installed (scripts/install PROFILE --with s3)"
        ) from None
    except Exception as error:
        raise ServiceError(f"model {place.uri!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    code = _code(error)
    if code in _REASONS:
        return _REASONS[code]
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return "there are no keys to read it with (AISERVICES_S3_ACCESS_KEY_ID and AISERVICES_S3_SECRET_ACCESS_KEY)"
    if _is_unreachable(error):
        return f"the store cannot be reached: {error}"
    return str(error)


def _code(error: Exception) -> str:
    """S3's own word for what went wrong; empty if it did not come to an answer."""
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _is_unreachable(error: Exception) -> bool:
    connecting = ("ConnectTimeoutError", "EndpointConnectionError", "ConnectionError", "ProxyConnectionError")
    return any(cls.__name__ in connecting for cls in type(error).__mro__) or _code(error) in ("503", "SlowDown")


def _is_transient(error: Exception) -> bool:
    """Whether another try may help: damage and broken connections, not what the store refused."""
    if isinstance(error, ServiceError) or getattr(error, "errno", None) in _OF_THE_DISK:
        return False
    status = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return not 400 <= status < 500
