"""Against a real store: keys and signed URLs that are checked, a large file, many small ones."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import attrs
import pytest
from yarl import URL

from aiservices.errors import ServiceError
from aiservices.jobs import JobRequest
from aiservices.registry import Registry
from aiservices.settings import Config, OutputsConfig, S3Config, ServiceConfig
from aiservices.storage.s3.checksum import sha256_of
from aiservices.storage.s3.remote import parse_manifest
from tests.storage.conftest import make_store

SERVER = Path(__file__).parents[3] / "scripts" / "s3-server"
MIB = 2**20

pytestmark = [pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def rados(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Config]:
    """Settings for a server of our own that has one empty bucket."""
    boto3 = pytest.importorskip("boto3", reason="needs an S3 client: scripts/install all")
    if shutil.which("radosgw") is None:
        pytest.skip("needs radosgw: scripts/s3-server install")
    folder = tmp_path_factory.mktemp("s3-server")
    started = subprocess.run([SERVER, "start", folder], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    url, key, secret = started.stdout.split()
    keys = {"aws_access_key_id": key, "aws_secret_access_key": secret, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **keys)
    client.create_bucket(Bucket="models")
    client.close()
    yield S3Config(endpoint_url=url, region="us-east-1", access_key_id=key, secret_access_key=secret, retry_wait_s=0.1)
    subprocess.run([SERVER, "stop", folder], check=True)


def write_large(path: Path, mib: int) -> None:
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(mib):
            file.write(number.to_bytes(8, "big") + block[8:])


async def test_a_large_file_comes_back_as_it_went(rados: S3Config, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_large(folder / "model.safetensors", 2048)
    store = make_store(tmp_path / "models", rados)
    assert await store.push(folder, "s3://models/large/") == "s3://models/large/"
    found = await store.resolve("s3://models/large/")
    assert found is not None
    sums = parse_manifest((found / "SHA256SUMS").read_text())
    assert sums == {"model.safetensors": await asyncio.to_thread(sha256_of, folder / "model.safetensors")}
    assert (found / "model.safetensors").stat().st_size == 2048 * MIB
    assert await asyncio.to_thread(sha256_of, found / "model.safetensors") == sums["model.safetensors"]
    (model,) = await store.models()
    assert model.verified == "sha256"
    await store.close(flush=True)


async def test_ten_thousand_files_come_back_as_they_went(rados: S3Config, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    files = {f"{number % 100}/{number}.bin": os.urandom(100) for number in range(10_000)}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    store = make_store(tmp_path / "models", rados)
    await store.push(folder, "s3://models/many/")
    found = await store.resolve("s3://models/many/")
    assert found is not None
    assert {name: (found / name).read_bytes() for name in files} == files
    await store.close()


async def get(url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(URL(url, encoded=True)) as response:
        return response.status, await response.read()


async def test_the_url_of_an_output_lets_in_until_it_is_tampered_with_or_expires(rados: S3Config) -> None:
    outputs = OutputsConfig(bucket="models", max_inline_bytes=1, url_lifetime_s=2)
    service = ServiceConfig(name="speak", handler="tests.outputs.samples:Speak", device="cpu")
    registry = Registry(Config(s3=rados, outputs=outputs, services={"speak": service}))
    await registry.start()
    job = registry.get("speak").submit(JobRequest(input={"text": "sound", "count": 5}))
    await job.wait_end(30)
    assert job.output is not None, job.error
    url = job.output.as_dict()["audio_url"]
    await registry.close()
    assert await get(url) == (200, b"sound")
    assert (await get(url.replace(job.id, "another")))[0] == 403
    assert (await get(url.partition("?")[0]))[0] == 403
    async with asyncio.timeout(30):
        while (await get(url))[0] != 403:  # the server's clock is the one that counts
            pass


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"access_key_id": "wrong"}, "the store does not know the access key (AISERVICES_S3_ACCESS_KEY_ID)"),
        ({"secret_access_key": "no"}, "the secret key does not match the access key (AISERVICES_S3_SECRET_ACCESS_KEY)"),
        ({}, "there is no such bucket"),
    ],
)
async def test_wrong_keys_and_buckets_are_told_apart(
    change: dict[str, str], reason: str, rados: S3Config, tmp_path: Path
) -> None:
    bucket = "models" if change else "nowhere"
    store = make_store(tmp_path, attrs.evolve(rados, **change))  # type: ignore[arg-type]  # only texts change
    with pytest.raises(ServiceError) as caught:
        await store.resolve(f"s3://{bucket}/x/")
    assert str(caught.value) == f"model 's3://{bucket}/x/': {reason}"
