"""OpenAI's speech request, and the list of voices."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import attrs
import pytest
import soundfile  # type: ignore[import-untyped]  # ships no types
from msgspec import Meta

from aiservices.handler import StepHandler, Task, VoiceInfo
from aiservices.registry import Registry
from aiservices.settings import Config, ServerConfig, ServiceConfig
from aiservices.transports.http import create_app
from tests.fakes import Upper
from tests.transports.http.apps import Client, MakeClient, make_app, read

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

    audio: str
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
            task.context.emit({"audio": base64.b64encode(words[0][:2].encode()).decode()})
        del words[0]
        if words:
            return []
        del self.rows[task]
        return [(task, ToneOutput(base64.b64encode(task.item.text.encode()).decode(), "audio/x-tone"))]

    def evict(self, tasks: Sequence[Task[ToneInput]]) -> None:
        for task in tasks:
            del self.rows[task]

    def reset(self) -> None:
        self.rows.clear()


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
