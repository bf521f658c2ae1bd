"""The demo's weights from a bucket: the first start downloads them, the second asks for one listing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.storage.conftest import Bucket
from tests.storage.proxy import FaultyProxy
from tools.serving import ROOT, serving

DEMO = ROOT / "aiservices" / "demo" / "mistral"

SETTINGS = """
[server]
port = 0
profile = "bucket"
model_dir = "{folder}"

[journal]
path = "off"

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
        async with serving(settings) as server:
            answers.append(await ask(server.url))
        assert sorted(proxy.objects) == (sorted(files) if first else [])
        assert proxy.listings == 1
    assert answers[0]["status"] == "COMPLETED", answers[0]
    assert answers[0]["output"] == answers[1]["output"]
