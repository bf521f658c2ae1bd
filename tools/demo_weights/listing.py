"""Train the listing model: from a product's description to the JSON of its listing."""

import copy
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import torch
from torch.nn import functional
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from tools.demo_weights.listings import Example, random_example
from tools.demo_weights.optim import LENGTH_STEP, Optimizer, Progress
from tools.demo_weights.tokens import train_tokenizer, wrap

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]")

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{- message['content'] + eos_token -}}"
    "{%- else -%}{{- '[INST] ' + message['content'] + ' [/INST]' -}}{%- endif -%}"
    "{%- endfor -%}"
)

_POOL = 32
"""Batches that are made up at a time, so that rows of like length come together."""


@attrs.frozen
class Plan:
    """How long and how fast to train; the defaults make the committed weights."""

    seed: int = 1
    steps: int = 1400
    batch: int = 32
    lr: float = 2e-3
    muon_lr: float = 3e-3


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on random tasks."""
    rng = np.random.default_rng((seed, 1))
    examples = [random_example(rng, held_out=bool(i % 2)) for i in range(6000)]
    texts = [text for example in examples for text in (example.message, example.listing.to_json())]
    bpe = train_tokenizer(texts, SPECIAL_TOKENS, size=1100)
    return wrap(bpe, chat_template=CHAT_TEMPLATE, bos="<s>", eos="</s>", pad="<pad>", special=SPECIAL_TOKENS)


def make_model(tokenizer: PreTrainedTokenizerFast) -> MistralForCausalLM:
    """Make the tiny model of the real architecture with random weights."""
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return MistralForCausalLM(config)


def save(model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that serving loads, the weights rounded to bf16."""
    config = model.config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id, max_new_tokens=1024,
    )  # fmt: skip
    copy.deepcopy(model).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(plan: Plan, folder: Path) -> None:
    """Train from random weights and write the folder; it is also written along the way."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(plan.seed)
    tokenizer = make_tokenizer(plan.seed)
    model = make_model(tokenizer)
    model.set_attn_implementation("eager")  # the fused one's backward is slow on a CPU
    print(f"listing: {sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens", flush=True)
    optimizer = Optimizer([model], steps=plan.steps, lr=plan.lr, muon_lr=plan.muon_lr)
    progress = Progress("listing", plan.steps, every=50)
    for step, (ids, labels) in zip(range(plan.steps), _batches(tokenizer, plan), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[labels >= 0])
        wanted = labels[labels >= 0]
        loss = functional.cross_entropy(logits.float(), wanted)
        optimizer.step(loss)
        progress.report(step, loss=loss, tokens_right=(logits.argmax(-1) == wanted).float().mean())
        if (step + 1) % 200 == 0 or step + 1 == plan.steps:
            save(model, tokenizer, folder)


def _batches(tokenizer: PreTrainedTokenizerFast, plan: Plan) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give token ids and labels, shape (batch, length), endlessly; a label is the token that follows."""
    rng = np.random.default_rng((plan.seed, 2))
    while True:
        rows = [_row(tokenizer, random_example(rng, held_out=False)) for _ in range(_POOL * plan.batch)]
        rows.sort(key=lambda row: len(row[0]))
        for start in rng.permutation(_POOL) * plan.batch:
            yield _padded(rows[start : start + plan.batch])


def _row(tokenizer: PreTrainedTokenizerFast, example: Example) -> tuple[list[int], list[int]]:
    head = tokenizer.encode(f"<s>[INST] {example.message} [/INST]", add_special_tokens=False)
    tail = tokenizer.encode(f"{example.listing.to_json()}</s>", add_special_tokens=False)
    return head + tail[:-1], [-100] * (len(head) - 1) + tail


def _padded(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right, where causal attention never looks from a labelled token."""
    length = -(-max(len(ids) for ids, _ in rows) // LENGTH_STEP) * LENGTH_STEP
    ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows])
    return ids, labels
