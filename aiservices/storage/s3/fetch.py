"""From an ``s3://`` URI to a complete local folder: one listing, one download for all processes on the volume."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs

from aiservices.errors import ServiceError
from aiservices.logs import get_logger
from aiservices.settings import S3Config
from aiservices.storage.cache import Cache
from aiservices.storage.concurrency import in_pool
from aiservices.storage.lease import Lease
from aiservices.storage.progress import OnProgress, Progress, readable
from aiservices.storage.s3.client import Changed, Unreachable, connect, explained
from aiservices.storage.s3.download import POOL_THREADS, Download
from aiservices.storage.s3.folder import ModelFolder
from aiservices.storage.s3.location import Location, parse
from aiservices.storage.s3.marker import flush, is_complete
from aiservices.storage.s3.remote import RemoteObject, fingerprint, list_model

T = TypeVar("T")

LISTINGS = 3
"""How many listings are tried where a model changes while it is downloaded."""

LEASE_POLL_S = 0.2

log = get_logger(__name__)


async def fetch_model(
    uri: str, settings: S3Config, cache: Cache, on_progress: OnProgress, *, weights: bool = True
) -> Path:
    """Return the folder of the newest version, complete, downloading what is missing; it is in use from then on.

    Where the store cannot be reached, the newest version on disk is taken.

    Args:
        uri: ``s3://bucket/prefix/``.
        cache: makes room, and records what is in use.
        on_progress: gets reports, in any thread.
        weights: whether some of the files have to hold weights.

    Raises:
        ServiceError: there is no such model, or it cannot be downloaded; says why in one line.
    """
    with ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="storage") as pool:
        model = _model(uri, settings, cache, pool, weights)
        try:
            with explained(model.location):
                return await model.fetch(on_progress)
        except Unreachable as error:
            folder = await model.newest_on_disk()
            if folder is None:
                raise
            log.warning("s3.unreachable", model=uri, reason=str(error), used=str(folder))
            return folder


async def describe_model(uri: str, settings: S3Config, cache: Cache, *, weights: bool = True) -> str:
    """Say where the newest version is, or how much would be downloaded.

    Raises:
        ServiceError: there is no such model, or the store cannot be asked.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="storage") as pool:
        model = _model(uri, settings, cache, pool, weights)
        with explained(model.location):
            async with connect(settings) as client:
                objects = await list_model(client, model.location, settings, weights=weights)
            folder = model.folder.version(fingerprint(objects))
            if await in_pool(pool, is_complete, folder):
                return f"in {folder}"
    return f"to be downloaded: {len(objects)} files, {readable(sum(each.size for each in objects))} at most"


def _model(uri: str, settings: S3Config, cache: Cache, pool: ThreadPoolExecutor, weights: bool) -> _Model:
    location = parse(uri)
    folder = ModelFolder(cache.model_dir / "s3", location, settings.endpoint_url)
    return _Model(location, settings, cache, folder, pool, weights)


@attrs.frozen
class _Model:
    """One model: its location in a bucket and its folder on disk."""

    location: Location
    settings: S3Config
    cache: Cache
    folder: ModelFolder
    pool: ThreadPoolExecutor
    weights: bool

    async def fetch(self, on_progress: OnProgress) -> Path:
        async with connect(self.settings) as client:
            for _ in range(LISTINGS):
                objects = await list_model(client, self.location, self.settings, weights=self.weights)
                try:
                    return await self._fetch_version(client, objects, on_progress)
                except* Changed as changed:
                    log.info("s3.changed_meanwhile", model=self.location.uri, objects=str(changed.exceptions))
        raise ServiceError(f"it changed {LISTINGS} times while it was downloaded; try again when it is at rest")

    async def newest_on_disk(self) -> Path | None:
        """Return the newest complete version, which is in use from then on; None if there is none."""
        versions = await self._in_pool(self.folder.versions)
        for folder, _ in versions:
            if await self._in_pool(self._use_if_complete, folder):
                return folder
        return None

    async def _fetch_version(self, client: Any, objects: list[RemoteObject], on_progress: OnProgress) -> Path:
        folder = self.folder.version(fingerprint(objects))
        if await self._in_pool(self._use_if_complete, folder):
            return folder
        async with self._lease(folder, objects, on_progress) as lease:
            if lease is None:
                return folder
            download = Download(client, self.location, self.settings, self.folder, objects, self.pool, on_progress)
            await download.run(self.cache.make_room)
            await self._in_pool(self.cache.use, folder)
            await self._in_pool(self.cache.remove_superseded, folder)
        # Every process on this machine sees it complete already; only those on others have to wait for the disk.
        self.cache.run_in_background(partial(flush, folder))
        return folder

    @asynccontextmanager
    async def _lease(
        self, folder: Path, objects: list[RemoteObject], on_progress: OnProgress
    ) -> AsyncIterator[Lease | None]:
        """Wait for the right to download; None if another process completed the version meanwhile."""
        lease = Lease(self.folder.lease)
        total = sum(each.size for each in objects)
        while not await self._in_pool(lease.acquire):
            done = await self._in_pool(self.folder.journal.recorded_bytes)
            on_progress(Progress(0, len(objects), min(done, total), total, elsewhere=True))
            await asyncio.sleep(LEASE_POLL_S)
        try:
            yield None if await self._in_pool(self._use_if_complete, folder) else lease
        finally:
            await self._in_pool(lease.release)

    def _use_if_complete(self, folder: Path) -> bool:
        """Mark a version as used if it is complete; checked again after, as it may be removed in between. Blocking."""
        if not is_complete(folder):
            return False
        self.cache.use(folder)
        if is_complete(folder):
            return True
        self.cache.release(folder)
        return False

    async def _in_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        return await in_pool(self.pool, function, *arguments)
