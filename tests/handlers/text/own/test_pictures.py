"""What the vision tower sees: as the library's, once a picture, kept within a bound, the same after a row made way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
from PIL import Image

from aiservices.handlers.qwen import DescribeImage
from aiservices.handlers.text.engine import generate
from aiservices.handlers.text.own.picture_cache import Features, PictureCache
from tests.handlers.test_qwen import KINDS, item, items, picture, tokens_alone, tokens_of
from tests.handlers.text_fakes import step_to_end, tasks_for
from tests.handlers.tiny_models import QwenKind, write_qwen


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp(request.param), request.param)


def loaded(folder: Path, **options: Any) -> DescribeImage:
    handler = DescribeImage()
    handler.load(folder, "cpu", {"dtype": "float32", **options})
    return handler


@pytest.fixture
def handler(folder: Path) -> Iterator[DescribeImage]:
    handler = loaded(folder)
    yield handler
    handler.unload()


def counted(handler: DescribeImage) -> list[int]:
    """Write down how many pictures the tower looks at, each time it looks."""
    engine: Any = handler.loaded.engine
    vision, looks = engine._backbone._vision, []
    look = vision.get_image_features

    def counting(pixels: Any, grids: Any, **arguments: Any) -> Any:
        looks.append(len(grids))
        return look(pixels, grids, **arguments)

    vision.get_image_features = counting
    return looks


@pytest.mark.parametrize("kind", KINDS)
def test_the_tower_sees_what_the_librarys_sees(kind: QwenKind, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    from aiservices.handlers.text.own.vision_windows import WindowAttention, batch_windows

    auto: Any = AutoModelForImageTextToText
    model = auto.from_pretrained(write_qwen(tmp_path, kind), dtype=torch.float32).eval()
    # Whole windows, and those cut at the right, at the bottom and in the corner; patches of 8, windows of 4 by 4.
    grids = torch.tensor([[1, 18, 22], [1, 4, 4], [1, 2, 10]])
    pixels = torch.randn(int(grids.prod(dim=1).sum()), 3 * 2 * 8 * 8)
    with torch.inference_mode():
        expected = model.model.get_image_features(pixels, grids, return_dict=True)
        batch_windows(model.model.visual)
        assert all(isinstance(block.attn, WindowAttention) for block in model.model.visual.blocks)
        for _ in range(2):
            seen = model.model.get_image_features(pixels, grids.clone(), return_dict=True)
            for ours, theirs in zip(seen.pooler_output, expected.pooler_output, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_picture_that_comes_again_is_not_looked_at_again(handler: DescribeImage) -> None:
    looks = counted(handler)
    first = item(handler, picture(1), max_new_tokens=8)
    (answer,) = tokens_alone(handler, [first])
    again = item(handler, picture(1), prompt="What is it?", max_new_tokens=8)
    other = item(handler, picture(2), max_new_tokens=8)
    together = [result.token_ids for result in generate(handler.loaded.engine, [first, again, again, other, other])]
    assert looks == [1, 1]
    assert together[0] == answer
    assert together[1:] == [*tokens_alone(handler, [again]) * 2, *tokens_alone(handler, [other]) * 2]
    handler.reset()
    assert tokens_alone(handler, [first]) == [answer]
    assert looks == [1, 1, 1]


def test_nothing_is_kept_where_the_option_says_so(folder: Path) -> None:
    handler = loaded(folder, picture_cache_mib=0)
    looks = counted(handler)
    request = item(handler, picture(1), max_new_tokens=4)
    assert len(set(tokens_alone(handler, [request] * 3))) == 1
    assert looks == [1, 1, 1]
    handler.unload()


def test_other_pixels_of_the_same_size_are_another_picture(handler: DescribeImage) -> None:
    engine = handler.loaded.engine
    ids = handler.loaded.checkpoint.chat.encode([{"role": "user", "content": [{"type": "image"}]}])
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "#ff0001", "red")]
    keys = [engine.render(ids, [image]).content.keys[0] for image in images]
    assert keys[0] == keys[2] != keys[1]
    assert engine.render(ids, [Image.new("RGB", (32, 128), "red")]).content.keys[0] != keys[0]


def test_a_row_that_made_way_keeps_its_place_behind_the_picture(handler: DescribeImage) -> None:
    import torch

    engine: Any = handler.loaded.engine
    requests = items(handler, 4)
    alone = tokens_alone(handler, requests)
    decode, failed = engine._backbone.decode, []

    def refuse(*arguments: Any) -> Any:
        if len(engine._running) > 1 and max(len(row.tokens) for row in engine._running) > 2:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*arguments)

    engine._backbone.decode = refuse
    tasks = tasks_for(requests)
    handler.admit(tasks)
    assert tokens_of(step_to_end(handler, tasks)) == alone
    assert failed


def test_pixels_come_in_the_models_type_and_a_picture_in_one_piece(tmp_path: Path) -> None:
    import torch

    handler = loaded(write_qwen(tmp_path, "qwen2_5_vl"), dtype="bfloat16", prefill_chunk_tokens=16)
    engine: Any = handler.loaded.engine
    request = item(handler, picture(3), max_new_tokens=4)
    assert request.prompt.content.pixel_values.dtype is torch.bfloat16
    assert engine._prompts._chunk_tokens == 100, "160 by 160 pixels, a token for 16 by 16"
    assert generate(engine, [request])
    handler.unload()


def features(count: int) -> Features:
    import torch

    return Features(torch.zeros(count, 4), (torch.zeros(count, 4),))


def test_the_pictures_used_longest_ago_give_way() -> None:
    cache = PictureCache(3 * 32 * 10)
    for name in (b"a", b"b", b"c"):
        cache.put(name, features(10))
    assert cache.nbytes == 960
    cache.get(b"a")
    cache.put(b"d", features(10))
    assert [name for name in (b"a", b"b", b"c", b"d") if cache.get(name)] == [b"a", b"c", b"d"]
    cache.put(b"large", features(31))
    assert cache.get(b"large") is None
    cache.put(b"e", features(20))
    assert [name for name in (b"a", b"c", b"d", b"e") if cache.get(name)] == [b"d", b"e"]
    assert cache.nbytes == 960
    cache.clear()
    assert cache.nbytes == 0
