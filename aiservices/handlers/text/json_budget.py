"""End a JSON object in time: how many tokens the rest can take, and what to write when they run short.

A grammar alone keeps JSON valid only if it is allowed to finish. Here every value gives way in time for those after
it: a string is closed early, an array gets no more items, and the model goes on with the next value. Nothing is made
up: each value keeps at least a few tokens of the model's own choosing, for which :attr:`JsonPlan.least_tokens` is the
smallest budget.

Where tokens are short a step must not jump over a decision, as ``","`` does, which ends one item of an array and begins
another. So then the model chooses among small tokens only: those without a mark of structure, and single bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from aiservices.handlers.text.json_nodes import Choice, Items, Maybe, Node, Number, Record, Text, quoted

OWN_TOKENS, OWN_TOKENS_OF_ITEM, OWN_TOKENS_OF_NUMBER = 12, 6, 6
"""Tokens of the model's own choosing that a string may count on, by itself and in an array, and a number."""
_ENDING_TOKENS = 3
"""Tokens that complete half a character, an escape or a number, at most; and what it costs to cut structure in two."""

CountTokens = Callable[[bytes], int]
"""From bytes to the number of tokens that they take when they are written as they are."""


@attrs.frozen(eq=False)
class Between:
    """Where an array may end or go on, after one of its items."""


BETWEEN = Between()
Path = tuple[tuple[Record | Items, int], ...]
"""What a value stands in, the outermost first: objects with the field's place, arrays with the items begun."""
Place = tuple[Node | Between | None, Path]
"""Where the model has a choice: before a value (an array there may stay empty), or between items. None: at the end."""


class JsonPlan:
    """What a compact JSON object costs from any place in it.

    Args:
        root: the object.
        count_tokens: tokens that some bytes take when they are written as they are.

    Attributes:
        start: what every answer begins with.
        first: where that leads.
        least_tokens: the smallest budget in which every value gets its own tokens.
        item_tokens: what one more item of an array costs, at most; 0 where there can be none.
    """

    def __init__(self, root: Record, count_tokens: CountTokens) -> None:
        self._count = count_tokens
        self._worst: dict[bytes, int] = {b"": 0}
        self._costs: dict[Place, int] = {}
        self.start, self.first = self.enter(root, ())
        self.least_tokens = self.worst(self.start) + self.cost(self.first) + 1
        self.item_tokens = self._dearest_item(root)

    def enter(self, node: Node, path: Path) -> tuple[bytes, Place]:
        """What is written of a value before there is a choice, and where that leads."""
        match node:
            case Record():
                return self._enter_field(b"{", node, 0, path)
            case Items(item, least, _) if least:
                text, place = self.enter(item, (*path, (node, 1)))
                return b"[" + text, place
            case Items():
                return b"[", (node, path)
            case Text():
                return b'"', (node, path)
        return b"", (node, path)

    def leave(self, path: Path, *, deciding: bool = False) -> tuple[bytes, Place]:
        """What follows a value, and where that leads.

        Args:
            path: what the value stands in.
            deciding: stop where an array may go on, instead of ending it.
        """
        if not path:
            return b"", (None, ())
        outer, (container, at) = path[:-1], path[-1]
        if isinstance(container, Record):
            if at + 1 < len(container.fields):
                return self._enter_field(b",", container, at + 1, outer)
            closing = b"}"
        else:
            if at < container.least:
                return self.next_item(path)
            if deciding and at < container.most:
                return b"", (BETWEEN, path)
            closing = b"]"
        text, place = self.leave(outer, deciding=deciding)
        return closing + text, place

    def next_item(self, path: Path) -> tuple[bytes, Place]:
        """What begins one more item of the innermost array, and where that leads."""
        outer, (array, begun) = path[:-1], path[-1]
        assert isinstance(array, Items)
        text, place = self.enter(array.item, (*outer, (array, begun + 1)))
        return b"," + text, place

    def cost(self, place: Place) -> int:
        """Tokens from a place to the end of the object, those of the model's own choosing included."""
        node, path = place
        # Items beyond the fewest make no difference, and would make as many places as there are answers.
        place = node, tuple((part, min(at, part.least) if isinstance(part, Items) else at) for part, at in path)
        known = self._costs.get(place)
        if known is None:
            known = self._costs[place] = self._cost(*place)
        return known

    def cost_to_leave(self, place: Place) -> int:
        """Tokens to the end, at most, if the value that is being written ends as soon as it may."""
        node, path = place
        if node is None:
            return 0
        text, after = self.leave(path)
        own = self.dearest(node) if isinstance(node, Choice) else 0
        return _ENDING_TOKENS + own + self.worst(self.closing(node) + text) + self.cost(after)

    def closing(self, node: Node | Between) -> bytes:
        """What ends a value before that which follows it."""
        return b'"' if isinstance(node, Text) else b""

    def dearest(self, choice: Choice) -> int:
        """Tokens that what is left of an option takes, at most."""
        return max(map(self.worst, choice.options))

    def worst(self, text: bytes) -> int:
        """Tokens that what is left of some fixed bytes takes, wherever in them the answer stands."""
        known = self._worst.get(text)
        if known is None:
            known = self._worst[text] = max(self._count(text[start:]) for start in range(len(text)))
        return known

    def _enter_field(self, before: bytes, record: Record, at: int, path: Path) -> tuple[bytes, Place]:
        name, value = record.fields[at]
        text, place = self.enter(value, (*path, (record, at)))
        return before + quoted(name) + b":" + text, place

    def _cost(self, node: Node | Between | None, path: Path) -> int:
        leaving = self.cost_to_leave((node, path))
        match node:
            case Text():
                in_array = isinstance(path[-1][0], Items)
                return leaving + (OWN_TOKENS_OF_ITEM if in_array else OWN_TOKENS)
            case Number():
                return leaving + OWN_TOKENS_OF_NUMBER
            case Choice():
                return leaving + self.dearest(node)
            case Maybe(value):
                text, place = self.enter(value, path)
                return max(leaving + self.worst(b"null"), self.worst(text) + self.cost(place))
            case Items(item, _, _):
                text, place = self.enter(item, (*path, (node, 1)))
                return max(leaving + self.worst(b"]"), self.worst(text) + self.cost(place))
        return leaving

    def _dearest_item(self, node: Node) -> int:
        match node:
            case Record(fields):
                return max(self._dearest_item(value) for _, value in fields)
            case Maybe(value):
                return self._dearest_item(value)
            case Items(item, least, most):
                one_more = self.worst(b",") + self._weight(item) if most > max(least, 1) else 0
                return max(one_more, self._dearest_item(item))
        return 0

    def _weight(self, node: Node) -> int:
        """What a value costs by itself, at most."""
        match node:
            case Text():
                return OWN_TOKENS + _ENDING_TOKENS + 2 * self.worst(b'"')
            case Number():
                return OWN_TOKENS_OF_NUMBER + _ENDING_TOKENS
            case Choice():
                return 2 * self.dearest(node) + _ENDING_TOKENS
            case Maybe(value):
                return self._weight(value) + self.worst(b"null")
            case Items(item, least, _):
                item_weight = self._weight(item) + self.worst(b",")
                return max(least, 1) * item_weight + _ENDING_TOKENS + self.worst(b"[") + self.worst(b"]")
            case Record(fields):
                parts = [self.worst(quoted(name) + b":") + self._weight(value) + 1 for name, value in fields]
                return sum(parts) + self.worst(b"{") + self.worst(b"}")
