"""Children may hang, crash and swell: their job ends with a clear error, and the next is served."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aiservices.errors import InvalidInput
from aiservices.sandbox import ChildFunction, Children, Limits
from tests.sandbox import decoders

MEMORY_BYTES = 1 << 30


@asynccontextmanager
async def children(*, processes: int = 1, wall_s: float = 30.0) -> AsyncIterator[Children]:
    some = Children(Limits(processes=processes, wall_s=wall_s, memory_bytes=MEMORY_BYTES))
    try:
        yield some
    finally:
        some.close()


async def test_a_result_comes_back_and_the_child_stays_warm() -> None:
    async with children() as some:
        data = bytes(range(256)) * 40_000
        header, body = await some.run(decoders.reverse, data, field="$.url")
        again, _ = await some.run(decoders.reverse, b"ab", field="$.url")
    assert bytes(body) == data[::-1]
    assert header["field"] == "$.url"
    assert again["pid"] == header["pid"] != os.getpid()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (decoders.refuse, "is not nice"),
        (decoders.crash, "crashed the decoder"),
        (decoders.swell, "takes too much memory to decode"),
        (decoders.be_killed, "takes too much memory to decode"),
        (decoders.talk_nonsense, "crashed the decoder"),
    ],
)
async def test_what_goes_wrong_names_the_field_and_the_next_is_served(function: ChildFunction, reason: str) -> None:
    async with children() as some:
        with pytest.raises(InvalidInput) as caught:
            await some.run(function, b"", field="$.url")
        assert (caught.value.field, caught.value.reason) == ("$.url", reason)
        assert (await some.run(decoders.reverse, b"ab", field="$.url"))[1] == b"ba"


async def test_a_fault_of_the_decoder_is_not_the_callers() -> None:
    async with children() as some:
        with pytest.raises(RuntimeError, match="KeyError: 'odd'"):
            await some.run(decoders.fail, b"", field="$.url")


async def test_what_takes_too_long_is_killed() -> None:
    async with children(wall_s=0.3) as some:
        with pytest.raises(InvalidInput, match=r"\$\.url: could not be decoded within 0.3 s"):
            await some.run(decoders.sleep, b"", field="$.url")
        assert not some._alive


async def test_the_end_of_a_job_ends_its_decoder_and_frees_its_place() -> None:
    async with children() as some:
        pid = (await some.run(decoders.reverse, b"", field="$.url"))[0]["pid"]
        work = asyncio.create_task(some.run(decoders.sleep, b"", field="$.url"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not some._idle  # it is at work
        work.cancel()
        begun = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await work
        header, body = await some.run(decoders.reverse, b"ab", field="$.url")
        assert body == b"ba"
        assert header["pid"] != pid
        assert time.monotonic() - begun < 10


async def test_an_idle_child_that_died_is_replaced() -> None:
    async with children() as some:
        pid = (await some.run(decoders.reverse, b"", field="$.url"))[0]["pid"]
        os.kill(pid, 9)
        await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert (await some.run(decoders.reverse, b"ab", field="$.url"))[1] == b"ba"


async def test_a_child_is_confined_and_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AISERVICES_SERVER_API_KEYS", "secret")
    async with children() as some:
        seen, _ = await some.run(decoders.look_around, b"", field="$.url")
    assert "AISERVICES_SERVER_API_KEYS" not in seen["environment"]
    assert (seen["files"], seen["cores"], seen["memory"], seen["torch"]) == (0, 0, MEMORY_BYTES, False)
    assert len(seen["descriptors"]) <= 4  # its socket, two of /dev/null, and the folder that is listed


async def test_what_libraries_print_stays_in_the_child(capfd: pytest.CaptureFixture[str]) -> None:
    async with children() as some:
        assert await some.run(decoders.warn, b"", field="$.url") == ({}, bytearray())
    assert tuple(capfd.readouterr()) == ("", "")


async def test_more_work_than_children_waits_its_turn() -> None:
    async with children(processes=2) as some:
        answers = await asyncio.gather(*(some.run(decoders.reverse, b"%d" % n, field="$.u") for n in range(6)))
    assert [bytes(body) for _, body in answers] == [b"%d" % n for n in range(6)]
    assert len({header["pid"] for header, _ in answers}) <= 2


async def test_no_child_outlives_the_service() -> None:
    async with children() as some:
        pid = (await some.run(decoders.reverse, b"", field="$.url"))[0]["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
