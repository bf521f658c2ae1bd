"""Tokens a second of the text engine itself on this CPU, without a service around it: ``scripts/bench decoding``.

A Mistral of 0.34 billion random weights, one thread: each kind of weights at each number of rows, packed for oneDNN or
as torch keeps them. The kinds take turns, a few steps each, because a shared machine is not equally fast all the time;
what is printed is the median round. With one thread its own CPU time counts, in which others on the machine take no
part but for the memory they share. Nothing fails because of a number.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import attrs
import torch

from aiservices.handlers.torch_runtime import prepare_torch

KINDS = ("float32", "float32 packed", "bfloat16", "bfloat16 packed", "float32 int8", "bfloat16 int8")
PROMPT_TOKENS = 64


@attrs.frozen
class Rate:
    """What one kind of weights came to at one number of rows, tokens a second in the median round."""

    kind: str
    rows: int
    decoded: float
    read: float


def build(kind: str, hidden: int, layers: int) -> Any:
    """Make a backbone with random weights of a kind in :data:`KINDS`."""
    from transformers import MistralConfig, MistralForCausalLM

    from aiservices.handlers.text.own.backbone import Backbone
    from aiservices.handlers.text.own.packed_linear import pack_weights

    dtype, _, weights = kind.partition(" ")
    config: Any = MistralConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        head_dim=64,
        vocab_size=32_768,
        max_position_embeddings=4096,
        sliding_window=None,
    )
    torch.manual_seed(0)
    model: Any = MistralForCausalLM(config).to(getattr(torch, dtype)).eval().requires_grad_(False)
    if weights:
        pack_weights(model, model.get_decoder(), "cpu", "int8" if weights == "int8" else "full")
    return Backbone(model, "cpu")


def start(backbone: Any, rows: int, steps: int, clock: Callable[[], float]) -> Callable[[], tuple[float, float]]:
    """Read prompts for so many rows.

    Returns:
        Something that decodes a few steps and tells tokens a second of them and of the reading.
    """
    from aiservices.handlers.text.generation import Prompt
    from aiservices.handlers.text.own.slot_cache import SlotCache

    asked = [Prompt(list(range(5, 5 + PROMPT_TOKENS)))] * rows
    deltas = torch.zeros(rows, dtype=torch.long)

    def measure() -> tuple[float, float]:
        cache = SlotCache("cpu")
        with torch.inference_mode():
            begun = clock()
            prompts = backbone.prepare(asked)
            backbone.read(prompts, PROMPT_TOKENS)
            read_s = clock() - begun
            cache.join(prompts.cache, range(rows), [PROMPT_TOKENS] * rows)
            begun = clock()
            for _ in range(steps):
                backbone.decode([7] * rows, cache, deltas).argmax(dim=-1).tolist()
            decode_s = clock() - begun
        return rows * steps / decode_s, rows * PROMPT_TOKENS / read_s

    return measure


def compare(kinds: Sequence[str], rows: Sequence[int], arguments: argparse.Namespace) -> list[Rate]:
    """Measure all kinds in alternate rounds."""
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    runs: dict[tuple[str, int], Callable[[], tuple[float, float]]] = {}
    for kind in kinds:
        backbone = build(kind, arguments.hidden, arguments.layers)
        for count in rows:
            runs[kind, count] = start(backbone, count, arguments.steps, clock)
    seen: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in runs}
    for number in range(arguments.rounds + 1):
        for key, run in runs.items():
            rates = run()
            if number:  # the first round warms up
                seen[key].append(rates)
    return [
        Rate(kind, count, median(decoded for decoded, _ in rates), median(read for _, read in rates))
        for (kind, count), rates in seen.items()
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench decoding", description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="tokens of each row in a round")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    prepare_torch(arguments.threads)
    rates = compare(arguments.kinds, arguments.rows, arguments)
    print(
        f"{platform.machine()}, torch {torch.__version__}, {arguments.threads} thread(s), {arguments.rounds} rounds\n"
    )
    print("| weights | rows | tokens decoded a second | prompt tokens read a second |\n|---|---|---|---|")
    for rate in rates:
        print(f"| {rate.kind} | {rate.rows} | {rate.decoded:.1f} | {rate.read:.0f} |")


if __name__ == "__main__":
    main()
