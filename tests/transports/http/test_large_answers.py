"""Large answers: what encodes them runs beside the event loop, and once for all who ask."""

from __future__ import annotations

import asyncio
import base64
import binascii
import threading
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import attrs
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from aiservices.handler import BatchHandler, Task, output_file
from aiservices.jobs.output import ON_LOOP_BYTES
from aiservices.settings import FetchConfig
from tests.fakes import TextInput
from tests.transports.http.apps import Client, MakeClient, ended, make_app, read, run

LARGE = 3 * ON_LOOP_BYTES


@attrs.frozen
class Sound:
    """A file and what it is."""

    audio: Annotated[bytes, output_file("The sound.")]
    media_type: str
    text: str


class Speak(BatchHandler[TextInput, Sound]):
    """Answers with ``count`` bytes of sound, and emits them if the text says so."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[Sound | Exception]:
        for task in tasks:
            if task.item.text == "emit":
                task.context.emit({"audio": bytes(task.item.count)})
        return [Sound(bytes(task.item.count), "audio/wav", task.item.text) for task in tasks]


class Write(BatchHandler[TextInput, TextInput]):
    """Answers with a text of ``count`` characters."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextInput | Exception]:
        return [TextInput("x" * task.item.count, 1) for task in tasks]


@attrs.frozen
class Watch:
    """Calls of an encoder that made much: on which thread, and of how many bytes."""

    calls: list[tuple[str, int]] = attrs.field(factory=list)

    def wrap(self, encode: Callable[..., bytes]) -> Callable[..., bytes]:
        def watched(*given: Any, **named: Any) -> bytes:
            made = encode(*given, **named)
            if len(made) > ON_LOOP_BYTES:
                self.calls.append((threading.current_thread().name, len(made)))
            return made

        return watched

    @property
    def beside_the_loop(self) -> bool:
        return all(thread != threading.main_thread().name for thread, _ in self.calls)


@pytest.fixture
def base64_made(monkeypatch: pytest.MonkeyPatch) -> Watch:
    monkeypatch.setattr(binascii, "b2a_base64", (watch := Watch()).wrap(binascii.b2a_base64))
    return watch


@pytest.fixture
def json_made(monkeypatch: pytest.MonkeyPatch) -> Watch:
    monkeypatch.setattr(msgspec.json, "encode", (watch := Watch()).wrap(msgspec.json.encode))
    return watch


async def spoken(client: Client, count: int = LARGE, text: str = "say") -> str:
    return await run(client, "speak", text=text, count=count)


async def test_a_large_file_is_encoded_once_beside_the_loop_for_all_who_ask(
    aiohttp_client: MakeClient, base64_made: Watch
) -> None:
    client = await aiohttp_client(make_app(Speak))
    job_id = await spoken(client)
    shown = await asyncio.gather(*(ended(client, "speak", job_id) for _ in range(5)))
    shown.append(await read(await client.get(f"/v2/speak/status/{job_id}")))
    assert [each["output"] for each in shown] == [shown[0]["output"]] * 6
    assert base64.b64decode(shown[0]["output"]["audio"]) == bytes(LARGE)
    assert len(base64_made.calls) == 1
    assert base64_made.beside_the_loop


async def test_a_large_answer_is_not_encoded_again_with_the_status_around_it(
    aiohttp_client: MakeClient, json_made: Watch
) -> None:
    client = await aiohttp_client(make_app(Speak))
    await ended(client, "speak", await spoken(client))
    assert not json_made.calls


async def test_a_large_text_is_encoded_beside_the_loop(aiohttp_client: MakeClient, json_made: Watch) -> None:
    client = await aiohttp_client(make_app(Write))
    shown = await ended(client, "write", await run(client, "write", text="t", count=LARGE))
    assert len(shown["output"]["text"]) == LARGE
    assert json_made.calls
    assert json_made.beside_the_loop


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_large_chunks_are_encoded_beside_the_loop(
    aiohttp_client: MakeClient, json_made: Watch, accept: str
) -> None:
    client = await aiohttp_client(make_app(Speak, stream_buffer_bytes=10 * LARGE))
    job_id = await spoken(client, text="emit")
    await ended(client, "speak", job_id)
    json_made.calls.clear()
    text = await (await client.get(f"/v2/speak/stream/{job_id}", headers={"Accept": accept})).text()
    assert base64.b64encode(bytes(LARGE)).decode() in text
    assert json_made.calls
    assert json_made.beside_the_loop


async def test_a_webhook_and_a_poll_share_what_was_encoded_beside_the_loop(
    aiohttp_client: MakeClient, base64_made: Watch, json_made: Watch
) -> None:
    bodies: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        await bodies.put(await request.read())
        return web.Response()

    receiver = web.Application(client_max_size=4 * LARGE)
    receiver.router.add_post("/done", take)
    async with TestServer(receiver) as server:
        client = await aiohttp_client(make_app(Speak, fetch=FetchConfig(allow_hosts=(f"127.0.0.1:{server.port}",))))
        body = {"input": {"text": "say", "count": LARGE}, "webhook": str(server.make_url("/done"))}
        shown = await read(await client.post("/v2/speak/runsync", json=body))
        assert msgspec.json.decode(await bodies.get()) == shown
    assert len(base64_made.calls) == 1
    assert base64_made.beside_the_loop
    assert json_made.beside_the_loop


async def test_a_file_is_in_the_answer_beside_what_describes_it(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Speak))
    for count in (1, LARGE):
        shown = await ended(client, "speak", await spoken(client, count))
        audio = base64.b64encode(bytes(count)).decode()
        assert shown["output"] == {"audio": audio, "media_type": "audio/wav", "text": "say"}
