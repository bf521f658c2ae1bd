"""Download one version of a model: only what is missing, checked, and put in place at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from aiservices.errors import ServiceError
from aiservices.logs import get_logger
from aiservices.settings import S3Config
from aiservices.storage.concurrency import in_pool, map_concurrently
from aiservices.storage.lease import this_machine
from aiservices.storage.progress import OnProgress, Progress, ProgressReporter
from aiservices.storage.s3.checksum import ChecksumMismatch, Verified, count_parts
from aiservices.storage.s3.client import retried
from aiservices.storage.s3.folder import ModelFolder
from aiservices.storage.s3.journal import Piece
from aiservices.storage.s3.location import Location
from aiservices.storage.s3.marker import Marker, StoredFile
from aiservices.storage.s3.pieces import PieceWriter, Source
from aiservices.storage.s3.plan import Span, Target, plan_requests, plan_target
from aiservices.storage.s3.remote import RemoteObject, fingerprint, read_manifest, upload_part_bytes
from aiservices.storage.s3.verify import Verifier

T = TypeVar("T")
P = ParamSpec("P")

POOL_THREADS = 4
CHECKSUM_ATTEMPTS = 2

log = get_logger(__name__)


class Download:
    """The download of one version. This process holds the lease of its folder meanwhile.

    Args:
        folder: where the model is stored.
        objects: the files of the version.
        pool: threads for the disk and for hashing.
        on_progress: gets reports, in any thread.
    """

    def __init__(
        self,
        client: Any,
        location: Location,
        settings: S3Config,
        folder: ModelFolder,
        objects: Sequence[RemoteObject],
        pool: ThreadPoolExecutor,
        on_progress: OnProgress,
    ) -> None:
        self._client = client
        self._location = location
        self._settings = settings
        self._folder = folder
        self._objects = objects
        self._pool = pool
        self._progress = ProgressReporter(on_progress)
        self._source = Source(client, location, settings, lambda count: self._progress.add(bytes=count))
        self._verifier = Verifier({}, self._source.opaque)

    async def run(self, make_room: Callable[[int], None]) -> Path:
        """Download what is missing and put the version in place.

        Args:
            make_room: called in a thread with the number of bytes that have to fit.

        Returns:
            The version's folder.

        Raises:
            Changed: an object is no longer the one that was listed.
            ServiceError: a file cannot be downloaded, or is not what its checksum says.
        """
        try:
            sums = await read_manifest(self._client, self._location, self._settings, self._objects)
            self._verifier = Verifier(sums, self._source.opaque)
            targets = await map_concurrently(self._plan, self._objects, self._settings.max_concurrency)
            await self._in_pool(self._find_present, targets)
            missing = sum(target.missing_bytes() for target in targets)
            await self._in_pool(make_room, missing)
            await self._in_pool(self._preallocate, targets)
            self._start_progress(targets, missing)
            await self._download(targets)
        finally:
            self._source.close()
        self._progress.finish()
        log.info("model.fetched", model=self._location.uri, bytes=missing, files=len(targets))
        return await self._in_pool(self._commit, targets)

    async def _plan(self, remote: RemoteObject) -> Target:
        piece_bytes, reported = self._settings.part_mib * 2**20, None
        if count_parts(remote.etag) is not None:
            reported = await retried(self._settings, lambda: upload_part_bytes(self._client, self._location, remote))
        return plan_target(remote, piece_bytes, reported)

    def _find_present(self, targets: Sequence[Target]) -> None:
        """Find what is here already: files of other versions, pieces of an earlier attempt."""
        versions, journal = self._folder.versions(), self._folder.journal.read()
        self._folder.partial.mkdir(parents=True, exist_ok=True)
        for target in targets:
            remote = target.remote
            (self._folder.partial / remote.path).parent.mkdir(parents=True, exist_ok=True)
            target.stored = self._folder.reuse(remote, versions)
            if target.stored is None:
                pieces = journal.get((remote.path, remote.etag), {})
                target.pieces = self._folder.resume(remote, pieces, target.piece_bytes)

    def _preallocate(self, targets: Sequence[Target]) -> None:
        for target in targets:
            if target.stored is None:
                self._folder.preallocate(target.remote)

    def _start_progress(self, targets: Sequence[Target], missing: int) -> None:
        total = sum(each.size for each in self._objects)
        stored = sum(target.stored is not None for target in targets)
        self._progress.start(Progress(stored, len(targets), total - missing, total))

    async def _download(self, targets: Sequence[Target]) -> None:
        """Request all missing pieces, those of the largest files first, and check each file when it has all of them."""
        workers = self._settings.max_concurrency
        unfinished = [target for target in targets if target.stored is None]
        unfinished.sort(key=lambda target: -target.remote.size)
        await map_concurrently(self._complete, [target for target in unfinished if not target.missing()], workers)
        requests = plan_requests([target for target in unfinished if target.stored is None], workers)
        await map_concurrently(lambda request: self._fetch_then_complete(*request), requests, workers)

    async def _fetch_then_complete(self, target: Target, pieces: Sequence[Span]) -> None:
        await self._fetch(target, pieces)
        if not target.missing():
            await self._complete(target)

    async def _fetch(self, target: Target, pieces: Sequence[Span]) -> None:
        """Receive adjacent pieces of a file with one request."""
        remote, written = target.remote, list[Piece]()

        def record(piece: Piece) -> None:
            self._folder.journal.add(remote, piece)
            written.append(piece)

        writer = PieceWriter(self._folder.partial / remote.path, pieces, record)
        try:
            await self._source.fetch(remote, writer)
        finally:
            writer.close()
        # Here and not in the thread: of several requests that end at once, one alone finds that nothing is missing.
        target.pieces.update({piece.begin: piece for piece in written})

    async def _complete(self, target: Target) -> None:
        """Check a file; one that does not match its checksum is downloaded once more."""
        for attempt in range(1, CHECKSUM_ATTEMPTS + 1):
            try:
                verified = await self._verify(target)
            except ChecksumMismatch as mismatch:
                await self._fetch_again(target, mismatch, attempt)
            else:
                target.stored = StoredFile(target.remote.size, target.remote.etag, verified)
                self._progress.add(files=1)
                return

    async def _verify(self, target: Target) -> Verified:
        verified = self._verifier.verify_in_memory(target)
        if verified is not None:
            return verified
        return await self._in_pool(self._verifier.verify, target, self._folder.partial / target.remote.path)

    async def _fetch_again(self, target: Target, mismatch: ChecksumMismatch, attempt: int) -> None:
        log.warning("s3.checksum_mismatch", path=target.remote.path, by=mismatch.by, attempt=attempt)
        await self._in_pool(self._folder.journal.discard, target.remote)
        target.pieces.clear()
        self._progress.add(bytes=-target.remote.size)
        if attempt == CHECKSUM_ATTEMPTS:
            checksum = "its sum in the manifest" if mismatch.by == "sha256" else "its ETag"
            raise ServiceError(
                f"{target.remote.path}: the downloaded bytes do not match {checksum}, after {attempt} attempts"
            )
        for piece in target.missing():
            await self._fetch(target, [piece])

    def _commit(self, targets: Sequence[Target]) -> Path:
        files = {target.remote.path: target.stored for target in targets if target.stored}
        assert len(files) == len(self._objects), "a file was neither stored nor refused"
        marker = Marker(source=self._folder.source, files=files, fetched_at=time.time(), unflushed_on=this_machine())
        return self._folder.commit(fingerprint(self._objects), marker)

    async def _in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_pool(self._pool, function, *args, **kwargs)
