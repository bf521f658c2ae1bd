"""What stays in the answer and what leaves for a bucket. No bucket is asked."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from aiservices.errors import InvalidInput, JobFailed
from aiservices.fetch import Fetcher
from aiservices.jobs import Destination, JobOutput, JobRequest
from aiservices.outputs import OutputStore, Packed
from aiservices.outputs.encoding import SMALL_CHARACTERS
from aiservices.outputs.store import LIGHT_BYTES
from aiservices.settings import OutputsConfig, S3Config
from tests.fakes import NoNetwork, TextInput
from tests.outputs.samples import BUCKET, Sound, Speak, Write, ask, destination, running

OWN = destination("https://store.example")


def make_store(**settings: Any) -> OutputStore:
    return OutputStore(OutputsConfig(**settings), S3Config(), cast(Fetcher, NoNetwork()))


def pack(output: Any, to: Destination | None = None, **settings: Any) -> JobOutput | Packed:
    return make_store(**settings).pack(output, to)


def test_without_a_bucket_everything_stays() -> None:
    packed = pack(Sound(data := bytes(5000), "audio/wav", "a"), max_inline_bytes=10)
    assert isinstance(packed, JobOutput)
    assert packed.files[0].data is data, "the very bytes, neither copied nor encoded"


@pytest.mark.parametrize(("size_bytes", "stays"), [(750, True), (850, False)])
def test_what_is_longer_as_base64_than_the_bound_leaves(size_bytes: int, stays: bool) -> None:
    packed = pack(Sound(data := bytes(size_bytes), "audio/wav", "a"), bucket=BUCKET, max_inline_bytes=1100)
    if stays:
        assert isinstance(packed, JobOutput)
        return
    assert isinstance(packed, Packed)
    assert [(file.name, file.media_type, file.data) for file in packed.leaves] == [("audio", "audio/wav", data)]
    assert packed.leaves[0].data is data
    assert packed.stays.as_dict() == {"media_type": "audio/wav", "text": "a"}


def test_a_bucket_of_the_jobs_own_takes_every_file() -> None:
    packed = pack(Sound(b"a", "audio/wav", "a"), OWN)
    assert isinstance(packed, Packed)
    assert [file.name for file in packed.leaves] == ["audio"]


def test_an_answer_without_a_file_leaves_as_a_whole_where_it_is_long() -> None:
    assert isinstance(pack(TextInput("x" * 100), OWN), JobOutput)
    packed = pack(TextInput("x" * 5000), OWN, max_inline_bytes=1000)
    assert isinstance(packed, Packed)
    (whole,) = packed.leaves
    assert (whole.name, whole.media_type) == ("output", "application/json")
    assert msgspec.json.decode(whole.data) == {"text": "x" * 5000, "count": 3}
    assert packed.stays.as_dict() == {}


@pytest.mark.parametrize("output", [Sound(bytes(800), "audio/wav", "a"), TextInput("x" * 1000)], ids=["file", "text"])
def test_an_output_above_the_bound_names_the_setting(output: Any) -> None:
    with pytest.raises(JobFailed, match=r"bytes, more than the 1000 of max_output_bytes; a bucket takes it \("):
        pack(output, max_output_bytes=1000)
    pack(output, OWN, max_output_bytes=1000)
    pack(output, bucket=BUCKET, max_output_bytes=1000)
    pack(output, max_output_bytes=2000)


async def test_an_output_above_the_bound_fails_its_job_alone() -> None:
    async with running(Speak, max_output_bytes=1000) as service:
        large, small = await asyncio.gather(ask(service, "abc", 3000), ask(service, "abc", 30))
        assert large["status"] == "FAILED"
        assert "more than the 1000 of max_output_bytes" in large["error"]
        assert "output" not in large
        assert small["status"] == "COMPLETED"
    async with running(Write, max_output_bytes=1000) as service:
        assert "more than the 1000 of max_output_bytes" in (await ask(service, "t", 3000))["error"]


async def test_without_a_bucket_a_job_is_answered_with_all_of_it() -> None:
    async with running(Speak, max_inline_bytes=10) as service:
        assert len((await ask(service, "abc", 3000))["output"]["audio"]) == 4000


@pytest.mark.parametrize(
    ("output", "to", "light"),
    [
        (TextInput("a"), None, True),
        (TextInput("a"), OWN, False),
        (TextInput("x" * 100_000), None, False),
        (Sound(b"a", "audio/wav", "a"), None, False),
    ],
    ids=["small", "own bucket", "large", "file"],
)
def test_only_a_small_output_without_a_file_is_light(output: Any, to: Destination | None, light: bool) -> None:
    assert (make_store().pack_light(output, to) is not None) is light


def test_an_output_that_might_leave_is_not_light() -> None:
    assert make_store(bucket=BUCKET).pack_light(TextInput("a"), None)
    assert make_store(bucket=BUCKET, max_inline_bytes=1000).pack_light(TextInput("x" * 5000), None) is None
    longest = TextInput("\0" * SMALL_CHARACTERS)  # six bytes each
    assert len(msgspec.json.encode(longest)) < LIGHT_BYTES
    assert make_store(bucket=BUCKET, max_inline_bytes=LIGHT_BYTES).pack_light(longest, None)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000", "http://169.254.169.254", "ftp://a.example", "nonsense"])
async def test_a_forbidden_endpoint_is_refused_at_submission(url: str) -> None:
    async with running(Speak, allow=()) as service:
        with pytest.raises(InvalidInput, match=r"^\$\.s3Config\.endpointUrl: "):
            service.submit(JobRequest(input={"text": "a"}, destination=destination(url)))


def test_a_destination_shows_no_keys() -> None:
    assert OWN.access_secret not in repr(OWN)
