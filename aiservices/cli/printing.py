"""How commands print: columns for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

SHOWN_CHARACTERS = 60
"""Of a base64 text on a terminal; whoever pipes the output gets all of it."""


def columns(rows: Iterable[Sequence[str]], indent: str = "") -> Iterator[str]:
    """Lay rows of equal length out in columns as wide as their widest cell."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield (indent + "  ".join(cells)).rstrip()


def print_json(value: Any) -> None:
    """Print one JSON document, indented."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def shortened(output: Any, how: str) -> Any:
    """The output without most of its audio, for a terminal; says how to get it whole."""
    if isinstance(output, dict) and isinstance(audio := output.get("audio"), str):
        return {**output, "audio": f"{audio[:SHOWN_CHARACTERS]}… ({len(audio)} characters; {how})"}
    return output


def printable(text: str) -> str:
    """The text in one line and without what would steer a terminal: callers may have written it."""
    return "".join(character if character.isprintable() else " " for character in text)
