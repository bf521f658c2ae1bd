"""Put a local folder into a bucket: many parts at once, the manifest last."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from aiservices.errors import ServiceError
from aiservices.settings import S3Config
from aiservices.storage.progress import OnProgress, Progress
from aiservices.storage.s3.checksum import sha256_of
from aiservices.storage.s3.client import connect, explained, retried
from aiservices.storage.s3.location import Location, parse
from aiservices.storage.s3.remote import MANIFEST, MARKER, check_path, write_manifest

MAX_PARTS = 10_000
"""S3's own limit; https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html."""

PARALLEL = 8
"""Parts in memory at once; each is as large as ``part_mib``."""

TELL_S = 0.1


@attrs.frozen
class LocalFile:
    """One file of the folder."""

    path: str
    source: Path
    size: int


async def push(folder: Path, uri: str, settings: S3Config, on_progress: OnProgress) -> str:
    """Upload every file of a folder below a prefix, and then the manifest with their SHA-256 sums.

    The manifest of an earlier upload is removed first: while files are replaced, none is right.

    Returns:
        Where it lies now.

    Raises:
        ServiceError: there is nothing to upload, or the store does not take it.
    """
    location = parse(uri)
    if location.files or location.exclude:
        raise ServiceError(f"{uri!r}: an upload takes the whole folder; leave ?files=… out")
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="storage") as pool, explained(location, "upload to"):
        upload = _Upload(location, settings, pool, on_progress)
        await upload.run(folder)
    return location.name


def files_of(folder: Path) -> list[LocalFile]:
    """Return what there is to upload; blocking. Hidden files and an old manifest stay behind.

    Raises:
        ServiceError: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ServiceError(f"no such folder: {folder}")
    found = [(path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [(name, path) for name, path in found if not any(part.startswith(".") for part in name.parts)]
    files = [LocalFile(name.as_posix(), path, path.stat().st_size) for name, path in kept]
    files = [each for each in files if each.path not in (MANIFEST, MARKER)]
    if not files:
        raise ServiceError(f"there is nothing to upload in {folder}")
    for each in files:
        check_path(each.path)
    return files


@attrs.define
class _Upload:
    location: Location
    settings: S3Config
    pool: ThreadPoolExecutor
    on_progress: OnProgress
    progress: Progress = attrs.Factory(Progress)
    told_at: float = 0.0
    client: Any = None
    slots: asyncio.Semaphore = attrs.Factory(lambda: asyncio.Semaphore(PARALLEL))

    async def run(self, folder: Path) -> None:
        files = await self._in_pool(files_of, folder)
        self.progress = Progress(0, len(files), 0, sum(each.size for each in files))
        async with connect(self.settings) as self.client:
            await self._try(lambda: self.client.delete_object(**self._key(MANIFEST)))
            sums = await self._all(files)
            manifest = write_manifest(sums).encode()
            await self._try(lambda: self.client.put_object(**self._key(MANIFEST), Body=manifest))
        self._tell(force=True)

    async def _all(self, files: Sequence[LocalFile]) -> dict[str, str]:
        """Upload them, a few files and in all a few parts at once; return their sums."""
        left, sums = iter(files), dict[str, str]()

        async def worker() -> None:
            for each in left:
                digest = asyncio.ensure_future(self._in_pool(sha256_of, each.source))
                try:
                    await self._file(each)
                    sums[each.path] = await digest
                finally:
                    digest.cancel()
                self._count(files=1)

        async with asyncio.TaskGroup() as group:
            for _ in range(PARALLEL):
                group.create_task(worker())
        return sums

    async def _file(self, each: LocalFile) -> None:
        part_bytes = max(self.settings.part_mib * 2**20, -(-each.size // MAX_PARTS))
        if each.size <= part_bytes:
            async with self.slots:
                body = await self._in_pool(_read, each.source, 0, each.size)
                await self._try(lambda: self.client.put_object(**self._key(each.path), Body=body))
            self._count(bytes=each.size)
            return
        begun = await self._try(lambda: self.client.create_multipart_upload(**self._key(each.path)))
        upload = {**self._key(each.path), "UploadId": begun["UploadId"]}
        try:
            parts = await self._parts(each, upload, part_bytes)
            await self._try(lambda: self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}))
        except BaseException:
            # Parts of an upload that nobody completes or aborts are kept, and paid for, for ever.
            await asyncio.shield(self._try(lambda: self.client.abort_multipart_upload(**upload)))
            raise

    async def _parts(self, each: LocalFile, upload: dict[str, Any], part_bytes: int) -> list[dict[str, Any]]:
        begins = enumerate(range(0, each.size, part_bytes), start=1)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._part(each, upload, number, begin, min(part_bytes, each.size - begin)))
                for number, begin in begins
            ]
        return [task.result() for task in tasks]

    async def _part(self, each: LocalFile, upload: dict[str, Any], number: int, begin: int, length: int) -> Any:
        async with self.slots:
            body = await self._in_pool(_read, each.source, begin, length)
            answer = await self._try(lambda: self.client.upload_part(**upload, PartNumber=number, Body=body))
        digest = await self._in_pool(lambda: hashlib.md5(body, usedforsecurity=False).hexdigest())
        etag = answer["ETag"].strip('"')
        if len(etag) == len(digest) and etag != digest and "ServerSideEncryption" not in answer:
            raise ServiceError(f"{each.path}: part {number} did not arrive as it was sent")
        self._count(bytes=length)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _key(self, path: str) -> dict[str, Any]:
        return {"Bucket": self.location.bucket, "Key": self.location.below + path}

    async def _try(self, operation: Any) -> Any:
        return await retried(self.settings, operation)

    async def _in_pool(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, partial(function, *arguments))

    def _count(self, *, bytes: int = 0, files: int = 0) -> None:
        now = self.progress
        self.progress = attrs.evolve(now, bytes=now.bytes + bytes, files=now.files + files)
        self._tell()

    def _tell(self, *, force: bool = False) -> None:
        if force or time.monotonic() - self.told_at >= TELL_S:
            self.told_at = time.monotonic()
            self.on_progress(self.progress)


def _read(path: Path, begin: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        content = file.read(length)
    if len(content) != length:
        raise ServiceError(f"{path} changed while it was uploaded")
    return content
