"""From what a handler gave to JSON with its files beside it."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import attrs
import msgspec
import pytest

from aiservices.handler import output_file
from aiservices.jobs import OutputFile
from aiservices.outputs import file_fields
from aiservices.outputs.encoding import SMALL_CHARACTERS, SMALL_VALUES, encode_output, is_small
from tests.fakes import TextOutput
from tests.outputs.samples import Sound


@attrs.frozen
class Pages:
    """Two files, one of which may be missing, with a media type each."""

    front: Annotated[bytes, output_file("The first page.", media_type_field="front_type")]
    front_type: str
    back: Annotated[bytes, output_file("The second page.", media_type_field="back_type")] = b""
    back_type: str | None = None


class Plain(msgspec.Struct):
    """Not an attrs class."""

    values: list[int]


def test_the_fields_that_hold_files_are_those_that_are_marked() -> None:
    assert file_fields(Sound) == (("audio", "media_type"),)
    assert file_fields(Pages) == (("front", "front_type"), ("back", "back_type"))
    assert file_fields(TextOutput) == file_fields(dict) == ()


def test_a_file_stays_the_very_bytes_that_the_handler_gave() -> None:
    made = encode_output(Sound(data := bytes(1000), "audio/wav", "a"))
    assert made.files == (OutputFile("audio", "audio/wav", data),)
    assert made.files[0].data is data
    assert msgspec.json.decode(made.fields) == {"media_type": "audio/wav", "text": "a"}


def test_a_file_that_is_not_there_is_left_out_and_one_without_a_type_has_the_general_one() -> None:
    assert [(file.name, file.media_type) for file in encode_output(Pages(b"1", "image/png")).files] == [
        ("front", "image/png")
    ]
    assert [file.media_type for file in encode_output(Pages(b"1", "image/png", b"2")).files] == [
        "image/png",
        "application/octet-stream",
    ]


@pytest.mark.parametrize("data", ["UklGRg==", bytearray(b"RIFF")], ids=["base64", "bytearray"])
def test_a_file_that_is_not_bytes_is_an_error_of_its_handler(data: Any) -> None:
    with pytest.raises(TypeError, match=r"^Sound\.audio: expected bytes, got (str|bytearray)$"):
        encode_output(Sound(data, "audio/wav", "a"))


def test_the_whole_is_json_with_base64_in_place_of_files() -> None:
    made = encode_output(Pages(b"1" * 100, "image/png", b"2", "image/gif"))
    expected = {
        "front": base64.b64encode(b"1" * 100).decode(),
        "front_type": "image/png",
        "back": "Mg==",
        "back_type": "image/gif",
    }
    assert msgspec.json.decode(made.as_json()) == made.as_dict() == expected
    assert abs(made.size_bytes - len(made.as_json())) < 32


def test_the_size_of_an_answer_is_known_before_it_is_encoded() -> None:
    assert encode_output(Sound(bytes(3000), "audio/wav", "a")).size_bytes > 4000


@attrs.frozen
class Parts:
    zeta: int
    alpha: list[TextOutput]
    usage: TextOutput


def test_fields_come_in_the_order_of_their_class() -> None:
    made = encode_output(Parts(1, [TextOutput("b")], TextOutput("c")))
    assert made.fields == b'{"zeta":1,"alpha":[{"text":"b"}],"usage":{"text":"c"}}'


NESTED: dict[str, Any] = {"a": [{"b": ["c"] * SMALL_VALUES}]}


@pytest.mark.parametrize(
    ("output", "small"),
    [
        (TextOutput("a"), True),
        (TextOutput("x" * SMALL_CHARACTERS), True),
        (TextOutput("x" * (SMALL_CHARACTERS + 1)), False),
        (["x" * SMALL_CHARACTERS, "x"], False),
        ([0] * SMALL_VALUES, False),
        (set(range(SMALL_VALUES)), False),
        (NESTED, False),
        (Plain([0] * 10), True),
        (Plain([0] * SMALL_VALUES), False),
        ({"x" * 10: None}, True),
        ({"x" * (SMALL_CHARACTERS + 1): None}, False),
    ],
    ids=[*"abcdefghijk"],
)
def test_an_output_is_small_by_its_values_and_its_texts(output: Any, small: bool) -> None:
    assert is_small(output) is small


def test_whether_it_is_small_is_found_out_without_looking_at_all_of_it() -> None:
    class Counted(list[int]):
        looked = 0

        def __getitem__(self, index: Any) -> Any:
            Counted.looked += 1
            return super().__getitem__(index)

        def __iter__(self) -> Any:
            for value in super().__iter__():
                Counted.looked += 1
                yield value

    assert not is_small([Counted(range(1_000_000))])
    assert Counted.looked <= SMALL_VALUES
