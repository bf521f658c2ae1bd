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

    def encode(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Render messages up to where the answer begins, and turn that into tokens."""
        text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        # The backend's own encode, because the wrapper's sets padding on a shared object at every call.
        return list(self.backend.encode(str(text), add_special_tokens=False).ids)

    def escape_markers(self, text: str) -> str:
        """Make a caller's text safe to put into a message: no token that steers the chat, no lone surrogate."""
        text = text.encode(errors="replace").decode()
        while self._markers.search(text):
            text = self._markers.sub(lambda marker: f"{marker[0][0]} {marker[0][1:]}", text)
        return text
