"""The folder of downloaded models: how much space each takes, which are in use, and which are evicted.

Every process that uses a model holds a lease under ``model_dir/.uses`` for as long as it lives; the time of the last
one is when the model was last used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from aiservices.errors import ServiceError, nearest
from aiservices.logs import get_logger
from aiservices.storage.lease import Lease, is_held
from aiservices.storage.progress import readable
from aiservices.storage.s3.marker import PARTIAL, complete_versions, is_complete
from aiservices.storage.s3.remote import MANIFEST

MIN_FREE_BYTES = 64 * 2**20
"""How much a download leaves free on the disk, for logs and others."""

log = get_logger(__name__)


@attrs.frozen(kw_only=True)
class CachedModel:
    """One version of a downloaded model.

    Attributes:
        name: the URI that it was downloaded from.
        bytes: how much space it takes.
        last_used: seconds since the epoch.
        verified: the weakest checksum of its files; "partial" if it is not complete, "damaged" if
            files are missing or cut off.
    """

    name: str
    folder: Path
    bytes: int
    last_used: float
    verified: str
    in_use: bool


class Cache:
    """The folder of downloaded models. Everything here blocks.

    Args:
        model_dir: that folder.
        budget_bytes: how much it may hold; 0 for any amount.
    """

    def __init__(self, model_dir: Path, budget_bytes: int) -> None:
        self.model_dir = model_dir
        self._budget_bytes = budget_bytes
        self._uses: dict[Path, Lease] = {}
        self._background: list[threading.Thread] = []
        self._lock = threading.Lock()

    def use(self, folder: Path) -> None:
        """Keep a folder from being removed while this process lives."""
        with self._lock:
            if folder not in self._uses:
                lease = Lease(self._uses_of(folder) / uuid.uuid4().hex)
                if lease.acquire():
                    self._uses[folder] = lease
        with contextlib.suppress(OSError):
            os.utime(self._uses_of(folder))

    def release(self, folder: Path) -> None:
        """End what :meth:`use` began."""
        with self._lock:
            lease = self._uses.pop(folder, None)
        if lease:
            lease.release(remove=True)

    def run_in_background(self, work: Callable[[], None]) -> None:
        """Run something in a thread that only :meth:`close` may wait for."""
        thread = threading.Thread(target=work, name="storage-background", daemon=True)
        thread.start()
        self._background.append(thread)

    def close(self, *, flush: bool) -> None:
        """Release every folder; with ``flush``, after the work in the background is done."""
        for thread in self._background if flush else ():
            thread.join()
        for folder in list(self._uses):
            self.release(folder)

    def models(self) -> list[CachedModel]:
        """Return the downloaded models, the last used first."""
        found = [*self._from_buckets(), *self._from_hub()]
        return sorted(found, key=lambda model: -model.last_used)

    def remove(self, name: str) -> list[CachedModel]:
        """Remove every version of a model; return them.

        Args:
            name: its URI, or the path of its folder.

        Raises:
            ServiceError: there is no such model, or it is in use.
        """
        known = self.models()
        chosen = [model for model in known if name.rstrip("/") in (model.name.rstrip("/"), str(model.folder))]
        if not chosen:
            names = {model.name for model in known}
            raise ServiceError(f"no model {name!r} is here" + (nearest(name, names) if names else ""))
        for model in chosen:
            if not self._discard(model):
                raise ServiceError(f"{model.name} is in use; stop the process that runs it first")
        return chosen

    def make_room(self, missing_bytes: int) -> None:
        """Evict the models used longest ago until a download fits, within the budget and on the disk.

        Raises:
            ServiceError: it does not fit even without every model that is not in use.
        """
        models = self.models()
        kept = sum(model.bytes for model in models)
        for model in reversed(models) if self._budget_bytes else ():
            if self._fits(kept, missing_bytes):
                return
            if self._discard(model):
                log.info("model.evicted", model=model.name, bytes=model.bytes)
                kept -= model.bytes
        self._check(kept, missing_bytes)

    def remove_superseded(self, newest: Path) -> None:
        """Remove the other versions of a model, unless they are in use."""
        for model in self._from_buckets():
            if model.folder.parent == newest.parent and model.folder != newest and model.verified != PARTIAL:
                self._discard(model)

    def _fits(self, kept: int, missing_bytes: int) -> bool:
        within = not self._budget_bytes or kept + missing_bytes <= self._budget_bytes
        return within and missing_bytes + MIN_FREE_BYTES <= shutil.disk_usage(self.model_dir).free

    def _check(self, kept: int, missing_bytes: int) -> None:
        if self._fits(kept, missing_bytes) or not missing_bytes:
            return
        free = shutil.disk_usage(self.model_dir).free
        if missing_bytes + MIN_FREE_BYTES > free:
            space = f"{readable(free)} are free on the disk of {self.model_dir}"
        else:
            space = f"{readable(self._budget_bytes - kept)} are left of cache_gib"
        raise ServiceError(f"{readable(missing_bytes)} are missing and {space}; 'aiservices models rm' frees space")

    def _discard(self, model: CachedModel) -> bool:
        """Remove a folder unless it is in use: renamed first, so that no process finds half of it."""
        if self._in_use(model.folder):
            return False
        removed = model.folder.with_name(f".removed-{uuid.uuid4().hex}")
        try:
            model.folder.rename(removed)
        except FileNotFoundError:
            return True
        if self._in_use(model.folder):  # by a process that found it just before
            removed.rename(model.folder)
            return False
        shutil.rmtree(removed, ignore_errors=True)
        shutil.rmtree(self._uses_of(model.folder), ignore_errors=True)
        return True

    def _in_use(self, folder: Path) -> bool:
        if folder.name == PARTIAL and is_held(folder.parent / "lease"):
            return True
        uses = self._uses_of(folder)
        held = [path for path in uses.iterdir() if is_held(path)] if uses.is_dir() else []
        return bool(held)

    def _uses_of(self, folder: Path) -> Path:
        return self.model_dir / ".uses" / "--".join(folder.relative_to(self.model_dir).parts)

    def _last_used(self, folder: Path) -> float:
        for path in (self._uses_of(folder), folder):
            with contextlib.suppress(OSError):
                return path.stat().st_mtime
        return time.time()

    def _model(self, name: str, folder: Path, count: int, verified: str) -> CachedModel:
        return CachedModel(
            name=name,
            folder=folder,
            bytes=count,
            last_used=self._last_used(folder),
            verified=verified,
            in_use=self._in_use(folder),
        )

    def _from_buckets(self) -> Iterator[CachedModel]:
        for root in _folders(self.model_dir / "s3"):
            for folder, marker in complete_versions(root):
                levels = {file.verified for path, file in marker.files.items() if path != MANIFEST}
                weakest = next((level for level in ("size", "etag", "sha256") if level in levels), "size")
                yield self._model(marker.source, folder, marker.bytes, weakest if is_complete(folder) else "damaged")
            if (root / PARTIAL).is_dir():
                yield self._model(root.name, root / PARTIAL, _bytes_in(root / PARTIAL), PARTIAL)

    def _from_hub(self) -> Iterator[CachedModel]:
        """Yield the repositories of the hub client's cache, whose files' sizes it checks."""
        for folder in _folders(self.model_dir / "hub"):
            kind, _, name = folder.name.partition("--")
            if kind == "models":
                yield self._model(f"hf://{name.replace('--', '/')}", folder, _bytes_in(folder), "size")


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _bytes_in(folder: Path) -> int:
    """Sum what its files take on disk, links not followed: a sparse file counts as far as it was written."""
    sizes = (path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(min(each.st_size, each.st_blocks * 512) for each in sizes)
