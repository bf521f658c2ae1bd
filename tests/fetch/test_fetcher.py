"""Bounds of the whole: slots, cancelling, start and close, and what is logged."""

from __future__ import annotations

import asyncio
import json

import attrs
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from aiservices.fetch import Fetcher, Refused
from aiservices.trace import Trace
from tests.fetch.helpers import (
    LOOPBACK,
    OK,
    PNG,
    SECRET,
    Names,
    Serve,
    answering,
    fetching,
    reason_of,
    until_closed,
    writing,
)


async def test_no_more_downloads_run_at_once_than_configured(serve: Serve) -> None:
    running = peak = 0
    two_run, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        nonlocal running, peak
        if request.path == "/of-another-client":
            return web.Response(body=PNG)
        running += 1
        peak = max(peak, running)
        if running == 2:
            two_run.set()
        await go_on.wait()
        running -= 1
        return web.Response(body=PNG)

    url = str(await serve(answer))
    async with fetching(attrs.evolve(LOOPBACK, max_concurrency=2)) as fetcher, fetching(LOOPBACK) as other:
        downloads = [asyncio.create_task(fetcher.fetch(url, field="$.image_url", kind="image")) for _ in range(6)]
        await two_run.wait()
        # Were there a third one, it would have come before what was sent after it.
        await other.fetch(f"{url}of-another-client", field="$.image_url", kind="image")
        go_on.set()
        assert await asyncio.gather(*downloads) == [PNG] * 6
    assert peak == 2


@pytest.mark.parametrize("parts", [(), (OK + b"Content-Length: 1000\r\n\r\n" + PNG,)])
async def test_a_cancelled_download_closes_its_connection_and_frees_its_slot(
    serve_raw: Serve, parts: tuple[bytes, ...]
) -> None:
    connected, closed = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writing(*parts)(reader, writer)
        connected.set()
        await until_closed(reader, writer)
        closed.set()

    url = await serve_raw(answer)
    async with fetching(attrs.evolve(LOOPBACK, max_concurrency=1)) as fetcher:
        for _ in range(2):
            download = asyncio.create_task(fetcher.fetch(str(url), field="$.image_url", kind="image"))
            await asyncio.wait_for(connected.wait(), 5)
            download.cancel()
            with pytest.raises(asyncio.CancelledError):
                await download
            await asyncio.wait_for(closed.wait(), 5)
            connected.clear()
            closed.clear()


async def test_closing_ends_running_downloads_as_failed(serve_raw: Serve) -> None:
    asked = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writing()(reader, writer)
        asked.set()
        await until_closed(reader, writer)

    url = await serve_raw(answer)
    async with fetching(LOOPBACK) as fetcher:
        download = asyncio.create_task(reason_of(fetcher, url))
        await asked.wait()
        await fetcher.close()
        assert await asyncio.wait_for(download, 5)
        assert "not running" in await reason_of(fetcher, url)


async def test_start_and_close_may_be_repeated(serve: Serve) -> None:
    url = await serve(answering(PNG))
    fetcher = Fetcher(LOOPBACK)
    await fetcher.close()
    for _ in range(2):
        await fetcher.start()
        await fetcher.start()
        assert await fetcher.fetch(str(url), field="$.image_url", kind="image") == PNG
        await fetcher.close()
        await fetcher.close()


async def test_neither_log_nor_error_holds_the_secret_of_a_presigned_url(serve: Serve) -> None:
    good = await serve(answering(PNG))
    bad = await serve(answering(b"no", status=403))
    async with fetching(LOOPBACK, Names({"inside.test": [["10.0.0.1"]]})) as fetcher:
        with capture_logs() as logs:
            await fetcher.fetch(f"{good}private.png?{SECRET}", field="$.image_url", kind="image")
            reasons = [await reason_of(fetcher, f"{bad}private.png?{SECRET}")]
            reasons.append(await reason_of(fetcher, f"http://inside.test/private.png?{SECRET}", error=Refused))
    assert [entry["event"] for entry in logs] == ["fetch.done", "fetch.failed", "fetch.refused"]
    assert [entry["host"] for entry in logs] == ["127.0.0.1", "127.0.0.1", "inside.test"]
    written = json.dumps([logs, reasons])
    assert "5ec2e7" not in written
    assert "private.png" not in written
    assert "10.0.0.1" not in written


async def test_a_download_is_a_child_of_the_jobs_trace(serve: Serve) -> None:
    parents = []

    async def answer(request: web.Request) -> web.Response:
        parents.append(request.headers.get("traceparent"))
        return web.Response(body=PNG)

    url, trace = str(await serve(answer)), Trace("4bf92f3577b34da6a3ce929d0e0e4736")
    async with fetching(LOOPBACK) as fetcher:
        await fetcher.fetch(url, field="$.image_url", kind="image", trace=trace)
        await fetcher.fetch(url, field="$.image_url", kind="image")
    assert [parent and parent.split("-")[1] for parent in parents] == [trace.trace_id, None]
