"""The entry point to models: a URI in, a complete local folder out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path

from aiservices.errors import ServiceError, nearest
from aiservices.logs import get_logger
from aiservices.settings import Config
from aiservices.storage import hub
from aiservices.storage.cache import Cache, CachedModel
from aiservices.storage.concurrency import in_thread, on_own_loop
from aiservices.storage.progress import OnProgress, Progress
from aiservices.storage.s3.fetch import describe_model, fetch_model
from aiservices.storage.s3.upload import push

PACKAGE_SCHEME = "package://"
HUB_SCHEME = "hf://"
BUCKET_SCHEME = "s3://"

log = get_logger(__name__)


class ModelStore:
    """Turns the ``model`` of a service, or an option that names a folder, into a local folder that holds all of it.

    ==================================  ====================================================================
    ``""``                              no model
    ``package://package/folder``        files that were installed with a Python package
    ``hf://org/name@revision``          a model hub's repository; stored in ``model_dir/hub``
    ``s3://bucket/prefix/``             everything below a prefix; stored in ``model_dir/s3``
    anything else                       a folder, relative to where the process was started
    ==================================  ====================================================================

    What was resolved is in use, and not removed, until :meth:`close` or the end of the process.

    Args:
        config: the folder for downloads, how much it may hold, and the S3 settings.
    """

    def __init__(self, config: Config) -> None:
        self._cache = Cache(config.server.model_dir, int(config.server.cache_gib * 2**30))
        self._hub_dir = config.server.model_dir / "hub"
        self._s3 = config.s3
        self._running: dict[str, asyncio.Lock] = {}

    async def resolve(self, uri: str, on_progress: OnProgress | None = None, *, option: str = "") -> Path | None:
        """Return the folder, downloading what is not there yet; None for a service without a model.

        Two services that name the same model download it once, and so do two processes on one volume.

        Args:
            uri: see the table above.
            on_progress: gets reports of a download on this loop, a few times a second.
            option: which option of the service names it, if it is not a model: it need not hold weights then.

        Raises:
            ServiceError: there is no such model, or it cannot be downloaded; the text says what to do.
        """
        if not uri:
            return None
        async with self._running.setdefault(uri, asyncio.Lock()):
            began = time.monotonic()
            with _naming(option):
                folder = await self._resolvers(on_progress, weights=not option)[_scheme(uri)](uri)
        log.info("model.found", model=uri, folder=str(folder), seconds=round(time.monotonic() - began, 3))
        return folder

    async def describe(self, uri: str, *, option: str = "") -> str:
        """Say where the model is or what it would take to get it, without downloading it.

        Args:
            uri: as for :meth:`resolve`.
            option: likewise.

        Raises:
            ServiceError: there is no such model, or its store cannot be asked.
        """
        with _naming(option):
            scheme = _scheme(uri)
            if scheme == HUB_SCHEME:
                return await in_thread(hub.describe, uri, self._hub_dir, hub.ALL if option else hub.FILES)
            if scheme == BUCKET_SCHEME:
                return await on_own_loop(describe_model(uri, self._s3, self._cache, weights=not option))
            return f"in {await self._resolvers(None)[scheme](uri)}"

    async def find(self, uri: str) -> Path | None:
        """Return the local folder of a model that needs no download; None for one that does, or lies in a bucket.

        Raises:
            ServiceError: there is no such model.
        """
        scheme = _scheme(uri)
        if scheme == HUB_SCHEME:
            return await in_thread(hub.find, uri, self._hub_dir)
        return None if scheme == BUCKET_SCHEME else await self._resolvers(None)[scheme](uri)

    async def push(self, folder: Path, uri: str, on_progress: OnProgress | None = None) -> str:
        """Upload a folder below a prefix of a bucket, with a manifest of SHA-256 sums; return its URI.

        Raises:
            ServiceError: there is nothing to upload, or the store refuses it.
        """
        if _scheme(uri) != BUCKET_SCHEME:
            raise ServiceError(f"{uri!r}: only a bucket takes uploads; expected s3://bucket/prefix/")
        return await on_own_loop(push(folder, uri, self._s3, _on_this_loop(on_progress)))

    async def models(self) -> list[CachedModel]:
        """Return the downloaded models, the last used first."""
        return await in_thread(self._cache.models)

    async def remove(self, name: str) -> list[CachedModel]:
        """Remove a downloaded model: all versions; return them.

        Raises:
            ServiceError: there is no such model, or it is in use.
        """
        return await in_thread(self._cache.remove, name)

    async def close(self, *, flush: bool = False) -> None:
        """Release every folder.

        Args:
            flush: wait until what was downloaded is on disk. Without it, a machine that loses its power before that
                downloads it again; the end of the process does no harm.
        """
        await in_thread(self._cache.close, flush=flush)

    def _resolvers(
        self, on_progress: OnProgress | None, *, weights: bool = True
    ) -> Mapping[str, Callable[[str], Awaitable[Path]]]:
        def from_bucket(uri: str) -> Awaitable[Path]:
            return on_own_loop(fetch_model(uri, self._s3, self._cache, _on_this_loop(on_progress), weights=weights))

        return {
            PACKAGE_SCHEME: lambda uri: in_thread(_from_package, uri),
            HUB_SCHEME: lambda uri: in_thread(self._from_hub, uri, hub.FILES if weights else hub.ALL),
            BUCKET_SCHEME: from_bucket,
            "": lambda uri: in_thread(_existing, Path(uri), uri),
        }

    def _from_hub(self, uri: str, files: tuple[str, ...]) -> Path:
        folder = hub.download(uri, self._hub_dir, files)
        self._cache.use(self._hub_dir / folder.relative_to(self._hub_dir).parts[0])
        return folder


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Have errors name the option, if there is one, instead of a model."""
    try:
        yield
    except ServiceError as error:
        if not option:
            raise
        raise ServiceError(f"options.{option}: {str(error).removeprefix('model ')}") from None


def _on_this_loop(on_progress: OnProgress | None) -> OnProgress:
    """Have reports from any thread arrive on the running loop."""
    if on_progress is None:
        return lambda progress: None
    loop = asyncio.get_running_loop()

    def report(progress: Progress) -> None:
        loop.call_soon_threadsafe(partial(on_progress, progress))

    return report


def _scheme(uri: str) -> str:
    known = (PACKAGE_SCHEME, HUB_SCHEME, BUCKET_SCHEME)
    name, separator, _ = uri.partition("://")
    scheme = name + separator if separator else ""
    if scheme and scheme not in known:
        raise ServiceError(f"model {uri!r}: unknown scheme {scheme!r}{nearest(scheme, known)}, or a folder")
    return scheme


def _from_package(uri: str) -> Path:
    package, _, folder = uri.removeprefix(PACKAGE_SCHEME).partition("/")
    try:
        root = Path(str(resources.files(package)))
    except ModuleNotFoundError:
        raise ServiceError(f"model {uri!r}: no package {package!r} is installed") from None
    return _existing(root / folder, uri)


def _existing(folder: Path, uri: str) -> Path:
    if not folder.is_dir():
        raise ServiceError(f"model {uri!r}: no such folder ({folder.absolute()})")
    return folder
