"""Request bodies: what is taken, what is refused and in which words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiservices.errors import InvalidInput
from aiservices.transports.http.body import MAX_DEPTH, MAX_VALUES, decode_object, parse
from tests.fakes import Upper
from tests.transports.http.apps import MakeClient, handler_of, make_app, read, run, serve

BAD_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "$: the body is empty; expected a JSON object"),
    "blank": (b" \r\n\t", "$: the body is empty; expected a JSON object"),
    "cut off": (b'{"input": {"text"', "$: not valid JSON: input data was truncated"),
    "text": (b"hello", "$: not valid JSON: invalid character (byte 0)"),
    "form": (b"text=mug", "$: not valid JSON: invalid character (byte 4)"),
    "two objects": (b"{}{}", "$: not valid JSON: trailing characters (byte 3)"),
    "single quotes": (b"{'a': 1}", "$: not valid JSON: object keys must be strings (byte 1)"),
    "comma too many": (b'{"a": 1,}', "$: not valid JSON: trailing comma in object (byte 8)"),
    "byte order mark": (b"\xef\xbb\xbf{}", "$: not valid JSON: invalid character (byte 0)"),
    "utf-16": ('{"a": "é"}'.encode("utf-16"), "$: not valid JSON: invalid character (byte 0)"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "$: the body is not valid UTF-8"),
    "overlong utf-8": (b'{"a": "\xc0\xaf"}', "$: the body is not valid UTF-8"),
    "surrogate": (b'{"a": "\\ud800."}', "$: not valid JSON: "),
    "raw control character": (b'{"a": "\x00"}', "$: not valid JSON: invalid character (byte 7)"),
    "NaN": (b'{"a": NaN}', "$: not valid JSON: invalid character (byte 6)"),
    "Infinity": (b'{"a": -Infinity}', "$: not valid JSON: invalid character (byte 7)"),
    "huge float": (b'{"a": 1e999}', "$: a number is out of range"),
    "huge int": (b'{"a": 1' + b"0" * 30 + b"}", "$: a whole number is larger than 64 bits"),
    "very huge int": (b'{"a": -1' + b"0" * 5000 + b"}", "$: a number is out of range"),
    "null": (b"null", "$: expected a JSON object"),
    "array": (b"[]", "$: expected a JSON object"),
    "number": (b"7", "$: expected a JSON object"),
    "string": (b'"mug"', "$: expected a JSON object"),
    "key twice": (b'{"a": 1, "b": 2, "a": 3}', "$: the key 'a' is there twice"),
    "key twice below": (b'{"a": [{"b": {"c": 1, "c": 1}}]}', "$: the key 'c' is there twice"),
    "escaped key twice": (b'{"a": 1, "\\u0061": 2}', "$: the key 'a' is there twice"),
    "deep": (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", f"$: the body is nested deeper than {MAX_DEPTH} levels"),
    "very deep": (b"[" * 90_000, f"$: the body is nested deeper than {MAX_DEPTH} levels"),
    "deeper than the stack": (b'{"a":' * 90_000, f"$: the body is nested deeper than {MAX_DEPTH} levels"),
    "too many values": (b'{"a": [' + b"[]," * 60_000 + b"1]}", f"$: the body holds more than {MAX_VALUES} values"),
}

BAD_BODIES: dict[str, tuple[Any, str]] = {
    "input is null": ({"input": None}, "$.input: expected object, got null"),
    "input is text": ({"input": "mug"}, "$.input: expected object, got str"),
    "input is a list": ({"input": [{"text": "mug"}]}, "$.input: expected object, got array"),
    "webhook is no text": ({"input": {}, "webhook": 7}, "$.webhook: expected str | null, got int"),
    "policy is no object": ({"input": {}, "policy": []}, "$.policy: expected object | null, got array"),
    "ttl too short": ({"input": {}, "policy": {"ttl": 9_999}}, "$.policy.ttl: expected int >= 10000"),
    "ttl too long": ({"input": {}, "policy": {"ttl": 604_800_001}}, "$.policy.ttl: expected int <= 604800000"),
    "ttl in text": ({"input": {}, "policy": {"ttl": "1d"}}, "$.policy.ttl: expected int | null, got str"),
    "ttl with a fraction": ({"input": {}, "policy": {"ttl": 10_000.5}}, "$.policy.ttl: expected int | null, got float"),
    "timeout too short": (
        {"input": {}, "policy": {"executionTimeout": 4_999}},
        "$.policy.executionTimeout: expected int >= 5000",
    ),
    "timeout is true": (
        {"input": {}, "policy": {"executionTimeout": True}},
        "$.policy.executionTimeout: expected int | null, got bool",
    ),
    "low priority is no bool": (
        {"input": {}, "policy": {"lowPriority": 1}},
        "$.policy.lowPriority: expected bool, got int",
    ),
    "bucket": (
        {"input": {}, "s3Config": {"bucketName": "mine"}},
        "$.s3Config.accessId: this field is required",
    ),
}


@pytest.mark.parametrize(("raw", "error"), BAD_JSON.values(), ids=BAD_JSON)
def test_json_that_is_no_plain_object_is_refused(raw: bytes, error: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(raw)
    assert str(refused.value).startswith(error)


@pytest.mark.parametrize(("document", "error"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_body_that_does_not_fit_is_refused_by_name(document: Any, error: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(json.dumps(document).encode())
    assert str(refused.value) == error


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_comes_is_taken_or_refused(raw: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        assert isinstance(parse(raw).input, dict)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates cannot be sent as UTF-8.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=5), _VALUES, max_size=5))
def test_every_plain_object_comes_through_as_it_is(document: dict[str, Any]) -> None:
    assert decode_object(json.dumps(document).encode()) == document


def test_the_policy_is_read_in_milliseconds() -> None:
    request = parse(b'{"input": {}, "policy": {"executionTimeout": 5000, "ttl": null, "lowPriority": true}}')
    assert (request.timeout_s, request.ttl_s, request.low_priority) == (5.0, None, True)


def test_commas_and_brackets_within_texts_are_no_values() -> None:
    text = ",[{" * MAX_VALUES
    assert decode_object(json.dumps({"text": text}).encode()) == {"text": text}
    escaped = '"' + "\\" + text
    assert decode_object(json.dumps({"text": escaped}).encode()) == {"text": escaped}


def test_values_beside_a_text_full_of_commas_count() -> None:
    just, over = ({"text": ',\\",' * MAX_VALUES, "a": [0] * count} for count in (MAX_VALUES - 2, MAX_VALUES + 1))
    assert len(decode_object(json.dumps(just).encode())["a"]) == MAX_VALUES - 2
    with pytest.raises(InvalidInput, match=f"the body holds more than {MAX_VALUES} values"):
        decode_object(json.dumps(over).encode())


def test_a_key_twice_among_thousands_is_named() -> None:
    raw = json.dumps({f"key {n}": n for n in range(24_000)}).encode()
    assert len(decode_object(raw)) == 24_000
    with pytest.raises(InvalidInput, match=r"^\$: the key 'key 77' is there twice$"):
        decode_object(raw[:-1] + b', "key 77": 0}')


def many_keys(count: int) -> bytes:
    return json.dumps(dict.fromkeys(map(str, range(count)), 0)).encode()


def commas_in_texts(count: int) -> bytes:
    return json.dumps({"a": [",\\"] * count, "b": "," * MAX_VALUES}).encode()


@pytest.mark.parametrize("body", [many_keys, commas_in_texts])
def test_the_time_to_decode_grows_as_the_body_does(body: Callable[[int], bytes]) -> None:
    """16 times the size may take ten times as long as that; what grows with the square takes 256 times as long."""
    few, many = 1_500, 24_000
    assert best_time_s(body(many)) < 160 * max(best_time_s(body(few)), 1e-4)


def test_a_text_without_an_end_is_refused_as_fast_as_one_with_an_end_is_read() -> None:
    """Each escaped quote in it might be taken for the beginning of another text."""
    endless = b'{"a": "' + b'\\"' * 4_000 + b"," * (MAX_VALUES + 1)
    assert best_time_s(endless) < 100 * max(best_time_s(endless + b'"}'), 1e-4)


def best_time_s(raw: bytes) -> float:
    times = []
    for _ in range(3):
        began = time.process_time()
        with contextlib.suppress(InvalidInput):
            decode_object(raw)
        times.append(time.process_time() - began)
    return min(times)


def test_an_empty_input_wrapped_twice_is_an_empty_input() -> None:
    assert parse(b'{"input": {"input": {}}}').input == {}


def test_keys_that_runpod_may_add_are_ignored() -> None:
    assert parse(b'{"input": {"text": "mug"}, "webhookV2": {}}').input == {"text": "mug"}


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "é", "a\tb"])
async def test_an_idempotency_key_that_is_none_is_refused(aiohttp_client: MakeClient, key: str) -> None:
    client = await aiohttp_client(make_app(Upper))
    answer = await client.post("/v2/upper/run", json={"text": "mug"}, headers={"Idempotency-Key": key})
    assert (await read(answer, 400))["error"] == "Idempotency-Key: expected 1 to 255 printable ASCII characters"


async def test_a_refused_body_leaves_no_job(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    answer = await client.post("/v2/upper/run", data=b'{"input": {"text": ""}}')
    assert await read(answer, 400) == {"status": "FAILED", "error": "$.text: expected at least 1 character"}
    await run(client, "upper", text="mug")
    health = await read(await client.get("/v2/upper/health"))
    assert sum(health["jobs"][key] for key in ("completed", "inProgress", "inQueue", "failed")) == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, gzip", "identity, gzip", "nope"])
@pytest.mark.parametrize("operation", ["run", "runsync"])
async def test_a_compressed_body_is_refused(aiohttp_client: MakeClient, operation: str, encoding: str) -> None:
    client = await aiohttp_client(make_app(Upper))
    headers = {"Content-Encoding": encoding}
    answer = await client.post(f"/v2/upper/{operation}", data=b'{"text": "mug"}', headers=headers)
    assert "without Content-Encoding" in (await read(answer, 415))["error"]


async def test_a_body_that_says_it_is_not_compressed_is_taken(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    answer = await client.post("/v2/upper/run", data=b'{"text": "mug"}', headers={"Content-Encoding": "identity"})
    assert answer.status == 200


@pytest.mark.parametrize("handler_cancellation", [False, True])
async def test_a_caller_who_hangs_up_in_the_middle_of_the_body_leaves_no_job(
    aiohttp_client: MakeClient, handler_cancellation: bool, caplog: pytest.LogCaptureFixture
) -> None:
    client = await aiohttp_client(await serve(make_app(Upper), handler_cancellation))
    _, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b'POST /v2/upper/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"text": "mug"')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await read(await client.post("/v2/upper/runsync", json={"text": "cup"}))
    assert not caplog.records
    assert {text for batch in handler_of(client, Upper).batches for text in batch} == {"cup"}
