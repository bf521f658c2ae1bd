"""Train the picture model: first its vision tower on the attributes, then everything on captions and questions."""

import copy
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.utils import logging

from tools.demo_weights.dialogue import caption_exchange, misread, random_exchange, shape_exchange
from tools.demo_weights.exchanges import Exchange, Reader, caption_loss
from tools.demo_weights.optim import Optimizer, Progress
from tools.demo_weights.pictures import MERGE_SIZE, PATCH_SIZE, Grid, PictureSet, image_processor, product_of
from tools.demo_weights.products import ATTRIBUTES, SHAPE_ATTRIBUTES, Product, random_product, sentence
from tools.demo_weights.tokens import train_tokenizer, wrap
from tools.demo_weights.vision import AttributeHeads, merged_tokens, recoloured

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""The real tokenizer's, in its order."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in part -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


_WIDTH = 160
"""Of the language model, and so of the merged tokens."""


@attrs.frozen
class Plan:
    """How long and how fast to train; the defaults make the committed weights."""

    seed: int = 1
    pictures: int = 60_000
    batch: int = 64
    tower_epochs: float = 2.0
    joint_epochs: float = 1.2
    answer_steps: int = 500
    lr: float = 2e-3
    muon_lr: float = 3e-3


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on captions and questions about random products."""
    rng = np.random.default_rng((seed, 1))
    products = [random_product(rng, held_out=bool(i % 2)) for i in range(3000)]
    texts = [text for product in products for _ in range(3) for text in random_exchange(product, rng)]
    texts += [text for product in products[:300] for text in caption_exchange(product)]
    texts += ["user\nassistant\nsystem\n"] * 10
    bpe = train_tokenizer(texts, SPECIAL_TOKENS, size=900)
    return wrap(bpe, chat_template=CHAT_TEMPLATE, eos="<|im_end|>", pad="<|endoftext|>", special=SPECIAL_TOKENS)


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Make the tiny model of the real architecture with random weights."""
    ids: dict[str, Any] = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": _WIDTH, "intermediate_size": 416, "num_hidden_layers": 4,
            "num_attention_heads": 5, "num_key_value_heads": 5, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True, "initializer_range": 0.05,
        },
        vision_config={
            "depth": 5, "hidden_size": 160, "intermediate_size": 416, "num_heads": 5, "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE, "temporal_patch_size": 2, "out_hidden_size": _WIDTH,
            "window_size": 8 * PATCH_SIZE * MERGE_SIZE, "fullatt_block_indexes": list(range(5)),
            "initializer_range": 0.05,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


def save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that serving loads, the weights rounded to bf16."""
    tokens: Any = model.config.text_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id, max_new_tokens=64
    )
    rounded: Any = copy.deepcopy(model).bfloat16()
    rounded.config.text_config.dtype = rounded.config.vision_config.dtype = torch.bfloat16
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)


def start(plan: Plan) -> tuple[PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, AttributeHeads]:
    """Make tokenizer, model and classifiers with the plan's random weights."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(plan.seed)
    tokenizer = make_tokenizer(plan.seed)
    model = make_model(tokenizer)
    model.set_attn_implementation("eager")  # the fused one's backward is slow on a CPU
    return tokenizer, model, AttributeHeads(_WIDTH)


def train_tower(pictures: PictureSet, plan: Plan, checkpoint: Path) -> None:
    """Train the vision tower on the attributes alone and write it, with its classifiers, to a checkpoint."""
    _, model, heads = start(plan)
    tower = model.model.visual
    rng = np.random.default_rng((plan.seed, 2))
    steps = round(plan.tower_epochs * len(pictures) / plan.batch)
    optimizer = Optimizer([tower, heads], steps=steps, lr=plan.lr, muon_lr=plan.muon_lr)
    progress = Progress("describe, tower", steps, every=50)
    for step, (grid, chosen) in enumerate(_stream(pictures, plan.batch, steps, rng)):
        labels = pictures.labels[grid][chosen]
        with torch.autocast("cpu", torch.bfloat16):
            tokens = merged_tokens(tower, pictures.patches[grid][chosen], grid)
        logits = heads(tokens.float())
        loss = heads.loss(logits, labels)
        optimizer.step(loss)
        right = torch.stack([x.argmax(1) == labels[:, i] for i, x in enumerate(logits)]).float()
        progress.report(step, loss=loss, object=right[0].mean(), whole=right.amin(0).mean())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            torch.save({"tower": tower.state_dict(), "heads": heads.state_dict()}, checkpoint)


def train_jointly(pictures: PictureSet, plan: Plan, tower: Path, folder: Path) -> None:
    """Train everything on captions and questions, from a tower's checkpoint, and write the model's folder."""
    tokenizer, model, heads = start(plan)
    trained = torch.load(tower, weights_only=True)
    model.model.visual.load_state_dict(trained["tower"])
    heads.load_state_dict(trained["heads"])
    rng = np.random.default_rng((plan.seed, 3))
    steps = round(plan.joint_epochs * len(pictures) / plan.batch)
    optimizer = Optimizer([model, heads], steps=steps, lr=plan.lr, muon_lr=plan.muon_lr)
    progress = Progress("describe, joint", steps, every=50)
    reader = Reader(tokenizer)
    for step, (grid, chosen) in enumerate(_stream(pictures, plan.batch, steps, rng)):
        # Every second batch in other colours, asked for shape alone.
        batch = _Batch.of(pictures, grid, chosen, rng, recolour=step % 2 == 1)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = merged_tokens(model.model.visual, batch.patches, grid)
        words = _words_loss(model, reader, tokens, batch, rng, questions=1)
        attributes = heads.loss(heads(tokens.float()), batch.labels, batch.attributes)
        optimizer.step(words + 0.3 * attributes)
        progress.report(step, **{f"words_{batch.kind}": 2 * words, f"attributes_{batch.kind}": 2 * attributes})
        if (step + 1) % 400 == 0 or step + 1 == steps:
            save(model, tokenizer, folder)


def train_answers(pictures: PictureSet, plan: Plan, folder: Path) -> None:
    """Train the language model of a written folder further, on more questions; the tower stays as it is.

    To say yes or no it has to compare two words before it writes either, which it learns last.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(plan.seed)
    tokenizer = make_tokenizer(plan.seed)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rng = np.random.default_rng((plan.seed, 4))
    optimizer = Optimizer(
        [model.model.language_model], steps=plan.answer_steps, lr=plan.lr / 2, muon_lr=plan.muon_lr / 2
    )
    progress = Progress("describe, answers", plan.answer_steps, every=50)
    reader = Reader(tokenizer)
    for step, (grid, chosen) in enumerate(_stream(pictures, plan.batch, plan.answer_steps, rng)):
        batch = _Batch.of(pictures, grid, chosen, rng, recolour=step % 4 == 3)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            tokens = merged_tokens(model.model.visual, batch.patches, grid)
        words = _words_loss(model, reader, tokens, batch, rng, questions=3)
        optimizer.step(words)
        progress.report(step, words=words)
    save(model, tokenizer, folder)


@attrs.frozen(eq=False)
class _Batch:
    """Pictures of one grid, as drawn or in other colours."""

    grid: Grid
    patches: torch.Tensor
    labels: torch.Tensor
    recoloured: bool

    @classmethod
    def of(
        cls,
        pictures: PictureSet,
        grid: Grid,
        chosen: NDArray[np.int64],
        rng: np.random.Generator,
        *,
        recolour: bool,
    ) -> "_Batch":
        patches = pictures.patches[grid][chosen]
        return cls(grid, recoloured(patches, rng) if recolour else patches, pictures.labels[grid][chosen], recolour)

    @property
    def kind(self) -> str:
        return "recoloured" if self.recoloured else "drawn"

    @property
    def attributes(self) -> tuple[str, ...]:
        """What can be asked about the pictures."""
        return SHAPE_ATTRIBUTES if self.recoloured else tuple(ATTRIBUTES)


def _words_loss(
    model: Qwen2_5_VLForConditionalGeneration,
    reader: Reader,
    tokens: torch.Tensor,
    batch: _Batch,
    rng: np.random.Generator,
    *,
    questions: int,
) -> torch.Tensor:
    asked = [_asked(product_of(row), rng, questions, colours=not batch.recoloured) for row in batch.labels]
    texts = reader.rows(asked, batch.grid)
    with torch.autocast("cpu", torch.bfloat16):
        return caption_loss(model, tokens, texts, reader.image_span(batch.grid), batch.grid)


def _asked(product: Product, rng: np.random.Generator, questions: int, *, colours: bool) -> list[Exchange]:
    """Choose what is asked about a picture.

    In half of the captions the words already said are wrong: the object's word is to be read from the picture,
    not from the words that it was seen with in training.
    """
    if not colours:
        return [Exchange(*shape_exchange(product, rng)) for _ in range(questions + 1)]
    question, answer = caption_exchange(product)
    said = sentence(misread(product, rng)) if rng.random() < 0.5 else answer
    others = [Exchange(*random_exchange(product, rng)) for _ in range(questions)]
    return [Exchange(question, answer, said), *others]


def _stream(
    pictures: PictureSet, batch: int, steps: int, rng: np.random.Generator
) -> list[tuple[Grid, NDArray[np.int64]]]:
    batches: list[tuple[Grid, NDArray[np.int64]]] = []
    while len(batches) < steps:
        batches += pictures.batches(batch, rng)
    return batches[:steps]
