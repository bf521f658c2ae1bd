"""Options that every text-generating service takes."""

from __future__ import annotations

from typing import Annotated, Literal

import attrs
from msgspec import Meta

from aiservices.handlers.torch_runtime import DtypeName


@attrs.frozen
class GenerationOptions:
    """Options that every text-generating service takes."""

    engine: Literal["auto", "own", "vllm"] = "auto"
    """What decodes: ``vllm``, ``own`` (the engine of the package), or ``auto``: vLLM on a GPU where it is installed."""
    dtype: DtypeName = "auto"
    """Type of the weights; ``auto`` is bfloat16 on CUDA and on CPUs with AVX512-bf16 or AMX, else float32."""
    weights: Literal["full", "int8"] = "full"
    """Own engine: ``int8`` keeps the decoder's linear layers in eight bits on a CPU; ``full`` as ``dtype`` says."""
    cpu_threads: Annotated[int, Meta(ge=1, le=256)] = 1
    """Threads of torch's CPU kernels on the model's thread."""
    max_new_tokens: Annotated[int, Meta(ge=1, le=32_768)] = 512
    """Most tokens of one answer; a request may ask for fewer."""
    prefill_chunk_tokens: Annotated[int, Meta(ge=16)] = 1024
    """Prompt tokens read in one step: more finish prompts sooner, fewer let running rows wait less."""
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    """Which attention of transformers runs."""
    cache_tokens: Annotated[int, Meta(ge=0)] = 0
    """Own engine: most rows times tokens of the longest at once; others wait. 0 is half of a GPU's free memory."""
    picture_cache_mib: Annotated[int, Meta(ge=0)] = 64
    """Own engine: what the model saw in pictures is kept up to this size for when one comes again; 0 keeps nothing."""
    cuda_graphs: bool = True
    """Own engine: whether a GPU replays captured decoding steps; off, it launches each kernel anew."""
    memory_share: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """vLLM on a GPU: share of its memory that weights, activations and cache take together."""
    cache_gib: Annotated[float, Meta(ge=0)] = 0
    """vLLM: size of its cache of keys and values; 0 is what ``memory_share`` leaves, and 1 GiB on a CPU."""
    context_tokens: Annotated[int, Meta(ge=16)] | None = None
    """vLLM: tokens of prompt and answer together, at most; None is what the checkpoint allows."""
    prefix_caching: bool = True
    """Whether beginnings that prompts share are read once."""
