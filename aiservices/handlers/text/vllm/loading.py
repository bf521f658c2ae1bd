"""Start vLLM for a checkpoint. Imports vllm: import it inside ``load``."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiservices.errors import ServiceError
from aiservices.handlers.text.checkpoint import Checkpoint
from aiservices.handlers.text.options import GenerationOptions
from aiservices.handlers.text.picture_size import PictureSize
from aiservices.handlers.text.vllm.error_log import ErrorLog
from aiservices.handlers.text.vllm.plugin import OWNER_VARIABLE
from aiservices.handlers.torch_runtime import import_lock, prepare_torch, resolve_dtype

_CPU_CACHE_GIB = 1.0
"""Keys and values on a CPU where nothing is said: vLLM would reserve 92 % of the machine's memory."""
_CPU_MEMORY_SHARE = 0.01
"""vLLM refuses to start where less than its share is free; on a CPU it takes the cache and what it needs beside."""
_LEAST_BATCHED_TOKENS = 2048
"""What vLLM reads in one step by default."""
_SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1",
    # The process has threads, and a fork would take their locks along.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
}
"""What vLLM reads of the environment here, too: nothing is reported."""
_starting = threading.Lock()
"""A process takes its settings from the environment, which all threads share: one is started at a time."""


def load_engine(
    checkpoint: Checkpoint, device: str, options: GenerationOptions, pictures: PictureSize | None, max_pictures: int
) -> Any:
    """Start the engine's process and load the weights there. Runs on the model's thread; takes 10 s and more.

    Args:
        checkpoint: whose weights.
        device: where they go.
        options: type of the weights, share of memory, context.
        pictures: how large pictures may be; None if there will be none, and no vision tower is loaded.
        max_pictures: most pictures of one prompt.

    Returns:
        A :class:`~aiservices.handlers.text.vllm.engine.VllmEngine`.

    Raises:
        ServiceError: vLLM cannot run the checkpoint; with its reason.
    """
    os.environ.update(_SETTINGS)
    prepare_torch()
    log = ErrorLog()
    with _starting, _environment(_of_process(log, device, options)):
        with import_lock:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            from aiservices.handlers.text.vllm.engine import VllmEngine
        try:
            engine = LLMEngine.from_engine_args(
                EngineArgs(**_arguments(checkpoint, device, options, pictures, max_pictures)),
                enable_multiprocessing=True,
            )
        except Exception as error:
            reason = _reason(error, log).replace(str(checkpoint.folder), "the folder")
            log.close()
            raise ServiceError(f"vLLM cannot load the model: {reason}") from error
    return VllmEngine(engine, checkpoint.chat.backend, checkpoint.stop_ids, log)


def _arguments(
    checkpoint: Checkpoint, device: str, options: GenerationOptions, pictures: PictureSize | None, max_pictures: int
) -> dict[str, Any]:
    on_cpu = not device.startswith("cuda")
    cache_gib = options.cache_gib or (_CPU_CACHE_GIB if on_cpu else 0)
    arguments: dict[str, Any] = {
        "model": str(checkpoint.folder),
        "tokenizer_mode": "hf",
        "dtype": str(resolve_dtype(options.dtype, device)).removeprefix("torch."),
        "gpu_memory_utilization": _CPU_MEMORY_SHARE if on_cpu else options.memory_share,
        "kv_cache_memory_bytes": int(cache_gib * 2**30) or None,
        "max_model_len": options.context_tokens,
        "enable_prefix_caching": options.prefix_caching,
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        "generation_config": "vllm",  # what the checkpoint asks for is in every request already
        "limit_mm_per_prompt": {"image": max_pictures if pictures else 0, "video": 0},
        "mm_processor_cache_gb": 0,  # its copies on both sides hold prompts to one order
        "disable_log_stats": True,
        "enforce_eager": on_cpu,
        "trust_remote_code": False,
        "seed": 0,
    }
    if on_cpu:  # there, a prompt with a seed that is read in pieces ends the process (Generator.set_offset)
        window: int = checkpoint.config.get_text_config(decoder=True).max_position_embeddings
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(options.context_tokens or window, _LEAST_BATCHED_TOKENS)
    if pictures is not None:
        arguments["mm_processor_kwargs"] = {"size": pictures.edges}
    return arguments


def _of_process(log: ErrorLog, device: str, options: GenerationOptions) -> dict[str, str]:
    """Environment of one engine's process."""
    variables = {
        OWNER_VARIABLE: str(os.getpid()),
        "VLLM_LOGGING_CONFIG_PATH": str(log.config),
        "HF_HUB_OFFLINE": "1",  # there only: another service may have its model on a hub
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device.startswith("cuda:"):
        variables["CUDA_VISIBLE_DEVICES"] = _visible(int(device.removeprefix("cuda:")))
    if not device.startswith("cuda"):
        variables["OMP_NUM_THREADS"] = str(options.cpu_threads)
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return variables


def _visible(index: int) -> str:
    """Name the GPU that this process counts as number ``index``."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for a process that is started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _reason(error: Exception, log: ErrorLog) -> str:
    """Find the one line that says what was in the way, in the engine's log if it failed there."""
    details = getattr(error, "errors", None)  # pydantic's
    if callable(details) and details():
        return str(details()[0]["msg"])
    return log.last_error() or str(error).strip().partition("\n")[0]
