"""Import chatterbox-tts, quietly and behind the guards that it needs."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs

from aiservices.errors import ServiceError
from aiservices.handlers.torch_runtime import import_lock

GPT2_SMALL: Mapping[str, int] = {"n_embd": 768, "hidden_size": 768, "n_layer": 12, "n_head": 12}
"""In what Nano's backbone differs from Turbo's; chatterbox-tts 0.1.7 came out before Nano and does not know it."""


@attrs.frozen(eq=False)
class Library:
    """The parts of chatterbox-tts that are used; typed as anything because it says nothing of types.

    Attributes:
        english: ``chatterbox.tts``: modules, ``T3Cond`` and the English text's punctuation.
        multilingual: ``chatterbox.mtl_tts``: languages and their texts' punctuation.
        turbo: ``chatterbox.tts_turbo``: Turbo's punctuation, found by the name of the variant's family.
        tokenizers: ``chatterbox.models.tokenizers.tokenizer``.
        t3_config: ``chatterbox.models.t3.modules.t3_config``.
        backbones: ``chatterbox.models.t3.llama_configs``: sizes of T3's transformers by name.
        perth: the watermark's package.
    """

    english: Any
    multilingual: Any
    turbo: Any
    tokenizers: Any
    t3_config: Any
    backbones: Any
    perth: Any


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the deprecation warnings of a dozen libraries that are not ours to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_library() -> Library:
    """Import what is needed of the library; call :func:`.torch_runtime.prepare_torch` before.

    Raises:
        ServiceError: a package is missing; the text names it.
    """
    names = {
        "perth": "perth",
        "english": "chatterbox.tts",
        "multilingual": "chatterbox.mtl_tts",
        "turbo": "chatterbox.tts_turbo",
        "tokenizers": "chatterbox.models.tokenizers.tokenizer",
        "t3_config": "chatterbox.models.t3.modules.t3_config",
        "backbones": "chatterbox.models.t3.llama_configs",
    }
    try:
        with import_lock, quiet():
            library = Library(**{part: importlib.import_module(name) for part, name in names.items()})
    except ImportError as error:
        raise ServiceError(
            f"the chatterbox extra is not installed whole ({error}): scripts/install chatterbox"
        ) from None
    if library.perth.PerthImplicitWatermarker is None:
        raise ServiceError("the watermark cannot be loaded, it needs pkg_resources: pip install 'setuptools<82'")
    add_backbones(library.backbones.LLAMA_CONFIGS)
    return library


def add_backbones(configs: dict[str, Any]) -> None:
    """Let the library know the sizes that it lacks; what a newer one says itself stands."""
    configs.setdefault("GPT2_small", configs["GPT2_medium"] | GPT2_SMALL)
