"""End a JSON object in time: how many tokens the rest can take, and what to write when they run short.

A grammar alone keeps JSON valid only if it is allowed to finish. Here every string gives way in time for those after
it: it is closed early, and the model goes on with the next one. Nothing is made up: each string keeps at least a few
tokens of the model's own choosing, for which :attr:`JsonPlan.least_tokens` is the smallest budget.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

OWN_TOKENS = {"text": 12, "list": 6}
"""Tokens of the model's own choosing that a string may count on, by kind of field; a choice has its own length."""
_CHARACTER_TOKENS = 3
"""Tokens that complete half a character or an escape, at most: the other bytes of it."""
_ITEM_TOKENS = 3
"""Tokens that one more string in a list takes, at least: separator, quote and content may be one token each."""

CountTokens = Callable[[bytes], int]
"""From bytes to the number of tokens that they take when they are written as they are."""


@attrs.frozen
class Field:
    """One field of a flat object, in the order in which fields are written."""

    name: str
    kind: Literal["text", "list", "choice"]
    choices: tuple[bytes, ...] = ()
    """For a choice: the strings to choose from, as JSON without the quotes."""
    min_items: int = 1
    max_items: int = 1
    """For a list of strings: how many there are."""

    @property
    def opening(self) -> bytes:
        """What stands between the key's first quote and the value's first character."""
        return _quoted(self.name) + (b':["' if self.kind == "list" else b':"')


def read_fields(schema: Mapping[str, Any]) -> tuple[Field, ...]:
    """Read the fields of a flat object schema whose last field is a choice between strings.

    Args:
        schema: JSON schema; each property is a string, an array of strings or an ``enum`` of strings.

    Raises:
        ValueError: there is no such choice, or it is not the last field.
    """
    fields = []
    for name, value in schema["properties"].items():
        if "enum" in value:
            choices = tuple(_quoted(choice)[1:-1] for choice in value["enum"])
            fields.append(Field(name, "choice", choices=choices))
        elif value["type"] == "array":
            fields.append(Field(name, "list", min_items=value["minItems"], max_items=value["maxItems"]))
        else:
            fields.append(Field(name, "text"))
    if fields[-1].kind != "choice" or any(field.kind == "choice" for field in fields[:-1]):
        raise ValueError("the last field has to be the one that is a choice between strings")
    return tuple(fields)


def _quoted(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()


class JsonPlan:
    """What a compact JSON object of some fields costs from any place in it.

    Args:
        fields: its fields.
        count_tokens: tokens that some bytes take when they are written as they are.
    """

    def __init__(self, fields: Sequence[Field], count_tokens: CountTokens) -> None:
        self.fields = tuple(fields)
        self._count = count_tokens
        self.end_of_choice = b'"}'
        self._choice_tokens = max(self.worst(choice + self.end_of_choice) for choice in fields[-1].choices)
        self._costs: dict[tuple[int, int], int] = {}
        self.least_tokens = self.worst(self.start) + self.cost(0, 1) + 1
        """The smallest budget in which every string gets its own tokens."""

    @property
    def start(self) -> bytes:
        """What every object begins with."""
        return b"{" + self.fields[0].opening

    def cost(self, field: int, items: int) -> int:
        """Tokens from the first character of a string to the end of the object, the string's own tokens included.

        Args:
            field: index of the string's field.
            items: strings of this field begun so far, this one included.
        """
        own = OWN_TOKENS.get(self.fields[field].kind, self._choice_tokens)
        return own + self.cost_to_leave(field, items)

    def cost_to_leave(self, field: int, items: int) -> int:
        """Tokens to the end of the object, at most, if the string that is open is closed as soon as it may be."""
        if self.fields[field].kind == "choice":
            return self._choice_tokens
        known = self._costs.get((field, items))
        if known is None:
            bridge, after = self.bridge(field, items)
            # One token may close a string and begin another one that a list does not need, so each has to be afforded.
            spare = _ITEM_TOKENS * max(self.fields[field].max_items - items, 0)
            known = self._costs[field, items] = _CHARACTER_TOKENS + self.worst(bridge) + spare + self.cost(*after)
        return known

    def bridge(self, field: int, items: int) -> tuple[bytes, tuple[int, int]]:
        """What leads from the end of one string to the beginning of the next one, and which one that is."""
        if self.fields[field].kind == "list" and items < self.fields[field].min_items:
            return b'","', (field, items + 1)
        closing = b'"],' if self.fields[field].kind == "list" else b'",'
        return closing + self.fields[field + 1].opening, (field + 1, 1)

    def worst(self, structure: bytes) -> int:
        """Tokens that what is left of some fixed bytes takes, wherever in them the text stands."""
        return max(self._count(structure[start:]) for start in range(len(structure)))


class JsonReader:
    """Follows an object as its bytes come, and says what has to be written in time.

    Args:
        plan: what the object is made of.
    """

    def __init__(self, plan: JsonPlan) -> None:
        self._plan = plan
        self._field, self._items = 0, 1
        self._structure = plan.start
        self._between_items = False
        self._string = bytearray()
        self._escaped = False
        self._missing_bytes = 0

    def feed(self, text: bytes) -> None:
        """Take more bytes; they follow the object's grammar."""
        for byte in text:
            if self._between_items:
                self._leave_item(byte)
            elif self._structure:
                self._structure = self._structure[1:]
            else:
                self._read_string(byte)

    def forced_text(self, remaining_tokens: int) -> tuple[bytes, ...]:
        """Say what to write now, if one more token of free choice might be one too many; nothing if there is time.

        Args:
            remaining_tokens: how many tokens may still come.

        Returns:
            Bytes to write, in pieces that are to become tokens each by itself.
        """
        plan, field, items = self._plan, self._field, self._items
        choice = plan.fields[field].kind == "choice"
        pieces: tuple[bytes, ...]
        if self._structure:
            pieces = (self._structure,)
            cost = plan.worst(self._structure) + (0 if self._structure == b"}" else plan.cost(field, items))
        elif choice:
            pieces, cost = (self._rest_of_choice(),), plan.cost_to_leave(field, items)
        elif self._between_items:
            pieces, cost = (plan.bridge(field, items)[0][1:],), plan.cost_to_leave(field, items)
        elif not self._string:
            return ()  # its own tokens are counted in, so there is time for one at least
        else:
            pieces = (self._end_of_character(), plan.bridge(field, items)[0])
            cost = plan.cost_to_leave(field, items)
        return tuple(piece for piece in pieces if piece) if remaining_tokens <= cost else ()

    def _read_string(self, byte: int) -> None:
        if self._escaped:
            self._escaped = False
        elif byte == ord("\\"):
            self._escaped = True
        elif byte == ord('"'):
            self._close_string()
            return
        else:
            self._missing_bytes = self._missing_bytes - 1 if self._missing_bytes else _following(byte)
        self._string.append(byte)

    def _close_string(self) -> None:
        self._string.clear()
        field = self._plan.fields[self._field]
        if field.kind == "choice":
            self._structure = b"}"
        elif field.kind == "list":
            self._between_items = True
        else:
            self._go_to_next_field(b",")

    def _leave_item(self, byte: int) -> None:
        self._between_items = False
        if byte == ord(","):
            self._items += 1
            self._structure = b'"'
        else:
            self._go_to_next_field(b",")

    def _go_to_next_field(self, separator: bytes) -> None:
        self._field += 1
        self._items = 1
        self._structure = separator + self._plan.fields[self._field].opening

    def _end_of_character(self) -> bytes:
        if self._escaped:
            return b'"'
        if not self._missing_bytes:
            return b""
        begun = _last_character(self._string)
        # The first of several following bytes is not free to be anything (RFC 3629, section 4).
        for follower in (0xA1, 0x91, 0x81):
            rest = bytes([follower]) + b"\xa1" * (self._missing_bytes - 1)
            try:
                (begun + rest).decode()
            except UnicodeDecodeError:
                continue
            return rest
        raise AssertionError("some byte follows every beginning of a character")

    def _rest_of_choice(self) -> bytes:
        begun = bytes(self._string)
        fitting = [choice for choice in self._plan.fields[self._field].choices if choice.startswith(begun)]
        return min(fitting, key=len)[len(begun) :] + self._plan.end_of_choice


def _following(byte: int) -> int:
    """How many bytes follow the first byte of a character in UTF-8."""
    return (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)


def _last_character(string: bytes | bytearray) -> bytes:
    start = len(string) - 1
    while string[start] & 0xC0 == 0x80:
        start -= 1
    return bytes(string[start:])
