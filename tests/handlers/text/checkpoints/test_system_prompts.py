"""What chat templates say by themselves before a caller's words."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")

from aiservices.handlers.text.chat import Chat
from aiservices.handlers.torch_runtime import prepare_torch
from tests.handlers.text.checkpoints.templates import MINISTRAL_TEMPLATE, MISTRAL_TEMPLATE
from tests.handlers.tiny_models import MISTRAL_TOKENS, byte_tokenizer

MUG: list[dict[str, Any]] = [{"role": "user", "content": "A red mug."}]
SHORT = [{"role": "system", "content": "Be short."}]
TALK = "Talk at length. " * 40


def read(template: str, messages: list[dict[str, Any]]) -> str:
    """What a model gets to read."""
    prepare_torch()
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast
    tokenizer = byte_tokenizer((*MISTRAL_TOKENS, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"))
    chat = Chat(fast(tokenizer_object=tokenizer, chat_template=template, bos_token="<s>"))
    return chat.backend.decode(chat.encode(messages), skip_special_tokens=False)


def test_a_short_system_prompt_stands_in_for_a_long_one_with_the_date() -> None:
    dated = MINISTRAL_TEMPLATE.replace("{today}", "' + strftime_now('%Y-%m-%d') + '")
    assert "strftime_now" in dated
    head = "<s>[SYSTEM_PROMPT]You are a helpful assistant.[/SYSTEM_PROMPT]"
    assert read(dated, MUG) == f"{head}[INST]A red mug.[/INST]"


def test_a_system_turn_among_the_messages_stays_alone() -> None:
    expected = "<s>[SYSTEM_PROMPT]Be short.[/SYSTEM_PROMPT][INST]A red mug.[/INST]"
    assert read(MINISTRAL_TEMPLATE, SHORT + MUG) == expected


def test_a_template_that_adds_nothing_is_left_alone() -> None:
    assert read(MISTRAL_TEMPLATE, MUG) == "<s>[INST] A red mug.[/INST]"
    assert read(MISTRAL_TEMPLATE, SHORT + MUG) == "<s>[INST] Be short.\n\nA red mug.[/INST]"


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "leaves it out"])
def test_long_words_stay_where_the_template_takes_no_system_prompt(refuses: bool) -> None:
    start = "{% if messages[0].role != 'user' %}{{ raise_exception('users only') }}{% endif %}" if refuses else ""
    turns = "{% for message in messages if message.role == 'user' %}[INST]{{ message.content }}[/INST]{% endfor %}"
    assert read(start + TALK + turns, MUG) == f"{TALK}[INST]A red mug.[/INST]"
