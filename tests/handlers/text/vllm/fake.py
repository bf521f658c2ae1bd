"""A stand-in for vLLM, which needs a GPU or an environment of its own: the same calls over the package's own engine.

It takes what the real one takes and gives what the real one gives, as far as ``aiservices.handlers.text.vllm`` uses it;
the tests of this folder run over either (``scripts/test --vllm`` runs them over the real one).
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs

from aiservices.handler import Task
from aiservices.handlers.text.checkpoint import read_checkpoint
from aiservices.handlers.text.generation import GenerationRequest, Prompt, Sampling
from aiservices.handlers.text.grammar import Grammar
from aiservices.handlers.text.json_tokens import read_tokenizer
from aiservices.handlers.text.options import GenerationOptions
from aiservices.handlers.text.picture_size import read_picture_size
from aiservices.handlers.text.vllm.plugin import BUDGET_KEY
from tests.handlers.text_fakes import FakeContext

AUTO_CLASSES = {
    "mistral": "AutoModelForCausalLM",
    "qwen2_5_vl": "AutoModelForImageTextToText",
}


class EngineDeadError(Exception):
    """vLLM's."""


class VLLMValidationError(Exception):
    """vLLM's."""


class RequestOutputKind(Enum):
    """vLLM's."""

    DELTA = 1


@dataclasses.dataclass(frozen=True)
class TokenizeParams:
    """vLLM's, as far as it is used."""

    max_total_tokens: int | None


@attrs.frozen
class StructuredOutputsParams:
    """vLLM's, as far as it is used."""

    json: str


@attrs.frozen(kw_only=True)
class SamplingParams:
    """vLLM's, as far as it is used, with its checks."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    presence_penalty: float
    seed: int | None
    max_tokens: int
    stop_token_ids: list[int]
    structured_outputs: StructuredOutputsParams | None
    output_kind: RequestOutputKind
    detokenize: bool
    skip_clone: bool

    def __attrs_post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise VLLMValidationError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.max_tokens < 1:
            raise VLLMValidationError(f"max_tokens must be at least 1, got {self.max_tokens}.")


@attrs.frozen(kw_only=True)
class EngineArgs:
    """vLLM's, as far as it is used."""

    model: str
    tokenizer_mode: str
    dtype: str
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    max_model_len: int | None
    enable_prefix_caching: bool
    structured_outputs_config: Mapping[str, Any]
    generation_config: str
    limit_mm_per_prompt: Mapping[str, int]
    mm_processor_cache_gb: float
    disable_log_stats: bool
    enforce_eager: bool
    trust_remote_code: bool
    seed: int
    enable_chunked_prefill: bool | None = None
    max_num_batched_tokens: int | None = None
    mm_processor_kwargs: Mapping[str, Any] | None = None


class _Process:
    """An engine's process that is none: it has an end that others can wait for."""

    def __init__(self) -> None:
        self.sentinel, self._alive = os.pipe()
        self.pid = 2**30  # above any process id of Linux, so that signals reach nobody
        self.exitcode: int | None = None

    def is_alive(self) -> bool:
        return False  # no signal may go anywhere

    def kill(self) -> None:
        if self.exitcode is None:
            self.exitcode = -9
            os.close(self._alive)

    def join(self, timeout: float) -> None:
        """Wait for its end."""


class _Client:
    """What vLLM calls the engine core's client."""

    def __init__(self) -> None:
        self.process = _Process()
        manager = SimpleNamespace(processes=[self.process])
        self.resources = SimpleNamespace(engine_dead=False, engine_manager=manager)
        self.outputs_queue: queue.Queue[Exception] = queue.Queue()
        self.output_queue_thread = SimpleNamespace(join=lambda timeout: None)
        self.ctx = SimpleNamespace(destroy=lambda linger: None)

    def shutdown(self) -> None:
        self.resources.engine_dead = True


class LLMEngine:
    """vLLM's."""

    def __init__(self, args: EngineArgs) -> None:
        checkpoint = read_checkpoint(Path(args.model), AUTO_CLASSES)
        sees = args.limit_mm_per_prompt["image"] > 0
        pictures = read_picture_size(checkpoint, 1280) if sees else None
        if pictures is not None and args.mm_processor_kwargs:
            bounds = args.mm_processor_kwargs["size"]
            most, least = bounds["longest_edge"], bounds["shortest_edge"]
            pictures = attrs.evolve(pictures, most_pixels=most, least_pixels=least)
        from aiservices.handlers.text.own.loading import load_engine

        options = GenerationOptions(dtype="float32")
        self._own: Any = load_engine(checkpoint, "cpu", options, pictures)
        self._grammars = read_tokenizer(checkpoint.chat.backend, self._own.vocabulary, checkpoint.stop_ids)
        self._tasks: dict[str, Task[GenerationRequest]] = {}
        self._seen: dict[str, int] = {}
        window = min(self._own.window, args.max_model_len or self._own.window)
        self.model_config = SimpleNamespace(max_model_len=window, get_vocab_size=lambda: self._own.vocabulary)
        self.engine_core = _Client()
        self.renderer = self

    @classmethod
    def from_engine_args(cls, args: EngineArgs, *, enable_multiprocessing: bool) -> LLMEngine:
        assert enable_multiprocessing
        return cls(args)

    @property
    def default_cmpl_tok_params(self) -> TokenizeParams:
        """Of ``renderer``: prompts may be as long as the context."""
        return TokenizeParams(self.model_config.max_model_len)

    def render_cmpl(
        self, prompts: Sequence[Mapping[str, Any]], tok_params: TokenizeParams | None = None
    ) -> list[dict[str, Any]]:
        """Of ``renderer``: what ``add_request`` takes."""
        most = (tok_params or self.default_cmpl_tok_params).max_total_tokens
        for prompt in prompts:
            if most is not None and len(prompt["prompt_token_ids"]) >= most:
                raise VLLMValidationError("This model's maximum context length is shorter than the prompt.")
        return [self._render(prompt) for prompt in prompts]

    def shutdown(self) -> None:
        """Of ``renderer``."""

    def add_request(self, request_id: str, prompt: Mapping[str, Any], params: SamplingParams) -> str:
        if self.engine_core.resources.engine_dead:
            raise EngineDeadError
        if len(prompt["prompt_token_ids"]) >= self.model_config.max_model_len:
            raise VLLMValidationError("the prompt is longer than the maximum model length")
        names = attrs.fields_dict(Sampling)
        request = GenerationRequest(
            Prompt(prompt["prompt_token_ids"], content=prompt.get("content")),
            max_new_tokens=params.max_tokens,
            sampling=Sampling(**{name: getattr(params, name) for name in names}),
            grammar=self._grammar(params.structured_outputs),
        )
        if request.grammar is not None:
            request = attrs.evolve(request, max_new_tokens=request.grammar.schema[BUDGET_KEY])
        self._own._stop_ids = frozenset(params.stop_token_ids)  # all requests of one engine have the same
        task = Task(request, FakeContext(job_id=request_id))
        self._own.admit([task])
        self._tasks[request_id] = task
        self._seen[request_id] = 0
        return f"{request_id}-internal"

    def step(self) -> list[Any]:
        if self.engine_core.resources.engine_dead or not self._tasks:
            raise self.engine_core.outputs_queue.get()  # the real one waits here, too
        ended = {id(task): result for task, result in self._own.step()}
        running = {id(row.task): row.tokens for row in self._own._running}
        return [
            output
            for name, task in list(self._tasks.items())
            if (output := self._output(name, ended.get(id(task)), running.get(id(task), []))) is not None
        ]

    def abort_request(self, request_ids: list[str]) -> None:
        leaving = [self._tasks.pop(name) for name in request_ids if name in self._tasks]
        self._own.evict(leaving)

    def _render(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        pictures = prompt.get("multi_modal_data", {}).get("image", [])
        read = self._own.render(prompt["prompt_token_ids"], pictures)
        rendered = {"prompt_token_ids": list(read.token_ids), "content": read.content}
        if pictures:
            rendered["mm_placeholders"] = {"image": [SimpleNamespace(length=read.picture_tokens)]}
        return rendered

    def _grammar(self, params: StructuredOutputsParams | None) -> Grammar | None:
        if params is None:
            return None
        schema = json.loads(params.json)
        plain = {name: value for name, value in schema.items() if name != BUDGET_KEY}
        return attrs.evolve(Grammar.compile(plain, self._grammars), schema=schema)

    def _output(self, name: str, result: Any, tokens: Sequence[int]) -> Any:
        """What became of a request in a step; None if nothing did."""
        if isinstance(result, Exception):
            raise result
        reason = None
        if result is not None:
            tokens, reason = result.token_ids, result.finish_reason
            del self._tasks[name]
        new = list(tokens[self._seen[name] :])
        self._seen[name] += len(new)
        if not new and result is None:
            return None
        completion = SimpleNamespace(token_ids=new, finish_reason=reason)
        return SimpleNamespace(request_id=name, outputs=[completion], finished=result is not None)


@contextmanager
def installed() -> Iterator[None]:
    """Let ``import vllm`` find the stand-in, until the block is left."""
    modules: dict[str, dict[str, Any]] = {
        "vllm": {"SamplingParams": SamplingParams, "LLMEngine": LLMEngine},
        "vllm.sampling_params": {
            "RequestOutputKind": RequestOutputKind,
            "StructuredOutputsParams": StructuredOutputsParams,
        },
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": EngineArgs},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
        "vllm.v1.engine.llm_engine": {"LLMEngine": LLMEngine},
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update({**contents, "__spec__": SimpleNamespace(name=name)})
        sys.modules[name] = module
    try:
        yield
    finally:
        users = [name for name in sys.modules if name.startswith("aiservices.handlers.text.vllm.")]
        for name in [*modules, *users]:
            del sys.modules[name]
