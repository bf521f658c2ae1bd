"""Large answers to readers who are slow, or do not read: shared, bounded together, ended in time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from aiservices.handler import BatchHandler, Task
from aiservices.transports.http import answers
from aiservices.transports.http.answers import PIECE_BYTES
from tests.fakes import TextInput
from tests.transports.http.apps import until
from tests.transports.http.lines import GET, Line, Served, served

LARGE = 8 * 1024 * 1024
READERS = 30


class Write(BatchHandler[TextInput, TextInput]):
    """Answers with a text of ``LARGE`` characters."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextInput | Exception]:
        return [TextInput("x" * LARGE, 1) for _ in tasks]


async def written(server: Served) -> str:
    """Make a job with a large answer; return the path of its status."""
    body = json.dumps({"input": {"text": "t"}}).encode()
    line = await server.line()
    head = f"POST /v2/write/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    await line.send(head.encode() + body)
    await line.head()
    job_id = json.loads(await line.reader.readuntil(b"}"))["id"]
    await (await server.line()).answer(f"/v2/write/status-sync/{job_id}")
    return f"/v2/write/status/{job_id}"


async def asked(server: Served, path: str) -> Line:
    """Ask and read the head only."""
    line = await server.line()
    await line.send(GET % path.encode())
    assert b" 200 " in await line.head()
    return line


def held(server: Served) -> list[int]:
    """Bytes that wait in each connection."""
    assert server.runner.server is not None
    return [each.transport.get_write_buffer_size() for each in server.runner.server.connections if each.transport]


async def test_readers_who_do_not_read_hold_a_piece_each() -> None:
    async with served(Write) as server:
        path = await written(server)
        for _ in range(READERS):
            await asked(server, path)
        await until(lambda: sum(size > 0 for size in held(server)) >= READERS)
        assert max(held(server)) <= 2 * PIECE_BYTES
        assert server.runner.app[answers.ANSWERS].held_bytes < 2 * LARGE, "they share one"
        assert (await (await server.line()).answer(path))[0] == 200


async def test_a_reader_who_does_not_read_is_sent_away() -> None:
    async with served(Write, send_timeout_s=0.1) as server:
        line = await asked(server, await written(server))
        await until(lambda: server.runner.app[answers.ANSWERS].held_bytes == 0)
        assert len(await line.rest()) < LARGE


async def test_an_answer_that_is_being_sent_is_not_idle() -> None:
    async with served(Write, max_connections=1) as server:
        path = await written(server)
        slow = await asked(server, path)
        assert await (await server.line()).get("/livez") == 200
        assert await (await server.line()).get("/v2/write/health") == 503
        async with asyncio.timeout(10):
            assert len(await slow.reader.readexactly(LARGE)) == LARGE


async def test_other_answers_wait_for_room_and_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WAIT_S", 0.1)
    async with served(Write, max_answers_bytes=LARGE + LARGE // 2) as server:
        first, second = [await written(server) for _ in range(2)]
        slow = await asked(server, first)
        assert (await (await server.line()).answer(first))[0] == 200, "the same one takes no more room"
        status, body = await (await server.line()).answer(second)
        shown = json.loads(body)
        assert (status, shown["id"]) == (503, second.rsplit("/", 1)[1])
        assert "status" not in shown
        monkeypatch.setattr(answers, "WAIT_S", 10.0)
        waiting = asyncio.create_task((await server.line()).answer(second))
        await slow.reader.readexactly(LARGE)
        assert (await waiting)[0] == 200


async def test_an_answer_larger_than_all_room_is_sent_alone() -> None:
    async with served(Write, max_answers_bytes=1) as server:
        status, body = await (await server.line()).answer(await written(server))
        assert (status, len(json.loads(body)["output"]["text"])) == (200, LARGE)
        assert server.runner.app[answers.ANSWERS].held_bytes == 0


async def test_head_tells_the_size_and_sends_nothing() -> None:
    async with served(Write) as server:
        path = await written(server)
        line = await server.line()
        await line.send(b"HEAD %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        assert int((await line.head()).lower().split(b"content-length: ")[1].split()[0]) > LARGE
        assert await line.get("/livez") == 200
