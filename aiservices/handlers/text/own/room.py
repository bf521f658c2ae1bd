"""Room for rows in the slot cache: who joins, who waits, who makes way. Imports torch: import it inside ``load``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from aiservices.errors import InvalidInput
from aiservices.handlers.text.generation import GenerationRequest
from aiservices.handlers.text.own.backbone import Backbone, Prompts
from aiservices.handlers.text.own.row import OwnRow
from aiservices.handlers.text.own.slot_cache import SlotCache
from aiservices.handlers.torch_runtime import free_memory

_SPARE = 64
"""Tokens that a row is to have room for when it joins, so that it does not make way at once."""


class Room:
    """The bound of a cache, lowered when memory runs out below it and raised again as rows leave.

    A row that is alone is never kept out by a lowered bound: whether it fits is then for the device to say.

    Args:
        cache: of the rows that decode; what its limit is at first is never exceeded.
        device: where it lives.
        forget: gives back what is only kept to save time.
    """

    def __init__(self, cache: SlotCache, device: str, forget: Callable[[], None]) -> None:
        self._cache, self._device, self._forget = cache, device, forget
        self._limit = cache.limit

    def check(self, request: GenerationRequest) -> None:
        """See to it that a request fits where it is alone.

        Raises:
            InvalidInput: it does not.
        """
        prompt = len(request.prompt.token_ids)
        if self._limit is not None and prompt + request.max_new_tokens > self._limit:
            text = f"needs room for {prompt} + {request.max_new_tokens} tokens; the service has room for {self._limit}"
            raise InvalidInput("$", text)

    def fits(self, lengths: Sequence[int]) -> bool:
        """Tell whether rows of so many tokens each should join those that decode."""
        alone = not self._cache.lengths and len(lengths) == 1
        return alone or self._cache.has_room(lengths, _SPARE)

    def fits_next(self) -> bool:
        """Tell whether there is room for one more token of every row."""
        return len(self._cache.lengths) <= 1 or self._cache.has_room()

    def take(self, prompts: Prompts, joining: list[tuple[OwnRow, int]]) -> list[OwnRow]:
        """Copy prompts that were read into the cache.

        Args:
            prompts: what was read.
            joining: rows and where among the prompts each stands; those that found no room are taken out.

        Returns:
            These, the newest first.
        """
        left: list[OwnRow] = []
        while joining:
            places = [place for _, place in joining]
            lengths = [prompts.lengths[place] for place in places]
            try:
                alone = not self._cache.lengths and len(joining) == 1
                if alone or self._cache.has_room(lengths):
                    self._cache.join(prompts.cache, places, lengths)
                    break
            except torch.OutOfMemoryError:
                self.shrink(lengths)
            left.append(joining.pop()[0])
        return left

    def shrink(self, lengths: Sequence[int] = ()) -> None:
        """Take less room from now on than these rows beside those that are there needed, for memory ran out."""
        needed = self._cache.needed(lengths) - 1
        self._cache.limit = needed if self._cache.limit is None else min(self._cache.limit, needed)
        self._forget()
        free_memory(self._device)

    def grow(self) -> None:
        """Take an eighth more room again, for a row has left; all of it once there are none."""
        limit = self._cache.limit
        if not self._cache.lengths:
            self._cache.limit = self._limit
        elif limit is not None and limit != self._limit:
            more = limit + limit // 8
            self._cache.limit = more if self._limit is None else min(self._limit, more)


def bound_of_cache(backbone: Backbone, cache_tokens: int) -> int | None:
    """Decide how many tokens a slot cache may have room for.

    Args:
        backbone: whose keys and values it will hold; loaded.
        cache_tokens: what the service says; 0 leaves it to the device: half of what is free there, so that
            activations and the other services find room as well.

    Returns:
        A number of tokens, rounded down to whole columns, 64 at least; None for no bound, on a CPU.
    """
    device = backbone.device
    if not cache_tokens and not device.startswith("cuda"):
        return None
    if not cache_tokens:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        cache_tokens = free_bytes // 2 // backbone.bytes_per_token
    return max(64, cache_tokens // 64 * 64)
