"""Our judge of multilingual speech beside the library's, and where that one fails."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.handlers import tiny_chatterbox
from tests.handlers.chatterbox import judging

if find_spec("chatterbox") is None:
    pytest.skip("the chatterbox extra is not installed: scripts/install chatterbox", allow_module_level=True)

tiny_chatterbox.import_library()

import torch  # noqa: E402 - behind the guard of the import above

from aiservices.handlers.chatterbox import alignment  # noqa: E402
from aiservices.handlers.chatterbox.alignment import RowAlignment, Verdict  # noqa: E402

pytestmark = [
    pytest.mark.chatterbox,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

FIRST, STOP, STEPS = 34, 6, 90


def looks(seed: int, tokens: int) -> list[torch.Tensor]:
    """Attention of a made-up speech: along the text, then lingering, going back or wandering, ``[columns]`` each."""
    chance = torch.Generator().manual_seed(seed)
    pace = 0.3 + 1.2 * float(torch.rand(1, generator=chance))
    kind = seed % 4
    made = []
    for step in range(STEPS):
        place = min(pace * step, tokens - 1.0)
        if kind == 1 and step > 40:
            place = (step - 40) % tokens
        if kind == 2 and float(torch.rand(1, generator=chance)) < 0.2:
            place = float(torch.randint(tokens, (1,), generator=chance))
        columns = torch.arange(FIRST + tokens + 2 + step)
        sharp = torch.exp(-((columns - FIRST - place) ** 2) / (0.5 + kind)) + 0.02 * torch.rand(
            len(columns), generator=chance
        )
        made.append(sharp / sharp.sum())
    return made


def theirs(seen: list[torch.Tensor], tokens: int) -> list[Verdict]:
    judge, verdicts = judging.judge(FIRST, FIRST + tokens, STOP), []
    for step, attention in enumerate(seen):
        prompt = torch.cat([torch.zeros(FIRST + tokens + 1, len(attention)), attention[None]])
        judge.last_aligned_attns = [attention[None] if step else prompt]
        logits = judge.step(torch.zeros(1, 8), next_token=step)[0]  # no token comes twice
        ends, held = bool(logits[STOP] > 0), bool(logits[STOP] < 0)
        verdicts.append(Verdict.END if ends else Verdict.GO_ON if held else Verdict.FREE)
    return verdicts


def ours(seen: list[torch.Tensor], tokens: int) -> list[Verdict]:
    judge = RowAlignment(FIRST, FIRST + tokens)
    return [judge.follow(attention, step) for step, attention in enumerate(seen)]


def test_our_judge_says_what_the_library_says() -> None:
    met = set[Verdict]()
    for seed in range(48):
        tokens = 6 + seed
        seen = looks(seed, tokens)
        wanted = theirs(seen, tokens)
        assert ours(seen, tokens) == wanted, f"seed {seed}"
        met |= set(wanted)
    assert met == set(Verdict)


def test_the_heads_are_the_librarys() -> None:
    assert list(alignment.ALIGNED_HEADS) == judging.library().LLAMA_ALIGNED_HEADS


def test_the_library_fails_where_ours_goes_on() -> None:
    seen = looks(0, 5)
    with pytest.raises(IndexError):
        theirs(seen, 5)
    for tokens in range(1, 6):
        verdicts = ours(looks(0, tokens), tokens)
        assert Verdict.GO_ON not in verdicts
        assert verdicts[-1] is Verdict.END  # it has lingered at the end for longer than 0.2 s


def test_two_equal_tokens_are_speech_and_three_end_it() -> None:
    judge = RowAlignment(FIRST, FIRST + 30)
    seen = looks(0, 30)
    assert [judge.follow(seen[step], token) for step, token in enumerate((7, 8, 8, 9, 9))] == [Verdict.GO_ON] * 5
    assert judge.follow(seen[5], 9) is Verdict.END
    assert judge.follow(seen[6], 4) is Verdict.GO_ON


def test_too_few_columns_are_an_error() -> None:
    with pytest.raises(ValueError, match="attention to 40 columns of a text that ends at 54"):
        RowAlignment(FIRST, FIRST + 20).follow(torch.zeros(40), 1)
