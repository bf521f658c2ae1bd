"""Text out of tokens as they come, never half a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiservices.handlers.text.detokenizer import ByteDetokenizer, WindowDetokenizer
from tests.handlers.tiny_models import MISTRAL_TOKENS, byte_tokenizer, metaspace_tokenizer

TOKENIZERS = {"bytes": byte_tokenizer(MISTRAL_TOKENS), "metaspace": metaspace_tokenizer(MISTRAL_TOKENS)}


END = 2


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(
    tokens=st.lists(st.integers(min_value=5, max_value=400), max_size=60), step=st.integers(min_value=1, max_value=7)
)
def test_text_comes_in_pieces_that_never_end_in_half_a_character(kind: str, tokens: list[int], step: int) -> None:
    detokenizer = WindowDetokenizer(TOKENIZERS[kind])
    pieces = [detokenizer.add(tokens[start : start + step]) for start in range(0, len(tokens), step)]
    pieces.append(detokenizer.finish())
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    # Byte tokens that make no character are counted differently in company, so compare what is sound.
    whole = TOKENIZERS[kind].decode(tokens)
    if "\ufffd" not in whole:
        assert "".join(pieces) == whole


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=40))
def test_any_text_comes_out_of_its_tokens_as_it_went_in(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    detokenizer = WindowDetokenizer(tokenizer)
    joined = "".join([*(detokenizer.add([token]) for token in tokens), detokenizer.finish()])
    assert joined == tokenizer.decode(tokens).rstrip("\ufffd")


def test_special_tokens_leave_no_text() -> None:
    detokenizer = WindowDetokenizer(TOKENIZERS["bytes"])
    tokens = TOKENIZERS["bytes"].encode("red mug").ids
    assert detokenizer.add([1, *tokens, END]) + detokenizer.finish() == "red mug"


def test_bytes_are_joined_to_characters_exactly() -> None:
    table = {1: b'{"a', 2: "\u20ac".encode()[:2], 3: "\u20ac".encode()[2:], 4: b"\xf0\x9f"}
    detokenizer = ByteDetokenizer(lambda tokens: b"".join(table[token] for token in tokens))
    assert [detokenizer.add([token]) for token in (1, 2, 3, 4)] == ['{"a', "", "\u20ac", ""]
    assert detokenizer.finish() == ""
