from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aiservices.jobs.stream import StreamBuffer, wire_bytes


@pytest.mark.parametrize(
    "chunk",
    [
        "",
        "a word",
        "ä" * 50,
        7,
        1.5,
        None,
        [1, 2, 3],
        {"a": {"b": []}},
        {"part": 1, "audio": b"\0" * 5000, "text": "word"},
    ],
)
def test_the_estimate_is_near_the_size_on_the_wire(chunk: Any) -> None:
    real = len(msgspec.json.encode(chunk))
    assert real / 2 <= wire_bytes(chunk) <= 2 * real + 32


def test_the_oldest_chunks_give_way_and_are_counted() -> None:
    stream = StreamBuffer(40)
    for number in range(10):
        stream.append(f"chunk {number}!")
    assert stream.size_bytes <= 40
    assert stream.dropped == 6
    assert stream.drain() == ["chunk 6!", "chunk 7!", "chunk 8!", "chunk 9!"]
    assert (len(stream), stream.size_bytes) == (0, 0)


def test_one_chunk_is_kept_however_large() -> None:
    stream = StreamBuffer(10)
    stream.append("a" * 100)
    assert stream.drain() == ["a" * 100]
