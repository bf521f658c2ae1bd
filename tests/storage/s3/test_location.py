from __future__ import annotations

import pytest

from aiservices.errors import ServiceError
from aiservices.storage.s3.location import Location, parse, select_files


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("s3://models", ("models", "", (), ())),
        ("s3://models/", ("models", "", (), ())),
        ("s3://models/a/b/", ("models", "a/b", (), ())),
        ("s3://models/a?files=*.json,x*&exclude=*.md", ("models", "a", ("*.json", "x*"), ("*.md",))),
    ],
)
def test_a_uri_names_bucket_prefix_and_patterns(uri: str, location: tuple[object, ...]) -> None:
    found = parse(uri)
    assert (found.bucket, found.prefix, found.files, found.exclude) == location


@pytest.mark.parametrize("uri", ["s3://UP_", "s3:///x", "s3://b/x?flies=a", "s3://b/a/../b", "s3://b//a"])
def test_an_invalid_uri_is_refused(uri: str) -> None:
    with pytest.raises(ServiceError, match=r"expected s3://bucket/prefix/, and \?files=a,b&exclude=c if not all of it"):
        parse(uri)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", ["a.safetensors", "a.json", "sub/b.bin", "sub/c.json"]),
        ("?files=*.bin", ["a.bin", "sub/b.bin"]),
        ("?exclude=*.json,*.safetensors", ["a.bin", "sub/b.bin"]),
        ("?files=sub/*", ["sub/b.bin", "sub/c.json"]),
    ],
)
def test_patterns_select_files_and_safetensors_are_preferred_to_bin(query: str, wanted: list[str]) -> None:
    paths = ["a.safetensors", "a.bin", "a.json", "a.bin.index.json", "sub/b.bin", "sub/c.json"]
    found = select_files(parse(f"s3://models/x/{query}"), paths)
    assert [path for path in found if path != "a.bin.index.json"] == wanted


def test_the_name_of_a_location_has_no_patterns() -> None:
    assert Location("s3://b/p?files=x", "b", "p", ("x",)).name == "s3://b/p/"
