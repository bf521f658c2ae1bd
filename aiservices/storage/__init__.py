"""Where a model's files come from: a folder, the package's own data, a hub, a bucket; always a whole local folder."""

from aiservices.storage.outputs import OutputStore
from aiservices.storage.store import PACKAGE_SCHEME, ModelStore

__all__ = ["PACKAGE_SCHEME", "ModelStore", "OutputStore"]
