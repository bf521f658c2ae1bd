"""Bring everything below a prefix here: what is missing and only that, checked, and put in place at the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs

from aiservices.errors import ServiceError
from aiservices.logs import get_logger
from aiservices.settings import S3Config
from aiservices.storage.lease import this_machine
from aiservices.storage.progress import OnProgress, Progress
from aiservices.storage.s3.checksum import (
    Verified,
    Wrong,
    count_parts,
    etag_of_parts,
    is_md5,
    md5_of,
    sha256_of,
    usual_part_bytes,
)
from aiservices.storage.s3.client import retried
from aiservices.storage.s3.local import Kept, Marker, ModelFolder, Piece
from aiservices.storage.s3.location import Location
from aiservices.storage.s3.pieces import PieceWriter, Source
from aiservices.storage.s3.remote import RemoteObject, fingerprint, read_manifest, upload_part_bytes

T = TypeVar("T")

POOL_THREADS = 4
CHECKSUM_ATTEMPTS = 2
MAX_PIECE_BYTES = 64 * 2**20
"""Larger parts of an upload are not taken as pieces: what is lost at a break would be more."""

MAX_RUN_BYTES = 64 * 2**20
"""Most that one request asks for: adjacent pieces, since each request costs both sides a millisecond."""

RUNS_A_WORKER = 4

TELL_S = 0.1
"""The shortest time between two reports of progress."""

log = get_logger(__name__)


@attrs.define(eq=False)
class Target:
    """One file on its way.

    Attributes:
        part_bytes: how large the parts of its upload were, as far as known.
        certain: the store told so; it is no guess.
        pieces: those that are written, by offset.
        kept: set when it is whole.
    """

    remote: RemoteObject
    piece_bytes: int
    part_bytes: int | None = None
    certain: bool = False
    pieces: dict[int, Piece] = attrs.Factory(dict)
    kept: Kept | None = None

    def missing(self) -> list[tuple[int, int]]:
        """Return offset and length of the pieces that are not written; an empty file is one empty piece."""
        size = self.remote.size
        begins = range(0, max(size, 1), self.piece_bytes)
        return [(begin, min(self.piece_bytes, size - begin)) for begin in begins if begin not in self.pieces]


class Download:
    """One model's way here. The lease of its folder is ours meanwhile.

    Args:
        folder: where it is kept.
        objects: what it consists of.
        pool: threads for the disk and for hashing.
        on_progress: told how far it is.
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
        self._on_progress = on_progress
        self._source = Source(client, location, settings, self._count)
        self._sums: Mapping[str, str] = {}
        self._targets: list[Target] = []
        self._bytes = 0
        self._told_at = 0.0
        self._counting = threading.Lock()

    async def run(self, make_room: Callable[[int], None]) -> Path:
        """Fetch what is missing and put the version in place.

        Args:
            make_room: sees in a thread that so many bytes fit.

        Raises:
            Changed: an object is no longer the one that was listed.
            ServiceError: it cannot be had.
        """
        self._sums = await read_manifest(self._client, self._location, self._settings, self._objects)
        self._targets = await self._each(self._target, self._objects)
        await self._in_pool(self._take_stock)
        missing = sum(length for target in self._targets if not target.kept for _, length in target.missing())
        self._bytes = sum(each.size for each in self._objects) - missing
        await self._in_pool(make_room, missing)
        await self._in_pool(self._set_aside)
        self._tell(force=True)
        try:
            await self._fetch_all()
        finally:
            self._source.close()
        self._tell(force=True)
        log.info("model.fetched", model=self._location.uri, bytes=missing, files=len(self._targets))
        return await self._in_pool(self._commit)

    async def _target(self, each: RemoteObject) -> Target:
        """Choose the pieces: an upload's own parts where that is possible, since their MD5s make up the ETag."""
        parts = count_parts(each.etag)
        piece_bytes = self._settings.part_mib * 2**20
        if parts is None:
            return Target(each, piece_bytes)
        told = await retried(self._settings, lambda: upload_part_bytes(self._client, self._location, each))
        part_bytes = told or usual_part_bytes(each.size, parts)
        fits = part_bytes is not None and part_bytes <= MAX_PIECE_BYTES
        return Target(each, part_bytes if part_bytes and fits else piece_bytes, part_bytes, told is not None)

    def _take_stock(self) -> None:
        """See what is here already: files of other versions, pieces of an earlier attempt."""
        versions, journal = self._folder.versions(), self._folder.journal.read()
        self._folder.partial.mkdir(parents=True, exist_ok=True)
        for target in self._targets:
            each = target.remote
            (self._folder.partial / each.path).parent.mkdir(parents=True, exist_ok=True)
            target.kept = self._folder.reuse(each, versions)
            if target.kept is None:
                pieces = journal.get((each.path, each.etag), {})
                target.pieces = self._folder.resume(each, pieces, target.piece_bytes)

    def _set_aside(self) -> None:
        for target in self._targets:
            if target.kept is None:
                self._folder.set_aside(target.remote)

    async def _fetch_all(self) -> None:
        """Work on all pieces, the largest files first, with so many requests at once."""
        open_targets = [target for target in self._targets if target.kept is None]
        largest_first = sorted(open_targets, key=lambda target: -target.remote.size)
        await self._each(self._complete, [target for target in largest_first if not target.missing()])
        run_bytes = self._run_bytes(open_targets)
        work = [(target, run) for target in largest_first for run in _runs(target.missing(), run_bytes)]
        await self._each(lambda item: self._run(*item), work)

    def _run_bytes(self, targets: Sequence[Target]) -> int:
        """How much to ask for at once: a lot where there is a lot, so that every worker has some of it to the end."""
        missing = sum(length for target in targets for _, length in target.missing())
        return min(MAX_RUN_BYTES, missing // (RUNS_A_WORKER * self._settings.max_concurrency))

    async def _run(self, target: Target, run: Sequence[tuple[int, int]]) -> None:
        await self._fetch(target, run)
        if not target.missing():
            await self._complete(target)

    async def _fetch(self, target: Target, run: Sequence[tuple[int, int]]) -> None:
        each, written = target.remote, list[Piece]()

        def note(piece: Piece) -> None:
            self._folder.journal.add(each, piece)
            written.append(piece)

        writer = PieceWriter(self._folder.partial / each.path, run, note)
        try:
            await self._source.fetch(each, writer)
        finally:
            writer.close()
        # Here and not in the thread: of several runs that end at once, one alone finds that nothing is missing.
        target.pieces.update({piece.begin: piece for piece in written})

    async def _complete(self, target: Target) -> None:
        """Check a file; one that is wrong is fetched once more."""
        for attempt in range(1, CHECKSUM_ATTEMPTS + 1):
            try:
                small = self._verify_small(target)
                verified = small if small is not None else await self._in_pool(self._verify, target)
            except Wrong as wrong:
                await self._discard(target, wrong, attempt)
            else:
                target.kept = Kept(target.remote.size, target.remote.etag, verified)
                self._tell()
                return

    async def _discard(self, target: Target, wrong: Wrong, attempt: int) -> None:
        log.warning("s3.wrong_checksum", path=target.remote.path, by=wrong.by, attempt=attempt)
        await self._in_pool(self._folder.journal.forget, target.remote)
        target.pieces.clear()
        self._count(-target.remote.size)
        if attempt == CHECKSUM_ATTEMPTS:
            which = "the sum in the manifest" if wrong.by == "sha256" else "its ETag"
            raise ServiceError(f"{target.remote.path}: what came does not fit {which}, {attempt} times over")
        for piece in target.missing():
            await self._fetch(target, [piece])

    def _verify_small(self, target: Target) -> Verified | None:
        """Hold a file that came in one piece against its ETag, which takes no look at the disk; else None."""
        each, whole = target.remote, target.pieces.get(0)
        plain = is_md5(each.etag) and each.path not in self._sums and each.path not in self._source.opaque
        if not plain or whole is None or len(target.pieces) > 1:
            return None
        return _judge("etag", whole.digest.hex() == each.etag)

    def _verify(self, target: Target) -> Verified:
        """Hold a file against the best checksum there is; blocking."""
        each, path = target.remote, self._folder.partial / target.remote.path
        if each.path in self._sums:
            return _judge("sha256", sha256_of(path) == self._sums[each.path])
        if each.path in self._source.opaque:
            return "size"
        if is_md5(each.etag):
            return _judge("etag", md5_of(path, 0, each.size).hex() == each.etag)
        if target.part_bytes is None:
            return "size"
        fits = etag_of_parts(self._part_digests(target, path)) == each.etag
        # Where the size of the parts is a guess, a mismatch may as well mean that the guess was wrong.
        return _judge("etag", fits) if fits or target.certain else "size"

    def _part_digests(self, target: Target, path: Path) -> Iterator[bytes]:
        assert target.part_bytes is not None
        for begin in range(0, target.remote.size, target.part_bytes):
            if target.piece_bytes == target.part_bytes:
                yield target.pieces[begin].digest
            else:
                yield md5_of(path, begin, min(target.part_bytes, target.remote.size - begin))

    def _commit(self) -> Path:
        files = {target.remote.path: target.kept for target in self._targets if target.kept}
        assert len(files) == len(self._objects), "a file was neither fetched nor refused"
        marker = Marker(source=self._folder.source, files=files, fetched_at=time.time(), unflushed_on=this_machine())
        return self._folder.commit(fingerprint(self._objects), marker)

    async def _each(self, work: Callable[[Any], Coroutine[Any, Any, T]], items: Sequence[Any]) -> list[T]:
        """Do it for each, so many at once; the first error ends them all."""
        left = iter(list(enumerate(items)))
        results: dict[int, T] = {}

        async def worker() -> None:
            for index, item in left:
                results[index] = await work(item)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._settings.max_concurrency, len(items))):
                group.create_task(worker())
        return [results[index] for index in range(len(items))]

    async def _in_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments))

    def _count(self, count: int) -> None:
        """Note that so many bytes more are here, in any thread."""
        with self._counting:
            self._bytes += count
        self._tell()

    def _tell(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._told_at < TELL_S:
            return
        self._told_at = now
        done = sum(target.kept is not None for target in self._targets)
        total = sum(each.size for each in self._objects)
        self._on_progress(Progress(done, len(self._targets), self._bytes, total))


def _runs(pieces: Sequence[tuple[int, int]], most_bytes: int) -> Iterator[list[tuple[int, int]]]:
    """Group adjacent pieces, so many bytes at most, but at least one piece."""
    run: list[tuple[int, int]] = []
    for begin, length in pieces:
        if run and (begin != sum(run[-1]) or begin + length - run[0][0] > most_bytes):
            yield run
            run = []
        run.append((begin, length))
    if run:
        yield run


def _judge(by: Verified, fits: bool) -> Verified:
    if not fits:
        raise Wrong(by)
    return by
