"""The demo's weights from a bucket: the first start downloads them, the second asks for one listing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.storage.conftest import Bucket
from tests.storage.proxy import FaultyProxy

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "aiservices" / "demo" / "mistral"

SETTINGS = """
[server]
port = 0
profile = "bucket"
model_dir = "{folder}"

[s3]
endpoint_url = "{url}"
region = "us-east-1"
access_key_id = "key"
secret_access_key = "secret"

[services.listing]
handler = "aiservices.handlers.mistral:GenerateDescription"
model = "s3://models/org/name/"
device = "cpu"
options = {{ dtype = "float32", cpu_threads = 1 }}

[profiles.bucket.services.listing]
"""


@asynccontextmanager
async def served(settings: Path) -> AsyncIterator[str]:
    """Serve in a process of its own; gives the URL and stops it at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiservices", "serve", "--config", str(settings)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            if b"try the services" in line:
                yield line.decode().split()[0].rstrip("/")
                break
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ask(url: str) -> dict[str, Any]:
    body = {"input": {"image_description": "A large striped red mug on a wooden table."}}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/listing/api/v1/runsync?wait=120000", json=body) as response:
            answer: dict[str, Any] = await response.json()
        async with session.get(f"{url}/readyz") as response:
            assert (await response.json())["services"]["listing"]["state"] == "READY"
    return answer


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.timeout(300)
async def test_the_demo_is_served_from_a_bucket_at_the_first_and_the_second_start(
    bucket: Bucket, proxy: FaultyProxy, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="needs transformers: scripts/install demo")
    files = {path.name: path.read_bytes() for path in DEMO.iterdir()}
    bucket.put(files)
    settings = tmp_path / "services.toml"
    settings.write_text(SETTINGS.format(folder=tmp_path / "models", url=proxy.url), encoding="utf-8")
    answers = []
    for first in (True, False):
        proxy.seen.clear()
        async with served(settings) as url:
            answers.append(await ask(url))
        assert sorted(proxy.objects) == (sorted(files) if first else [])
        assert proxy.listings == 1
    assert answers[0]["status"] == "COMPLETED", answers[0]
    assert answers[0]["output"] == answers[1]["output"]
