"""From an ``s3://`` URI to a whole local folder: one listing, one download for all processes on the volume."""

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
from aiservices.storage.lease import Lease
from aiservices.storage.progress import OnProgress, Progress, readable
from aiservices.storage.s3.client import Changed, Unreachable, connect, explained
from aiservices.storage.s3.download import POOL_THREADS, Download
from aiservices.storage.s3.local import ModelFolder, flush, is_whole
from aiservices.storage.s3.location import Location, parse
from aiservices.storage.s3.remote import RemoteObject, fingerprint, list_model

T = TypeVar("T")

LISTINGS = 3
"""How often a model may change while it is downloaded."""

LEASE_POLL_S = 0.2

log = get_logger(__name__)


async def bring(uri: str, settings: S3Config, cache: Cache, on_progress: OnProgress, *, weights: bool = True) -> Path:
    """Return the folder of the newest version, whole; it is in use from then on.

    Where the store cannot be reached, the newest version that is here has to do.

    Args:
        uri: ``s3://bucket/prefix/``.
        cache: makes room, and knows what is in use.
        on_progress: told how far it is, in the thread of this loop.
        weights: whether some of it has to be weights.

    Raises:
        ServiceError: it cannot be had; says why in one line.
    """
    with ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="storage") as pool:
        model = _model(uri, settings, cache, pool, weights)
        try:
            with explained(model.location):
                return await model.bring(on_progress)
        except Unreachable as error:
            folder = await model.newest()
            if folder is None:
                raise
            log.warning("s3.unreachable", model=uri, reason=str(error), taken=str(folder))
            return folder


async def describe(uri: str, settings: S3Config, cache: Cache, *, weights: bool = True) -> str:
    """Say where it is, or how much would be downloaded.

    Raises:
        ServiceError: there is no such model, or the store does not tell.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="storage") as pool:
        model = _model(uri, settings, cache, pool, weights)
        with explained(model.location):
            async with connect(settings) as client:
                objects = await list_model(client, model.location, settings, weights=weights)
            folder = model.folder.version(fingerprint(objects))
            if await model.in_pool(is_whole, folder):
                return f"in {folder}"
    return f"to be downloaded: {len(objects)} files, {readable(sum(each.size for each in objects))} at most"


def _model(uri: str, settings: S3Config, cache: Cache, pool: ThreadPoolExecutor, weights: bool) -> _Model:
    location = parse(uri)
    folder = ModelFolder(cache.model_dir / "s3", location, settings.endpoint_url)
    return _Model(location, settings, cache, folder, pool, weights)


@attrs.frozen
class _Model:
    """One model: where it comes from and where it goes."""

    location: Location
    settings: S3Config
    cache: Cache
    folder: ModelFolder
    pool: ThreadPoolExecutor
    weights: bool

    async def bring(self, on_progress: OnProgress) -> Path:
        async with connect(self.settings) as client:
            for _ in range(LISTINGS):
                objects = await list_model(client, self.location, self.settings, weights=self.weights)
                try:
                    return await self._version(client, objects, on_progress)
                except* Changed as changed:
                    log.info("s3.changed_meanwhile", model=self.location.uri, objects=str(changed.exceptions))
        raise ServiceError(f"it changed {LISTINGS} times while it was downloaded; try again when it is at rest")

    async def newest(self) -> Path | None:
        """The newest version that is here, if any is whole; in use from then on."""
        versions = await self.in_pool(self.folder.versions)
        for folder, _ in versions:
            if await self.in_pool(self._take, folder):
                return folder
        return None

    async def in_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, partial(function, *arguments))

    async def _version(self, client: Any, objects: list[RemoteObject], on_progress: OnProgress) -> Path:
        folder = self.folder.version(fingerprint(objects))
        if await self.in_pool(self._take, folder):
            return folder
        async with self._lease(folder, objects, on_progress) as lease:
            if lease is None:
                return folder
            download = Download(client, self.location, self.settings, self.folder, objects, self.pool, on_progress)
            await download.run(self.cache.make_room)
            await self.in_pool(self.cache.use, folder)
            await self.in_pool(self.cache.supersede, folder)
        # Whole for everyone on this machine; others wait for the disk.
        self.cache.later(partial(flush, folder))
        return folder

    @asynccontextmanager
    async def _lease(
        self, folder: Path, objects: list[RemoteObject], on_progress: OnProgress
    ) -> AsyncIterator[Lease | None]:
        """Wait for our turn to download; None if somebody did it meanwhile."""
        lease = Lease(self.folder.lease)
        total = sum(each.size for each in objects)
        while not await self.in_pool(lease.acquire):
            done = await self.in_pool(self.folder.journal.bytes)
            on_progress(Progress(0, len(objects), min(done, total), total, elsewhere=True))
            await asyncio.sleep(LEASE_POLL_S)
        try:
            yield None if await self.in_pool(self._take, folder) else lease
        finally:
            await self.in_pool(lease.release)

    def _take(self, folder: Path) -> bool:
        """Use a version if it is whole: in this order, so that nobody removes it in between. Blocking."""
        if not is_whole(folder):
            return False
        self.cache.use(folder)
        if is_whole(folder):
            return True
        self.cache.forgo(folder)
        return False
