"""The beginnings that prompts of a service share, read once. Imports torch: import it inside ``load``.

Every request of a service begins with the same turn and task. The keys and values of a token depend only on what
stands before it, so those of a shared beginning are copied instead of computed. What is shared is found by comparing
prompts as they are read; a beginning ends before the first picture.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import attrs
import torch

from aiservices.handlers.text.generation import Prompt
from aiservices.handlers.text.own.backbone import Prompts

_LEAST_TOKENS = 16
"""Shorter beginnings are read as fast as they are copied."""
_MOST_TOKENS = 1024
_RECENT = 8


@attrs.frozen(eq=False)
class Prefix:
    """A beginning that was read.

    Attributes:
        token_ids: its text.
        states: keys and values of each layer, ``[1, heads, tokens, head_dim]`` each.
    """

    token_ids: tuple[int, ...]
    states: list[tuple[torch.Tensor, torch.Tensor]]

    def put_into(self, prompts: Prompts) -> None:
        """Count these tokens as read in prompts that all begin with them, of which nothing was read yet."""
        rows = len(prompts.lengths)
        for layer, (keys, values) in enumerate(self.states):
            prompts.cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        prompts.read = len(self.token_ids)


class PrefixCache:
    """The beginnings used last.

    Args:
        size: how many are kept, of at most 1024 tokens each; 0 keeps none.
    """

    def __init__(self, size: int = 4) -> None:
        self._size = size
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._recent: deque[tuple[int, ...]] = deque(maxlen=_RECENT)

    def find(self, prompt: Prompt) -> Prefix | None:
        """Get the longest beginning of this prompt that is there; at least one token of the prompt is left to read."""
        head = _head(prompt)
        fitting = [known for known in self._prefixes if head[: len(known)] == known]
        if not fitting:
            return None
        longest = max(fitting, key=len)
        self._prefixes.move_to_end(longest)
        return self._prefixes[longest]

    def learn(self, asked: Sequence[Prompt], prompts: Prompts) -> None:
        """Keep what prompts that were just read share with earlier ones and with each other.

        Args:
            asked: the prompts.
            prompts: what was read of them.
        """
        if not self._size:
            return
        for row, prompt in enumerate(asked):
            head = _head(prompt)
            shared = max((_common(head, other) for other in self._recent), default=0)
            self._recent.append(head)
            known = self.find(prompt)
            if shared >= _LEAST_TOKENS + (len(known.token_ids) if known else 0):
                self._keep(head[:shared], row, prompts)

    def clear(self) -> None:
        """Forget all of them and the memory they hold."""
        self._prefixes.clear()
        self._recent.clear()

    def _keep(self, token_ids: tuple[int, ...], row: int, prompts: Prompts) -> None:
        layers: Sequence[Any] = prompts.cache.layers
        part = slice(row, row + 1), slice(None), slice(len(token_ids))
        states = [(layer.keys[part].clone(), layer.values[part].clone()) for layer in layers]
        self._prefixes[token_ids] = Prefix(token_ids, states)
        if len(self._prefixes) > self._size:
            self._prefixes.popitem(last=False)


def _head(prompt: Prompt) -> tuple[int, ...]:
    """Cut off what of a prompt is not shared: pictures and what follows; the last token, whose logits are wanted."""
    end = min(len(prompt.token_ids) - 1, _MOST_TOKENS)
    if prompt.content is not None:
        end = min(end, int(prompt.content.places.int().argmax()))
    return tuple(prompt.token_ids[:end])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
