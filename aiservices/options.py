"""Read the free ``options`` table of a service into the handler's own class."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import attrs

from aiservices.errors import ConfigError

OptionsT = TypeVar("OptionsT")


def read_options(cls: type[OptionsT], options: Mapping[str, Any]) -> OptionsT:
    """Convert an ``options`` table.

    Args:
        cls: an attrs class with a default for every field.
        options: the table as written in ``services.toml``.

    Raises:
        ConfigError: a key is unknown or a value does not fit; the text names the key.
    """
    import msgspec  # here, so that --help need not wait for it

    known = [field.name for field in attrs.fields(cls)]  # type: ignore[arg-type]  # attrs' own bound is no Protocol
    for key in options:
        if key not in known:
            raise ConfigError(_unknown(key, known))
    try:
        return msgspec.convert(dict(options), cls)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        place = ".".join(["options", *filter(None, [path.rstrip("`")])])
        choices = _choices(cls, path.rstrip("`"))
        raise ConfigError(f"{place}: {reason}{choices and f'; there are: {choices}'}") from None


def _choices(cls: type[Any], key: str) -> str:
    """Words that a key may have; nothing for one that may have any."""
    kind = get_type_hints(cls).get(key)
    words: Sequence[Any] = get_args(kind) if get_origin(kind) is Literal else ()
    return ", ".join(map(str, words))


def _unknown(key: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(sorted(known))}"
    return f"options.{key}: no such option; {hint}"
