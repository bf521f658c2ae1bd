"""Where a model's files come from: a folder, the package's own data, a hub, a bucket; always a whole local folder."""

from aiservices.storage.cache import CachedModel
from aiservices.storage.progress import OnProgress, Progress, readable
from aiservices.storage.store import PACKAGE_SCHEME, ModelStore

__all__ = ["PACKAGE_SCHEME", "CachedModel", "ModelStore", "OnProgress", "Progress", "readable"]
