"""How many tokens an answer may have."""

from __future__ import annotations

import pytest

from aiservices.errors import InvalidInput
from aiservices.handlers.text.generation import fit_new_tokens


def test_an_answer_takes_what_is_asked_for_up_to_the_services_limit() -> None:
    assert fit_new_tokens(10, None, 512, 1000, "$.prompt") == 512
    assert fit_new_tokens(10, 5, 512, 1000, "$.prompt") == 5
    assert fit_new_tokens(10, 9999, 512, 1000, "$.prompt") == 512
    assert fit_new_tokens(990, None, 512, 1000, "$.prompt") == 10


def test_what_does_not_fit_into_the_context_names_the_field_to_change() -> None:
    with pytest.raises(InvalidInput, match=r"\$\.prompt: makes a prompt of 1000 tokens; the model takes at most 999"):
        fit_new_tokens(1000, None, 512, 1000, "$.prompt")
    with pytest.raises(InvalidInput, match=r"\$\.max_new_tokens: at most 10 fit beside the prompt of 990 tokens"):
        fit_new_tokens(990, 11, 512, 1000, "$.prompt")
