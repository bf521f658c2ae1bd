import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from aiservices.handlers.listing import Listing
from aiservices.handlers.qwen import DEFAULT_PROMPT as DESCRIBE_PROMPT
from tools.demo_weights.evaluate import DESCRIBE_FOLDER, LISTING_FOLDER, Describer, Lister
from tools.demo_weights.examples import EXAMPLE_FOLDER, EXAMPLES, draw_examples
from tools.demo_weights.listings import random_example
from tools.demo_weights.products import is_held_out, sentence

pytestmark = pytest.mark.demo
MAX_BYTES = 8_000_000
STRANGE_TEXT = 'Grüße, 値段 は 5 €\n\tzwöfflig{}\\" 🙂 <b>&amp;</b>'


@pytest.mark.parametrize("folder", [DESCRIBE_FOLDER, LISTING_FOLDER], ids=lambda folder: str(folder.name))
def test_a_demo_folder_is_small_and_has_a_model_card_with_its_evaluation(folder: Path) -> None:
    card = (folder / "README.md").read_text()

    assert sum(file.stat().st_size for file in folder.iterdir()) <= MAX_BYTES
    assert "scripts/train-demo" in card
    assert "%" in card
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("folder", [DESCRIBE_FOLDER, LISTING_FOLDER], ids=lambda folder: str(folder.name))
def test_a_demo_tokenizer_gives_every_text_back(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    assert tokenizer.decode(tokenizer.encode(STRANGE_TEXT, add_special_tokens=False)) == STRANGE_TEXT


def test_the_picture_model_describes_the_example_pictures() -> None:
    pictures = [Image.open(EXAMPLE_FOLDER / example.file_name) for example in EXAMPLES]
    asked = [(picture, DESCRIBE_PROMPT) for picture in pictures]
    wanted = [sentence(example.product) for example in EXAMPLES]

    assert all(is_held_out(example.product.object, example.product.colour) for example in EXAMPLES)
    assert Describer(DESCRIBE_FOLDER).answer(asked) == wanted


def test_the_example_pictures_are_what_their_seeds_draw(tmp_path: Path) -> None:
    draw_examples(tmp_path)

    for drawn in sorted(tmp_path.iterdir()):
        assert Image.open(drawn).tobytes() == Image.open(EXAMPLE_FOLDER / drawn.name).tobytes()


def test_the_listing_model_writes_the_listing_of_a_drawn_product() -> None:
    rng = np.random.default_rng(8)
    examples = [random_example(rng, held_out=True, drawn_share=1.0) for _ in range(3)]

    listings = [msgspec.json.decode(text, type=Listing) for text in Lister(LISTING_FOLDER).write(examples)]

    for example, listing in zip(examples, listings, strict=True):
        assert listing.category in example.categories
        assert example.ware.noun in listing.title
        assert str(example.ware.colour) in listing.title
