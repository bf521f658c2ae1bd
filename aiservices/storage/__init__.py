"""Models' files, from a folder, a Python package, a hub or a bucket; always as a complete local folder."""

from aiservices.storage.cache import CachedModel
from aiservices.storage.progress import OnProgress, Progress, readable
from aiservices.storage.store import PACKAGE_SCHEME, ModelStore

__all__ = ["PACKAGE_SCHEME", "CachedModel", "ModelStore", "OnProgress", "Progress", "readable"]
