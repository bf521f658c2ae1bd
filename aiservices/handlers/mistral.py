"""Write a product listing from a description of a picture with a Mistral model, as JSON that always fits its schema."""

from __future__ import annotations

import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import msgspec
from msgspec import Meta

from aiservices.errors import ConfigError, InvalidInput, JobFailed
from aiservices.handler import Context
from aiservices.handlers.text.fields import MaxNewTokens, Seed, Temperature
from aiservices.handlers.text.generation import Generated, GenerationRequest, Usage
from aiservices.handlers.text.grammar import Grammar, read_tokenizer
from aiservices.handlers.text.options import GenerationOptions
from aiservices.handlers.text.service import Loaded, TextService

if TYPE_CHECKING:
    from llguidance import LLTokenizer

DEFAULT_PROMPT = "Write a product listing for an online shop as JSON with title, description, keywords and category."
"""The task of a request that gives none; the demo weights were trained on it."""

DEFAULT_LANGUAGE = "English"
"""The language of a request that names none."""

DEFAULT_CATEGORIES = (
    "Home & Kitchen",
    "Clothing & Shoes",
    "Bags & Accessories",
    "Toys & Games",
    "Garden & Outdoor",
    "Electronics",
    "Sports",
    "Office",
    "Music",
    "Other",
)
"""The categories of a service that sets none."""

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
    max_new_tokens: MaxNewTokens = None
    temperature: Temperature = None
    seed: Seed = None


@attrs.frozen
class Listing:
    """What the model writes; its JSON schema is the grammar that decoding follows, key by key in this order."""

    title: Annotated[str, Meta(min_length=1, max_length=80, description="One line for the head of the listing.")]
    description: Annotated[str, Meta(min_length=1, max_length=600, description="A short text that sells the product.")]
    keywords: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=40)]],
        Meta(min_length=3, max_length=8, description="Words that a buyer would search for."),
    ]
    category: Annotated[str, Meta(description="One of the given categories.")]


@attrs.frozen
class GenerateDescriptionOutput(Listing):
    """The listing and what it took."""

    usage: Usage


def build_prompt(
    image_description: str,
    prompt: str | None = None,
    language: str = DEFAULT_LANGUAGE,
    categories: Sequence[str] = DEFAULT_CATEGORIES,
) -> str:
    """Make the text of the one user message.

    Args:
        image_description: what the picture shows.
        prompt: the task; None or empty takes :data:`DEFAULT_PROMPT`.
        language: the language to write in.
        categories: the categories to choose from, in the order given.
    """
    task = prompt or DEFAULT_PROMPT
    return f"{task}\n\nLanguage: {language}\nCategories: {'; '.join(categories)}\nProduct: {image_description}"


def build_schema(categories: Sequence[str]) -> dict[str, Any]:
    """Make the JSON schema that an answer follows: that of :class:`Listing`, with these categories to choose from."""
    definitions: dict[str, Any] = msgspec.json.schema(Listing)["$defs"]
    schema: dict[str, Any] = {**definitions["Listing"], "additionalProperties": False}
    schema["properties"] = {**schema["properties"], "category": {"enum": list(categories)}}
    return schema


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
        """Refuse categories that repeat, or that make a grammar of a hundred names take seconds to compile.

        Raises:
            InvalidInput: naming the field.
        """
        if _repeats(input.categories or ()):
            raise InvalidInput("$.categories", "each category may appear only once")
        for index, category in enumerate(input.categories or ()):
            if _printable(category) != category:
                raise InvalidInput(f"$.categories[{index}]", "control characters are not allowed")

    async def preprocess(self, input: GenerateDescriptionInput, context: Context) -> GenerationRequest:
        """Tokenise and make the grammar, in the pool."""
        return await context.run_in_pool(self._request, input)

    def postprocess(self, result: Generated) -> GenerateDescriptionOutput:
        """Parse the answer and tidy it up.

        Raises:
            JobFailed: the answer was cut before its end.
        """
        try:
            listing = msgspec.json.decode(result.text, type=Listing)
        except msgspec.MsgspecError as error:
            raise JobFailed("the model's answer is not a complete listing") from error
        return GenerateDescriptionOutput(
            title=_printable(listing.title),
            description=_printable(listing.description),
            keywords=tidy_keywords(listing.keywords),
            category=listing.category,
            usage=result.usage,
        )

    def prepare(self, loaded: Loaded) -> None:
        """Make the grammar of the service's own categories.

        Raises:
            ConfigError: a category is there twice.
            ServiceError: the tokenizer is of a kind that grammars do not support.
        """
        if _repeats(self.options.categories):
            raise ConfigError("options.categories: each category may appear only once")
        chat, stop_ids = loaded.checkpoint.chat, loaded.checkpoint.stop_ids
        self._grammars = GrammarCache(read_tokenizer(chat.backend, loaded.engine.vocabulary, stop_ids))
        self._grammars.get(self.options.categories)

    def unload(self) -> None:
        """Give the model's memory back."""
        self.__dict__.pop("_grammars", None)
        super().unload()

    def warm_up_requests(self) -> list[GenerationRequest]:
        """Begin two listings."""
        request = self._request(GenerateDescriptionInput("A red mug."))
        return [attrs.evolve(request, max_new_tokens=2)] * 2

    def _request(self, request: GenerateDescriptionInput) -> GenerationRequest:
        checkpoint = self.loaded.checkpoint
        categories = request.categories or self.options.categories
        text = build_prompt(request.image_description, request.prompt, request.language, categories)
        message = {"role": "user", "content": checkpoint.chat.escape_markers(text)}
        prompt = self.loaded.engine.render(checkpoint.chat.encode([message]))
        grammar = self._grammars.get(categories)
        max_new_tokens = self.new_tokens(len(prompt.token_ids), request.max_new_tokens, "$.image_description")
        if max_new_tokens < grammar.least_tokens:
            field = "$.image_description" if request.max_new_tokens is None else "$.max_new_tokens"
            raise InvalidInput(field, f"leaves {max_new_tokens} tokens; a listing needs {grammar.least_tokens}")
        return GenerationRequest(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            sampling=checkpoint.sampling.but(temperature=request.temperature, seed=request.seed),
            grammar=grammar,
        )


class GrammarCache:
    """The grammars of the lists of categories used last. Usable from several threads.

    Args:
        tokenizer: whose tokens the grammars choose from.
        size: how many are kept.
    """

    def __init__(self, tokenizer: LLTokenizer, size: int = 32) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._grammars: OrderedDict[tuple[str, ...], Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, categories: Sequence[str]) -> Grammar:
        """Get the grammar for a list of categories, compiled now if it is not there."""
        key = tuple(categories)
        with self._lock:
            grammar = self._grammars.pop(key, None)
            if grammar is None:
                grammar = Grammar.compile(build_schema(key), self._tokenizer)
            self._grammars[key] = grammar
            if len(self._grammars) > self._size:
                self._grammars.popitem(last=False)
            return grammar


def tidy_keywords(keywords: Iterable[str], least: int = 3) -> list[str]:
    """Drop keywords that repeat an earlier one but for case and space, as long as ``least`` are left."""
    tidied = [_printable(keyword) for keyword in keywords]
    distinct: dict[str, str] = {}
    for keyword in filter(None, map(str.strip, tidied)):
        distinct.setdefault(keyword.casefold(), keyword)
    return list(distinct.values()) if len(distinct) >= least else tidied


def _repeats(categories: Sequence[str]) -> bool:
    return len(set(categories)) < len(categories)


def _printable(text: str) -> str:
    """Put spaces for control characters, which JSON allows above U+007F."""
    return "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)
