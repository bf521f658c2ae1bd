"""What a whole server process takes of memory under bodies and answers that together are far larger than its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import attrs
import pytest

from aiservices.handler import BatchHandler, Task
from tests.fakes import TextInput
from tests.transports.http.test_large_answers import Sound

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc"),
]

ROOT = Path(__file__).parent.parent.parent.parent
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


@attrs.frozen
class Process:
    """A server in a process of its own."""

    url: str
    pid: int

    def peak_bytes(self) -> int:
        """Most resident memory since :meth:`forget_peak`."""
        return self._memory("VmHWM")

    def resident_bytes(self) -> int:
        return self._memory("VmRSS")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")

    def _memory(self, name: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    settings = tmp_path / "services.toml"
    settings.write_text(SETTINGS, encoding="utf-8")
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiservices", "serve", "--config", str(settings)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stdout is not None
    try:
        async for line in server.stdout:
            if b"try the services" in line:
                yield Process(line.decode().split()[0].rstrip("/"), server.pid)
                break
        server.send_signal(signal.SIGTERM)
        await server.communicate()
        assert server.returncode == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.communicate()


async def post(session: aiohttp.ClientSession, process: Process, body: bytes) -> tuple[int, bool]:
    """Status, and whether the answer says when to come again."""
    async with session.post(f"{process.url}/speak/api/v1/runsync", data=io.BytesIO(body)) as answer:
        await answer.read()
        return answer.status, "Retry-After" in answer.headers


async def test_two_gigabytes_of_bodies_at_once_stay_within_the_bound(process: Process) -> None:
    head = b'{"input":{"text":"x"},"ignored":"'
    body = head + b"x" * (BODY_BYTES - len(head) - 2) + b'"}'
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        assert await post(session, process, body) == (200, False)
        base_bytes = process.resident_bytes()
        process.forget_peak()
        answers = await asyncio.gather(*(post(session, process, body) for _ in range(BODIES)))
        more_bytes = process.peak_bytes() - base_bytes
        assert await post(session, process, body) == (200, False)
    counted = Counter(answers)
    assert set(counted) <= {(200, False), (429, True), (503, True)}  # 429: the queue has a bound of its own
    assert counted[200, False] >= BOUND_BYTES // BODY_BYTES // 2
    assert more_bytes <= BOUND_BYTES + DECODING_BYTES


async def test_a_large_result_that_many_ask_for_and_nobody_reads_is_held_once(process: Process) -> None:
    url, request = f"{process.url}/speak/api/v1/runsync", {"input": {"text": "long"}}
    async with aiohttp.ClientSession() as session, session.post(url, json=request) as answer:
        assert answer.status == 200
        job_id = str((await answer.json())["id"])
    base_bytes = process.resident_bytes()
    process.forget_peak()
    async with contextlib.AsyncExitStack() as left:
        statuses = await asyncio.gather(*(begin_to_read(left, process, job_id) for _ in range(READERS)))
        more_bytes = process.peak_bytes() - base_bytes
    counted = Counter(statuses)
    assert set(counted) <= {200, 503}
    assert more_bytes <= ANSWER_BYTES + 64 * MIB


async def begin_to_read(left: contextlib.AsyncExitStack, process: Process, job_id: str) -> int:
    """The status of an answer of which no more than the first bytes are read; hangs up with ``left``."""
    host, port = process.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    left.callback(writer.close)
    writer.write(f"GET /speak/api/v1/status/{job_id} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return int((await reader.readline()).split()[1])
