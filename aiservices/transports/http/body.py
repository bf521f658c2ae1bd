"""Request bodies: from untrusted bytes to a :class:`~aiservices.jobs.JobRequest`, every way bounded."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from aiservices.errors import InvalidInput
from aiservices.inputs import explain
from aiservices.jobs import Destination, JobRequest, fingerprint
from aiservices.spans import current
from aiservices.trace import read_trace
from aiservices.transports.http.access import request_id
from aiservices.transports.http.bodies import BUDGET, hold, read_bytes
from aiservices.transports.http.lookup import CALLER

MAX_VALUES = 100_000
"""Bound on values, counted by commas and brackets: 20 MB of ``[],`` would become half a gigabyte of Python objects."""

MAX_DEPTH = 64
INT_BITS = 64

_WEEK_MS = 7 * 24 * 3600 * 1000
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
"""One without an end goes to the end of the body, or each quote in it would be tried for another text's beginning."""

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
        BodyTooLarge, BodyTooSlow, TooManyBodies, CallerGone: it passes a bound, or never comes.
    """
    key = _idempotency_key(request)
    with hold(request) as held:
        raw = await read_bytes(request, max_bytes, held)
        wanted = await request.app[BUDGET].decode(functools.partial(parse, idempotency_key=key), raw)
    note_origin(request, wanted)
    return wanted


def note_origin(request: web.Request, wanted: JobRequest) -> None:
    """Note who asked for a job, and for the log and for traces by which request."""
    wanted.caller = request[CALLER]
    wanted.request_id, wanted.trace = request_id(request), current() or read_trace(request.headers)


def parse(raw: bytes | bytearray, idempotency_key: str | None = None) -> JobRequest:
    """Decode and check a body. One without ``input`` is the input itself.

    Raises:
        InvalidInput: naming the place and what was expected there.
    """
    document = decode_object(raw)
    body = _read_run_body(document)
    policy = body.policy or RunPolicy()
    return JobRequest(
        input={} if body.input == {"input": {}} else body.input,  # so RunPod's Python client sends an empty input
        input_bytes=len(raw),
        timeout_s=None if policy.execution_timeout is None else policy.execution_timeout / 1000,
        ttl_s=None if policy.ttl is None else policy.ttl / 1000,
        low_priority=policy.low_priority,
        webhook=body.webhook,
        destination=body.s3_config,
        idempotency_key=idempotency_key,
        fingerprint=b"" if idempotency_key is None else fingerprint(document),
    )


def _read_run_body(document: dict[str, Any]) -> RunBody:
    if "input" not in document:
        return RunBody(input=document)
    try:
        return msgspec.convert(document, RunBody)
    except msgspec.ValidationError as error:
        raise explain(RunBody, str(error)) from None


def decode_object(raw: bytes | bytearray) -> dict[str, Any]:
    """Decode a JSON object, strictly: bounded in size and depth, no NaN, no huge numbers, no key twice.

    Raises:
        InvalidInput: saying what is wrong.
    """
    if not raw or raw.isspace():
        raise InvalidInput("$", "the body is empty; expected a JSON object")
    if _value_count(raw) > MAX_VALUES and _value_count(_STRING.sub(b"", raw)) > MAX_VALUES:  # a text may hold commas
        raise InvalidInput("$", f"the body holds more than {MAX_VALUES} values")
    document = _decode(raw)
    if not isinstance(document, dict):
        raise InvalidInput("$", "expected a JSON object")
    _check_depth(document)
    # msgspec keeps the last of two equal keys and whole numbers of any size; the standard library tells of both.
    _STRICT.decode(raw.decode())
    return document


def _value_count(raw: bytes | bytearray) -> int:
    return sum(map(raw.count, (b",", b"[", b"{")))


def _decode(raw: bytes | bytearray) -> Any:
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
    if len(pairs) < 2:
        return
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidInput("$", f"the key {key[:100]!r} is there twice")
        seen.add(key)


def _check_int(digits: str) -> None:
    if len(digits) > 20 or int(digits).bit_length() > INT_BITS:
        raise InvalidInput("$", f"a whole number is larger than {INT_BITS} bits")


_STRICT = json.JSONDecoder(object_pairs_hook=_check_keys, parse_int=_check_int)


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidInput("Idempotency-Key", "expected 1 to 255 printable ASCII characters")
    return key


async def read_object(request: web.Request, max_bytes: int) -> dict[str, Any]:
    """Read a body that is a JSON object.

    Raises:
        InvalidInput, BodyTooLarge, BodyTooSlow, TooManyBodies, CallerGone: as for a job's.
    """
    with hold(request) as held:
        raw = await read_bytes(request, max_bytes, held)
        return await request.app[BUDGET].decode(decode_object, raw)
