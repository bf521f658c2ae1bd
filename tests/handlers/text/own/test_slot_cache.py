"""Keys and values of rows that join, grow and leave."""

from __future__ import annotations

from typing import Any

import pytest


def _prefilled(lengths: list[int], base: float) -> Any:
    """A right-padded prefill whose keys say row and column, and whose values are their negatives."""
    import torch

    from aiservices.handlers.torch_runtime import prepare_torch

    prepare_torch()
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    rows, columns = torch.arange(len(lengths)) * 100.0 + base, torch.arange(max(lengths))
    keys = (rows[:, None] + columns)[:, None, :, None].expand(-1, 2, -1, 4).contiguous()
    for layer in range(2):
        cache.update(keys + 10_000 * layer, -keys, layer)
    return cache


def _held(cache: Any, layer: int = 0) -> list[list[float]]:
    return [cache.layers[layer].keys[slot, 0, :length, 0].tolist() for slot, length in enumerate(cache.lengths)]


def test_rows_join_and_leave_without_touching_the_others() -> None:
    torch = pytest.importorskip("torch")
    prefilled = _prefilled([3, 1, 2], 1000)
    from aiservices.handlers.text.own.slot_cache import SlotCache

    cache: Any = SlotCache("cpu")
    with torch.inference_mode():
        cache.join(prefilled, [0, 2], [3, 2])
        cache.join(_prefilled([4], 5000), [0], [4])
        assert _held(cache) == [[1000, 1001, 1002], [1200, 1201], [5000, 5001, 5002, 5003]]
        assert cache.begin_step().tolist() == [3, 2, 4]
        mask = cache.mask()
        assert mask[:, 0, 0].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
        new = torch.tensor([7.0, 8.0, 9.0])[:, None, None, None].expand(-1, 2, 1, 4)
        for layer in range(2):
            keys, values = cache.update(new, -new, layer)
            assert keys.shape == values.shape == (3, 2, 5, 4)
        cache.end_step()
        assert _held(cache) == [[1000, 1001, 1002, 7], [1200, 1201, 8], [5000, 5001, 5002, 5003, 9]]
        cache.leave(0)
        assert _held(cache) == [[5000, 5001, 5002, 5003, 9], [1200, 1201, 8]]
        assert _held(cache, 1)[1] == [11_200, 11_201, 8]
        cache.leave(1)
        assert cache.begin_step().tolist() == [5]
        assert cache.mask()[:, 0, 0].int().tolist() == [[1] * 6]
        cache.leave(0)
    assert cache.layers == []


def test_slots_grow_in_length_and_number_and_shrink_again() -> None:
    torch = pytest.importorskip("torch")
    prefilled = _prefilled([300], 0)
    from aiservices.handlers.text.own.slot_cache import SlotCache

    cache: Any = SlotCache("cpu")
    with torch.inference_mode():
        cache.join(_prefilled([5], 0), [0], [5])
        assert cache.layers[0].keys.shape == (1, 2, 64, 4)
        for slot in range(8):
            cache.join(prefilled, [0], [300])
            assert len(_held(cache)[slot + 1]) == 300
        assert cache.layers[0].keys.shape == (16, 2, 320, 4)
        for _ in range(8):
            cache.leave(1)
        cache.join(_prefilled([6], 50), [0], [6])
        assert cache.layers[0].keys.shape == (2, 2, 64, 4)
        assert _held(cache) == [[0, 1, 2, 3, 4], [50, 51, 52, 53, 54, 55]]


def test_a_poisoned_slot_is_wiped() -> None:
    torch = pytest.importorskip("torch")
    prefilled = _prefilled([4, 2], float("nan"))
    from aiservices.handlers.text.own.slot_cache import SlotCache

    cache: Any = SlotCache("cpu")
    with torch.inference_mode():
        cache.join(_prefilled([2], 0), [0], [2])
        cache.join(prefilled, [0, 1], [4, 2])
        cache.leave(2, poisoned=True)
        cache.leave(1, poisoned=True)
        assert not cache.layers[0].keys.isnan().any()
        assert not cache.layers[1].values.isnan().any()
