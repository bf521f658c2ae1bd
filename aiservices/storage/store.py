"""The one door to models: a URI in, a whole local folder out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from pathlib import Path

from aiservices.config import Config
from aiservices.errors import ServiceError, nearest
from aiservices.logs import get_logger
from aiservices.storage import bucket, hub
from aiservices.storage.threads import in_thread

PACKAGE_SCHEME = "package://"
HUB_SCHEME = "hf://"
BUCKET_SCHEME = "s3://"

log = get_logger(__name__)


class ModelStore:
    """Turns the ``model`` of a service into a local folder that holds all of it.

    ==================================  ====================================================================
    ``""``                              no model
    ``package://package/folder``        files that were installed with a Python package
    ``hf://org/name@revision``          a model hub's repository; kept in ``model_dir/hub``
    ``s3://bucket/prefix/``             everything below a prefix; kept in ``model_dir/s3``
    anything else                       a folder, relative to where the process was started
    ==================================  ====================================================================

    Args:
        config: the folder that keeps downloads and the S3 settings.
    """

    def __init__(self, config: Config) -> None:
        self._model_dir = config.server.model_dir
        self._s3 = config.s3
        self._running: dict[str, asyncio.Lock] = {}

    async def resolve(self, uri: str) -> Path | None:
        """Return the folder, downloading what is not there yet; None for a service without a model.

        Two services that name the same model download it once.

        Raises:
            ServiceError: there is no such model, or it cannot be had; the text says what to do.
        """
        if not uri:
            return None
        async with self._running.setdefault(uri, asyncio.Lock()):
            began = time.monotonic()
            folder = await self._resolvers()[_scheme(uri)](uri)
        log.info("model.found", model=uri, folder=str(folder), seconds=round(time.monotonic() - began, 3))
        return folder

    async def describe(self, uri: str) -> str:
        """Say where the model is or what it would take to get it, without downloading it.

        Raises:
            ServiceError: there is no such model, or it cannot be had.
        """
        scheme = _scheme(uri)
        if scheme == HUB_SCHEME:
            return await in_thread(hub.describe, uri, self._model_dir / "hub")
        if scheme == BUCKET_SCHEME:
            return await in_thread(bucket.describe, uri, self._model_dir / "s3", self._s3)
        return f"in {await self._resolvers()[scheme](uri)}"

    def _resolvers(self) -> Mapping[str, Callable[[str], Awaitable[Path]]]:
        return {
            PACKAGE_SCHEME: lambda uri: in_thread(_from_package, uri),
            HUB_SCHEME: lambda uri: in_thread(hub.download, uri, self._model_dir / "hub"),
            BUCKET_SCHEME: lambda uri: in_thread(bucket.download, uri, self._model_dir / "s3", self._s3),
            "": lambda uri: in_thread(_existing, Path(uri), uri),
        }


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
