"""What chat templates say by themselves before a caller's words."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")

from aiservices.handlers.text.chat import Chat
from aiservices.handlers.torch_runtime import prepare_torch
from tests.handlers.text.checkpoints import templates
from tests.handlers.tiny_models import QWEN_TOKENS, byte_tokenizer

MISTRAL_TOKENS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
MUG: list[dict[str, Any]] = [{"role": "user", "content": "A red mug."}]
SHORT = [{"role": "system", "content": "Be short."}]


def chat(tokens: tuple[str, ...], template: str) -> Chat:
    prepare_torch()
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast
    return Chat(fast(tokenizer_object=byte_tokenizer(tokens), chat_template=template, bos_token="<s>"))


def rendered(template: str, messages: list[dict[str, Any]], tokens: tuple[str, ...] = MISTRAL_TOKENS) -> str:
    """What a model gets to read."""
    made = chat(tokens, template)
    return made.backend.decode(made.encode(messages), skip_special_tokens=False)


def test_a_short_system_prompt_stands_in_for_a_long_one() -> None:
    head = "<s>[SYSTEM_PROMPT]You are a helpful assistant.[/SYSTEM_PROMPT]"
    assert rendered(templates.MINISTRAL, MUG) == f"{head}[INST]A red mug.[/INST]"


def test_so_does_it_for_one_with_the_date() -> None:
    dated = templates.MINISTRAL.replace("{today}", "' + strftime_now('%Y-%m-%d') + '")
    assert "strftime_now" in dated
    assert rendered(dated, MUG) == rendered(templates.MINISTRAL, MUG)


def test_a_callers_system_prompt_stays_alone() -> None:
    expected = "<s>[SYSTEM_PROMPT]Be short.[/SYSTEM_PROMPT][INST]A red mug.[/INST]"
    assert rendered(templates.MINISTRAL, SHORT + MUG) == expected
    made = chat(MISTRAL_TOKENS, templates.MINISTRAL)
    assert made.backend.decode(made.encode(MUG, "Be short."), skip_special_tokens=False) == expected


@pytest.mark.parametrize("content", ["A red mug.", [{"type": "text", "text": "A red mug."}]])
def test_the_few_words_that_qwen_was_trained_with_stay(content: Any) -> None:
    text = rendered(templates.QWEN25, [{"role": "user", "content": content}], QWEN_TOKENS)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert text == f"{system}<|im_start|>user\nA red mug.<|im_end|>\n<|im_start|>assistant\n"


def test_templates_that_add_nothing_are_left_alone() -> None:
    turn = "<|im_start|>user\nA red mug.<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(templates.QWEN3, MUG, QWEN_TOKENS) == turn
    assert rendered(templates.MISTRAL, MUG) == "<s>[INST] A red mug.[/INST]"
    assert rendered(templates.MISTRAL, SHORT + MUG) == "<s>[INST] Be short.\n\nA red mug.[/INST]"


def test_long_words_stay_where_the_template_takes_no_system_prompt() -> None:
    words = "Talk at length. " * 40
    deaf = f"{words}{{% for message in messages %}}[INST]{{{{ message.content }}}}[/INST]{{% endfor %}}"
    strict = f"{{% if messages[0].role != 'user' %}}{{{{ raise_exception('users only') }}}}{{% endif %}}{deaf}"
    for template in (deaf, strict):
        assert rendered(template, MUG) == f"{words}[INST]A red mug.[/INST]"
