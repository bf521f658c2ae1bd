"""OpenAI's speech request, and the list of voices."""

from __future__ import annotations

import asyncio
import binascii
import io
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import aiohttp
import attrs
import pytest
import soundfile  # type: ignore[import-untyped]  # ships no types
from msgspec import Meta

from aiservices.handler import Context, StepHandler, Task, VoiceInfo, output_file
from aiservices.registry import Registry
from aiservices.settings import Config, OutputsConfig, ServerConfig, ServiceConfig
from aiservices.transports.http import create_app
from aiservices.transports.http.lookup import REGISTRY
from tests.fakes import Upper
from tests.transports.http.apps import Client, MakeClient, handler_of, make_app, read

PATH = "/v1/audio/speech"


@attrs.frozen
class ToneInput:
    """What a speech service takes."""

    text: Annotated[str, Meta(min_length=1)]
    voice: Literal["low", "high"] | None = None
    format: Literal["pcm", "wav", "mp3"] = "wav"
    speed: Annotated[float, Meta(ge=0.5, le=2)] = 1.0
    stream: bool = False
    sample_rate: int = 8000


@attrs.frozen
class ToneOutput:
    """A word for each word."""

    audio: Annotated[bytes, output_file("The sound.")]
    media_type: str


class Tones(StepHandler[ToneInput, ToneOutput]):
    """Says one word a step, as two bytes; goes on for ever on "endless", fails on "bad"."""

    def __init__(self) -> None:
        self.rows: dict[Task[ToneInput], list[str]] = {}
        self.asked: list[ToneInput] = []

    def voices_offered(self) -> Sequence[VoiceInfo]:
        return [VoiceInfo("low", "A low voice"), VoiceInfo("high", "A high voice", "en")]

    def admit(self, tasks: Sequence[Task[ToneInput]]) -> None:
        self.asked += [task.item for task in tasks]
        self.rows.update({task: task.item.text.split() for task in tasks})

    def step(self) -> list[tuple[Task[ToneInput], ToneOutput | Exception]]:
        return [outcome for task in list(self.rows) for outcome in self._say(task)]

    def _say(self, task: Task[ToneInput]) -> list[tuple[Task[ToneInput], ToneOutput | Exception]]:
        words = self.rows[task]
        if words == ["bad"]:
            del self.rows[task]
            return [(task, ValueError("cannot be said"))]
        if words == ["endless"]:
            return []
        if task.item.stream:
            task.context.emit({"audio": words[0][:2].encode()})
        del words[0]
        if words:
            return []
        del self.rows[task]
        return [(task, ToneOutput(task.item.text.encode(), "audio/x-tone"))]

    def evict(self, tasks: Sequence[Task[ToneInput]]) -> None:
        for task in tasks:
            del self.rows[task]

    def reset(self) -> None:
        self.rows.clear()


class Floods(Tones):
    """Emits a first chunk, if it shall, and once its gate opens three at once, of which the stream can hold one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def preprocess(self, input: ToneInput, context: Context) -> ToneInput:
        if input.text == "first":
            context.emit({"audio": b"first"})
        await self.gate.wait()
        for _ in range(3):
            context.emit({"audio": bytes(60)})
        return input


async def say(client: Client, **body: Any) -> Any:
    return await client.post(PATH, json={"model": "tts-1", "input": "mug", "voice": "alloy", **body})


async def test_the_answer_is_the_audio_itself(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Tones))
    answer = await say(client, input="red mug", voice="low", response_format="wav", speed=1.5)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "audio/x-tone"
    assert await answer.read() == b"red mug"


async def test_pcm_is_sent_while_it_is_made(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Tones))
    answer = await say(client, input="red mug", response_format="pcm")
    assert answer.headers["Content-Type"] == "audio/pcm"
    assert await answer.read() == b"remu"


async def test_the_audio_is_never_turned_into_base64(
    aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **named: object) -> bytes:
        raise AssertionError("nobody asked for base64")

    monkeypatch.setattr(binascii, "b2a_base64", refuse)
    client = await aiohttp_client(make_app(Tones))
    assert await (await say(client, response_format="wav")).read() == b"mug"
    assert await (await say(client, response_format="pcm")).read() == b"mu"


async def test_a_streamed_answer_that_lost_a_part_is_broken_off(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Floods, outputs=OutputsConfig(max_output_bytes=100)))
    answer = await say(client, input="first", response_format="pcm")
    assert answer.status == 200
    assert await answer.content.readany() == b"first"
    handler_of(client, Floods).gate.set()
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.read()


async def test_an_answer_that_lost_a_part_before_it_began_is_an_error(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Floods, outputs=OutputsConfig(max_output_bytes=100)))
    handler_of(client, Floods).gate.set()
    error = (await read(await say(client, input="endless", response_format="pcm"), 500))["error"]
    assert error["message"] == "a part of the audio was lost before it could be sent: more than max_output_bytes"


@pytest.mark.parametrize(
    ("body", "service", "code"),
    [
        ({"voice": "loud"}, "tones", "invalid_input"),
        ({"input": ""}, "", "invalid_input"),
        ({"voise": "x"}, "", "invalid_input"),
    ],
)
async def test_refusals_are_counted(aiohttp_client: MakeClient, body: dict[str, Any], service: str, code: str) -> None:
    client = await aiohttp_client(make_app(Tones))
    await read(await say(client, **body), 400)
    assert await rejected(client) == [f'aiservices_requests_rejected_total{{code="{code}",service="{service}"}} 1.0']


async def test_a_service_that_is_not_there_is_counted_as_a_refusal(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    await read(await say(client), 404)
    assert await rejected(client) == ['aiservices_requests_rejected_total{code="unknown_service",service=""} 1.0']


async def test_a_job_that_failed_is_no_refusal(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Tones))
    await read(await say(client, input="bad"), 500)
    assert await rejected(client) == []


async def rejected(client: Client) -> list[str]:
    lines = (await (await client.get("/metrics")).text()).splitlines()
    return [line for line in lines if line.startswith("aiservices_requests_rejected_total")]


async def test_a_draining_server_says_when_to_come_again(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(app := make_app(Tones))
    await app[REGISTRY].drain(0)
    refused = await say(client)
    assert (await read(refused, 503))["error"]["message"] == "the server is shutting down"
    assert int(refused.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"input": ""}, 400, "input", "expected at least 1 character"),
        ({"voice": "loud"}, 400, "voice", "expected one of high, low"),
        ({"response_format": "aac"}, 400, "response_format", "expected one of"),
        ({"speed": 3}, 400, "speed", "expected float <= 2.0"),
        ({"speed": "fast"}, 400, "speed", "expected float, got str"),
        ({"input": "bad"}, 500, None, "internal error"),
        ({"voise": "x"}, 400, "voise", "did you mean 'voice'?"),
    ],
)
async def test_an_error_has_the_form_that_openais_clients_read(
    aiohttp_client: MakeClient, body: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    client = await aiohttp_client(make_app(Tones))
    error = (await read(await say(client, **body), status))["error"]
    assert error["param"] == param
    assert message in error["message"]


async def test_the_model_may_name_the_service(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Tones, Upper))
    assert (await say(client, model="tones", response_format="wav")).status == 200
    assert (await say(client, model="upper", response_format="wav")).status == 200, "the only one that speaks"


async def test_a_profile_that_does_not_speak_says_so(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    assert "no service named 'tts-1'" in (await read(await say(client), 404))["error"]["message"]


async def test_a_caller_who_goes_away_ends_the_job(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Tones))

    async def running() -> int:
        jobs = (await read(await client.get("/v2/tones/health")))["jobs"]
        return int(jobs["inProgress"])

    asking = asyncio.create_task(say(client, input="endless", response_format="wav"))
    async with asyncio.timeout(10):
        while not await running():
            pass
        asking.cancel()
        while await running():
            pass


async def test_voices_are_listed(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Tones, Upper))
    assert await read(await client.get("/tones/api/v1/voices")) == {
        "voices": [
            {"name": "low", "description": "A low voice"},
            {"name": "high", "description": "A high voice", "language": "en"},
        ]
    }
    assert await read(await client.get("/v2/upper/voices")) == {"voices": []}


async def test_the_demo_engine_speaks_to_openais_clients(aiohttp_client: MakeClient) -> None:
    pytest.importorskip("espeakng_loader", reason="needs the demo extra: scripts/install demo")
    service = ServiceConfig(name="speech", handler="aiservices.handlers.espeak:EspeakTextToSpeech", device="cpu")
    config = Config(server=ServerConfig(grace_s=0.0), profile="test", services={"speech": service})
    client = await aiohttp_client(create_app(Registry(config)))
    for form in ("mp3", "opus", "flac", "wav"):
        answer = await say(client, input="A large red mug.", response_format=form)
        assert answer.status == 200, await answer.text()
        assert soundfile.info(io.BytesIO(await answer.read())).duration == pytest.approx(1.3, abs=0.5)
    pcm = await (await say(client, input="A large red mug.", response_format="pcm")).read()
    assert len(pcm) / 48_000 == pytest.approx(1.3, abs=0.5)
