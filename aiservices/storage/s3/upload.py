"""Upload a local folder into a bucket: many parts at once, the manifest last."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from aiservices.errors import ServiceError
from aiservices.settings import S3Config
from aiservices.storage.concurrency import in_pool, map_concurrently
from aiservices.storage.progress import OnProgress, Progress, ProgressReporter
from aiservices.storage.s3.checksum import sha256_of
from aiservices.storage.s3.client import connect, explained, retried
from aiservices.storage.s3.location import Location, parse
from aiservices.storage.s3.marker import MARKER
from aiservices.storage.s3.remote import MANIFEST, check_path, write_manifest

MAX_PARTS = 10_000
"""S3's own limit; https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html."""

PARALLEL = 8
"""How many files are uploaded at once, and how many parts are in memory, each as large as ``part_mib``."""


@attrs.frozen
class LocalFile:
    """One file of the folder.

    Attributes:
        path: below the folder, parts separated by slashes.
        source: where it is.
        size: bytes.
    """

    path: str
    source: Path
    size: int


async def push(folder: Path, uri: str, settings: S3Config, on_progress: OnProgress) -> str:
    """Upload every file of a folder below a prefix, and then the manifest with their SHA-256 sums.

    The manifest of an earlier upload is removed first: it would be wrong while files are replaced.

    Returns:
        The URI of the prefix.

    Raises:
        ServiceError: there is nothing to upload, or the store refuses it.
    """
    location = parse(uri)
    if location.files or location.exclude:
        raise ServiceError(f"{uri!r}: an upload takes the whole folder; leave ?files=… out")
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="storage") as pool, explained(location, "upload to"):
        files = await in_pool(pool, files_of, folder)
        async with connect(settings) as client:
            await _Upload(client, location, settings, pool, ProgressReporter(on_progress)).run(files)
    return location.name


def files_of(folder: Path) -> list[LocalFile]:
    """Return the files to upload: all but hidden ones and an old manifest. Blocking.

    Raises:
        ServiceError: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ServiceError(f"no such folder: {folder}")
    found = [(path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [(name, path) for name, path in found if not any(part.startswith(".") for part in name.parts)]
    files = [LocalFile(name.as_posix(), path, path.stat().st_size) for name, path in kept]
    files = [file for file in files if file.path not in (MANIFEST, MARKER)]
    if not files:
        raise ServiceError(f"there is nothing to upload in {folder}")
    for file in files:
        check_path(file.path)
    return files


@attrs.frozen
class _Upload:
    client: Any
    location: Location
    settings: S3Config
    pool: ThreadPoolExecutor
    progress: ProgressReporter
    slots: asyncio.Semaphore = attrs.Factory(lambda: asyncio.Semaphore(PARALLEL))

    async def run(self, files: Sequence[LocalFile]) -> None:
        self.progress.start(Progress(0, len(files), 0, sum(file.size for file in files)))
        await self._retry(lambda: self.client.delete_object(**self._key(MANIFEST)))
        digests = await map_concurrently(self._upload_and_hash, files, PARALLEL)
        sums = {file.path: digest for file, digest in zip(files, digests, strict=True)}
        manifest = write_manifest(sums).encode()
        await self._retry(lambda: self.client.put_object(**self._key(MANIFEST), Body=manifest))
        self.progress.finish()

    async def _upload_and_hash(self, file: LocalFile) -> str:
        """Upload one file; return its SHA-256 in hex."""
        digest = asyncio.ensure_future(in_pool(self.pool, sha256_of, file.source))
        try:
            await self._upload(file)
            found = await digest
        finally:
            digest.cancel()
        self.progress.add(files=1)
        return found

    async def _upload(self, file: LocalFile) -> None:
        part_bytes = max(self.settings.part_mib * 2**20, -(-file.size // MAX_PARTS))
        if file.size <= part_bytes:
            async with self.slots:
                body = await in_pool(self.pool, _read, file.source, 0, file.size)
                await self._retry(lambda: self.client.put_object(**self._key(file.path), Body=body))
            self.progress.add(bytes=file.size)
            return
        begun = await self._retry(lambda: self.client.create_multipart_upload(**self._key(file.path)))
        upload = {**self._key(file.path), "UploadId": begun["UploadId"]}
        try:
            parts = {"Parts": await self._upload_parts(file, upload, part_bytes)}
            await self._retry(lambda: self.client.complete_multipart_upload(**upload, MultipartUpload=parts))
        except BaseException:
            # The parts of an upload that is neither completed nor aborted are stored, and paid for, for ever.
            await asyncio.shield(self._retry(lambda: self.client.abort_multipart_upload(**upload)))
            raise

    async def _upload_parts(self, file: LocalFile, upload: dict[str, Any], part_bytes: int) -> list[dict[str, Any]]:
        begins = enumerate(range(0, file.size, part_bytes), start=1)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._upload_part(file, upload, number, begin, min(part_bytes, file.size - begin)))
                for number, begin in begins
            ]
        return [task.result() for task in tasks]

    async def _upload_part(
        self, file: LocalFile, upload: dict[str, Any], number: int, begin: int, length: int
    ) -> dict[str, Any]:
        async with self.slots:
            body = await in_pool(self.pool, _read, file.source, begin, length)
            answer = await self._retry(lambda: self.client.upload_part(**upload, PartNumber=number, Body=body))
        digest = await in_pool(self.pool, _md5_hex, body)
        etag = answer["ETag"].strip('"')
        if len(etag) == len(digest) and etag != digest and "ServerSideEncryption" not in answer:
            raise ServiceError(f"{file.path}: part {number} did not arrive as it was sent")
        self.progress.add(bytes=length)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _key(self, path: str) -> dict[str, Any]:
        return {"Bucket": self.location.bucket, "Key": self.location.below + path}

    async def _retry(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        return await retried(self.settings, operation)


def _md5_hex(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _read(path: Path, begin: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        content = file.read(length)
    if len(content) != length:
        raise ServiceError(f"{path} changed while it was uploaded")
    return content
