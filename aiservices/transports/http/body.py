"""Request bodies: from a stranger's bytes to a :class:`~aiservices.service.JobRequest`, every way bounded."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from aiservices.errors import InvalidInput
from aiservices.inputs import explain
from aiservices.jobs import Destination
from aiservices.service import JobRequest
from aiservices.transports.http.errors import BodyTooLarge, BodyTooSlow, CallerGone

READ_TIMEOUT_S = 120.0
"""How long an upload may take: 20 MB at 1.4 Mbit/s."""

THREAD_ABOVE_BYTES = 256 * 1024
"""Larger bodies are decoded off the loop."""

MAX_VALUES = 100_000
"""Bound on commas and brackets: twenty megabytes of ``[],`` would become half a gigabyte of Python objects."""

MAX_DEPTH = 64
INT_BITS = 64

_WEEK_MS = 7 * 24 * 3600 * 1000
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


class RunPolicy(msgspec.Struct, frozen=True, rename="camel"):
    """The caller's limits for one job."""

    execution_timeout: Annotated[
        Annotated[int, Meta(ge=5_000, le=_WEEK_MS)] | None,
        Meta(description="How long the job may run, in milliseconds: 5 s to 7 days.", examples=[600_000]),
    ] = None
    ttl: Annotated[
        Annotated[int, Meta(ge=10_000, le=_WEEK_MS)] | None,
        Meta(description="How long it may wait in the queue, in milliseconds: 10 s to 7 days.", examples=[86_400_000]),
    ] = None
    low_priority: Annotated[bool, Meta(description="Wait behind every job of normal priority.")] = False


class RunBody(msgspec.Struct, frozen=True, rename="camel"):
    """The body of ``run`` and ``runsync``. Keys that RunPod may add are ignored."""

    input: dict[str, Any]
    webhook: str | None = None
    policy: RunPolicy | None = None
    s3_config: Destination | None = None


async def read_job_request(request: web.Request, max_bytes: int) -> JobRequest:
    """Read and check the body of ``run`` or ``runsync``.

    Raises:
        InvalidInput: it is not JSON, or not what is expected; names the place.
        BodyTooLarge, BodyTooSlow: it passes its bounds.
    """
    key = _idempotency_key(request)
    raw = await read_bytes(request, max_bytes)
    body = await asyncio.to_thread(parse, raw) if len(raw) > THREAD_ABOVE_BYTES else parse(raw)
    policy = body.policy or RunPolicy()
    return JobRequest(
        input=body.input,
        input_bytes=len(raw),
        timeout_s=None if policy.execution_timeout is None else policy.execution_timeout / 1000,
        ttl_s=None if policy.ttl is None else policy.ttl / 1000,
        low_priority=policy.low_priority,
        webhook=body.webhook,
        destination=body.s3_config,
        idempotency_key=key,
    )


def parse(raw: bytes) -> RunBody:
    """Decode and check a body. One without ``input`` is the input itself.

    Raises:
        InvalidInput: naming the place and what was expected there.
    """
    document = decode_object(raw)
    if "input" not in document:
        return RunBody(input=document)
    try:
        body = msgspec.convert(document, RunBody)
    except msgspec.ValidationError as error:
        raise explain(RunBody, str(error)) from None
    # RunPod's Python client wraps an empty input once more.
    return msgspec.structs.replace(body, input={}) if body.input == {"input": {}} else body


def decode_object(raw: bytes) -> dict[str, Any]:
    """Decode a JSON object, strictly: bounded in size and depth, no NaN, no huge numbers, no key twice.

    Raises:
        InvalidInput: saying what is wrong.
    """
    if not raw.strip():
        raise InvalidInput("$", "the body is empty; expected a JSON object")
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise InvalidInput("$", f"the body holds more than {MAX_VALUES} values")
    document = _decode(raw)
    if not isinstance(document, dict):
        raise InvalidInput("$", "expected a JSON object")
    _check_depth(document)
    # msgspec keeps the last of two equal keys and whole numbers of any size; the standard library tells of both.
    json.loads(raw, object_pairs_hook=_check_keys, parse_int=_check_int)
    return document


def _decode(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except UnicodeDecodeError:
        raise InvalidInput("$", "the body is not valid UTF-8") from None
    except RecursionError:
        raise InvalidInput("$", f"the body is nested deeper than {MAX_DEPTH} levels") from None
    except msgspec.ValidationError:
        raise InvalidInput("$", "a number is out of range") from None
    except msgspec.DecodeError as error:
        raise InvalidInput("$", f"not valid JSON: {str(error).removeprefix('JSON is malformed: ').lower()}") from None


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise InvalidInput("$", f"the body is nested deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidInput("$", f"the key {twice[:100]!r} is there twice")


def _check_int(digits: str) -> None:
    if len(digits) > 20 or int(digits).bit_length() > INT_BITS:
        raise InvalidInput("$", f"a whole number is larger than {INT_BITS} bits")


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidInput("Idempotency-Key", "expected 1 to 255 printable ASCII characters")
    return key


async def read_object(request: web.Request, max_bytes: int) -> dict[str, Any]:
    """Read a body that is a JSON object.

    Raises:
        InvalidInput, BodyTooLarge, BodyTooSlow: as for a job's.
    """
    raw = await read_bytes(request, max_bytes)
    return await asyncio.to_thread(decode_object, raw) if len(raw) > THREAD_ABOVE_BYTES else decode_object(raw)


async def read_bytes(request: web.Request, max_bytes: int) -> bytes:
    """Read a body.

    Raises:
        BodyTooLarge, BodyTooSlow, CallerGone: it passes a bound, or never comes.
    """
    try:
        if (request.content_length or 0) > max_bytes:
            raise web.HTTPRequestEntityTooLarge(max_bytes)
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await request.clone(client_max_size=max_bytes).read()
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLarge(f"the body is larger than {max_bytes} bytes") from None
    except ConnectionError:
        raise CallerGone("the caller went away") from None
    except web.RequestPayloadError:
        raise InvalidInput("$", "the body is not what its Content-Encoding says") from None
    except TimeoutError:
        raise BodyTooSlow(f"the body did not come within {READ_TIMEOUT_S:g} s") from None
