"""What a download checks: space on the disk, and checksums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from aiservices.errors import ServiceError
from aiservices.storage import ModelStore
from aiservices.storage.s3.remote import write_manifest
from tests.storage.conftest import Bucket, read
from tests.storage.proxy import FaultyProxy
from tests.storage.s3.samples import MIB, URI, nothing_loads

WEIGHTS = os.urandom(MIB) * 3 + b"the rest"
MODEL = {"config.json": b"{}", "sub/weights.safetensors": WEIGHTS, "empty.txt": b""}

pytestmark = pytest.mark.s3


async def test_objects_uploaded_in_parts_are_checked_by_their_parts(bucket: Bucket, store: ModelStore) -> None:
    data = os.urandom(11 * MIB)
    bucket.put_in_parts("big.safetensors", data, 5 * MIB)
    assert read(await store.resolve(URI)) == {"big.safetensors": data}
    (model,) = await store.models()
    assert model.verified == "etag"


async def test_a_manifest_is_checked_and_stored_like_other_files(bucket: Bucket, store: ModelStore) -> None:
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in MODEL.items()}
    bucket.put({**MODEL, "SHA256SUMS": write_manifest(sums).encode()})
    folder = await store.resolve(URI)
    assert folder is not None
    wanted = {**MODEL, "SHA256SUMS": write_manifest(sums).encode()}
    assert read(folder) == wanted


async def test_a_file_that_does_not_match_the_manifest_is_an_error(
    bucket: Bucket, store: ModelStore, tmp_path: Path
) -> None:
    bucket.put({**MODEL, "SHA256SUMS": write_manifest({"config.json": "0" * 64}).encode()})
    with pytest.raises(
        ServiceError, match=r"config\.json: the downloaded bytes do not match its sum in the manifest, after 2 attempts"
    ):
        await store.resolve(URI)
    assert nothing_loads(tmp_path)


async def test_a_manifest_that_names_missing_files_is_an_error(bucket: Bucket, store: ModelStore) -> None:
    bucket.put({**MODEL, "SHA256SUMS": write_manifest({"more.safetensors": "0" * 64}).encode()})
    with pytest.raises(
        ServiceError, match=r"SHA256SUMS names more\.safetensors, not in the bucket: was an upload interrupted"
    ):
        await store.resolve(URI)


async def test_a_full_disk_is_found_before_the_download(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(MODEL)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("aiservices.storage.cache.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ServiceError, match=r"3\.0 MiB are missing and 1000 B are free on the disk of .*models rm"):
        await store.resolve(URI)
    assert not proxy.objects
