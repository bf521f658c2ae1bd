"""What the bodies of all requests together may take: room is reserved as they come and free once they are read."""

from __future__ import annotations

import asyncio
import io
import json
import re
from typing import Any

import pytest
from aiohttp import web

from aiservices.settings import ServerConfig
from aiservices.transports.http.bodies import BUDGET
from tests.fakes import Upper
from tests.transports.http.apps import Client, MakeClient, make_app, read, serve, until

ROOM_BYTES = 1000
WHOLE = b'{"text": "mug"}'.ljust(700)


def make_narrow_app(**server: Any) -> web.Application:
    return make_app(Upper, server=ServerConfig(grace_s=0.0, max_bodies_bytes=ROOM_BYTES, **server))


def held_bytes(client: Client) -> int:
    assert client.app is not None
    return client.app[BUDGET].held_bytes


class Upload:
    """A request whose body comes as slowly as the test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, client: Client, size_bytes: int = len(WHOLE)) -> Upload:
        """Send the head and the first byte; return once the server holds room for all of it."""
        upload = cls(*await asyncio.open_connection(client.host, client.port))
        before = held_bytes(client)
        head = f"POST /v2/upper/runsync HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size_bytes}\r\n\r\n"
        await upload.send(head.encode() + WHOLE[:1])
        await until(lambda: held_bytes(client) == before + size_bytes)
        return upload

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> bytes:
        async with asyncio.timeout(10):
            return await self._reader.readuntil(b"\r\n")

    async def hang_up(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def post(client: Client, data: Any = WHOLE, **headers: str) -> Any:
    return await client.post("/v2/upper/runsync", data=data, headers=headers)


async def test_a_second_slow_upload_is_refused_while_the_first_holds_the_room(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_narrow_app())
    first = await Upload.begin(client)
    refused = await post(client)
    shown = await read(refused, 503)
    assert shown == {"status": "FAILED", "error": "too many request bodies are under way; try again"}
    assert int(refused.headers["Retry-After"]) >= 1
    counted = await (await client.get("/metrics")).text()
    assert 'aiservices_requests_rejected_total{code="too_many_bodies",service="upper"} 1.0' in counted.splitlines()
    assert re.search(r"^aiservices_request_body_bytes [1-9]", counted, re.MULTILINE)
    assert (await post(client, WHOLE.strip())).status == 200, "a small one still fits"
    await first.send(WHOLE[1:])
    assert b"200" in await first.answer()
    await first.hang_up()


async def test_openais_clients_are_refused_in_their_form(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_narrow_app())
    first = await Upload.begin(client)
    refused = await client.post("/v1/audio/speech", data=b'{"input": "mug"}'.ljust(700))
    shown = (await read(refused, 503))["error"]
    assert (shown["code"], shown["type"]) == ("too_many_bodies", "server_error")
    assert int(refused.headers["Retry-After"]) >= 1
    await first.hang_up()


@pytest.mark.parametrize("way", ["ends", "fails", "hangs up", "is too slow"])
@pytest.mark.parametrize("handler_cancellation", [False, True])
async def test_the_room_is_free_again_once_an_upload(
    aiohttp_client: MakeClient, way: str, handler_cancellation: bool
) -> None:
    app = make_narrow_app(body_timeout_s=0.05 if way == "is too slow" else 60)
    client = await aiohttp_client(await serve(app, handler_cancellation))
    first = await Upload.begin(client)
    match way:
        case "ends":
            await first.send(WHOLE[1:])
            assert b"200" in await first.answer()
        case "fails":
            await first.send(WHOLE[1:].replace(b"}", b"]"))
            assert b"400" in await first.answer()
        case "hangs up":
            await first.hang_up()
        case "is too slow":
            assert b"408" in await first.answer()
    await until(lambda: held_bytes(client) == 0)
    assert (await post(client)).status == 200
    await first.hang_up()


async def test_a_body_that_comes_too_slowly_is_given_up(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, server=ServerConfig(grace_s=0.0, body_timeout_s=0.01)))
    answered = asyncio.Event()

    async def chunks() -> Any:
        yield b'{"text":'
        await answered.wait()

    answer = await post(client, chunks())
    answered.set()
    assert (await read(answer, 408))["error"] == "the body did not come within 0.01 s"


async def test_a_body_without_a_length_holds_what_has_come(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_narrow_app())
    go_on = asyncio.Event()

    async def chunks() -> Any:
        yield WHOLE
        await go_on.wait()
        yield b" " * 400

    asking = asyncio.create_task(post(client, chunks()))
    await until(lambda: held_bytes(client) == len(WHOLE))
    assert (await post(client)).status == 503, "no room beside it"
    go_on.set()
    assert (await asking).status == 503, "and none for the rest of it"
    assert held_bytes(client) == 0


async def test_a_body_without_a_length_that_fits_is_taken(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_narrow_app())

    async def chunks() -> Any:
        yield WHOLE[:5]
        yield WHOLE[5:]

    assert (await post(client, chunks())).status == 200
    assert held_bytes(client) == 0


async def test_a_large_body_is_taken_and_one_above_the_limit_refused(aiohttp_client: MakeClient) -> None:
    server = ServerConfig(grace_s=0.0, max_run_body_bytes=600_000, max_runsync_body_bytes=1_000_000)
    client = await aiohttp_client(make_app(Upper, server=server))

    async def post(operation: str, size: int) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"text": "x" * size}).encode()
        answer = await client.post(f"/v2/upper/{operation}", data=io.BytesIO(body))
        return answer.status, await answer.json()

    status, shown = await post("run", 500_000)
    assert (status, shown["error"]) == (400, "$.text: expected at most 100 characters")
    assert (await post("run", 700_000))[0] == 413
    assert (await post("runsync", 700_000))[0] == 400
    status, shown = await post("runsync", 1_100_000)
    assert (status, shown["error"]) == (413, "the body is larger than 1000000 bytes")


async def test_a_body_of_unknown_length_is_counted_as_it_comes(aiohttp_client: MakeClient) -> None:
    server = ServerConfig(grace_s=0.0, max_run_body_bytes=1000)
    client = await aiohttp_client(make_app(Upper, server=server))

    async def chunks() -> Any:
        for _ in range(3):
            yield b"x" * 500

    assert (await client.post("/v2/upper/run", data=chunks())).status == 413
