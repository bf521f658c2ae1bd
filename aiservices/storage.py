"""Where a model's files come from: a folder, the package's own data, a hub, a bucket; always a whole local folder."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from aiservices.config import Config
from aiservices.errors import ServiceError

PACKAGE_SCHEME = "package://"


class ModelStore:
    """Turns the ``model`` of a service into a local folder that holds all of it.

    Args:
        config: the cache folder and the S3 settings.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    async def resolve(self, uri: str) -> Path | None:
        """Return the folder, or None for a service without a model.

        Raises:
            ServiceError: there is no such model; the text says what to do.
        """
        if not uri:
            return None
        if uri.startswith(PACKAGE_SCHEME):
            return self._from_package(uri.removeprefix(PACKAGE_SCHEME))
        return self._existing(Path(uri), uri)

    def _from_package(self, name: str) -> Path:
        """``package/folder``: files that were installed with a Python package."""
        package, _, folder = name.partition("/")
        return self._existing(Path(str(resources.files(package))) / folder, name)

    def _existing(self, folder: Path, uri: str) -> Path:
        if not folder.is_dir():
            raise ServiceError(f"model {uri!r}: no such folder")
        return folder
