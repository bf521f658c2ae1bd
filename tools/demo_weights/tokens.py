"""Small byte-level BPE tokenizers for both models."""

import json
import re
from collections import Counter
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_SPACE = "Ġ"
"""How byte-level BPE writes a space."""


def train_tokenizer(texts: Sequence[str], special: Sequence[str], *, size: int) -> Tokenizer:
    """Train a byte-level BPE on the texts; every string round-trips, as each byte is a token.

    Words are learned without their leading space, and only a whole learned word gets a token with one. So a word
    that the tokenizer has never seen is cut the same way after a space and after a quotation mark, and a model
    can copy it from a sentence into JSON token by token.

    Args:
        texts: The corpus.
        special: Special tokens; they take the first ids, in this order.
        size: Tokens at most before the words with a space are added.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" "), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=5, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(_with_spaced_words(learner, texts))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _with_spaced_words(learner: Tokenizer, texts: Sequence[str]) -> models.BPE:
    learned = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = learned["vocab"]
    merges = [(left, right) for left, right in learned["merges"]]
    words = Counter(word for text in texts for word in re.findall(r"\w+", text))
    for word, count in words.items():
        if count >= 5 and word in vocab and word.isascii() and word.isalpha():
            vocab[_SPACE + word] = len(vocab)
            merges.append((_SPACE, word))
    return models.BPE(vocab=vocab, merges=merges)


def wrap(
    tokenizer: Tokenizer, *, chat_template: str, eos: str, pad: str, bos: str | None = None, special: Sequence[str]
) -> PreTrainedTokenizerFast:
    """Make the transformers tokenizer that is saved with a model; it pads on the left, as generation needs."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=[token for token in special if token not in (bos, eos, pad)],
        chat_template=chat_template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
