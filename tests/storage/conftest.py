"""An S3 server on loopback with a bucket, and a proxy in front of it that can fail in every way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from aiservices.settings import Config, S3Config, ServerConfig
from aiservices.storage import ModelStore
from tests.storage.proxy import FaultyProxy

KEYS = S3Config(
    region="us-east-1", access_key_id="key", secret_access_key="secret", retry_wait_s=0.0, read_timeout_s=5.0
)


def make_store(folder: Path, s3: S3Config, cache_gib: float = 0.0) -> ModelStore:
    return ModelStore(Config(server=ServerConfig(model_dir=folder, cache_gib=cache_gib), s3=s3))


class Bucket:
    """The bucket "models" of a server, through a plain client."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def put(self, files: dict[str, bytes], prefix: str = "org/name/") -> None:
        for name, data in files.items():
            self.client.put_object(Bucket="models", Key=prefix + name, Body=data)

    def put_in_parts(self, name: str, data: bytes, part_bytes: int, prefix: str = "org/name/") -> None:
        upload = {"Bucket": "models", "Key": prefix + name}
        upload["UploadId"] = self.client.create_multipart_upload(**upload)["UploadId"]
        parts = []
        for number, begin in enumerate(range(0, len(data), part_bytes), start=1):
            body = data[begin : begin + part_bytes]
            answer = self.client.upload_part(**upload, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})

    def delete(self, name: str, prefix: str = "org/name/") -> None:
        self.client.delete_object(Bucket="models", Key=prefix + name)

    def files(self, prefix: str = "org/name/") -> dict[str, bytes]:
        found = self.client.list_objects_v2(Bucket="models", Prefix=prefix).get("Contents", ())
        keys = [entry["Key"] for entry in found]
        return {key.removeprefix(prefix): self._read(key) for key in keys}

    def _read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket="models", Key=key)["Body"].read()
        return content


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    reason = "needs an S3 server: scripts/install all"
    pytest.importorskip("aioboto3", reason=reason)
    moto_server: Any = pytest.importorskip("moto.server", reason=reason)
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def client(moto_url: str) -> Iterator[Any]:
    boto3: Any = pytest.importorskip("boto3")
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    made = boto3.client("s3", endpoint_url=moto_url, **keys)
    yield made
    made.close()


@pytest.fixture
def bucket(client: Any) -> Iterator[Bucket]:
    """A bucket "models" of the test's own, empty at first."""
    client.create_bucket(Bucket="models")
    yield Bucket(client)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="models"):
        if objects := [{"Key": entry["Key"]} for entry in page.get("Contents", ())]:
            client.delete_objects(Bucket="models", Delete={"Objects": objects})
    client.delete_bucket(Bucket="models")


@pytest.fixture
async def proxy(moto_url: str) -> AsyncIterator[FaultyProxy]:
    async with FaultyProxy(moto_url) as running:
        yield running


@pytest.fixture
def s3(proxy: FaultyProxy) -> S3Config:
    """Settings that lead to the bucket through the proxy."""
    return attrs.evolve(KEYS, endpoint_url=proxy.url, part_mib=1, max_concurrency=4)


@pytest.fixture
async def store(s3: S3Config, tmp_path: Path) -> AsyncIterator[ModelStore]:
    made = make_store(tmp_path, s3)
    yield made
    await made.close()


def read(folder: Path | None) -> dict[str, bytes]:
    """Return what a folder holds but for our marker."""
    assert folder is not None
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".aiservices")}
