"""Describe the product in a picture with a Qwen vision-language model (Qwen2-VL, Qwen2.5-VL or Qwen3-VL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import attrs
from msgspec import Meta

from aiservices.errors import InvalidInput
from aiservices.handler import Context
from aiservices.handlers.pictures import decode_in_child, from_child
from aiservices.handlers.text.checkpoint import Checkpoint
from aiservices.handlers.text.fields import MaxNewTokens, Seed, Temperature, TopP
from aiservices.handlers.text.generation import FinishReason, Generated, GenerationRequest, Usage
from aiservices.handlers.text.options import GenerationOptions
from aiservices.handlers.text.picture_size import PictureSize, read_picture_size
from aiservices.handlers.text.service import TextService

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

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
    _pictures: PictureSize

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
            enough_pixels=self._pictures.most_pixels,
        )
        return await context.run_in_pool(self._read, input, size, pixels)

    def postprocess(self, result: Generated) -> DescribeImageOutput:
        """Shape the output."""
        return DescribeImageOutput(result.text, result.finish_reason, result.usage)

    def picture_tokens(self, options: DescribeImageOptions) -> int:
        """Say how many tokens the pictures of one prompt take at most."""
        return options.max_picture_tokens

    def read_picture_size(self, checkpoint: Checkpoint) -> PictureSize:
        """Read the checkpoint's bounds and lower them to the service's own."""
        self._pictures = read_picture_size(checkpoint, self.options.max_picture_tokens)
        return self._pictures

    def warm_up_requests(self) -> list[GenerationRequest]:
        """Describe one small grey picture."""
        from PIL import Image

        return [self._request(DescribeImageInput("", max_new_tokens=2), Image.new("RGB", (64, 64), "grey"))]

    def _read(self, request: DescribeImageInput, size: Mapping[str, Any], pixels: bytearray) -> GenerationRequest:
        return self._request(request, from_child(size, pixels, field="$.image_url"))

    def _request(self, request: DescribeImageInput, image: PilImage) -> GenerationRequest:
        checkpoint, engine = self.loaded.checkpoint, self.loaded.engine
        text = checkpoint.chat.escape_markers(request.prompt or "")
        prompt = engine.render(checkpoint.chat.encode(build_messages(text)), [image])
        longer = "$.image_url" if prompt.picture_tokens > len(prompt.token_ids) // 2 else "$.prompt"
        return GenerationRequest(
            prompt=prompt,
            max_new_tokens=self.new_tokens(len(prompt.token_ids), request.max_new_tokens, longer),
            sampling=checkpoint.sampling.but(
                temperature=request.temperature,
                top_p=request.top_p,
                repetition_penalty=self.options.repetition_penalty,
                seed=request.seed,
            ),
        )
