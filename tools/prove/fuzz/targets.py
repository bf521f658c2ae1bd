"""What reads callers' files and bodies, called as the server calls it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from aiservices.errors import InvalidInput
from aiservices.handlers import echo, mistral, pictures, qwen, reference_clip, speech_contract
from aiservices.inputs import read_input
from aiservices.sandbox import Children
from aiservices.transports.http.body import parse

MAX_PIXELS = 4_000_000
ENOUGH_PIXELS = 100_000
INPUTS = (
    echo.EchoInput,
    mistral.GenerateDescriptionInput,
    qwen.DescribeImageInput,
    speech_contract.TextToSpeechInput,
)
"""Of every service; each of its fields is tried on every body."""

Target = Callable[[bytes, Children], Awaitable[None]]


class OutOfBounds(Exception):
    """What came out is not what may come out."""


async def read_picture(data: bytes, children: Children) -> None:
    """Decode a picture in a child and look at its size."""
    field = "$.image_url"
    size, pixels = await children.run(
        pictures.decode_in_child, data, field=field, max_pixels=MAX_PIXELS, enough_pixels=ENOUGH_PIXELS
    )
    image = pictures.from_child(size, pixels, field=field)
    if image.mode != "RGB" or image.width * image.height > 2 * MAX_PIXELS:
        raise OutOfBounds(f"a picture of {image.width} x {image.height}, {image.mode}")


async def read_sound(data: bytes, children: Children) -> None:
    """Read the clip of a voice in a child and look at its length."""
    sound, samples = await children.run(reference_clip.decode_in_child, data, field=reference_clip.PROMPT_FIELD)
    clip = reference_clip.from_child(sound, samples, data)
    if len(clip.samples) > reference_clip.REFERENCE_MAX_S * clip.sample_rate:
        raise OutOfBounds(f"a clip of {len(clip.samples)} samples at {clip.sample_rate} Hz")


async def read_body(data: bytes, children: Children) -> None:
    """Read the body of ``run``, and its input as each service's."""
    given = parse(data).input
    refusals = []
    for cls in INPUTS:
        try:
            read_input(cls, given)
        except InvalidInput as refused:
            refusals.append(refused)
    if len(refusals) == len(INPUTS):
        raise refusals[0]


TARGETS: dict[str, Target] = {"picture": read_picture, "sound": read_sound, "body": read_body}

CORPORA = Path(__file__).parent / "corpora"
"""Small files of every format that is read, made with Pillow and libsndfile, and those that once were a breach."""


def corpus(name: str) -> list[bytes]:
    """Return the kept files of one target."""
    return [path.read_bytes() for path in sorted((CORPORA / name).iterdir())]
