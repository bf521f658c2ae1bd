from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from blockbuster import BlockBuster

from aiservices.config import Config, S3Config, ServerConfig
from aiservices.errors import ServiceError
from aiservices.storage import ModelStore, bucket


def make_store(folder: Path, s3: S3Config | None = None) -> ModelStore:
    return ModelStore(Config(server=ServerConfig(model_dir=folder), s3=s3 or S3Config()))


@pytest.mark.parametrize("uri", ["s3://UP!", "s3:///x", "s3://bucket/a/../b"])
async def test_a_wrong_uri_says_what_is_wrong(uri: str, tmp_path: Path) -> None:
    for ask in (make_store(tmp_path).resolve, make_store(tmp_path).describe):
        with pytest.raises(ServiceError, match="expected s3://bucket/prefix/"):
            await ask(uri)


# --- what needs no server ---


def item(name: str, data: bytes = b"x") -> bucket.Item:
    return bucket.Item(name, PurePosixPath(name), len(data), hashlib.md5(data).hexdigest())


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [("s3://models", ""), ("s3://models/", ""), ("s3://models/a/b", "a/b/"), ("s3://models/a/b/", "a/b/")],
)
def test_a_prefix_ends_with_a_slash(uri: str, prefix: str) -> None:
    assert bucket.parse(uri) == bucket.Place(uri, "models", prefix)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//x", "./x", "a\0", "x.partial", ".."])
def test_a_key_that_leaves_the_folder_is_refused(name: str) -> None:
    entry = {"Key": f"m/{name}", "Size": 1, "ETag": '"e"'}
    with pytest.raises(ServiceError, match="cannot be a file below the model's folder"):
        bucket._item(entry, bucket.Place("s3://b/m/", "b", "m/"))


def test_any_change_makes_another_copy() -> None:
    listings = [[item("a")], [item("b")], [item("a", b"y")], [item("a", b"xx")], [item("a"), item("b")]]
    assert len({bucket._digest(items) for items in listings}) == len(listings)
    assert bucket._digest([item("a"), item("b")]) == bucket._digest([item("b"), item("a")])


def etag_of_parts(data: bytes, part_size: int) -> str:
    parts = [data[begin : begin + part_size] for begin in range(0, len(data), part_size)]
    return hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest() + f"-{len(parts)}"


@pytest.mark.parametrize("part_size", [None, 1, 7, 8, 99, 100, 101])
@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_bytes_are_held_against_the_etag(part_size: int | None, chunk: int) -> None:
    data = bytes(range(100))
    etag = hashlib.md5(data).hexdigest() if part_size is None else etag_of_parts(data, part_size)
    for given, fits in ((data, True), (data[:-1] + b"!", False), (data[:50], False)):
        checksum = bucket.PartsChecksum(part_size)
        for begin in range(0, len(given), chunk):
            checksum.update(given[begin : begin + chunk])
        assert checksum.fits(etag) is fits


async def test_without_the_buckets_package_the_way_to_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aioboto3", None)
    with pytest.raises(ServiceError, match=r"the package aioboto3 is not installed \(scripts/install PROFILE --with"):
        await make_store(tmp_path).resolve("s3://models/x/")


# --- on loopback ---

KEYS = S3Config(region="us-east-1", access_key_id="key", secret_access_key="secret")
MODEL = {"config.json": b"{}", "sub/weights.safetensors": b"w" * 3_000_000, "empty.txt": b""}


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    reason = "needs an S3 server: scripts/install all"
    pytest.importorskip("aioboto3", reason=reason)
    moto_server: Any = pytest.importorskip("moto.server", reason=reason)
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str) -> Iterator[Any]:
    """A client for the test's own bucket "models", which is empty at first."""
    boto3: Any = pytest.importorskip("boto3")
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=s3_server, **keys)
    client.create_bucket(Bucket="models")
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="models"):
        for entry in page.get("Contents", ()):
            client.delete_object(Bucket="models", Key=entry["Key"])
    client.delete_bucket(Bucket="models")
    client.close()


@pytest.fixture
def store(s3_server: str, tmp_path: Path, blockbuster: BlockBuster) -> ModelStore:
    # The download has a thread and a loop of its own, in which nothing else waits.
    for function in blockbuster.functions.values():
        function.can_block_in("aiservices/storage/bucket.py", {"download", "describe"})
    return make_store(tmp_path, S3Config(**{**_asdict(KEYS), "endpoint_url": s3_server}))


def _asdict(settings: S3Config) -> dict[str, str]:
    return {"region": settings.region, "access_key_id": "key", "secret_access_key": "secret"}


def put(client: Any, files: dict[str, bytes], prefix: str = "org/name/") -> None:
    for name, data in files.items():
        client.put_object(Bucket="models", Key=prefix + name, Body=data)


def found(folder: Path, name: str) -> list[Path]:
    return list(folder.rglob(name))


def read(folder: Path | None) -> dict[str, bytes]:
    assert folder is not None
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.s3
async def test_everything_below_a_prefix_is_brought_here_once(s3: Any, store: ModelStore, tmp_path: Path) -> None:
    put(s3, {**MODEL, "": b"", "sub/": b""})
    put(s3, {"other": b"no"}, prefix="org/name2/")
    assert await store.describe("s3://models/org/name") == "to be downloaded: 3 files, 0.0 GiB"
    folder = await store.resolve("s3://models/org/name")
    assert folder is not None
    assert read(folder) == MODEL
    assert folder.parent == tmp_path / "s3" / "models" / "org" / "name"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert await store.resolve("s3://models/org/name/") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert await store.describe("s3://models/org/name") == f"in {folder}"


@pytest.mark.s3
async def test_two_services_with_one_model_download_it_once(
    s3: Any, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, MODEL)
    calls = []
    fetch = bucket._fetch_all

    async def counted(*arguments: Any) -> None:
        calls.append(1)
        await fetch(*arguments)

    monkeypatch.setattr(bucket, "_fetch_all", counted)
    first, second, third = await asyncio.gather(*(store.resolve("s3://models/org/name" + end) for end in ("", "", "/")))
    assert first == second == third
    assert calls == [1]


@pytest.mark.s3
async def test_a_long_listing_is_read_to_its_end(s3: Any, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, {str(number): b"" for number in range(8)})
    monkeypatch.setattr(bucket, "PAGE_SIZE", 3)
    assert len(read(await store.resolve("s3://models/org/name"))) == 8
    monkeypatch.setattr(bucket, "MAX_OBJECTS", 7)
    with pytest.raises(ServiceError, match=r"more than 7 objects; is the prefix right\?"):
        await store.resolve("s3://models/org/name")


@pytest.mark.s3
async def test_a_changed_object_makes_a_new_copy_and_leaves_the_old_one(s3: Any, store: ModelStore) -> None:
    put(s3, MODEL)
    old = await store.resolve("s3://models/org/name")
    put(s3, {"config.json": b"[]"})
    new = await store.resolve("s3://models/org/name")
    assert read(new) == {**MODEL, "config.json": b"[]"}
    assert read(old) == MODEL


@pytest.mark.s3
async def test_objects_uploaded_in_parts_are_checked_too(s3: Any, store: ModelStore) -> None:
    data = os.urandom(11 * 1024 * 1024)
    upload = {"Bucket": "models", "Key": "org/name/big"}
    number = s3.create_multipart_upload(**upload)["UploadId"]
    parts = []
    for part, begin in enumerate(range(0, len(data), 5 * 1024 * 1024), 1):
        body = data[begin : begin + 5 * 1024 * 1024]
        etag = s3.upload_part(**upload, UploadId=number, PartNumber=part, Body=body)["ETag"]
        parts.append({"ETag": etag, "PartNumber": part})
    s3.complete_multipart_upload(**upload, UploadId=number, MultipartUpload={"Parts": parts})
    assert read(await store.resolve("s3://models/org/name")) == {"big": data}


@pytest.mark.s3
async def test_a_download_that_broke_off_goes_on_where_it_was(
    s3: Any, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, MODEL)
    fetch_once, fetched = bucket._fetch_once, []

    async def until_the_weights(client: Any, place: Any, wanted: bucket.Item, partial: Path) -> None:
        if wanted.size > 100 and "config.json" in fetched:
            raise ServiceError("pulled the plug")
        await fetch_once(client, place, wanted, partial)
        fetched.append(str(wanted.path))

    monkeypatch.setattr(bucket, "MAX_PARALLEL", 1)
    monkeypatch.setattr(bucket, "_fetch_once", until_the_weights)
    with pytest.raises(ServiceError, match="pulled the plug"):
        await store.resolve("s3://models/org/name")
    assert not found(tmp_path, "latest")

    done, fetched = fetched, ["not config.json"]
    folder = await store.resolve("s3://models/org/name")
    assert read(folder) == MODEL
    assert not set(done) & set(fetched)


@pytest.mark.s3
async def test_damage_on_the_way_is_tried_again_and_never_kept(
    s3: Any, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, {"config.json": b"right"})
    taken = []

    def damaged(chunk: bytes, file: Any, checksum: bucket.Checksum) -> None:
        taken.append(chunk)
        file.write(b"wrong")
        checksum.update(b"wrong")

    monkeypatch.setattr(bucket, "RETRY_WAIT_S", 0.0)
    monkeypatch.setattr(bucket, "_take", damaged)
    with pytest.raises(
        ServiceError, match=r"org/name/config\.json: 5 of 5 bytes came, or others than the bucket's ETag"
    ):
        await store.resolve("s3://models/org/name")
    assert len(taken) == bucket.ATTEMPTS
    assert not found(tmp_path, "config.json")


@pytest.mark.s3
async def test_what_changes_while_it_is_downloaded_is_no_model(
    s3: Any, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, MODEL)
    listing = bucket._list_with

    async def then_changed(client: Any, place: Any) -> list[bucket.Item]:
        items = await listing(client, place)
        await client.put_object(Bucket="models", Key="org/name/config.json", Body=b"[]")
        return items

    monkeypatch.setattr(bucket, "_list_with", then_changed)
    monkeypatch.setattr(bucket, "RETRY_WAIT_S", 0.0)
    with pytest.raises(ServiceError, match="model 's3://models/org/name': "):
        await store.resolve("s3://models/org/name")


@pytest.mark.s3
async def test_a_full_disk_is_found_before_the_download(
    s3: Any, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, MODEL)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ServiceError, match=r"0\.0 GiB are missing and .* has room for 0\.0"):
        await store.resolve("s3://models/org/name")


@pytest.mark.s3
async def test_the_last_copy_serves_while_the_bucket_is_away(
    s3: Any, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, MODEL)
    folder = await store.resolve("s3://models/org/name")
    monkeypatch.setattr(bucket, "ATTEMPTS", 1)
    away = make_store(tmp_path, S3Config(**_asdict(KEYS), endpoint_url="http://127.0.0.1:9"))
    assert await away.resolve("s3://models/org/name") == folder
    assert (await away.describe("s3://models/org/name")).startswith(f"in {folder}; whether it is the newest is not")
    with pytest.raises(ServiceError, match="the store cannot be reached: "):
        await away.resolve("s3://models/org/other")


@pytest.mark.s3
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://no-such-bucket/x/", "model 's3://no-such-bucket/x/': there is no such bucket"),
        ("s3://models/nothing/", "model 's3://models/nothing/': there is nothing below this prefix"),
    ],
)
async def test_what_is_not_there_is_said_to_be_so(uri: str, message: str, s3: Any, store: ModelStore) -> None:
    with pytest.raises(ServiceError) as caught:
        await store.resolve(uri)
    assert str(caught.value) == message


@pytest.mark.s3
async def test_without_keys_their_variables_are_named(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: ModelStore
) -> None:
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ServiceError, match="AISERVICES_S3_ACCESS_KEY_ID"):
        await make_store(tmp_path, S3Config(endpoint_url=s3_server)).resolve("s3://models/x")
