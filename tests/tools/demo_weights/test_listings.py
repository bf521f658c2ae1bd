import json
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from aiservices.handlers.listing import DEFAULT_CATEGORIES
from aiservices.handlers.listing import Listing as ServedListing
from tools.demo_weights.listings import Example, listing_of, random_example, ware_of
from tools.demo_weights.products import OBJECTS, Product
from tools.demo_weights.wares import CATEGORY_NAMES


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return list(_examples())


def _examples() -> Iterator[Example]:
    rng = np.random.default_rng(0)
    for _ in range(500):
        yield random_example(rng, held_out=False)


def test_every_listing_fits_the_schema_of_the_service(examples: list[Example]) -> None:
    for example in examples:
        written = example.listing.to_json()

        served = msgspec.json.decode(written, type=ServedListing)
        assert served.category in example.categories
        assert len(set(served.keywords)) == len(served.keywords)
        assert list(json.loads(written)) == ["title", "description", "keywords", "category"]


def test_every_listing_keeps_object_and_colour(examples: list[Example]) -> None:
    for example in examples:
        kept = " ".join([example.listing.title, *example.listing.keywords]).lower()

        assert example.ware.noun.lower() in kept
        assert (example.ware.colour or "").lower() in kept


def test_every_drawn_object_has_a_category_of_its_own() -> None:
    for object_ in OBJECTS:
        listing = listing_of(ware_of(Product(object_, "red", "plain", "small", "white")), DEFAULT_CATEGORIES)

        assert listing.category != "Other"


def test_the_default_categories_are_the_first_names() -> None:
    assert tuple(names[0] for names in CATEGORY_NAMES.values()) == DEFAULT_CATEGORIES


def test_what_has_no_category_in_the_list_goes_to_other_or_last() -> None:
    ware = ware_of(Product("guitar", "red", "plain", "small", "white"))

    assert listing_of(ware, ("Toys", "Miscellaneous", "Office")).category == "Miscellaneous"
    assert listing_of(ware, ("Toys", "Office")).category == "Office"
