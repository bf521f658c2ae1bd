"""The objects below a prefix: their listing, and the manifest with SHA-256 sums if there is one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from aiservices.errors import ServiceError
from aiservices.settings import S3Config
from aiservices.storage.s3.client import retried, status_of
from aiservices.storage.s3.location import Location, holds_weights, select_files
from aiservices.storage.s3.marker import MARKER
from aiservices.storage.s3.session import MAX_ANSWER_BYTES

MAX_OBJECTS = 100_000
"""A prefix with more objects than that is not a model."""

MAX_PAGES = 1_000
"""Of a listing: ten times what ``MAX_OBJECTS`` take, since a page may hold fewer than it could, or none."""

MAX_MODEL_BYTES = 4 * 2**40
"""In all: the largest open models have 2 TB. Each piece of a file that is to be downloaded takes memory."""

MAX_PATH_BYTES = 1024
"""S3's own bound on keys."""

MANIFEST = "SHA256SUMS"
"""Name of the manifest, in the form of ``sha256sum``; ``sha256sum -c SHA256SUMS`` checks a folder with it."""

MAX_NAME_BYTES = 255
MAX_NAMES_SHOWN = 3
"""How many file names an error lists."""

_SUM = re.compile(r"^(?P<sum>[0-9a-f]{64}) [ *](?P<path>.+)$")


@attrs.frozen
class RemoteObject:
    """One file of the model.

    Attributes:
        path: below the prefix, parts separated by slashes.
        size: bytes.
        etag: without its quotes.
    """

    path: str
    size: int
    etag: str


async def list_model(
    client: Any, location: Location, settings: S3Config, *, weights: bool = True
) -> list[RemoteObject]:
    """Return the files of the model, sorted by path.

    Args:
        weights: whether some of them have to hold weights.

    Raises:
        ServiceError: there are none, or a key would be written outside of the model's folder.
    """
    with _proper_answers():
        entries = await _list(client, location, settings)
        objects = [_read(entry, location) for entry in entries if not entry["Key"].endswith("/")]
    _check_listing(objects)
    objects = [found for found in objects if found.path != MARKER]
    wanted = set(select_files(location, [found.path for found in objects]))
    _check_model(location, [found.path for found in objects], wanted, weights=weights)
    return sorted((found for found in objects if found.path in wanted), key=lambda found: found.path)


def fingerprint(objects: Iterable[RemoteObject]) -> str:
    """Return a short hash of all paths, sizes and ETags, which names this version."""
    lines = sorted(f"{each.path}\0{each.size}\0{each.etag}\n" for each in objects)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


async def read_manifest(
    client: Any, location: Location, settings: S3Config, objects: Sequence[RemoteObject]
) -> Mapping[str, str]:
    """Return SHA-256 sums in hex by path; none if there is no manifest.

    Raises:
        ServiceError: it names files that are not there, as after an interrupted upload.
    """
    listed = next((each for each in objects if each.path == MANIFEST), None)
    if listed is None:
        return {}
    if listed.size > MAX_ANSWER_BYTES:
        raise ServiceError(f"{MANIFEST} has more than {MAX_ANSWER_BYTES} bytes")

    async def read() -> bytes:
        response = await client.get_object(Bucket=location.bucket, Key=location.below + MANIFEST)
        async with response["Body"] as body:
            content: bytes = await body.read()  # no more than MAX_ANSWER_BYTES, whatever was listed
        return content

    with _proper_answers():
        content = await retried(settings, read)
    sums = parse_manifest(content.decode("utf-8", errors="replace"))
    wanted = select_files(location, list(sums))
    missing = sorted(set(wanted) - {each.path for each in objects})
    if missing:
        raise ServiceError(f"{MANIFEST} names {_some(missing)}, not in the bucket: was an upload interrupted?")
    return sums


def parse_manifest(text: str) -> dict[str, str]:
    """Read the format of ``sha256sum``; other lines are skipped."""
    found = (_SUM.match(line) for line in text.splitlines())
    return {match["path"].removeprefix("./"): match["sum"] for match in found if match}


def write_manifest(sums: Mapping[str, str]) -> str:
    """Write what :func:`parse_manifest` reads."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items()))


async def _list(client: Any, location: Location, settings: S3Config) -> list[Mapping[str, Any]]:
    entries: list[Mapping[str, Any]] = []
    query: dict[str, Any] = {"Bucket": location.bucket, "Prefix": location.below}
    for _ in range(MAX_PAGES):
        page = await retried(settings, lambda: client.list_objects_v2(**query))
        entries += page.get("Contents", ())
        if len(entries) > MAX_OBJECTS:
            raise ServiceError(f"more than {MAX_OBJECTS} objects there; that is not a model")
        if not page.get("IsTruncated"):
            return entries
        query["ContinuationToken"] = page["NextContinuationToken"]
    raise ServiceError(f"its listing did not end in {MAX_PAGES} pages; that is not a model")


@contextmanager
def _proper_answers() -> Iterator[None]:
    """Say of an answer that no S3 store gives that it is one, whatever the client makes of it."""
    try:
        yield
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ServiceError(f"the store does not answer as S3 does ({type(error).__name__})") from error


def _read(entry: Mapping[str, Any], location: Location) -> RemoteObject:
    key, size = str(entry["Key"]), int(entry["Size"])
    if not key.startswith(location.below) or size < 0:
        raise ServiceError(f"the store lists {key[:MAX_PATH_BYTES]!r} of {size} bytes, which was not asked for")
    path = key.removeprefix(location.below)
    check_path(path)
    return RemoteObject(path, size, str(entry["ETag"]).strip('"'))


def _check_listing(objects: Sequence[RemoteObject]) -> None:
    """Refuse a listing that is no model's.

    Raises:
        ServiceError: a key twice, or more bytes in all than a model has.
    """
    if len({each.path for each in objects}) < len(objects):
        raise ServiceError("the store lists a key twice")
    if sum(each.size for each in objects) > MAX_MODEL_BYTES:
        raise ServiceError(f"more than {MAX_MODEL_BYTES // 2**40} TiB there; that is not a model")


def check_path(path: str) -> None:
    """Refuse a path that would not be a file below the model's folder.

    Raises:
        ServiceError: names the key.
    """
    parts = path.split("/")
    bad = any(part in ("", ".", "..") or len(part.encode()) > MAX_NAME_BYTES for part in parts)
    if bad or len(path.encode()) > MAX_PATH_BYTES or "\\" in path or not path.isprintable():
        raise ServiceError(
            f"the key {path[:MAX_PATH_BYTES]!r} cannot be a file below the model's folder; nothing was downloaded"
        )


def _check_model(location: Location, paths: list[str], wanted: set[str], *, weights: bool) -> None:
    if not paths:
        raise ServiceError("there is nothing below this prefix")
    if not wanted:
        raise ServiceError(f"no file there matches the patterns; there are {_some(paths)}")
    if weights and not location.files and not holds_weights(list(wanted)):
        raise ServiceError(f"no weights there, only {_some(sorted(wanted))} (if that is a model, name ?files=…)")


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MAX_NAMES_SHOWN} more" if len(paths) > MAX_NAMES_SHOWN else ""
    return ", ".join(paths[:MAX_NAMES_SHOWN]) + more


async def upload_part_bytes(client: Any, location: Location, remote: RemoteObject) -> int | None:
    """Ask for the size in bytes of the parts that an object was uploaded in; None if the store does not report it."""
    from botocore.exceptions import ClientError

    try:
        first = await client.head_object(Bucket=location.bucket, Key=location.below + remote.path, PartNumber=1)
    except ClientError as error:
        if status_of(error) in (400, 416, 501):
            return None
        raise
    with _proper_answers():
        length = int(first["ContentLength"])
    return length if length > 0 and (first.get("PartsCount") or length < remote.size) else None
