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
"""Stands in for a long one that a chat template would add by itself: Qwen's words, which say nothing of a date."""
_LONG = 200
"""More characters than these beside a caller's own are a long one: Qwen2.5-VL's template adds 50, Ministral 3's 2400."""


class Chat:
    """A tokenizer with its chat template. Usable from several threads at once.

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
        self._markers = re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or r"(?!)")
        self._says_much = False
        self._says_much = self._measure()

    def encode(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Render messages up to where the answer begins, and turn that into tokens.

        A template that adds a long system prompt of its own, about the date and tools there are none of, gets a short
        one instead, unless the first message is one.
        """
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
        if self._says_much and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": _SYSTEM_PROMPT})
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _measure(self) -> bool:
        """Find out whether the template adds much by itself and less where there is a system prompt."""
        from jinja2 import TemplateError

        turns = [{"role": "system", "content": _SYSTEM_PROMPT}, {"role": "user", "content": "?"}]
        try:
            alone, led = self._render(turns[1:]), self._render(turns)
        except TemplateError:  # it takes no system prompt, or messages of another form: so it adds none
            return False
        return len(self._markers.sub("", alone)) > _LONG and len(led) < len(alone)
