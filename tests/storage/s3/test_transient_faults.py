"""Faults that pass: the download recovers, and the model is complete."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import attrs
import pytest
from aiohttp import web

from aiservices.settings import S3Config
from aiservices.storage import ModelStore
from tests.storage.conftest import Bucket, make_store, read
from tests.storage.proxy import FaultyProxy, Seen, Stall, cut, error, garbled
from tests.storage.s3.samples import MIB, MODEL, URI, is_weights

pytestmark = pytest.mark.s3


@pytest.mark.parametrize(
    "code",
    [("InternalError", 500), ("SlowDown", 503), ("ServiceUnavailable", 503), ("", 502), ("TooManyRequests", 429)],
)
async def test_transient_errors_are_retried(
    code: tuple[str, int], bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(error(*code, times=4))
    assert read(await store.resolve(URI)) == MODEL


async def test_an_interrupted_body_is_continued_where_it_ended(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(cut(proxy, after=300_000, times=12))
    assert read(await store.resolve(URI)) == MODEL
    begins = [int(seen.range.removeprefix("bytes=").partition("-")[0]) for seen in proxy.seen if is_weights(seen)]
    assert any(begin % MIB for begin in begins), "none went on in the middle of a piece"


async def test_adjacent_pieces_come_in_one_request_that_is_continued_where_it_ended(
    bucket: Bucket, s3: S3Config, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put_in_parts("model.safetensors", os.urandom(12 * MIB), 5 * MIB)
    proxy.faults.append(cut(proxy, after=2 * MIB + 300_000, times=2))
    store = make_store(tmp_path, attrs.evolve(s3, max_concurrency=1, part_mib=1))
    found = await store.resolve(URI)
    assert read(found) == bucket.files()
    (model,) = await store.models()
    assert model.verified == "etag"
    assert [seen.range.partition("-")[0] for seen in proxy.seen if seen.is_object][:3] == [
        "bytes=0",
        f"bytes={2 * MIB + 300_000}",
        f"bytes={4 * MIB + 600_000}",
    ]
    await store.close()


async def test_a_stalled_stream_is_requested_again(
    bucket: Bucket, s3: S3Config, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(stall := Stall(proxy, where=is_weights, after=1000))
    store = make_store(tmp_path, attrs.evolve(s3, read_timeout_s=0.3))
    assert read(await store.resolve(URI)) == MODEL
    assert stall.reached.is_set()
    stall.let_go.set()
    await store.close()


async def test_bytes_that_were_garbled_once_are_downloaded_again(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(garbled(proxy, where=is_weights, times=1))
    assert read(await store.resolve(URI)) == MODEL


@pytest.mark.parametrize("change", ["changed", "removed"])
async def test_a_model_that_changes_meanwhile_is_listed_again(
    change: str, bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put({**MODEL, "more.json": b"old"})

    async def once_begun(seen: Seen, request: web.BaseRequest) -> None:
        if is_weights(seen):
            proxy.faults.clear()
            if change == "changed":
                await asyncio.to_thread(bucket.put, {"more.json": b"new"})
            else:
                await asyncio.to_thread(bucket.delete, "more.json")

    proxy.faults.append(once_begun)
    wanted = {**MODEL, "more.json": b"new"} if change == "changed" else MODEL
    assert read(await store.resolve(URI)) == wanted
    assert proxy.listings == 2


async def test_a_changed_object_is_noticed_in_a_store_that_ignores_if_match(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)

    async def other_etag(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        if not seen.is_object:
            return None
        proxy.faults.clear()
        answer = await proxy.forward(request)
        return web.Response(status=answer.status, headers={**answer.headers, "ETag": '"other"'}, body=answer.body)

    proxy.faults.append(other_etag)
    assert read(await store.resolve(URI)) == MODEL
    assert proxy.listings == 2


async def test_a_store_that_answers_200_to_a_range_is_accepted(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)

    async def always_200(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        answer = await proxy.forward(request)
        return web.Response(
            status=200 if answer.status == 206 else answer.status, headers=answer.headers, body=answer.body
        )

    proxy.faults.append(always_200)
    assert read(await store.resolve(URI)) == MODEL
