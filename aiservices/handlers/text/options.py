"""Options that every text-generating service takes."""

from __future__ import annotations

from typing import Annotated, Literal

import attrs
from msgspec import Meta

from aiservices.handlers.torch_runtime import DtypeName


@attrs.frozen
class GenerationOptions:
    """Options that every text-generating service takes."""

    dtype: DtypeName = "auto"
    """Type of the weights; ``auto`` is bfloat16 on CUDA and float32 on CPU."""
    cpu_threads: Annotated[int, Meta(ge=1, le=256)] = 1
    """Threads of torch's CPU kernels on the model's thread."""
    max_new_tokens: Annotated[int, Meta(ge=1, le=32_768)] = 512
    """Most tokens of one answer; a request may ask for fewer."""
    prefill_chunk_tokens: Annotated[int, Meta(ge=16)] = 1024
    """Prompt tokens read in one step: more finish prompts sooner, fewer let running rows wait less."""
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    """Which attention of transformers runs."""
