"""Damages files: bytes and runs of them are changed, left out, repeated and taken from other files."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

MAX_BYTES = 1 << 20
"""Of what is made."""

_ORDERS: Sequence[tuple[int, Literal["big", "little"]]] = (
    (1, "big"), (2, "big"), (2, "little"), (4, "big"), (4, "little"), (8, "little"),
)  # fmt: skip
_NASTY = tuple(
    number.to_bytes(size, order, signed=True)
    for size, order in _ORDERS
    for number in (0, 1, -1, 2 ** (8 * size - 1) - 1, -(2 ** (8 * size - 1)), 2 ** (8 * size - 2))
)
"""What lengths, sizes and offsets are at their ends."""

_WORDS = (
    b"null", b"true", b"1e999", b"-0", b"9" * 400, b'"\\ud800"', b"\xef\xbb\xbf", b"\x00", b"[" * 200, b'{"":', b",,",
    b'"input":', b"NaN", b"Infinity", b"\xff\xfe", b'\\u0000', b"/*", b"1.7976931348623159e308", b"9" * 20,
)  # fmt: skip
"""What is hard to read as JSON."""

_VALUES: Sequence[Any] = (
    None, True, 0, -1, 2**63, -(2**63), 0.5, -0.0, 1e308, "", " ", "\x00", "\ud800", "a" * 70_000, "https://[::1]/", [],
    {}, [[]], {"": None}, ["a"] * 300, {"input": {}},
)  # fmt: skip
"""What may stand where something else should."""

Mutation = Callable[[bytearray, bytes, random.Random], None]


def mutate(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Return a file with some damage, a little mostly.

    Args:
        data: the file.
        other: another one, to take pieces of.
        chance: decides what and where.
    """
    made = bytearray(data)
    for _ in range(min(16, int(chance.paretovariate(1.0)))):
        chance.choice(_MUTATIONS)(made, other, chance)
    return bytes(made[:MAX_BYTES])


def mutate_json(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Return a body with another value somewhere, or damage as of any file where it is none."""
    try:
        document = json.loads(data)
    except ValueError:
        return mutate(data, other, chance)
    for _ in range(chance.randint(1, 3)):
        _put_value(document, chance)
    return json.dumps(document).encode()


def _put_value(document: Any, chance: random.Random) -> None:
    while isinstance(document, dict) and document:
        place = chance.choice([*document])
        if not isinstance(document[place], dict) or chance.random() < 0.2:
            name = place if chance.random() < 0.9 else f"{place}x"
            document[name] = copy.deepcopy(chance.choice(_VALUES))
            return
        document = document[place]


def _span(data: Sequence[int], chance: random.Random) -> slice:
    """A piece of it, mostly a short one."""
    begin = chance.randrange(len(data) + 1)
    return slice(begin, begin + min(len(data), int(chance.paretovariate(0.5))))


def _flip(data: bytearray, other: bytes, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set(data: bytearray, other: bytes, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.randrange(256)


def _put_nasty(data: bytearray, other: bytes, chance: random.Random) -> None:
    value = chance.choice(_NASTY)
    begin = chance.randrange(len(data) + 1)
    data[begin : begin + len(value)] = value


def _put_word(data: bytearray, other: bytes, chance: random.Random) -> None:
    data[_span(data, chance) if chance.random() < 0.5 else slice(len(data) // 2, len(data) // 2)] = chance.choice(
        _WORDS
    )


def _leave_out(data: bytearray, other: bytes, chance: random.Random) -> None:
    del data[_span(data, chance)]


def _repeat(data: bytearray, other: bytes, chance: random.Random) -> None:
    span = _span(data, chance)
    times = min(int(chance.paretovariate(0.5)), MAX_BYTES // max(1, len(data[span])))
    data[span.start : span.start] = data[span] * times


def _take_from_other(data: bytearray, other: bytes, chance: random.Random) -> None:
    data[_span(data, chance)] = other[_span(other, chance)]


def _continue_as_other(data: bytearray, other: bytes, chance: random.Random) -> None:
    data[chance.randrange(len(data) + 1) :] = other[chance.randrange(len(other) + 1) :]


def _cut_short(data: bytearray, other: bytes, chance: random.Random) -> None:
    del data[chance.randrange(len(data) + 1) :]


_MUTATIONS: Sequence[Mutation] = (
    _flip, _flip, _set, _set, _put_nasty, _put_nasty, _put_word, _leave_out, _repeat, _take_from_other,
    _continue_as_other, _cut_short,
)  # fmt: skip
