"""OpenAI's ``POST /v1/audio/speech`` on the job core, since every client of speech servers speaks it.

Source: https://platform.openai.com/docs/api-reference/audio/createSpeech. The request is a job like any other; it ends
as CANCELLED when the caller goes away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import attrs
import msgspec
from aiohttp import web
from msgspec import Meta

from aiservices.errors import InvalidInput, JobFailed, ServiceError, UnknownService
from aiservices.handler import OffersVoices
from aiservices.inputs import read_input
from aiservices.jobs import Job, JobRequest, JobStatus, Stage
from aiservices.registry import Registry
from aiservices.service import Service
from aiservices.transports.http.access import CLIENT_GONE
from aiservices.transports.http.answers import send
from aiservices.transports.http.body import note_origin, read_object
from aiservices.transports.http.errors import STATUS, headers_of, json_response
from aiservices.transports.http.lookup import REGISTRY, check_started

PATH = "/v1/audio/speech"

LOOK_EVERY_S = 1.0
"""How often a waiting request looks whether its caller is still there."""

PCM_RATE = 24_000
"""Samples a second of OpenAI's ``pcm``: 16 bit, little-endian, mono."""

OPENAI_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
"""OpenAI's clients have to send one of these."""


@attrs.frozen
class SpeechBody:
    """The body that OpenAI's clients send."""

    input: Annotated[str, Meta(min_length=1)]
    model: str = ""
    voice: str | None = None
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Meta(ge=0.5, le=2.0)] = 1.0
    instructions: str | None = None
    stream_format: Literal["audio"] | None = None


async def speech(request: web.Request) -> web.StreamResponse:
    """Speak a text and answer with the audio itself; ``pcm`` is sent while it is being made."""
    registry, name = request.app[REGISTRY], ""
    config = registry.config
    try:
        check_started(request)
        body = read_input(SpeechBody, await read_object(request, config.server.max_run_body_bytes))
        service = _find(registry, body.model)
        name = service.name
        wanted = JobRequest(
            input=_input(service, body),
            input_bytes=len(body.input),
            # The answer is made of the chunks: none may give way before it is sent.
            stream_bytes=config.outputs.max_output_bytes,
        )
        note_origin(request, wanted)
        job = service.submit(wanted)
        try:
            await job.wait_recorded()
            return await _answer(request, service, job)
        finally:
            service.give_up(job)  # no-one will ask for it again
    except ServiceError as error:
        if not isinstance(error, JobFailed):  # that is counted as a job
            registry.metrics.rejected(name, error.code)
        return _error(error)


def is_speech(service: Service) -> bool:
    """Whether the service turns text into speech."""
    return {"text", "voice", "format", "speed"} <= set(attrs.fields_dict(service.handler.Input))


def describe() -> dict[str, Any]:
    """The operation, for the OpenAPI document."""
    schema = msgspec.json.schema(SpeechBody, ref_template="#/components/schemas/{name}")["$defs"]["SpeechBody"]
    shown = {"model": "tts-1", "input": "A large striped red mug.", "voice": "alloy", "response_format": "mp3"}
    return {
        "post": {
            "operationId": "openai-speech",
            "tags": ["process"],
            "summary": "Speak a text and answer with the audio itself, as OpenAI's clients expect it.",
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": shown}}},
            "responses": {
                "200": {"description": "The audio.", "content": {"audio/*": {"schema": {"type": "string"}}}},
                "default": {"description": "OpenAI's form of an error: `error.message`, `error.param`, `error.code`."},
            },
        }
    }


def _find(registry: Registry, model: str) -> Service:
    """The service that ``model`` names; where it names none (``tts-1``), the only one that speaks."""
    speaking = {name: service for name, service in registry.services.items() if is_speech(service)}
    if model in speaking:
        return speaking[model]
    if len(speaking) != 1:
        raise UnknownService(model, list(speaking))
    return next(iter(speaking.values()))


def _input(service: Service, body: SpeechBody) -> Mapping[str, Any]:
    """The service's own input. The names of OpenAI's voices mean the default voice, unless there is one so named."""
    handler = service.handler
    voices = {voice.name for voice in handler.voices_offered()} if isinstance(handler, OffersVoices) else set()
    voice = None if body.voice in OPENAI_VOICES and body.voice not in voices else body.voice
    streamed = {"stream": True, "sample_rate": PCM_RATE} if body.response_format == "pcm" else {}
    return {
        "text": body.input,
        "voice": voice,
        "format": body.response_format,
        "speed": body.speed,
        **streamed,
    }


async def _answer(request: web.Request, service: Service, job: Job) -> web.StreamResponse:
    """Wait for the first audio or the end; send what is there and what comes."""
    chunks = await _next_chunks(request, service, job)
    if not chunks:
        return await _whole(request, job)
    response = web.StreamResponse(headers={"Content-Type": "audio/pcm", "X-Accel-Buffering": "no"})
    try:
        await response.prepare(request)
        while chunks:
            for chunk in chunks:
                await response.write(chunk["audio"])
            chunks = await _next_chunks(request, service, job)
    except ConnectionError:
        return response  # the caller went away
    whole = job.status is JobStatus.COMPLETED and not job.stream.dropped
    if not whole and request.transport is not None:
        request.transport.abort()  # the status line is out: a cut connection is the only way to tell
    return response


async def _next_chunks(request: web.Request, service: Service, job: Job) -> list[Any]:
    """Chunks as soon as there are some; none once the job has ended, or if some were lost."""
    while True:
        if job.stream.dropped:
            return []
        if chunks := job.read_stream():
            return chunks
        if job.stage.over:
            await job.wait_recorded()
            return []
        if request.transport is None or request.transport.is_closing():
            service.give_up(job)
            return []
        await job.wait_news(LOOK_EVERY_S)


async def _whole(request: web.Request, job: Job) -> web.StreamResponse:
    if job.status is JobStatus.CANCELLED:
        return web.Response(status=CLIENT_GONE)
    if job.output is None:
        raise JobFailed(job.error or _why_none(job))
    audio = job.output.file("audio")
    if audio is None:  # it went to a bucket
        return web.Response(status=303, headers={"Location": job.output.as_dict()["audio_url"]})
    return await send(request, (audio.data,), audio.media_type)


def _why_none(job: Job) -> str:
    if job.stage is Stage.LEFT:
        return "the server is shutting down"
    if job.ended:
        return f"the job ended as {job.status.value}"
    return "a part of the audio was lost before it could be sent: more than max_output_bytes"


def _error(error: ServiceError) -> web.Response:
    """An error in OpenAI's form."""
    field = error.field.removeprefix("$.") if isinstance(error, InvalidInput) else None
    status = STATUS[error.code]
    kind = "invalid_request_error" if status < 500 else "server_error"
    param = {"text": "input", "format": "response_format"}.get(field or "", field)
    shown = {"message": str(error), "type": kind, "param": param, "code": error.code}
    return json_response({"error": shown}, status, headers_of(error))
