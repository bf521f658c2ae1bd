"""The picture model's vision tower for training: whole batches of one grid at once, and classifiers on its tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import get_vision_position_ids

from tools.demo_weights.pictures import MERGE_SIZE, PATCH_SIZE, Grid, image_processor
from tools.demo_weights.products import ATTRIBUTES


def normalised(patches: torch.Tensor) -> torch.Tensor:
    """Turn pixels 0..255, shape (…, 3 * 8 * 8), into what the image processor gives for one frame."""
    processor = image_processor()
    mean, std = (torch.tensor(values)[:, None] for values in (processor.image_mean, processor.image_std))
    pixels = patches.view(*patches.shape[:-1], 3, -1).float() / 255
    return ((pixels - mean) / std).flatten(-2)


def recoloured(patches: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Give each picture other colours: channels shuffled and mixed, at times inverted; shape and pattern stay.

    Without it the tower takes the colour as evidence against objects that it has not seen in it, and gets a sixth
    of the unseen pairs wrong.

    Args:
        patches: Pixels 0..255, shape (pictures, patches, 3 * 8 * 8).
        rng: Source of chance.
    """
    count = len(patches)
    shuffles = np.stack([np.eye(3)[rng.permutation(3)] for _ in range(count)])
    mixing = shuffles + rng.normal(0, 0.2, (count, 3, 3))
    sign = np.where(rng.random((count, 1, 1)) < 0.35, -1.0, 1.0)
    matrix = torch.from_numpy((sign * mixing).astype(np.float32))
    centred = patches.view(count, -1, 3, PATCH_SIZE**2).float() - 127.5
    return (torch.einsum("nij,npjc->npic", matrix, centred) + 127.5).clamp(0, 255).flatten(2)


def merged_tokens(visual: Any, patches: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Give the tokens that the language model reads, shape (pictures, patches / 4, hidden).

    The same numbers as the tower's own forward, which loops over the pictures of a batch in every block and is
    three times slower for small ones. Every block attends to all patches, so windows play no part.

    Args:
        visual: The tower, a Qwen2_5_VisionTransformerPretrainedModel.
        patches: Pixels 0..255, shape (pictures, patches, 3 * 8 * 8), all of one grid.
        grid: Rows and columns of patches.
    """
    # A picture is a video of two equal frames: the patch embedding sees their sum.
    weight = visual.patch_embed.proj.weight.sum(dim=2).flatten(1)
    hidden = functional.linear(normalised(patches), weight)
    positions = get_vision_position_ids(torch.tensor([[1, *grid]]), MERGE_SIZE)
    rotary = visual.rotary_pos_emb(hidden, positions)
    for block in visual.blocks:
        hidden = hidden + _attention(block.attn, block.norm1(hidden), rotary)
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged: torch.Tensor = visual.merger(hidden)
    return merged.view(len(patches), -1, merged.shape[-1])


def _attention(module: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    pictures, length, width = hidden.shape
    qkv = module.qkv(hidden).view(pictures, length, 3, module.num_heads, -1)
    query, key, value = qkv.unbind(dim=2)
    query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
    query, key, value = (x.transpose(1, 2) for x in (query * module.scaling, key, value))
    # Plain products: at this size the backward of the fused CPU attention takes half the time of a step.
    mixed = (query @ key.transpose(-1, -2)).softmax(dim=-1).to(value.dtype) @ value
    attended: torch.Tensor = module.proj(mixed.transpose(1, 2).reshape(pictures, length, width))
    return attended


class AttributeHeads(nn.Module):
    """One classifier per attribute that reads the merged tokens through a learned query.

    They make the tower learn shapes: from captions alone it stays at chance on the object for long.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads_query = nn.Parameter(torch.randn(len(ATTRIBUTES), width) * width**-0.5)
        self.heads = nn.ModuleList(nn.Linear(width, len(words)) for words in ATTRIBUTES.values())

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Give each attribute's logits, shape (pictures, words), from tokens of shape (pictures, tokens, width)."""
        tokens = self.norm(tokens)
        weights = (tokens @ self.heads_query.T).softmax(dim=1)
        pooled = weights.transpose(1, 2) @ tokens
        return [head(pooled[:, i]) for i, head in enumerate(self.heads)]

    @staticmethod
    def loss(
        logits: list[torch.Tensor], labels: torch.Tensor, attributes: Sequence[str] = tuple(ATTRIBUTES)
    ) -> torch.Tensor:
        """Give the sum of these attributes' cross entropies; labels have shape (pictures, attributes)."""
        judged = [i for i, name in enumerate(ATTRIBUTES) if name in attributes]
        return torch.stack([functional.cross_entropy(logits[i], labels[:, i]) for i in judged]).sum()
