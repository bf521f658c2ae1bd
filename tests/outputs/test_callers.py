"""A store that a caller named and that means no good."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from aiservices.callers import ANYONE
from aiservices.errors import JobFailed
from aiservices.fetch import Fetcher
from aiservices.jobs import Job, JobRequest, OutputFile
from aiservices.outputs.callers import CallersBuckets
from aiservices.service import Service
from aiservices.settings import FetchConfig, OutputsConfig
from tests.fakes import NoNetwork
from tests.outputs.samples import LIMIT_S, Speak, ask, destination, running

pytest.importorskip("botocore", reason="pip install aioboto3 (the s3 extra)")

pytestmark = [pytest.mark.s3, pytest.mark.filterwarnings("ignore:.*utcnow.*:DeprecationWarning")]

FILE = OutputFile("audio", "audio/wav", b"12345")
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def store_that(talks: Talk) -> AsyncIterator[str]:
    """Listen on loopback and talk as told; its URL."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talks(reader, writer)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(65536))

    async with store_that(hear) as inside:

        async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status} Moved\r\nLocation: {inside}/\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()

        async with store_that(redirect) as url, running(Speak, allow=(url[7:],)) as service:
            shown = await ask(service, "abc", 30, destination(url))
    assert shown["error"].endswith(f"the store answered {status}")
    assert heard == []


async def test_an_endless_answer_is_not_read() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with store_that(endless) as url, running(Speak) as service:
        assert (await ask(service, "abc", 30, destination(url)))["status"] == "COMPLETED"
    assert sent < 64 * 1024 * 1024, "what fits into the sockets' buffers"


async def test_the_words_of_a_store_are_not_told() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b"<Error><Code>Inside</Code></Error>"
        writer.write(b"HTTP/1.1 403 Inside\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    async with store_that(talk) as url, running(Speak) as service:
        shown = await ask(service, "abc", 30, destination(url))
    assert shown["error"] == "the output could not be stored in the bucket 'outputs': the store answered 403"


def submit(service: Service, url: str) -> Job:
    return service.submit(JobRequest(input={"text": "a", "count": 9}, destination=destination(url)))


async def test_a_silent_store_holds_neither_the_model_nor_the_slots_of_others(store: str) -> None:
    async with store_that(silent) as url, running(Speak, callers_concurrency=5, callers_per_host=4) as service:
        stuck = [submit(service, url.replace("127.0.0.1", "[::ffff:127.0.0.1]")) for _ in range(60)]
        async with asyncio.timeout(LIMIT_S):
            assert (await ask(service, "a", 9))["status"] == "COMPLETED"
            assert (await ask(service, "a", 9, destination(store)))["status"] == "COMPLETED"
        assert {job.status.value for job in stuck} == {"IN_PROGRESS"}
        for job in stuck:
            service.cancel(job.id, ANYONE)


async def test_an_endpoint_that_cannot_be_signed_is_refused_in_words() -> None:
    buckets = CallersBuckets(OutputsConfig(), Fetcher(FetchConfig()))
    with pytest.raises(JobFailed, match="the store has "):
        await buckets.upload(destination("http://[2001:0:1:1::7f00fffe]"), (FILE,), lambda file: file.name)


class Silent(NoNetwork):
    """Takes everything and answers nothing."""

    async def put(self, *args: object, **named: object) -> int:
        await asyncio.Event().wait()
        return 0


async def test_what_waits_is_bounded_in_bytes_and_one_host_leaves_as_much_as_it_holds() -> None:
    buckets = CallersBuckets(OutputsConfig(callers_max_bytes=20, callers_timeout_s=60), Silent())

    async def upload(host: str) -> None:
        await buckets.upload(destination(f"https://{host}"), (FILE,), lambda file: file.name)

    tasks = [asyncio.create_task(upload("a.test")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(JobFailed, match="callers_max_bytes"):
        await upload("a.test")
    tasks.append(asyncio.create_task(upload("b.test")))
    await asyncio.sleep(0)
    with pytest.raises(JobFailed, match="callers_max_bytes"):
        await upload("b.test")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not buckets._waiting_bytes


async def test_an_endpoint_with_a_query_is_refused() -> None:
    async with running(Speak) as service:
        with pytest.raises(Exception, match=r"\$\.s3Config\.endpointUrl: holds a query"):
            submit(service, "https://store.example/?a=b")
