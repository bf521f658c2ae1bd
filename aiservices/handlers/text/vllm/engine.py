"""Continue texts with vLLM, whose engine runs in a process of its own. Imports vllm: import it inside ``load``.

The process computes, schedules and follows grammars; here requests are handed to it and tokens are taken from it, on
the model's thread. What a row shares with those of the package's own engine (its text, its stream, its stop texts) is
:class:`~aiservices.handlers.text.row.Row`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Collection, Sequence
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import attrs
from tokenizers import Tokenizer
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine

from aiservices.errors import JobFailed, ModelBroken
from aiservices.handler import Task
from aiservices.handlers.text.detokenizer import make_detokenizer
from aiservices.handlers.text.engine import Ended
from aiservices.handlers.text.generation import Generated, GenerationRequest, Prompt
from aiservices.handlers.text.row import Row
from aiservices.handlers.text.vllm.error_log import ErrorLog
from aiservices.handlers.text.vllm.plugin import BUDGET_KEY, STOP_SIGNAL

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_STOP_S = 10.0
"""How long the process may take to end; then it is killed."""
_END_TOKENS = 1
"""What vLLM takes beyond a grammar's budget: the token that ends the answer, which the own engine does without."""


class VllmEngine:
    """The rows of one vLLM, as :class:`~aiservices.handlers.text.engine.TextEngine` has it.

    Args:
        engine: with its process running.
        tokenizer: turns tokens into text.
        stop_ids: tokens that end an answer.
        log: what the process says went wrong.
    """

    def __init__(self, engine: LLMEngine, tokenizer: Tokenizer, stop_ids: Collection[int], log: ErrorLog) -> None:
        self.window: int = engine.model_config.max_model_len
        self.vocabulary: int = engine.model_config.get_vocab_size()
        self._engine = engine
        self._client: Any = engine.engine_core
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._log = log
        self._rendering = threading.Lock()
        # What is too long is refused by the service, which can name the field.
        self._unbounded = dataclasses.replace(engine.renderer.default_cmpl_tok_params, max_total_tokens=None)
        self._rows: dict[str, Row] = {}
        self._ended: list[Ended] = []
        self._count = 0
        threading.Thread(target=self._watch, name="vllm-watch", daemon=True).start()

    def __len__(self) -> int:
        """Rows that a step has yet to return."""
        return len(self._rows) + len(self._ended)

    def render(self, token_ids: Sequence[int], pictures: Sequence[PilImage] = ()) -> Prompt:
        """Make a prompt; pictures become what the vision tower takes, one prompt after the other."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(token_ids)}
        if pictures:
            prompt["multi_modal_data"] = {"image": list(pictures)}
        with self._rendering:  # its processor and its tokenizer are not made for several threads
            (rendered,) = self._engine.renderer.render_cmpl([prompt], self._unbounded)
        places: Any = rendered.get("mm_placeholders", {})
        picture_tokens = sum(place.length for place in places.get("image", ()))
        return Prompt(rendered["prompt_token_ids"], picture_tokens, rendered)

    def admit(self, tasks: Sequence[Task[GenerationRequest]]) -> None:
        """Let rows join.

        Raises:
            ModelBroken: the engine's process is gone.
        """
        for task in tasks:
            self._count += 1
            name = str(self._count)
            try:
                row = Row(task, make_detokenizer(task.item, self._tokenizer))
                self._engine.add_request(name, task.item.prompt.content, self._params(task.item))
            except EngineDeadError as error:
                raise self._broken() from error
            except Exception as error:
                reason = str(error).partition("\n")[0]
                self._ended.append((task, JobFailed(f"vLLM does not take the request: {reason}")))
            else:
                self._rows[name] = row

    def step(self) -> list[Ended]:
        """Take the tokens that the process has chosen; wait for the next ones if there are none yet.

        Raises:
            ModelBroken: the engine's process is gone.
        """
        try:
            outputs = list(self._engine.step()) if self._rows else []
        except EngineDeadError as error:
            raise self._broken() from error
        now_s = time.monotonic()
        for output in outputs:
            row = self._rows.get(output.request_id)
            if row is not None:
                self._take(output.request_id, row, output, now_s)
        ended, self._ended = self._ended, []
        return ended

    def evict(self, tasks: Sequence[Task[GenerationRequest]]) -> None:
        """Take rows out; the process hears of it before its next step."""
        leaving = {id(task) for task in tasks}
        self._ended = [ended for ended in self._ended if id(ended[0]) not in leaving]
        self._abort([name for name, row in self._rows.items() if id(row.task) in leaving])

    def reset(self) -> None:
        """Forget every row."""
        self._ended = []
        self._abort(list(self._rows))

    def close(self) -> None:
        """End the process, and with it all that it holds of the device."""
        self.reset()
        processes = self._processes
        for process in processes:
            if process.is_alive():  # the id of one that is not may be another's by now
                os.kill(process.pid, STOP_SIGNAL)
        for process in processes:
            process.join(_STOP_S)
            process.kill()
        self._client.shutdown()
        self._client.output_queue_thread.join(_STOP_S)  # it closes its own socket
        self._client.ctx.destroy(linger=0)
        self._engine.renderer.shutdown()
        self._log.close()

    @property
    def _processes(self) -> list[Any]:
        manager = self._client.resources.engine_manager
        return list(manager.processes) if manager is not None else []

    def _watch(self) -> None:
        """Wake who waits for tokens once the process is gone; vLLM's client alone would wait for ever."""
        processes = self._processes
        connection.wait([process.sentinel for process in processes])
        self._client.resources.engine_dead = True
        self._client.outputs_queue.put_nowait(EngineDeadError())

    def _broken(self) -> ModelBroken:
        for process in self._processes:
            process.join(1)  # its end is known before its status is
        codes = ", ".join(str(process.exitcode) for process in self._processes)
        reason = self._log.last_error() or f"exit status {codes or 'unknown'}"
        return ModelBroken(f"the engine's process ended: {reason}")

    def _abort(self, names: Sequence[str]) -> None:
        for name in names:
            del self._rows[name]
        if names and not self._client.resources.engine_dead:
            self._engine.abort_request(list(names))

    def _params(self, request: GenerationRequest) -> SamplingParams:
        grammar, max_tokens = None, request.max_new_tokens
        if request.grammar is not None:
            schema = {**request.grammar.schema, BUDGET_KEY: max_tokens}
            grammar = StructuredOutputsParams(json=json.dumps(schema))
            max_tokens += _END_TOKENS
        return SamplingParams(
            **attrs.asdict(request.sampling),
            max_tokens=max_tokens,
            stop_token_ids=sorted(self._stop_ids),
            structured_outputs=grammar,
            output_kind=RequestOutputKind.DELTA,
            detokenize=False,
            skip_clone=True,
        )

    def _take(self, name: str, row: Row, output: Any, now_s: float) -> None:
        """Add new tokens to a row and end it where they do."""
        result: Generated | Exception
        try:
            row.tokens.extend(output.outputs[0].token_ids)
            if output.finished:
                result = self._finish(row, output.outputs[0].finish_reason)
            elif row.stops():
                result = row.finish("stop", drop_last=False)
            else:
                row.write(now_s)
                return
        except Exception as error:
            result = error
        self._ended.append((row.task, result))
        if output.finished:
            del self._rows[name]
        else:
            self._abort([name])

    def _finish(self, row: Row, reason: str | None) -> Generated:
        if reason not in ("stop", "length"):
            raise JobFailed(f"the engine gave the answer up: {reason or 'no reason told'}")
        stops = bool(row.tokens) and row.tokens[-1] in self._stop_ids
        return row.finish("stop" if stops else "length", drop_last=stops)
