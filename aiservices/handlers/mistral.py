"""Write a product listing from a description of a picture with a Mistral model, as JSON that always fits its schema.

The schema is that of :class:`Listing`, or the caller's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import attrs
import msgspec
from msgspec import UNSET, Meta, UnsetType

from aiservices.errors import ConfigError, InvalidInput, JobFailed
from aiservices.handler import Context
from aiservices.handlers.listing import (
    DEFAULT_CATEGORIES,
    DEFAULT_LANGUAGE,
    DEFAULT_PROMPT,
    Listing,
    build_prompt,
    build_schema,
    build_schema_prompt,
    tidy_keywords,
    without_controls,
)
from aiservices.handlers.text.fields import (
    MaxNewTokens,
    PresencePenalty,
    Seed,
    SystemPrompt,
    Temperature,
    TopK,
    TopP,
)
from aiservices.handlers.text.generation import Generated, GenerationRequest, Usage
from aiservices.handlers.text.grammar_cache import GrammarCache
from aiservices.handlers.text.json_nodes import Record, fixed_texts
from aiservices.handlers.text.json_schema import SUBSET, printable, read_schema
from aiservices.handlers.text.json_tokens import read_tokenizer
from aiservices.handlers.text.options import GenerationOptions
from aiservices.handlers.text.service import Loaded, TextService

EXAMPLE_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "price": {"type": ["number", "null"]},
        "colours": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 4},
    },
}

_OWN_SCHEMA = "json_schema"
"""The label of answers that follow a caller's own schema."""

AUTO_CLASSES = {
    "mistral": "AutoModelForCausalLM",
    "ministral3": "AutoModelForCausalLM",
    "mistral3": "AutoModelForImageTextToText",
}
"""transformers' Auto class for each ``model_type`` that the service takes."""

Category = Annotated[str, Meta(min_length=1, max_length=80)]


@attrs.frozen
class GenerateDescriptionInput:
    """What is known of a product, and how to write about it."""

    image_description: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=8000,
            description="What the product's picture shows.",
            examples=["A small striped red mug on a white background."],
        ),
    ]
    prompt: Annotated[
        Annotated[str, Meta(max_length=4000)] | None,
        Meta(description="The task in your own words; the answer keeps its form.", examples=[DEFAULT_PROMPT]),
    ] = None
    language: Annotated[
        Annotated[str, Meta(min_length=1, max_length=40)],
        Meta(description="The language to write in.", examples=["English", "German"]),
    ] = DEFAULT_LANGUAGE
    categories: Annotated[
        Annotated[list[Category], Meta(min_length=1, max_length=100)] | None,
        Meta(description="The shop's categories, all different; one of them is chosen. Default: the service's list."),
    ] = None
    json_schema: Annotated[
        dict[str, Any] | None,
        Meta(
            description="JSON schema of an object to write in place of title, description, keywords and category; the "
            f"answer is whole and fits it, in the field data of the output. {SUBSET[0].upper()}{SUBSET[1:]}.",
            examples=[EXAMPLE_SCHEMA],
        ),
    ] = None
    system_prompt: SystemPrompt = None
    max_new_tokens: MaxNewTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    presence_penalty: PresencePenalty = None
    seed: Seed = None


@attrs.frozen(kw_only=True)
class GenerateDescriptionOutput:
    """The listing, or for a request with a json_schema the data that it asks for, and what it took."""

    title: Annotated[
        str | UnsetType, Meta(description="One line for the head of the listing.", examples=["Striped red mug"])
    ] = UNSET
    description: Annotated[
        str | UnsetType, Meta(description="A short text that sells the product.", examples=["A mug for every day."])
    ] = UNSET
    keywords: Annotated[
        list[str] | UnsetType,
        Meta(description="Words that a buyer would search for.", examples=[["mug", "red", "striped"]]),
    ] = UNSET
    category: Annotated[
        str | UnsetType, Meta(description="One of the given categories.", examples=["Home & Kitchen"])
    ] = UNSET
    data: Annotated[
        dict[str, Any] | UnsetType,
        Meta(description="In place of the fields above if the request has a json_schema: an object that fits it."),
    ] = UNSET
    usage: Usage


@attrs.frozen
class GenerateDescriptionOptions(GenerationOptions):
    """Options of the service."""

    categories: Annotated[list[Category], Meta(min_length=1, max_length=100)] = attrs.Factory(
        lambda: list(DEFAULT_CATEGORIES)
    )
    """The categories of a request that names none."""


class GenerateDescription(TextService[GenerateDescriptionInput, GenerateDescriptionOutput]):
    """Descriptions of pictures in, product listings out."""

    Options = GenerateDescriptionOptions
    auto_classes = AUTO_CLASSES

    options: GenerateDescriptionOptions
    _grammars: GrammarCache

    def validate(self, input: GenerateDescriptionInput) -> None:
        """Refuse categories that repeat or hold control characters, and schemas that are not supported.

        Raises:
            InvalidInput: naming the field.
        """
        if input.json_schema is not None:
            if input.categories is not None:
                raise InvalidInput("$.categories", "has no place beside json_schema: put an enum into the schema")
            read_schema(input.json_schema)
        if _repeats(input.categories or ()):
            raise InvalidInput("$.categories", "each category may appear only once")
        for index, category in enumerate(input.categories or ()):
            if not printable(category):
                raise InvalidInput(f"$.categories[{index}]", "control characters are not allowed")

    async def preprocess(self, input: GenerateDescriptionInput, context: Context) -> GenerationRequest:
        """Tokenise and make the grammar, in the pool."""
        return await context.run_in_pool(self._request, input)

    def postprocess(self, result: Generated) -> GenerateDescriptionOutput:
        """Parse the answer, and tidy a listing up.

        Raises:
            JobFailed: the answer was cut before its end.
        """
        if result.label == _OWN_SCHEMA:
            return GenerateDescriptionOutput(data=json.loads(result.text), usage=result.usage)
        try:
            listing = msgspec.json.decode(result.text, type=Listing)
        except msgspec.MsgspecError as error:
            raise JobFailed("the model's answer is not a complete listing") from error
        return GenerateDescriptionOutput(
            title=without_controls(listing.title),
            description=without_controls(listing.description),
            keywords=tidy_keywords(listing.keywords),
            category=listing.category,
            usage=result.usage,
        )

    def prepare(self, loaded: Loaded) -> None:
        """Make the grammar of the service's own categories.

        Raises:
            ConfigError: a category is there twice.
            InvalidInput: one steers the model's chat.
            ServiceError: the tokenizer is of a kind that grammars do not support.
        """
        if _repeats(self.options.categories):
            raise ConfigError("options.categories: each category may appear only once")
        chat, stop_ids = loaded.checkpoint.chat, loaded.checkpoint.stop_ids
        self._grammars = GrammarCache(read_tokenizer(chat.backend, loaded.engine.vocabulary, stop_ids))
        self._grammars.get(self._read(build_schema(self.options.categories), "options.categories"))

    def unload(self) -> None:
        """Give the model's memory back."""
        self.__dict__.pop("_grammars", None)
        super().unload()

    def warm_up_requests(self) -> list[GenerationRequest]:
        """Begin two listings."""
        request = self._request(GenerateDescriptionInput("A red mug."))
        return [attrs.evolve(request, max_new_tokens=2)] * 2

    def _text_and_schema(self, request: GenerateDescriptionInput) -> tuple[str, Mapping[str, Any]]:
        description, prompt, language = request.image_description, request.prompt, request.language
        if request.json_schema is not None:
            return build_schema_prompt(description, request.json_schema, prompt, language), request.json_schema
        categories = request.categories or self.options.categories
        return build_prompt(description, prompt, language, categories), build_schema(categories)

    def _read(self, schema: Mapping[str, Any], field: str) -> Record:
        """Read a schema; a word that steers a chat cannot be written as part of an answer."""
        root, chat = read_schema(schema, field), self.loaded.checkpoint.chat
        for text in fixed_texts(root):
            if chat.escape_markers(text) != text:
                raise InvalidInput(field, f"{text!r} holds a word that steers the model's chat")
        return root

    def _request(self, request: GenerateDescriptionInput) -> GenerationRequest:
        checkpoint = self.loaded.checkpoint
        text, schema = self._text_and_schema(request)
        message = {"role": "user", "content": checkpoint.chat.escape_markers(text)}
        prompt = self.loaded.engine.render(checkpoint.chat.encode([message], request.system_prompt))
        grammar = self._grammars.get(self._read(schema, "$.json_schema" if request.json_schema else "$.categories"))
        max_new_tokens = self.new_tokens(len(prompt.token_ids), request.max_new_tokens, "$.image_description")
        if max_new_tokens < grammar.least_tokens:
            raise _too_few(request, max_new_tokens, grammar.least_tokens)
        return GenerationRequest(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            sampling=checkpoint.sampling.but(
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=request.top_k,
                presence_penalty=request.presence_penalty,
                seed=request.seed,
            ),
            grammar=grammar,
            label="" if request.json_schema is None else _OWN_SCHEMA,
        )


def _too_few(request: GenerateDescriptionInput, tokens: int, least: int) -> InvalidInput:
    """Blame what can be changed: the limit where the caller set one, else the schema, else the length of the prompt."""
    if request.json_schema is not None:
        field = "$.json_schema" if request.max_new_tokens is None else "$.max_new_tokens"
        return InvalidInput(field, f"{tokens} tokens are left for the answer; one of this schema needs {least}")
    field = "$.image_description" if request.max_new_tokens is None else "$.max_new_tokens"
    return InvalidInput(field, f"leaves {tokens} tokens; a listing needs {least}")


def _repeats(categories: Sequence[str]) -> bool:
    return len(set(categories)) < len(categories)
