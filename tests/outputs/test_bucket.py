"""Outputs to a bucket, over the real S3 protocol: moto on loopback, and before it a proxy that breaks things."""

from __future__ import annotations

import asyncio
import base64
import binascii
import socket
from typing import Any

import aiohttp
import msgspec
import pytest
import structlog

from aiservices.callers import ANYONE
from aiservices.jobs import JobRequest
from aiservices.transports.runpod import RunPodAdapter
from tests.fakes import TextInput
from tests.outputs.samples import (
    BUCKET,
    LIMIT_S,
    SECRET,
    Proxy,
    Speak,
    Write,
    ask,
    destination,
    download,
    running,
    sound,
    started,
)

pytest.importorskip("aioboto3", reason="pip install aioboto3 (the s3 extra)")

pytestmark = [pytest.mark.s3, pytest.mark.filterwarnings("ignore:.*utcnow.*:DeprecationWarning")]


async def test_a_large_file_goes_to_the_bucket_and_a_small_one_stays(store: str) -> None:
    async with running(Speak, bucket=BUCKET, prefix="p", endpoint_url=store, max_inline_bytes=1000) as service:
        small = (await ask(service, "abc", 30))["output"]
        assert base64.b64decode(small["audio"]) == b"abc" * 10
        shown = await ask(service, "abc", 3000)
        large = shown["output"]
        assert large.keys() == {"media_type", "text", "audio_url"}
        assert f"/{BUCKET}/p/fake/{shown['id']}/audio.wav?" in large["audio_url"]
        assert "X-Amz-Expires=86400" in large["audio_url"]
        assert await download(large["audio_url"]) == (b"abc" * 1000, "audio/wav")


async def test_a_job_with_a_bucket_of_its_own_gets_every_file_there(store: str) -> None:
    async with running(Speak) as service:
        output = (await ask(service, "abc", 30, destination(store)))["output"]
        assert f"/{BUCKET}/mine/fake/" in output["audio_url"]
        assert await download(output["audio_url"]) == (b"abc" * 10, "audio/wav")


async def test_a_bucket_that_comes_with_a_job_of_runpod_is_used_alike(store: str) -> None:
    given = {"accessId": "key", "accessSecret": SECRET, "bucketName": BUCKET, "endpointUrl": store}
    event = {"id": "a", "input": {"text": "abc", "count": 30}, "s3Config": given}
    async with started(Speak) as registry:
        answer = await RunPodAdapter(registry).handle(event, lambda fraction: None)
        assert await download(answer["audio_url"]) == (b"abc" * 10, "audio/wav")


async def test_any_other_large_answer_goes_as_a_whole(store: str) -> None:
    async with running(Write, bucket=BUCKET, endpoint_url=store, max_inline_bytes=1000) as service:
        assert (await ask(service, "t", 100))["output"] == {"text": "x" * 100, "count": 100}
        output = (await ask(service, "t", 5000))["output"]
        assert output.keys() == {"output_url"}
        content, kind = await download(output["output_url"])
        assert (msgspec.json.decode(content), kind) == ({"text": "x" * 5000, "count": 5000}, "application/json")


async def test_a_file_on_its_way_to_a_bucket_is_never_base64(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = binascii.b2a_base64

    def digests_only(data: bytes, **named: Any) -> bytes:
        assert len(data) <= 64, "nobody asked for base64"
        return encode(data, **named)

    monkeypatch.setattr(binascii, "b2a_base64", digests_only)
    async with running(Speak) as service:
        output = (await ask(service, "abc", 3000, destination(store)))["output"]
        assert await download(output["audio_url"]) == (b"abc" * 1000, "audio/wav")


async def test_many_uploads_at_once_keep_their_files_apart(store: str) -> None:
    async with running(Speak, callers_concurrency=3) as service:
        shown = await asyncio.gather(*(ask(service, f"{n}", 50, destination(store)) for n in range(12)))
        for n, job in enumerate(shown):
            assert (await download(job["output"]["audio_url"]))[0] == sound(TextInput(f"{n}", 50))


async def test_a_refused_upload_fails_the_job_and_says_why(store: str) -> None:
    async with running(Speak) as service:
        shown = await ask(service, "abc", 30, destination(store, bucketName="no-such-bucket"))
        assert shown["status"] == "FAILED"
        assert "output" not in shown
        reason = "the store answered 404"
        assert shown["error"] == f"the output could not be stored in the bucket 'no-such-bucket': {reason}"


async def test_a_store_that_is_not_there_fails_the_job_and_says_why() -> None:
    async with running(Speak) as service:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # nobody else gets this port, and nobody listens
            shown = await ask(service, "abc", 30, destination(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert (
            shown["error"] == "the output could not be stored in the bucket 'outputs': the store could not be connected"
        )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("closes", "the store closed the connection without an answer"),
        ("hangs", "it took longer than 0.5 s"),
        ("speaks otherwise", "the store answered 500"),
        ("forbids", "the store answered 403"),
        ("garbles", "the store answered 400"),
        ("redirects", "the store answered 307"),
    ],
)
async def test_a_broken_upload_fails_the_job_and_tells_no_secret(store: str, fault: str, reason: str) -> None:
    async with Proxy(store) as proxy, running(Speak, callers_timeout_s=0.5 if fault == "hangs" else 20) as service:
        proxy.fault = fault
        with structlog.testing.capture_logs() as logs:
            shown = await ask(service, "abc", 3000, destination(proxy.url))
        assert shown["status"] == "FAILED"
        assert shown["error"].startswith(f"the output could not be stored in the bucket 'outputs': {reason}")
        assert SECRET not in f"{shown} {logs}"
        assert proxy.uploads <= 4


async def test_a_connection_that_breaks_once_is_tried_again(store: str) -> None:
    async with Proxy(store) as proxy, running(Speak) as service:
        proxy.fault = "closes once"
        output = (await ask(service, "abc", 30, destination(proxy.url)))["output"]
        assert "audio_url" in output
        assert proxy.uploads == 2


async def test_a_cancelled_job_ends_at_once_and_stops_its_upload(store: str) -> None:
    async with Proxy(store) as proxy, running(Speak) as service:
        proxy.fault = "hangs"
        job = service.submit(JobRequest(input={"text": "a"}, destination=destination(proxy.url)))
        async with asyncio.timeout(LIMIT_S):
            await proxy.arrived.wait()
        service.cancel(job.id, ANYONE)
        assert job.status.value == "CANCELLED"
        async with asyncio.timeout(LIMIT_S):
            await proxy.left.wait()


async def test_a_proxy_of_ours_never_stands_before_a_callers_store(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with running(Speak) as service:
        assert "audio_url" in (await ask(service, "abc", 30, destination(store)))["output"]


async def test_an_endpoint_whose_name_turns_out_private_is_not_connected(store: str) -> None:
    async with running(Speak, allow=["localhost.:1"], resolver=Private()) as service:
        # A name passes at submission; what it resolves to does not.
        to = destination(store.replace("127.0.0.1", "private.test"))
        shown = await ask(service, "abc", 30, to)
        assert shown["error"].endswith("resolves to a private address")


class Private(aiohttp.abc.AbstractResolver):
    """Every name is this machine."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[aiohttp.abc.ResolveResult]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 6, "flags": 4}]

    async def close(self) -> None:
        """Nothing is open."""
