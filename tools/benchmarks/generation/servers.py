"""The servers that do the work over HTTP, each started for one measurement."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import attrs

from tools.benchmarks.generation.work import Work, schema

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv" / "bin" / "python"
VLLM_PYTHON = ROOT / ".venv" / "vllm" / "bin" / "python"
_READY_S = 300.0
_SERVICE = "listing"
_SETTINGS = """
[server]
profile = "bench"
port = 0
[services.listing]
handler = "aiservices.handlers.mistral:GenerateDescription"
model = "{model}"
device = "cpu"
max_batch_size = {rows}
[services.listing.options]
engine = "{engine}"
dtype = "float32"
cpu_threads = 1
cache_gib = 0.5
[profiles.bench.services.listing]
"""


@attrs.frozen
class Timing:
    """How one job went, in seconds since it was sent.

    Attributes:
        first_s: until its first text came.
        end_s: until its end was known.
        tokens: that were chosen.
    """

    first_s: float
    end_s: float
    tokens: int


Caller = Callable[[aiohttp.ClientSession, Work], Awaitable[Timing]]
"""Has one job done by a server."""


@asynccontextmanager
async def ours(engine: str, python: Path, model: Path, rows: int, folder: Path) -> AsyncIterator[tuple[str, Caller]]:
    """Serve with this package; give the address and how to call it."""
    settings = folder / f"services-{engine}.toml"
    settings.write_text(_SETTINGS.format(model=model, rows=rows, engine=engine))
    environ = {"AISERVICES_JOURNAL_PATH": "off", "AISERVICES_LOG_LEVEL": "error"}
    words = ("-m", "aiservices", "serve", "--config", str(settings))
    async with _process(python, words, environ, stdout=asyncio.subprocess.PIPE) as process:
        assert process.stdout is not None
        found = None
        while found is None and (line := await process.stdout.readline()):
            found = re.search(rb"http://[^/\s]+", line)
        assert found is not None, "the server did not start"
        url = found[0].decode()
        await _wait_ready(f"{url}/readyz")
        yield url, _call_ours


async def _call_ours(client: aiohttp.ClientSession, work: Work) -> Timing:
    given = {"image_description": work.description, "max_new_tokens": work.max_new_tokens, "temperature": 0}
    sent = time.perf_counter()
    async with client.post(f"/{_SERVICE}/api/v1/run", json={"input": given}) as answer:
        job = (await answer.json())["id"]
    first = 0.0
    url = f"/{_SERVICE}/api/v1/stream/{job}"
    async with client.get(url, headers={"Accept": "text/event-stream"}) as events:
        async for line in events.content:
            if line.startswith(b"event: output") and not first:
                first = time.perf_counter() - sent
            elif line.startswith(b"data: {"):
                status = json.loads(line[6:])
    assert status["status"] == "COMPLETED", status
    tokens = status["output"]["usage"]["completion_tokens"]
    return Timing(first, time.perf_counter() - sent, tokens)


@asynccontextmanager
async def openai_server(model: Path, rows: int) -> AsyncIterator[tuple[str, Caller]]:
    """Serve with vLLM's own OpenAI server; give the address and how to call it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", _SERVICE]
    words += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    words += ["--max-num-seqs", str(rows), "--gpu-memory-utilization", "0.01"]
    words += ["--kv-cache-memory-bytes", str(512 << 20), "--no-enable-chunked-prefill"]
    words += ["--max-num-batched-tokens", "4096", "--disable-uvicorn-access-log"]
    words += ["--structured-outputs-config", json.dumps({"backend": "guidance", "disable_any_whitespace": True})]
    environ = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    async with _process(VLLM_PYTHON, words, environ, stdout=asyncio.subprocess.DEVNULL):
        url = f"http://127.0.0.1:{port}"
        await _wait_ready(f"{url}/health")
        yield url, _call_openai


async def _call_openai(client: aiohttp.ClientSession, work: Work) -> Timing:
    body = {
        "model": _SERVICE,
        "messages": work.messages,
        "max_tokens": work.max_new_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "listing", "schema": schema()}},
    }
    sent = time.perf_counter()
    first, tokens = 0.0, 0
    async with client.post("/v1/chat/completions", json=body) as events:
        assert events.status == 200, await events.text()
        async for line in events.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - sent
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    return Timing(first, time.perf_counter() - sent, tokens)


@asynccontextmanager
async def _process(
    python: Path, words: Any, environ: Mapping[str, str], stdout: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(str(python), *words),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        stdout=stdout,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def _wait_ready(url: str) -> None:
    async with aiohttp.ClientSession() as client:
        until = time.monotonic() + _READY_S
        while time.monotonic() < until:
            try:
                async with client.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)
    raise TimeoutError(f"{url} never answered")
