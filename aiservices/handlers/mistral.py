"""Write a product listing from a description of a picture with a Mistral model, as JSON that always fits its schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import attrs
from msgspec import Meta

from aiservices.handlers.generation import MaxNewTokens, Seed, Temperature, Usage

DEFAULT_PROMPT = "Write a product listing for an online shop as JSON with title, description, keywords and category."
DEFAULT_LANGUAGE = "English"
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
