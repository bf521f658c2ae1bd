"""The free ``options`` table of a service."""

from __future__ import annotations

from typing import Annotated, Any

import attrs
import pytest
from msgspec import Meta

from aiservices.errors import ConfigError
from aiservices.handlers.text.options import GenerationOptions
from aiservices.options import read_options


@attrs.frozen
class _Options(GenerationOptions):
    words: Annotated[list[str], Meta(min_length=1)] = attrs.Factory(lambda: ["a"])


def test_options_are_read_into_the_class() -> None:
    assert read_options(_Options, {}) == _Options()
    assert read_options(_Options, {"dtype": "float32", "cpu_threads": 3, "words": ["b"]}).words == ["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_token": 5}, r"options\.max_new_token: no such option; did you mean 'max_new_tokens'\?"),
        ({"zzz": 1}, r"options\.zzz: no such option; there are: attn_implementation, cache_gib"),
        ({"cpu_threads": 0}, r"options\.cpu_threads: Expected `int` >= 1"),
        ({"cpu_threads": "2"}, r"options\.cpu_threads: Expected `int`, got `str`"),
        ({"dtype": "float64"}, r"options\.dtype: Invalid enum value 'float64'; there are: auto, float32, bf"),
        ({"words": ["a", 1]}, r"options\.words\[1\]: Expected `str`, got `int`"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_options(_Options, options)
