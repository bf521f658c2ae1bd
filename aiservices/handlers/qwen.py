"""Describe the product in a picture with a Qwen vision-language model (Qwen2-VL, Qwen2.5-VL or Qwen3-VL)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import attrs
from msgspec import Meta

from aiservices.errors import InvalidInput
from aiservices.handler import Context
from aiservices.handlers.pictures import decode_in_child, from_child
from aiservices.handlers.text.checkpoint import Checkpoint
from aiservices.handlers.text.fields import (
    MaxNewTokens,
    PresencePenalty,
    Seed,
    Stop,
    SystemPrompt,
    Temperature,
    TopK,
    TopP,
    stop_texts,
)
from aiservices.handlers.text.generation import FinishReason, Generated, GenerationRequest, Usage
from aiservices.handlers.text.options import GenerationOptions
from aiservices.handlers.text.picture_size import PictureSize, read_picture_size
from aiservices.handlers.text.service import TextService

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

DEFAULT_PROMPT = "Describe the product in this picture: what it is, its colour, pattern, size and background."
"""The question of a request that asks none; the demo weights were trained on it."""


PictureUrl = Annotated[str, Meta(min_length=1, max_length=15_000_000, extra_json_schema={"format": "uri"})]


@attrs.frozen
class DescribeImageInput:
    """A picture or several and, if wanted, what to say about them."""

    image_url: Annotated[
        PictureUrl | None,
        Meta(
            description="The picture: an http or https URL, or a data: URL that holds it. "
            "Either this or image_urls is required.",
            examples=["https://example.com/mug.jpg"],
        ),
    ] = None
    image_urls: Annotated[
        Annotated[list[PictureUrl], Meta(min_length=1, max_length=8)] | None,
        Meta(
            description="Several pictures, which the model sees in this order, in place of image_url. "
            "The service has a limit of its own.",
        ),
    ] = None
    prompt: Annotated[
        Annotated[str, Meta(max_length=4000)] | None,
        Meta(description="What to ask about the picture.", examples=[DEFAULT_PROMPT]),
    ] = None
    system_prompt: SystemPrompt = None
    max_new_tokens: MaxNewTokens = None
    stop: Stop = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    presence_penalty: PresencePenalty = None
    seed: Seed = None

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """JSON path and URL of each picture, in order."""
        if self.image_urls is not None:
            return [(f"$.image_urls[{place}]", url) for place, url in enumerate(self.image_urls)]
        return [("$.image_url", self.image_url)] if self.image_url is not None else []


@attrs.frozen
class DescribeImageOutput:
    """What the picture shows."""

    description: Annotated[str, Meta(description="The model's answer.")]
    finish_reason: Annotated[FinishReason, Meta(description="Whether the answer ended by itself or at its limit.")]
    usage: Usage


def build_messages(prompt: str | None = None, pictures: int = 1) -> list[dict[str, Any]]:
    """Make the one user turn, pictures first, that a chat template renders.

    Args:
        prompt: what to ask; None or empty takes :data:`DEFAULT_PROMPT`.
        pictures: how many there are.
    """
    text = {"type": "text", "text": prompt or DEFAULT_PROMPT}
    return [{"role": "user", "content": [*[{"type": "image"}] * pictures, text]}]


@attrs.frozen
class DescribeImageOptions(GenerationOptions):
    """Options of the service."""

    max_picture_tokens: Annotated[int, Meta(ge=4)] = 1280
    """Larger pictures are made smaller until they take so many tokens; never more than the checkpoint's own limit."""
    max_pixels: Annotated[int, Meta(ge=1)] = 50_000_000
    """Pictures with more pixels are refused before they are decoded."""
    max_pictures: Annotated[int, Meta(ge=1, le=8)] = 4
    """Pictures of one request, at most."""
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    """Above 1, tokens seen before become less likely; None takes the checkpoint's own value."""


class DescribeImage(TextService[DescribeImageInput, DescribeImageOutput]):
    """Pictures in, descriptions out."""

    Options = DescribeImageOptions
    auto_classes = dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "AutoModelForImageTextToText")

    options: DescribeImageOptions
    _pictures: PictureSize

    @property
    def most_pictures(self) -> int:
        """Pictures of one request, at most."""
        return self.options.max_pictures

    def validate(self, input: DescribeImageInput) -> None:
        """Refuse what names no picture or one in two places, and URLs that can never be fetched.

        Raises:
            InvalidInput: naming the field.
        """
        if not input.pictures:
            raise InvalidInput("$.image_url", "this field is required, or image_urls for several pictures")
        if input.image_url is not None and input.image_urls is not None:
            raise InvalidInput("$.image_urls", "takes the place of image_url: send one of the two")
        for field, url in input.pictures:
            if not url[:8].lower().startswith(("http://", "https://", "data:")):
                raise InvalidInput(field, "has to be an http, https or data: URL")

    async def preprocess(self, input: DescribeImageInput, context: Context) -> GenerationRequest:
        """Fetch the pictures at once, each decoded in a child, and tokenise in the pool.

        Raises:
            FetchError: a picture could not be downloaded.
            InvalidInput: it is none, there are too many, or the prompt is too long; naming the field.
        """
        if len(input.pictures) > self.most_pictures:
            raise InvalidInput("$.image_urls", f"expected at most {self.most_pictures} items")
        try:
            async with asyncio.TaskGroup() as group:  # the first that fails ends the others
                tasks = [group.create_task(self._fetch(url, field, context)) for field, url in input.pictures]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return await context.run_in_pool(self._read, input, [task.result() for task in tasks])

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

        return [self._request(DescribeImageInput("", max_new_tokens=2), [Image.new("RGB", (64, 64), "grey")])]

    async def _fetch(self, url: str, field: str, context: Context) -> tuple[dict[str, Any], bytearray]:
        data = await context.fetch(url, field=field, kind="image")
        return await context.run_in_child(
            decode_in_child,
            data,
            field=field,
            max_pixels=self.options.max_pixels,
            enough_pixels=self._pictures.most_pixels,
        )

    def _read(
        self, request: DescribeImageInput, decoded: Sequence[tuple[dict[str, Any], bytearray]]
    ) -> GenerationRequest:
        fields = [field for field, _ in request.pictures]
        pictures = [from_child(*parts, field=field) for parts, field in zip(decoded, fields, strict=True)]
        return self._request(request, pictures)

    def _request(self, request: DescribeImageInput, pictures: Sequence[PilImage]) -> GenerationRequest:
        checkpoint, engine = self.loaded.checkpoint, self.loaded.engine
        messages = build_messages(checkpoint.chat.escape_markers(request.prompt or ""), len(pictures))
        prompt = engine.render(checkpoint.chat.encode(messages, request.system_prompt), pictures)
        longer = "$.prompt"
        if prompt.picture_tokens > len(prompt.token_ids) // 2:
            longer = "$.image_url" if request.image_urls is None else "$.image_urls"
        return GenerationRequest(
            prompt=prompt,
            max_new_tokens=self.new_tokens(len(prompt.token_ids), request.max_new_tokens, longer),
            sampling=checkpoint.sampling.but(
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=request.top_k,
                repetition_penalty=self.options.repetition_penalty,
                presence_penalty=request.presence_penalty,
                seed=request.seed,
            ),
            stop=stop_texts(request.stop),
        )
