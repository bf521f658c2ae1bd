"""From messages to tokens, through the checkpoint's own chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiservices.errors import ServiceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_MARKER = re.compile(r"[<\[|].*[>\]|]", re.DOTALL)
"""How tokens that steer a chat look, whether or not the checkpoint calls them special: ``<|im_end|>``, ``[INST]``."""

_SYSTEM_PROMPT = "You are a helpful assistant."
"""What stands in place of a template's own long system prompt: Ministral 3's has 550 tokens, and speaks of today's date
in placeholders that nothing fills."""
_LONG = 400
"""Characters before the first turn that are a long system prompt; Qwen2.5-VL's has 60."""


class Chat:
    """A tokenizer with its chat template. Usable from several threads at once.

    A template that begins with a long system prompt of its own, unless it is given one, is given a short one.

    Args:
        tokenizer: of the checkpoint, a fast one.

    Raises:
        ServiceError: it is not fast, or has no chat template.
    """

    backend: Tokenizer
    """The fast tokenizer itself."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ServiceError("the checkpoint has no tokenizer.json")
        if not tokenizer.chat_template:
            raise ServiceError("the checkpoint has no chat template")
        self.backend = backend
        self._tokenizer = tokenizer
        markers = [
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if len(token.content) > 1 and (token.special or _MARKER.fullmatch(token.content))
        ]
        self._system = _SYSTEM_PROMPT if self._is_wordy() else None
        self._markers = re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or r"(?!)")

    def encode(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Render messages up to where the answer begins, and turn that into tokens."""
        text = self._render(messages)
        # The backend's own encode, because the wrapper's sets padding on a shared object at every call.
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def escape_markers(self, text: str) -> str:
        """Make a caller's text safe to put into a message: no token that steers the chat, no lone surrogate."""
        text = text.encode(errors="replace").decode()
        while self._markers.search(text):
            text = self._markers.sub(lambda marker: f"{marker[0][0]} {marker[0][1:]}", text)
        return text

    def _render(self, messages: Sequence[dict[str, Any]]) -> str:
        turns = list(messages)
        if self._system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self._system})
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _is_wordy(self) -> bool:
        """Whether the template says much of its own before the first turn, and less if it is given a system prompt."""
        from jinja2 import TemplateError

        self._system = None
        turn = {"role": "user", "content": "\N{SNOWMAN}"}
        try:
            alone = self._render([turn]).find(turn["content"])
            given = self._render([{"role": "system", "content": _SYSTEM_PROMPT}, turn]).find(turn["content"])
        except TemplateError:  # a template that takes no system prompt, or wants its turns in parts
            return False
        return alone > _LONG and 0 <= given < alone
