"""``data:`` URLs."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Literal
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiservices.errors import FetchError
from aiservices.fetch import Fetcher, Refused
from aiservices.settings import FetchConfig
from tests.fetch.helpers import (
    PNG,
    WAV,
    fetching,
    reason_of,
)


def data_url(data: bytes, form: Literal["base64", "percent"], media_type: str = "image/png") -> str:
    if form == "base64":
        return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return f"data:{media_type},{quote_from_bytes(data)}"


@pytest.mark.parametrize(
    "url",
    [
        data_url(PNG, "base64"),
        data_url(PNG, "percent"),
        data_url(PNG, "base64", "text/html;charset=utf-8"),
        "DATA:;BASE64," + base64.b64encode(PNG).decode(),
        "data:;base64," + base64.b64encode(PNG).decode().replace("=", "%3D").replace("A", "%41"),
        "data:," + "".join(f"%{byte:02x}" for byte in PNG),
    ],
)
async def test_a_data_url_is_decoded(url: str) -> None:
    async with fetching() as fetcher:
        assert await fetcher.fetch(url, field="$.image_url", kind="image") == PNG


@given(st.binary(max_size=300), st.sampled_from(["base64", "percent"]))
def test_a_data_url_gives_the_bytes_that_went_in(data: bytes, form: Literal["base64", "percent"]) -> None:
    async def check() -> None:
        fetcher = Fetcher(FetchConfig())
        url = data_url(PNG + data, form)
        assert await fetcher.fetch(url, field="$.image_url", kind="image") == PNG + data

    asyncio.run(check())


@pytest.mark.parametrize("form", ["base64", "percent"])
async def test_a_large_data_url_is_decoded_off_the_loop(form: Literal["base64", "percent"]) -> None:
    data = PNG + bytes(range(256)) * 1200 + b"%" * 70_000
    with ThreadPoolExecutor(1) as pool:
        async with fetching(pool=pool) as fetcher:
            assert await fetcher.fetch(data_url(data, form), field="$.image_url", kind="image") == data
        assert pool._threads, "the given pool had to do it"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:", "without a comma"),
        ("data:image/png;base64", "without a comma"),
        ("data:" + "a" * 300 + ",AAAA", "without a comma"),
        ("data:,", "is empty"),
        ("data:;base64,", "is empty"),
        ("data:;base64,AAA", "not valid base64"),
        ("data:;base64,AAAAA", "not valid base64"),
        ("data:;base64,AA=A", "not valid base64"),
        ("data:;base64,====", "not valid base64"),
        ("data:;base64,AA==AAAA", "not valid base64"),
        ("data:;base64,AA-_", "not valid base64"),
        ("data:;base64,AAAA-_-_", "not valid base64"),
        ("data:;base64,AA%20A", "not valid base64"),
        ("data:;base64,AAAA%0A%0A%0A%0A", "not valid base64"),
        ("data:;base64,AAAA AAAA", "characters that a URL may not hold"),
        ("data:;base64,AAAA\n", "characters that a URL may not hold"),
        ("data:;base64,AAAÄ", "characters that a URL may not hold"),
        ("data:;base64,AAA\ud800", "characters that a URL may not hold"),
        ("data:;base64,AAA#", "characters that a URL may not hold"),
        ("data:,%", "characters that a URL may not hold"),
        ("data:,%4", "characters that a URL may not hold"),
        ("data:,%zz", "characters that a URL may not hold"),
        ("data:,a b", "characters that a URL may not hold"),
        ("data:,<svg>", "characters that a URL may not hold"),
        ("data:,hello", "is text/plain, not a picture"),
        (data_url(WAV, "base64"), "is audio/wav, not a picture"),
        (" data:,a", "a space"),
    ],
)
async def test_a_wrong_data_url_is_named(url: str, reason: str) -> None:
    async with fetching() as fetcher:
        assert reason in await reason_of(fetcher, url, error=Refused if url[0] == " " else FetchError)


@pytest.mark.parametrize("form", ["base64", "percent"])
@pytest.mark.parametrize("surplus", [1, 2, 3, 10_000, 300_000])
async def test_a_data_url_that_is_too_large_is_refused(form: Literal["base64", "percent"], surplus: int) -> None:
    config = FetchConfig(max_bytes=len(PNG))
    async with fetching(config) as fetcher:
        assert await fetcher.fetch(data_url(PNG, form), field="$.image_url", kind="image") == PNG
        reason = await reason_of(fetcher, data_url(PNG + bytes(surplus), form))
    assert reason == f"is larger than {len(PNG)} bytes"


@pytest.mark.parametrize("url", ["data:," + "%" * 1000, "data:;base64," + "-" * 300, "data:;base64," + "%" * 1000])
async def test_the_size_of_a_data_url_is_bounded_before_it_is_decoded(url: str) -> None:
    async with fetching(FetchConfig(max_bytes=len(PNG))) as fetcher:
        assert await reason_of(fetcher, url) == f"is larger than {len(PNG)} bytes"


async def test_base64_padding_may_not_hide_in_the_middle_of_a_long_text() -> None:
    piece = base64.b64encode(PNG[:1] + bytes(49_150)).decode()
    assert len(piece) == 65_536
    text = piece[:-4] + "AA==" + piece
    async with fetching() as fetcher:
        assert "not valid base64" in await reason_of(fetcher, "data:;base64," + text)
