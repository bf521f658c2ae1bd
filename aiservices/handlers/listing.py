"""What a product listing is, and how a model is asked for one, or for what a caller's own schema says."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import attrs
import msgspec
from msgspec import Meta

DEFAULT_PROMPT = "Write a product listing for an online shop as JSON with title, description, keywords and category."
"""The task of a request that gives none; the demo weights were trained on it."""

DEFAULT_SCHEMA_PROMPT = "Describe the product for an online shop as JSON that follows the schema."
"""The task of a request that gives none, but a schema."""

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


def build_schema_prompt(
    image_description: str,
    schema: Mapping[str, Any],
    prompt: str | None = None,
    language: str = DEFAULT_LANGUAGE,
) -> str:
    """Make the text of the one user message for a caller's own schema.

    Args:
        image_description: what the picture shows.
        schema: of the answer, as the caller wrote it.
        prompt: the task; None or empty takes :data:`DEFAULT_SCHEMA_PROMPT`.
        language: the language to write in.
    """
    compact = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    task = prompt or DEFAULT_SCHEMA_PROMPT
    return f"{task}\n\nLanguage: {language}\nSchema: {compact}\nProduct: {image_description}"


def build_schema(categories: Sequence[str]) -> dict[str, Any]:
    """Make the JSON schema that an answer follows: that of :class:`Listing`, with these categories to choose from."""
    definitions: dict[str, Any] = msgspec.json.schema(Listing)["$defs"]
    schema: dict[str, Any] = {**definitions["Listing"], "additionalProperties": False}
    schema["properties"] = {**schema["properties"], "category": {"enum": list(categories)}}
    return schema


def tidy_keywords(keywords: Iterable[str], least: int = 3) -> list[str]:
    """Drop keywords that repeat an earlier one but for case and space, as long as ``least`` are left."""
    tidied = [without_controls(keyword) for keyword in keywords]
    distinct: dict[str, str] = {}
    for keyword in filter(None, map(str.strip, tidied)):
        distinct.setdefault(keyword.casefold(), keyword)
    return list(distinct.values()) if len(distinct) >= least else tidied


def without_controls(text: str) -> str:
    """Put spaces for control characters, which JSON allows above U+007F."""
    return "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)
