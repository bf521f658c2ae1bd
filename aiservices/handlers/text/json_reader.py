"""Follow a JSON object while it is written, and end it in time: see :mod:`aiservices.handlers.text.json_budget`."""

from __future__ import annotations

from aiservices.handlers.text.json_budget import Between, JsonPlan, Path, Place
from aiservices.handlers.text.json_nodes import Choice, Items, Maybe, Node, Number, Text


class JsonReader:
    """Follows an object as its bytes come, and says what has to be written in time.

    Args:
        plan: what the object is made of.
    """

    def __init__(self, plan: JsonPlan) -> None:
        self._plan = plan
        self._structure, self._place = plan.start, plan.first
        self._value = bytearray()
        self._escaped = False
        self._missing_bytes = 0

    def feed(self, text: bytes) -> None:
        """Take more bytes; they follow the object's grammar."""
        for byte in text:
            self._take(byte)

    def needs(self) -> int:
        """Tokens that the rest takes if the value that is being written ends as soon as it may."""
        if self._value and not self._structure:
            return self._plan.cost_to_leave(self._place)
        return self._plan.worst(self._structure) + self._plan.cost(self._place)

    def forced_text(self, remaining_tokens: int) -> tuple[bytes, ...]:
        """Say what to write now if one more small token of free choice might be one too many; nothing if not.

        Args:
            remaining_tokens: how many tokens may still come.

        Returns:
            Bytes to write, in pieces that are to become tokens each by itself.
        """
        plan, (node, path) = self._plan, self._place
        if self._structure:
            return (self._structure,)  # there is nothing to choose
        if isinstance(node, Between):
            return () if self._affords_item(remaining_tokens) else (plan.leave(path)[0],)
        if node is None or not self._value or remaining_tokens > plan.cost_to_leave(self._place):
            return ()  # before a value its own tokens are counted in, so there is time for one at least
        pieces = (self._end_of_value(node), plan.closing(node) + plan.leave(path)[0])
        return tuple(piece for piece in pieces if piece)

    def ends_array(self, remaining_tokens: int) -> bool:
        """Whether a number is being written that has to be the last of its array.

        A comma ends a number and begins the next item in one, so there is no place between them to decide at.

        Args:
            remaining_tokens: how many tokens may still come.
        """
        node, path = self._place
        if self._structure or not isinstance(node, Number):
            return False
        array, begun = path[-1]
        return isinstance(array, Items) and begun >= array.least and not self._affords_item(remaining_tokens)

    def _affords_item(self, remaining_tokens: int) -> bool:
        text, place = self._plan.next_item(self._place[1])
        return remaining_tokens - 1 >= self._plan.worst(text) + self._plan.cost(place)

    def _take(self, byte: int) -> None:
        if self._structure:
            self._structure = self._structure[1:]
            return
        node, path = self._place
        if isinstance(node, Text):
            self._read_string(byte, path)
        elif isinstance(node, Number) and byte not in b",]}":
            self._value.append(byte)
        elif isinstance(node, Choice):
            self._value.append(byte)
            if bytes(self._value) in node.options:
                self._go_on(self._plan.leave(path, deciding=True))
        else:
            self._decide(byte, node, path)

    def _decide(self, byte: int, node: Node | Between | None, path: Path) -> None:
        """Take a byte that says which way an answer goes: what the value is, or that it or an array is at its end."""
        match node:
            case Number():
                self._go_on(self._plan.leave(path, deciding=True))
                self._take(byte)
            case Maybe() if byte == ord("n"):
                self._go_on(self._plan.leave(path, deciding=True), b"ull")
            case Maybe(value):
                self._go_on(self._plan.enter(value, path))
                self._take(byte)
            case Items() if byte == ord("]"):
                self._go_on(self._plan.leave(path, deciding=True))
            case Items(item, _, _):
                self._go_on(self._plan.enter(item, (*path, (node, 1))))
                self._take(byte)
            case Between() if byte == ord("]"):
                self._go_on(self._plan.leave(path[:-1], deciding=True))
            case Between():
                text, place = self._plan.next_item(path)
                self._go_on((text[1:], place))

    def _go_on(self, onwards: tuple[bytes, Place], before: bytes = b"") -> None:
        text, self._place = onwards
        self._structure = before + text
        self._value.clear()

    def _read_string(self, byte: int, path: Path) -> None:
        if self._escaped:
            self._escaped = False
        elif byte == ord("\\"):
            self._escaped = True
        elif byte == ord('"'):
            self._go_on(self._plan.leave(path, deciding=True))
            return
        else:
            self._missing_bytes = self._missing_bytes - 1 if self._missing_bytes else _following(byte)
        self._value.append(byte)

    def _end_of_value(self, node: Node) -> bytes:
        begun = bytes(self._value)
        match node:
            case Choice(options):
                return min((option for option in options if option.startswith(begun)), key=len)[len(begun) :]
            case Number():
                return b"" if begun[-1:].isdigit() else b"1"
        return self._end_of_character()

    def _end_of_character(self) -> bytes:
        if self._escaped:
            return b'"'
        if not self._missing_bytes:
            return b""
        begun = _last_character(self._value)
        # The first of several following bytes is not free to be anything (RFC 3629, section 4).
        for follower in (0xA1, 0x91, 0x81):
            rest = bytes([follower]) + b"\xa1" * (self._missing_bytes - 1)
            try:
                (begun + rest).decode()
            except UnicodeDecodeError:
                continue
            return rest
        raise AssertionError("some byte follows every beginning of a character")


def _following(byte: int) -> int:
    """How many bytes follow the first byte of a character in UTF-8."""
    return (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)


def _last_character(string: bytes | bytearray) -> bytes:
    start = len(string) - 1
    while string[start] & 0xC0 == 0x80:
        start -= 1
    return bytes(string[start:])
