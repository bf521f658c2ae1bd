"""Lay questions about a picture into rows for the picture model: what a token sees, where it stands, what is learnt."""

import attrs
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from tools.demo_weights.optim import LENGTH_STEP
from tools.demo_weights.pictures import MERGE_SIZE, Grid


@attrs.frozen(eq=False)
class Texts:
    """A batch of token rows; all tensors have shape (pictures, length)."""

    ids: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor


@attrs.frozen
class Exchange:
    """A question about a picture and the answer to learn.

    Args:
        question: The question.
        answer: The answer.
        said: What the model reads as its own words so far, instead of the answer; taken if it has as many tokens.
    """

    question: str
    answer: str
    said: str | None = None


class Reader:
    """Lays several questions about one picture into one row, each of which sees the picture and itself alone.

    So the picture's tokens are computed once for all of them. Each question's positions start right after the
    picture, as if it were the only one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def rows(self, asked: list[list[Exchange]], grid: Grid) -> Texts:
        """Give the rows for what is asked about each of a batch of pictures of one grid."""
        rows = [self._row(exchanges, grid) for exchanges in asked]
        length = -(-max(len(row) for row in rows) // LENGTH_STEP) * LENGTH_STEP
        # Padding: token 0, no label, a segment of its own.
        padded = torch.tensor([row + [(0, -100, -1, 0)] * (length - len(row)) for row in rows])
        return Texts(*padded.unbind(dim=2))

    def image_span(self, grid: Grid) -> slice:
        """Tell where in each row the picture's tokens are."""
        start = len(self._encode("<|im_start|>user\n<|vision_start|>"))
        return slice(start, start + grid[0] * grid[1] // MERGE_SIZE**2)

    def _row(self, exchanges: list[Exchange], grid: Grid) -> list[tuple[int, int, int, int]]:
        span = self.image_span(grid)
        pads = "<|image_pad|>" * (span.stop - span.start)
        prefix = self._encode(f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>")
        after = span.start + max(grid) // MERGE_SIZE
        row = [(token, -100, 0, 0) for token in prefix]
        row[-1] = (prefix[-1], -100, 0, after)
        for number, exchange in enumerate(exchanges, start=1):
            head = self._encode(f"{exchange.question}<|im_end|>\n<|im_start|>assistant\n")
            tail = self._encode(f"{exchange.answer}<|im_end|>")
            said = self._encode(f"{exchange.said or exchange.answer}<|im_end|>")
            tokens = head + (said if len(said) == len(tail) else tail)
            labels = [-100] * (len(head) - 1) + tail + [-100]
            row += [(t, y, number, after + 1 + i) for i, (t, y) in enumerate(zip(tokens, labels, strict=True))]
        return row

    def _encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]


def positions_of(texts: Texts, span: slice, grid: Grid) -> torch.Tensor:
    """Give Qwen2.5-VL's positions (time, height, width), shape (3, pictures, length)."""
    positions = texts.positions.repeat(3, 1, 1)
    rows, columns = grid[0] // MERGE_SIZE, grid[1] // MERGE_SIZE
    positions[:, :, : span.start] = torch.arange(span.start)
    positions[:, :, span] = span.start
    positions[1, :, span] += torch.arange(rows).repeat_interleave(columns)
    positions[2, :, span] += torch.arange(columns).repeat(rows)
    return positions


def visible(segments: torch.Tensor) -> torch.Tensor:
    """Give what is added to attention: 0 for what came before in one's own segment or the picture, else the minimum.

    Its shape is (pictures, 1, length, length).
    """
    before = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    seen = ((same | (segments[:, None, :] == 0)) & before)[:, None]
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def caption_loss(
    model: Qwen2_5_VLForConditionalGeneration, tokens: torch.Tensor, texts: Texts, span: slice, grid: Grid
) -> torch.Tensor:
    """Give the cross entropy of the answers, given the pictures' merged tokens."""
    embedded = model.get_input_embeddings()(texts.ids)
    embedded = torch.cat([embedded[:, : span.start], tokens.to(embedded.dtype), embedded[:, span.stop :]], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=visible(texts.segments),
        position_ids=positions_of(texts, span, grid),
        use_cache=False,
    ).last_hidden_state
    labelled = texts.labels >= 0
    return functional.cross_entropy(model.lm_head(hidden[labelled]).float(), texts.labels[labelled])
