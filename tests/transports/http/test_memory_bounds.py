"""What a whole server process takes of memory under bodies and answers that together are far larger than its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from aiservices.handler import BatchHandler, Task
from tests.fakes import TextInput
from tests.transports.http.test_large_answers import Sound
from tools.serving import Server, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc"),
]

MIB = 1024 * 1024
BOUND_BYTES = 512 * MIB
BODY_BYTES = 19_000_000
BODIES = 108
DECODING_BYTES = 128 * MIB
"""Beside the bodies: up to four copies of the one that is being decoded, and 128 KiB unread on each connection."""
ANSWER_BYTES = 82_000_000
READERS = 30

SETTINGS = f"""
[server]
port = 0
profile = "test"
max_bodies_bytes = {BOUND_BYTES}

[journal]
path = "off"

[services.speak]
handler = "tests.transports.http.test_memory_bounds:Hum"
device = "cpu"

[profiles.test.services.speak]
"""


class Hum(BatchHandler[TextInput, Sound]):
    """Answers with a sound of ``ANSWER_BYTES`` in base64 if the text is ``long``."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[Sound | Exception]:
        sizes = (ANSWER_BYTES // 4 * 3 if task.item.text == "long" else 1 for task in tasks)
        return [Sound(bytes(size), "audio/wav", "") for size in sizes]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    settings = tmp_path / "services.toml"
    settings.write_text(SETTINGS, encoding="utf-8")
    async with serving(settings) as server:
        yield server


async def post(session: aiohttp.ClientSession, server: Server, body: bytes) -> tuple[int, bool]:
    """Status, and whether the answer says when to come again."""
    async with session.post(f"{server.url}/speak/api/v1/runsync", data=io.BytesIO(body)) as answer:
        await answer.read()
        return answer.status, "Retry-After" in answer.headers


async def test_two_gigabytes_of_bodies_at_once_stay_within_the_bound(server: Server) -> None:
    head = b'{"input":{"text":"x"},"ignored":"'
    body = head + b"x" * (BODY_BYTES - len(head) - 2) + b'"}'
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        assert await post(session, server, body) == (200, False)
        base_bytes = server.resident_bytes()
        server.forget_peak()
        answers = await asyncio.gather(*(post(session, server, body) for _ in range(BODIES)))
        more_bytes = server.peak_bytes() - base_bytes
        assert await post(session, server, body) == (200, False)
    counted = Counter(answers)
    assert set(counted) <= {(200, False), (429, True), (503, True)}  # 429: the queue has a bound of its own
    assert counted[200, False] >= BOUND_BYTES // BODY_BYTES // 2
    assert more_bytes <= BOUND_BYTES + DECODING_BYTES


async def test_a_large_result_that_many_ask_for_and_nobody_reads_is_held_once(server: Server) -> None:
    url, request = f"{server.url}/speak/api/v1/runsync", {"input": {"text": "long"}}
    async with aiohttp.ClientSession() as session, session.post(url, json=request) as answer:
        assert answer.status == 200
        job_id = str((await answer.json())["id"])
    base_bytes = server.resident_bytes()
    server.forget_peak()
    async with contextlib.AsyncExitStack() as left:
        statuses = await asyncio.gather(*(begin_to_read(left, server, job_id) for _ in range(READERS)))
        more_bytes = server.peak_bytes() - base_bytes
    counted = Counter(statuses)
    assert set(counted) <= {200, 503}
    assert more_bytes <= ANSWER_BYTES + 64 * MIB


async def begin_to_read(left: contextlib.AsyncExitStack, server: Server, job_id: str) -> int:
    """The status of an answer of which no more than the first bytes are read; hangs up with ``left``."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    left.callback(writer.close)
    writer.write(f"GET /speak/api/v1/status/{job_id} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return int((await reader.readline()).split()[1])
