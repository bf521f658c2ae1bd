"""Do the work in this process, without a server.

    python -m tools.benchmarks.generation.offline SIDE MODEL WORK ROWS

Prints JSON: seconds, jobs, tokens. Each side runs in a process of its own, in the environment that has its library.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks.generation.work import Work, read_work, schema

Result = tuple[float, int]
"""Seconds, and tokens chosen meanwhile."""


def own_engine(model: Path, work: Sequence[Work], rows: int, engine: str = "own") -> Result:
    """The engine of the package, or vLLM behind its contract, at most ``rows`` at a time."""
    from aiservices.handler import Task
    from aiservices.handlers.mistral import AUTO_CLASSES
    from aiservices.handlers.text.checkpoint import read_checkpoint
    from aiservices.handlers.text.engine import WarmUpContext, generate
    from aiservices.handlers.text.generation import GenerationRequest
    from aiservices.handlers.text.grammar import Grammar
    from aiservices.handlers.text.json_tokens import read_tokenizer
    from aiservices.handlers.text.loading import load_engine
    from aiservices.handlers.text.options import GenerationOptions

    checkpoint = read_checkpoint(model, AUTO_CLASSES)
    options = GenerationOptions(engine=engine, dtype="float32", cache_gib=0.5)  # type: ignore[arg-type]
    loaded = load_engine(checkpoint, "cpu", options)
    tokenizer = read_tokenizer(checkpoint.chat.backend, loaded.vocabulary, checkpoint.stop_ids)
    grammar = Grammar.compile(schema(), tokenizer)
    requests = [
        GenerationRequest(
            loaded.render(checkpoint.chat.encode(each.messages)), max_new_tokens=each.max_new_tokens, grammar=grammar
        )
        for each in work
    ]
    generate(loaded, requests[:2])
    waiting = [Task(request, WarmUpContext()) for request in requests]
    tokens, began = 0, time.perf_counter()
    while waiting or len(loaded):
        free = rows - len(loaded)
        loaded.admit(waiting[:free])
        del waiting[:free]
        for _, result in loaded.step():
            assert not isinstance(result, Exception), result
            tokens += result.usage.completion_tokens
    passed_s = time.perf_counter() - began
    loaded.close()
    return passed_s, tokens


def vllm_engine(model: Path, work: Sequence[Work], rows: int) -> Result:
    """vLLM behind the package's contract."""
    return own_engine(model, work, rows, "vllm")


def vllm_offline(model: Path, work: Sequence[Work], rows: int) -> Result:
    """vLLM's own offline interface: everything in one call."""
    os.environ.update(VLLM_NO_USAGE_STATS="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = LLM(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=rows,
        gpu_memory_utilization=0.01,
        kv_cache_memory_bytes=512 << 20,
        enable_chunked_prefill=False,
        max_num_batched_tokens=4096,
        structured_outputs_config={"backend": "guidance", "disable_any_whitespace": True},
    )
    asked = StructuredOutputsParams(json=json.dumps(schema()))
    params = [SamplingParams(temperature=0, max_tokens=each.max_new_tokens, structured_outputs=asked) for each in work]
    chats: Any = [each.messages for each in work]
    llm.chat(chats[:2], params[:2], use_tqdm=False)
    began = time.perf_counter()
    outputs = llm.chat(chats, params, use_tqdm=False)
    return time.perf_counter() - began, sum(len(output.outputs[0].token_ids) for output in outputs)


def _transformers(model: Path, work: Sequence[Work]) -> tuple[Any, list[list[int]]]:
    from aiservices.handlers.mistral import AUTO_CLASSES
    from aiservices.handlers.text.checkpoint import read_checkpoint
    from aiservices.handlers.text.options import GenerationOptions
    from aiservices.handlers.text.own.loading import load_weights

    checkpoint = read_checkpoint(model, AUTO_CLASSES)
    weights = load_weights(checkpoint, "cpu", GenerationOptions(dtype="float32"))
    return weights, [checkpoint.chat.encode(each.messages) for each in work]


def one_at_a_time(model: Path, work: Sequence[Work], rows: int) -> Result:
    """transformers' ``generate``, a job after the other, without the grammar that it lacks."""
    import torch

    weights, prompts = _transformers(model, work)
    tokens, began = 0, time.perf_counter()
    with torch.inference_mode():
        for each, prompt in zip(work, prompts, strict=True):
            ids = torch.tensor([prompt])
            answer = weights.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=each.max_new_tokens,
                min_new_tokens=each.max_new_tokens if "random" in model.name else None,
                do_sample=False,
                pad_token_id=0,
            )
            tokens += answer.shape[1] - ids.shape[1]
    return time.perf_counter() - began, tokens


def continuous_batching(model: Path, work: Sequence[Work], rows: int) -> Result:
    """transformers' continuous batching, without the grammar that it lacks; one length of answers for all."""
    from transformers import GenerationConfig

    weights, prompts = _transformers(model, work)
    longest = sum(each.max_new_tokens for each in work) // len(work)
    config = GenerationConfig(max_new_tokens=longest, do_sample=False, pad_token_id=0, eos_token_id=-1)  # type: ignore[no-untyped-call]
    began = time.perf_counter()
    outputs = weights.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    return time.perf_counter() - began, sum(len(output.generated_tokens) for output in outputs.values())


SIDES: dict[str, Callable[[Path, Sequence[Work], int], Result]] = {
    "own-engine": own_engine,
    "vllm-engine": vllm_engine,
    "vllm-offline": vllm_offline,
    "generate": one_at_a_time,
    "continuous-batching": continuous_batching,
}
"""What can do the work without a server."""


def main() -> None:
    """Do the work once."""
    side, model, work, rows = sys.argv[1:]
    jobs = read_work(Path(work))
    passed_s, tokens = SIDES[side](Path(model), jobs, int(rows))
    print(json.dumps({"seconds": passed_s, "jobs": len(jobs), "tokens": tokens}))


if __name__ == "__main__":
    main()
