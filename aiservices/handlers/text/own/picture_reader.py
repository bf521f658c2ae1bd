"""Turn pictures into what a Qwen-VL vision tower takes. Imports torch and transformers: import it inside ``load``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from PIL.Image import Image as PilImage
from transformers import PreTrainedModel

from aiservices.handlers.text.generation import Prompt
from aiservices.handlers.text.picture_size import PictureSize


@attrs.frozen(eq=False)
class Pictures:
    """The pictures of one prompt, as a vision tower takes them.

    Attributes:
        pixel_values: normalised patches, ``[patches, channels * frames * patch_px * patch_px]``.
        grid_thw: patches along time, height and width, ``[pictures, 3]``.
        position_ids: time, height and width of every prompt token, ``[3, prompt_tokens]``.
        rope_delta: what to add to an answer token's place to get its position: pictures span fewer positions than
            tokens.
        places: which of the prompt's tokens are pictures', ``[prompt_tokens]``.
        keys: what names each picture: the same for the same pixels.
    """

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    position_ids: torch.Tensor
    rope_delta: int
    places: torch.Tensor
    keys: Sequence[bytes]


class PictureReader:
    """A checkpoint's image processor, with a bound on how many tokens a picture takes.

    The processor that transformers makes for these models wants torchvision for its video part; the image part alone
    does not, so the tokens are put in by hand.

    Args:
        model: whose pictures.
        size: how large they may be.
        device: where the model lives.
    """

    def __init__(self, model: PreTrainedModel, size: PictureSize, device: str = "cpu") -> None:
        parts: Any = model
        self._dtype = parts.get_input_embeddings().weight.dtype
        self._pinned = device.startswith("cuda")
        self._positions = parts.model.get_rope_index
        self._picture_id: int = parts.config.image_token_id
        self._size = size

    def read(self, token_ids: Sequence[int], pictures: Sequence[PilImage]) -> Prompt:
        """Turn pictures into patches and make room for them in a prompt.

        Args:
            token_ids: the text, with one token where each picture goes.
            pictures: RGB.
        """
        features = self._size.processor(images=list(pictures), size=self._size.edges, return_tensors="pt")
        grid: torch.Tensor = features["image_grid_thw"]
        counts = iter((grid.prod(dim=1) // self._size.merge**2).tolist())
        widened: list[int] = []
        for token in token_ids:
            widened.extend([token] * next(counts) if token == self._picture_id else [token])
        ids = torch.tensor([widened])
        places = ids == self._picture_id
        positions, deltas = self._positions(ids, places.int(), image_grid_thw=grid)
        content = Pictures(
            self._ready(features["pixel_values"]),
            grid,
            positions[:, 0],
            int(deltas[0]),
            places[0],
            [_key(picture) for picture in pictures],
        )
        return Prompt(widened, int(places.sum()), content)

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest picture."""
        return self._size.most_pixels // self._size.side**2

    def _ready(self, pixels: torch.Tensor) -> torch.Tensor:
        """Take the model's type, and memory that a GPU reads by itself: here, where no model waits."""
        pixels = pixels.to(self._dtype)
        return pixels.pin_memory() if self._pinned else pixels


def _key(picture: PilImage) -> bytes:
    """Name a picture by its pixels, of which the processor always makes the same; 10 ms for 4 megapixels."""
    digest = hashlib.blake2b(repr((picture.size, picture.mode)).encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.digest()
