"""From messages to tokens, through the checkpoint's own chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiservices.errors import InvalidInput, ServiceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_MARKER = re.compile(r"[<\[|].*[>\]|]", re.DOTALL)
"""How tokens that steer a chat look, whether or not the checkpoint calls them special: ``<|im_end|>``, ``[INST]``."""


OWN_SYSTEM_PROMPT = "You are a helpful assistant."
"""Sent where a chat template would put a long prompt of its own before a chat that has none: Ministral 3's takes 550
tokens of every request, for a date and for tools that there are none of."""

_SHORT_CHARACTERS = 400
"""Before the first turn: markers and a short system prompt, as the 60 of Qwen2.5-VL's, stay below."""


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
        self._system_prompt = OWN_SYSTEM_PROMPT if self._is_wordy() else None
        self._markers = re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or r"(?!)")

    def encode(self, messages: Sequence[dict[str, Any]], system_prompt: str | None = None) -> list[int]:
        """Render messages up to where the answer begins, and turn that into tokens.

        Args:
            messages: the turns; a caller's text in them without markers.
            system_prompt: what stands before them in a turn of its own, as the caller wrote it. None: what the
                template puts there, or :data:`OWN_SYSTEM_PROMPT` in place of a long one, unless the first turn is one.

        Raises:
            InvalidInput: the chat template has no place for a system turn.
        """
        text = self._render(messages)
        if system_prompt is None and messages[0]["role"] != "system":
            system_prompt = self._system_prompt
        if system_prompt is not None:
            text = self._render_with_system(messages, self.escape_markers(system_prompt), text)
        # The backend's own encode, because the wrapper's sets padding on a shared object at every call.
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def escape_markers(self, text: str) -> str:
        """Make a caller's text safe to put into a message: no token that steers the chat, no lone surrogate."""
        text = text.encode(errors="replace").decode()
        while self._markers.search(text):
            text = self._markers.sub(lambda marker: f"{marker[0][0]} {marker[0][1:]}", text)
        return text

    def _is_wordy(self) -> bool:
        """Whether the template says much of its own before the first turn, and less if it is given a system prompt."""
        from jinja2 import TemplateError

        turn = {"role": "user", "content": "\N{SNOWMAN}"}
        try:
            alone = self._render([turn]).find(turn["content"])
            given = self._render([{"role": "system", "content": OWN_SYSTEM_PROMPT}, turn]).find(turn["content"])
        except TemplateError:  # a template that takes no system prompt, or wants its turns in parts
            return False
        return alone > _SHORT_CHARACTERS and 0 <= given < alone

    def _render(self, messages: Sequence[dict[str, Any]]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def _render_with_system(self, messages: Sequence[dict[str, Any]], prompt: str, without: str) -> str:
        from jinja2 import TemplateError

        in_parts = isinstance(messages[0]["content"], list)
        content = [{"type": "text", "text": prompt}] if in_parts else prompt
        try:
            text = self._render([{"role": "system", "content": content}, *messages])
        except TemplateError:  # such as "Only user and assistant roles are supported!"
            text = without
        if text == without:  # others leave out what they do not know
            raise InvalidInput("$.system_prompt", "the checkpoint's chat template has no place for a system prompt")
        return text
