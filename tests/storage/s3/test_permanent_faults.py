"""Faults that stay: each ends in one clear error, and never in half a model."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from traceback import format_exception
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from aiservices.errors import ServiceError
from aiservices.settings import S3Config
from aiservices.storage import ModelStore
from tests.storage.conftest import Bucket, make_store, read
from tests.storage.proxy import FaultyProxy, Seen, cut, error, garbled
from tests.storage.s3.samples import MIB, MODEL, URI, WEIGHTS, is_weights, nothing_loads

pytestmark = pytest.mark.s3


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("InternalError", 500, "the store gave no usable answer in any attempt: ClientError: An error occ"),
        ("SlowDown", 503, "the store gave no usable answer in any attempt: ClientError: An error occurred"),
        ("ExpiredToken", 400, "the credentials have expired; get new ones"),
        ("InvalidAccessKeyId", 403, "the store does not know the access key (AISERVICES_S3_ACCESS_KEY_ID)"),
        ("SignatureDoesNotMatch", 403, "the secret key does not match the access key (AISERVICES_S3_SECRET_ACC"),
        ("AccessDenied", 403, "the keys may not read there"),
        ("RequestTimeTooSkewed", 403, "this machine's clock is wrong: the store refuses the signature's time"),
        ("PermanentRedirect", 301, "the bucket is in another region (AISERVICES_S3_REGION)"),
        ("MethodNotAllowed", 405, "ClientError: An error occurred (MethodNotAllowed)"),
    ],
)  # fmt: skip
async def test_a_permanent_error_is_one_line(
    code: str, status: int, reason: str, bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(error(code, status, where=is_weights))
    with pytest.raises(ServiceError) as caught:
        await store.resolve(URI)
    assert str(caught.value).startswith(f"model '{URI}': {reason}")
    assert "\n" not in str(caught.value)
    assert nothing_loads(tmp_path)
    proxy.faults.clear()
    assert read(await store.resolve(URI)) == MODEL


async def test_garbled_bytes_never_become_a_model(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(garbled(proxy, where=is_weights))
    with pytest.raises(
        ServiceError, match=r"model\.safetensors: the downloaded bytes do not match its ETag, after 2 attempts"
    ):
        await store.resolve(URI)
    assert nothing_loads(tmp_path)
    proxy.faults.clear()
    assert read(await store.resolve(URI)) == MODEL


async def test_a_garbled_part_of_a_multipart_upload_is_found(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put_in_parts("model.safetensors", os.urandom(6 * MIB), 5 * MIB)
    proxy.faults.append(garbled(proxy, where=lambda seen: seen.range.startswith("bytes=5242880-")))
    with pytest.raises(
        ServiceError, match=r"model\.safetensors: the downloaded bytes do not match its ETag, after 2 attempts"
    ):
        await store.resolve(URI)
    assert nothing_loads(tmp_path)


async def test_a_body_that_always_ends_at_once_is_an_error(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(cut(proxy, after=0))
    with pytest.raises(ServiceError, match="the store gave no usable answer in any attempt"):
        await store.resolve(URI)
    assert nothing_loads(tmp_path)


async def test_a_refused_connection_is_one_line_unless_a_copy_is_here(
    bucket: Bucket, s3: S3Config, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    store = make_store(tmp_path, s3)
    folder = await store.resolve(URI)
    await proxy.__aexit__()
    assert await store.resolve(URI) == folder
    with pytest.raises(
        ServiceError, match=r"model 's3://models/other/': the store gave no usable answer .* Could not con"
    ):
        await store.resolve("s3://models/other/")
    await store.close()
    await proxy.__aenter__()


async def test_a_signature_is_in_no_error_and_no_log(bucket: Bucket, store: ModelStore, proxy: FaultyProxy) -> None:
    bucket.put(MODEL)

    async def hang_up(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        if is_weights(seen) and request.transport is not None:
            request.transport.close()
        return None

    proxy.faults.append(hang_up)
    with capture_logs() as logs, pytest.raises(ServiceError) as caught:
        await store.resolve(URI)
    written = f"{''.join(format_exception(caught.value))} {logs}"
    assert "Connection was closed before we received a valid response from endpoint URL" in written
    assert "model.safetensors" in written
    assert "X-Amz-Signature" not in written


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://no-such-bucket/x/", "there is no such bucket"),
        ("s3://models/nothing/", "there is nothing below this prefix"),
        ("s3://models/notes/", "no weights there, only README.md (if that is a model, name ?files=…)"),
        (
            "s3://models/org/name/?files=*.onnx",
            "no file there matches the patterns; there are config.json, model.",
        ),
        ("s3://models/bad/", "the key '../../etc/passwd.bin' cannot be a file below the model's folder; nothing was"),
    ],
)
async def test_a_missing_model_is_named_with_the_reason(
    uri: str, reason: str, bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    bucket.put({"README.md": b"soon"}, "notes/")
    proxy.faults.append(_with_key_outside(proxy))
    bucket.put({"harmless.bin": b"root"}, "bad/")
    with pytest.raises(ServiceError) as caught:
        await store.resolve(uri)
    assert str(caught.value).startswith(f"model '{uri}': {reason}")
    assert not proxy.objects
    assert nothing_loads(tmp_path)


def _with_key_outside(proxy: FaultyProxy) -> Any:
    """Have listings name what no client would let us upload."""

    async def fault(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        answer = await proxy.forward(request)
        body = answer.body.replace(b"harmless.bin", b"../../etc/passwd.bin")
        return web.Response(status=answer.status, headers=answer.headers, body=body)

    return fault


async def test_a_model_that_always_changes_is_an_error(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    count = iter(range(100))

    async def change(seen: Seen, request: web.BaseRequest) -> None:
        if is_weights(seen):
            await asyncio.to_thread(bucket.put, {"model.safetensors": WEIGHTS + b"%d" % next(count)})

    proxy.faults.append(change)
    with pytest.raises(ServiceError, match="it changed 3 times while it was downloaded; try again when it is at rest"):
        await store.resolve(URI)
    assert nothing_loads(tmp_path)


async def test_a_disk_that_fills_up_is_one_line(
    bucket: Bucket, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(MODEL)
    written = iter(range(100))

    def write(file: int, block: memoryview, offset: int) -> int:
        if next(written) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, block, offset)

    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr("aiservices.storage.s3.pieces.os.pwrite", write)
        with pytest.raises(ServiceError) as caught:
            await store.resolve(URI)
    assert str(caught.value) == f"model '{URI}': the disk is full"
    assert nothing_loads(tmp_path)
    assert read(await store.resolve(URI)) == MODEL


async def test_a_disk_too_full_for_a_large_file_is_found_before_its_first_byte(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(MODEL)

    def full(file: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("aiservices.storage.s3.folder.PREALLOCATED_BYTES", MIB)
    with monkeypatch.context() as patch:
        patch.setattr("aiservices.storage.s3.folder.preallocate", full)
        with pytest.raises(ServiceError, match=r"the disk is full$"):
            await store.resolve(URI)
    assert proxy.objects == []
    assert nothing_loads(tmp_path)
    assert read(await store.resolve(URI)) == MODEL  # preallocated
