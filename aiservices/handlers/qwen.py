"""Describe the product in a picture with a Qwen vision-language model (Qwen2-VL, Qwen2.5-VL or Qwen3-VL)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
from msgspec import Meta

from aiservices.errors import InvalidInput, ServiceError
from aiservices.handler import Context
from aiservices.handlers.pictures import decode_in_child, from_child
from aiservices.handlers.text.checkpoint import Checkpoint
from aiservices.handlers.text.generation import (
    FinishReason,
    Generated,
    GenerationOptions,
    GenerationRequest,
    MaxNewTokens,
    Picture,
    Seed,
    Temperature,
    TopP,
    Usage,
)
from aiservices.handlers.text.service import Loaded, TextService
from aiservices.handlers.torch_runtime import import_lock

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    from aiservices.handlers.text.own.backbone import Backbone

DEFAULT_PROMPT = "Describe the product in this picture: what it is, its colour, pattern, size and background."
"""The question of a request that asks none; the demo weights were trained on it."""


@attrs.frozen
class DescribeImageInput:
    """A picture and, if wanted, what to say about it."""

    image_url: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=15_000_000,
            description="The picture: an http or https URL, or a data: URL that holds it.",
            examples=["https://example.com/mug.jpg"],
            extra_json_schema={"format": "uri"},
        ),
    ]
    prompt: Annotated[
        Annotated[str, Meta(max_length=4000)] | None,
        Meta(description="What to ask about the picture.", examples=[DEFAULT_PROMPT]),
    ] = None
    max_new_tokens: MaxNewTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    seed: Seed = None


@attrs.frozen
class DescribeImageOutput:
    """What the picture shows."""

    description: Annotated[str, Meta(description="The model's answer.")]
    finish_reason: Annotated[FinishReason, Meta(description="Whether the answer ended by itself or at its limit.")]
    usage: Usage


def build_messages(prompt: str | None = None) -> list[dict[str, Any]]:
    """Make the one user turn, picture first, that a chat template renders.

    Args:
        prompt: what to ask; None or empty takes :data:`DEFAULT_PROMPT`.
    """
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt or DEFAULT_PROMPT}]}]


@attrs.frozen
class DescribeImageOptions(GenerationOptions):
    """Options of the service."""

    max_picture_tokens: Annotated[int, Meta(ge=4)] = 1280
    """Larger pictures are made smaller until they take so many tokens; never more than the checkpoint's own limit."""
    max_pixels: Annotated[int, Meta(ge=1)] = 50_000_000
    """Pictures with more pixels are refused before they are decoded."""
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    """Above 1, tokens seen before become less likely; None takes the checkpoint's own value."""


class DescribeImage(TextService[DescribeImageInput, DescribeImageOutput]):
    """Pictures in, descriptions out."""

    Options = DescribeImageOptions
    auto_classes = dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "AutoModelForImageTextToText")

    options: DescribeImageOptions
    _reader: PictureReader

    def validate(self, input: DescribeImageInput) -> None:
        """Refuse URLs that can never be fetched.

        Raises:
            InvalidInput: naming the field.
        """
        if not input.image_url.lower().startswith(("http://", "https://", "data:")):
            raise InvalidInput("$.image_url", "has to be an http, https or data: URL")

    async def preprocess(self, input: DescribeImageInput, context: Context) -> GenerationRequest:
        """Fetch the picture, and decode it in a child and tokenise it in the pool.

        Raises:
            FetchError: the picture could not be downloaded.
            InvalidInput: it is none, or the prompt is too long; naming the field.
        """
        data = await context.fetch(input.image_url, field="$.image_url", kind="image")
        size, pixels = await context.run_in_child(
            decode_in_child,
            data,
            field="$.image_url",
            max_pixels=self.options.max_pixels,
            enough_pixels=self._reader.max_pixels,
        )
        return await context.run_in_pool(self._read, input, size, pixels)

    def postprocess(self, result: Generated) -> DescribeImageOutput:
        """Shape the output."""
        return DescribeImageOutput(result.text, result.finish_reason, result.usage)

    def make_backbone(self, checkpoint: Checkpoint, device: str) -> Backbone:
        """Wrap the model for the engine."""
        from aiservices.handlers.text.own.backbone import PictureBackbone

        return PictureBackbone(checkpoint.model, device)

    def prepare(self, loaded: Loaded, model_dir: Path | None) -> None:
        """Load the image processor."""
        self._reader = PictureReader(loaded.checkpoint, model_dir, self.options.max_picture_tokens)

    def unload(self) -> None:
        """Give the model's memory back."""
        self.__dict__.pop("_reader", None)
        super().unload()

    def warm_up_requests(self) -> list[GenerationRequest]:
        """Describe one small grey picture."""
        from PIL import Image

        return [self._request(DescribeImageInput("", max_new_tokens=2), Image.new("RGB", (64, 64), "grey"))]

    def _read(self, request: DescribeImageInput, size: Mapping[str, Any], pixels: bytearray) -> GenerationRequest:
        return self._request(request, from_child(size, pixels, field="$.image_url"))

    def _request(self, request: DescribeImageInput, image: PilImage) -> GenerationRequest:
        checkpoint = self.loaded.checkpoint
        prompt = checkpoint.chat.escape_markers(request.prompt or "")
        token_ids, picture = self._reader.read(image, checkpoint.chat.encode(build_messages(prompt)))
        longer = "$.image_url" if picture.tokens > len(token_ids) // 2 else "$.prompt"
        return GenerationRequest(
            token_ids=token_ids,
            max_new_tokens=self.new_tokens(len(token_ids), request.max_new_tokens, longer),
            temperature=request.temperature or 0.0,
            top_p=request.top_p or 1.0,
            repetition_penalty=self.options.repetition_penalty or checkpoint.repetition_penalty,
            seed=request.seed,
            picture=picture,
        )


class PictureReader:
    """A checkpoint's image processor, with a bound on how many tokens a picture takes.

    The processor that transformers makes for these models wants torchvision for its video part; the image part alone
    does not, so the tokens are put in by hand.

    Args:
        checkpoint: the model.
        model_dir: its folder.
        max_picture_tokens: the bound.

    Raises:
        ServiceError: the folder has no image processor.
    """

    def __init__(self, checkpoint: Checkpoint, model_dir: Path | None, max_picture_tokens: int) -> None:
        with import_lock:
            from transformers import AutoImageProcessor
        auto: Any = AutoImageProcessor
        try:
            self._processor: Any = auto.from_pretrained(
                model_dir, trust_remote_code=False, local_files_only=True, backend="pil"
            )
        except (OSError, ValueError) as error:
            raise ServiceError("the checkpoint has no image processor (preprocessor_config.json)") from error
        model: Any = checkpoint.model
        self._positions = model.model.get_rope_index
        self._picture_id: int = model.config.image_token_id
        self._merge: int = self._processor.merge_size
        own_least, own_most = (self._processor.size[edge] for edge in ("shortest_edge", "longest_edge"))
        self.max_pixels: int = min(own_most, max_picture_tokens * (self._processor.patch_size * self._merge) ** 2)
        """A picture is made smaller until it has so many pixels."""
        self._size = {"shortest_edge": min(own_least, self.max_pixels), "longest_edge": self.max_pixels}

    def read(self, image: PilImage, token_ids: list[int]) -> tuple[list[int], Picture]:
        """Turn a picture into patches and make room for it in a prompt.

        Args:
            image: RGB.
            token_ids: the prompt, with one token where the picture goes.

        Returns:
            The prompt with as many tokens there as the picture takes, and the picture.
        """
        import torch

        features = self._processor(images=image, size=self._size, return_tensors="pt")
        grid = features["image_grid_thw"]
        tokens = int(grid.prod()) // self._merge**2
        first = token_ids.index(self._picture_id)
        token_ids = [*token_ids[:first], *[self._picture_id] * tokens, *token_ids[first + 1 :]]
        ids = torch.tensor([token_ids])
        positions, deltas = self._positions(ids, (ids == self._picture_id).int(), image_grid_thw=grid)
        picture = Picture(features["pixel_values"], grid, positions[:, 0], int(deltas[0]), first, tokens)
        return token_ids, picture
