"""Evaluate the demo models as a user would load them: python -m tools.demo_weights.evaluate [describe] [listing]."""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import llguidance.numpy
import msgspec
import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LogitsProcessor,
)

from aiservices.handlers import listing as listings
from aiservices.handlers import qwen
from aiservices.handlers.text.grammar import Grammar
from aiservices.handlers.text.json_tokens import read_tokenizer
from tools.demo_weights.dialogue import caption_exchange, random_exchange
from tools.demo_weights.listings import Example, random_example
from tools.demo_weights.pictures import picture
from tools.demo_weights.products import ATTRIBUTES, Product, parse
from tools.demo_weights.wares import KNOWN_WORDS

DEMO = Path(__file__).parents[2] / "aiservices" / "demo"
DESCRIBE_FOLDER, LISTING_FOLDER = DEMO / "qwen2.5-vl", DEMO / "mistral"
COUNT = 500
_SEED = 90_001
"""Seed of the evaluation's pictures and texts, apart from every training seed."""
_BATCH = 50
_TABLE = re.compile(r"(?<=<!-- evaluation -->\n).*?(?=<!-- /evaluation -->)", re.DOTALL)

Table = dict[str, dict[str, float]]
"""Share right, by row and column."""


class Describer:
    """The picture model with its image processor and tokenizer, in float32."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._processor = AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]

    def answer(self, asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
        """Answer a question about each picture, greedily."""
        starts = range(0, len(asked), _BATCH)
        return [answer for start in starts for answer in self._answer_batch(asked[start : start + _BATCH])]

    def _answer_batch(self, asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
        pictures = self._processor([image for image, _ in asked], return_tensors="pt")
        prompts = [
            self._prompt(question, int(grid.prod()) // self._processor.merge_size**2)
            for (_, question), grid in zip(asked, pictures["image_grid_thw"], strict=True)
        ]
        texts = self._tokenizer(prompts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            ids = self._model.generate(
                input_ids=texts["input_ids"],
                attention_mask=texts["attention_mask"],
                mm_token_type_ids=(texts["input_ids"] == self._model.config.image_token_id).int(),
                **pictures,
            )
        answers: list[str] = self._tokenizer.batch_decode(
            ids[:, texts["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return answers

    def _prompt(self, question: str, image_tokens: int) -> str:
        text: str = self._tokenizer.apply_chat_template(
            qwen.build_messages(question), tokenize=False, add_generation_prompt=True
        )
        return text.replace("<|image_pad|>", "<|image_pad|>" * image_tokens)


class Lister:
    """The listing model, in float32, its output held to the listing's JSON schema."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._grammar_tokenizer = read_tokenizer(
            self._tokenizer.backend_tokenizer, len(self._tokenizer), [self._tokenizer.eos_token_id]
        )

    def write(self, examples: Sequence[Example]) -> list[str]:
        """Write a listing for each example, greedily."""
        starts = range(0, len(examples), _BATCH)
        return [text for start in starts for text in self._write_batch(examples[start : start + _BATCH])]

    def _write_batch(self, examples: Sequence[Example]) -> list[str]:
        prompts = [
            self._tokenizer.apply_chat_template([{"role": "user", "content": example.message}], tokenize=False)
            for example in examples
        ]
        inputs = self._tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        schemas = [listings.build_schema(example.categories) for example in examples]
        matchers = [Grammar.compile(schema, self._grammar_tokenizer).matcher for schema in schemas]
        held = _Grammars(matchers, length, self._tokenizer.eos_token_id)
        with torch.inference_mode():
            ids = self._model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_processor=[held]
            )
        texts: list[str] = self._tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
        return texts


class _Grammars(LogitsProcessor):
    """Holds each row of a batch to its own grammar."""

    def __init__(self, matchers: list[Any], prompt_length: int, end: int) -> None:
        self._matchers, self._prompt_length, self._end = matchers, prompt_length, end

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        mask = llguidance.numpy.allocate_token_bitmask(len(self._matchers), scores.shape[1])
        for row, matcher in enumerate(self._matchers):
            if input_ids.shape[1] > self._prompt_length and not matcher.is_stopped():
                matcher.consume_token(int(input_ids[row, -1]))
            if not matcher.is_stopped():
                llguidance.numpy.fill_next_token_bitmask(matcher, mask, row)
        held = scores.numpy(force=True).copy()
        llguidance.numpy.apply_token_bitmask_inplace(held, mask)
        for row, matcher in enumerate(self._matchers):
            if matcher.is_stopped():  # and then its mask says nothing
                held[row] = -np.inf
                held[row, self._end] = 0
        return torch.from_numpy(held)  # type: ignore[return-value]


def evaluate_describe(folder: Path, count: int = COUNT) -> Table:
    """Describe and question pictures of held-out and of trained pairs; every drawing is new."""
    describer = Describer(folder)
    table: Table = {}
    for column, held_out in (("held-out pairs", True), ("trained pairs", False)):
        drawn = [picture((_SEED, int(held_out), i), held_out=held_out) for i in range(count)]
        answers = describer.answer([(image, caption_exchange(product)[0]) for product, image in drawn])
        for row, share in _attribute_shares([product for product, _ in drawn], answers).items():
            table.setdefault(row, {})[column] = share
        square = [image.width == image.height for _, image in drawn]
        right = [answer == caption_exchange(product)[1] for (product, _), answer in zip(drawn, answers, strict=True)]
        table.setdefault("whole sentence, square pictures", {})[column] = _share(right, square)
        table.setdefault("whole sentence, other shapes up to 2:1", {})[column] = _share(right, [not s for s in square])
        table.setdefault("short questions", {})[column] = _question_share(describer, drawn)
    return table


def _attribute_shares(products: Sequence[Product], answers: Sequence[str]) -> dict[str, float]:
    said = [parse(answer) for answer in answers]
    pairs = list(zip(products, said, strict=True))
    shares = {
        name: _share([s is not None and getattr(p, name) == getattr(s, name) for p, s in pairs]) for name in ATTRIBUTES
    }
    return shares | {"whole sentence": _share([p == s for p, s in pairs])}


def _question_share(describer: Describer, drawn: Sequence[tuple[Product, Image.Image]]) -> float:
    rng = np.random.default_rng((_SEED, 2))
    exchanges = [random_exchange(product, rng) for product, _ in drawn]
    answers = describer.answer([(image, question) for (_, image), (question, _) in zip(drawn, exchanges, strict=True)])
    return _share([answer == wanted for answer, (_, wanted) in zip(answers, exchanges, strict=True)])


def evaluate_listing(folder: Path, count: int = COUNT) -> Table:
    """Write listings for held-out drawn products and for made-up descriptions of other things."""
    lister = Lister(folder)
    table: Table = {}
    for column, drawn_share in (("drawn products, held-out pairs", 1.0), ("other descriptions", 0.0)):
        rng = np.random.default_rng((_SEED, int(drawn_share)))
        examples = [random_example(rng, held_out=True, drawn_share=drawn_share) for _ in range(count)]
        judged = list(zip(examples, lister.write(examples), strict=True))
        for row, judge in _JUDGES.items():
            table.setdefault(row, {})[column] = _share([judge(example, text) for example, text in judged])
        if drawn_share == 0:
            invented = [not set(e.ware.noun.split()) <= KNOWN_WORDS for e in examples]
            for row, judge in _JUDGES.items():
                right = [judge(example, text) for example, text in judged]
                table[row]["of these, invented things"] = _share(right, invented)
    return table


def _is_valid(example: Example, text: str) -> bool:
    try:
        listing = msgspec.json.decode(text, type=listings.Listing)
    except msgspec.MsgspecError:
        return False
    return listing.category in example.categories


def _keeps(example: Example, text: str) -> bool:
    """Tell whether object and colour stand in the title or among the keywords."""
    if not _is_valid(example, text):
        return False
    listing = json.loads(text)
    kept = " ; ".join([listing["title"], *listing["keywords"]]).lower()
    return example.ware.noun.lower() in kept and (example.ware.colour or "").lower() in kept


def _has(key: str) -> Callable[[Example, str], bool]:
    def judge(example: Example, text: str) -> bool:
        wanted = attrs.asdict(example.listing)[key]
        found = json.loads(text).get(key) if _is_valid(example, text) else None
        return bool(found == (list(wanted) if isinstance(wanted, tuple) else wanted))

    return judge


_JUDGES: dict[str, Callable[[Example, str], bool]] = {
    "valid JSON of the schema": _is_valid,
    "object and colour kept": _keeps,
    "the fitting category": _has("category"),
    "title, word for word": _has("title"),
    "all of it, letter for letter": lambda example, text: text == example.listing.to_json(),
}


def _share(right: Iterable[bool], among: Iterable[bool] | None = None) -> float:
    chosen = list(right) if among is None else [r for r, a in zip(right, among, strict=True) if a]
    return sum(chosen) / max(1, len(chosen))


def markdown(table: Table) -> str:
    """Lay a table out for the terminal and the model card."""
    columns = list(next(iter(table.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {row} | {' | '.join(f'{cells[c]:.1%}' for c in columns)} |" for row, cells in table.items()]
    return "\n".join(lines)


def write_card(folder: Path, table: Table) -> None:
    """Put the table into the folder's model card."""
    card = folder / "README.md"
    card.write_text(_TABLE.sub(lambda _: f"{markdown(table)}\n", card.read_text()))


def main() -> None:
    """Evaluate one or both models, print the tables and, if asked, put them into the cards."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_weights.evaluate", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="describe|listing", default=["describe", "listing"])
    parser.add_argument("--describe-folder", type=Path, default=DESCRIBE_FOLDER)
    parser.add_argument("--listing-folder", type=Path, default=LISTING_FOLDER)
    parser.add_argument("--count", type=int, default=COUNT, help="pictures or texts a column")
    parser.add_argument("--write", action="store_true", help="write the tables into the model cards")
    options = parser.parse_args()
    evaluations = {
        "describe": (evaluate_describe, options.describe_folder),
        "listing": (evaluate_listing, options.listing_folder),
    }
    for name in options.models:
        evaluate, folder = evaluations[name]
        start = time.monotonic()
        table = evaluate(folder, options.count)
        print(f"\n{name}, {options.count} a column, {time.monotonic() - start:.0f} s\n\n{markdown(table)}", flush=True)
        if options.write:
            write_card(folder, table)


if __name__ == "__main__":
    main()
