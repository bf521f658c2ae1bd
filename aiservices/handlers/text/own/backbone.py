"""The model as the engine sees it: prompts in, logits out. Imports torch and transformers: import it inside ``load``.

The wrapper's parts (embeddings, vision tower, decoder, head) are called instead of its own ``forward``: only so can a
prompt that holds a picture be read in pieces, and only the last token's logits be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from aiservices.errors import ServiceError
from aiservices.handlers.text.generation import Prompt
from aiservices.handlers.text.own.padded_decoder import PaddedDecoder
from aiservices.handlers.text.own.picture_cache import Features, PictureCache
from aiservices.handlers.text.own.picture_reader import Pictures
from aiservices.handlers.text.own.slot_cache import SlotCache
from aiservices.handlers.text.own.vision_windows import batch_windows


@attrs.define(eq=False)
class Prompts:
    """Prompts ready for the decoder, padded on the right, and the cache that fills while they are read.

    Padding on the right needs no mask: no real token stands after it, so none looks at it.

    Attributes:
        lengths: tokens of each prompt.
        cache: keys and values of the columns read so far.
    """

    lengths: list[int]
    embeddings: torch.Tensor
    """``[rows, columns, hidden]``."""
    position_ids: torch.Tensor
    """``[rows, columns]``, or ``[4, rows, columns]`` where positions are text, time, height and width."""
    pictures: torch.Tensor | None = None
    """Which tokens are a picture's, ``[rows, columns]``."""
    deep_features: list[torch.Tensor] = attrs.field(factory=list)
    """Per early decoder layer what the vision tower adds to picture tokens, ``[picture_tokens, hidden]``."""
    cache: DynamicCache = attrs.field(factory=DynamicCache)
    read: int = 0
    """Columns read so far."""

    @property
    def columns(self) -> int:
        """Length of the longest prompt."""
        return self.embeddings.shape[1]


class Backbone:
    """A decoder whose positions count tokens.

    Args:
        model: a causal language model, or a model that contains one.
        device: where it lives.

    Raises:
        ServiceError: its layers do not all attend to the whole context.
    """

    def __init__(self, model: PreTrainedModel, device: str) -> None:
        config = model.config.get_text_config(decoder=True)
        _check_attention(config)
        self.window: int = config.max_position_embeddings
        self.device = device
        self.model = model
        self.padded: PaddedDecoder | None = None
        self._eager = config._attn_implementation == "eager"
        parts: Any = model
        self._embed = parts.get_input_embeddings()
        self._decoder = parts.get_decoder()
        self._head = parts.get_output_embeddings()
        self.bytes_per_token = _bytes_per_token(config, self._embed.weight.dtype)
        self.vocabulary: int = self._head.out_features

    def pad_steps(self, *, graphs: bool) -> None:
        """Decode in few shapes from now on, over caches that are padded.

        Args:
            graphs: whether each shape is captured as a CUDA graph.
        """
        self.padded = PaddedDecoder(self._step, self.device, graphs=graphs)

    def prepare(self, asked: Sequence[Prompt]) -> Prompts:
        """Embed prompts that are to be read together."""
        ids = self._token_ids(asked)
        positions = torch.arange(ids.shape[1], device=self.device).expand(len(asked), -1)
        return Prompts([len(prompt.token_ids) for prompt in asked], self._embed(ids), positions)

    def read(self, prompts: Prompts, columns: int) -> torch.Tensor | None:
        """Read the next columns of some prompts.

        Returns:
            The logits after each prompt's last token, ``[rows, vocabulary]`` in float32, once all is read.
        """
        start, end = prompts.read, min(prompts.read + columns, prompts.columns)
        hidden = self._decoder(
            inputs_embeds=prompts.embeddings[:, start:end],
            position_ids=prompts.position_ids[..., start:end],
            past_key_values=prompts.cache,
            use_cache=True,
            **_picture_arguments(prompts, start, end),
        ).last_hidden_state
        prompts.read = end
        if end < prompts.columns:
            return None
        last = torch.tensor(prompts.lengths, device=self.device) - 1 - start
        return self._logits(hidden[torch.arange(len(prompts.lengths), device=self.device), last])

    def decode(self, tokens: Sequence[int], cache: SlotCache, rope_deltas: torch.Tensor) -> torch.Tensor:
        """Take one more token per row.

        Args:
            tokens: each row's latest token, in the order of the cache's slots.
            cache: what the rows hold; the new tokens are written to it.
            rope_deltas: per row, ``[rows]``; 0 for rows without a picture.

        Returns:
            Logits, ``[rows, vocabulary]`` in float32.
        """
        places = cache.begin_step()
        if self.padded is not None:
            logits = self.padded.decode(tokens, cache, rope_deltas)
        else:
            logits = self._step(torch.tensor(tokens, device=self.device), places, rope_deltas, cache)
        cache.end_step()
        return logits

    def _step(
        self, tokens: torch.Tensor, places: torch.Tensor, rope_deltas: torch.Tensor, cache: SlotCache
    ) -> torch.Tensor:
        """Compute a step of tensors only, so that it can be captured."""
        mask = cache.mask()
        if self._eager:
            dtype = self._embed.weight.dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        hidden = self._decoder(
            inputs_embeds=self._embed(tokens[:, None]),
            attention_mask=mask,
            position_ids=self._step_positions(places, rope_deltas),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self._logits(hidden[:, -1])

    def forget(self) -> None:
        """Give back what is kept from one prompt for the next."""

    def _step_positions(self, places: torch.Tensor, rope_deltas: torch.Tensor) -> torch.Tensor:
        return places[:, None]

    def _token_ids(self, asked: Sequence[Prompt]) -> torch.Tensor:
        width = max(len(prompt.token_ids) for prompt in asked)
        padded = [[*prompt.token_ids, *[0] * (width - len(prompt.token_ids))] for prompt in asked]
        return torch.tensor(padded, device=self.device)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._head(hidden).float()
        return logits


class PictureBackbone(Backbone):
    """A Qwen-VL decoder: positions are text, time, height and width, and prompts may hold a picture each."""

    def __init__(self, model: PreTrainedModel, device: str, picture_cache_bytes: int = 0) -> None:
        super().__init__(model, device)
        self._vision: Any = model.model
        self._seen = PictureCache(picture_cache_bytes)
        batch_windows(self._vision.visual)

    def prepare(self, asked: Sequence[Prompt]) -> Prompts:
        """Embed prompts that are to be read together, pictures included."""
        prompts = super().prepare(asked)
        text = prompts.position_ids
        prompts.position_ids = text.expand(4, -1, -1).clone()
        prompts.pictures = torch.zeros(text.shape, dtype=torch.bool, device=self.device)
        contents = [(row, prompt.content) for row, prompt in enumerate(asked) if prompt.content is not None]
        for row, content in contents:
            tokens = len(content.places)
            prompts.position_ids[1:, row, :tokens] = content.position_ids.to(self.device)
            prompts.position_ids[1:, row, tokens:] += content.rope_delta  # of an answer that is read again
            prompts.pictures[row, :tokens] = content.places.to(self.device)
        if contents:
            self._look(prompts, [content for _, content in contents])
        return prompts

    def forget(self) -> None:
        """Give back what is kept of pictures."""
        self._seen.clear()

    def _look(self, prompts: Prompts, contents: Sequence[Pictures]) -> None:
        """Put what the tower sees where the pictures stand; each distinct picture is looked at once."""
        known: dict[bytes, Features] = {}
        unseen: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}
        for content in contents:
            patches = torch.split(content.pixel_values, content.grid_thw.prod(dim=1).tolist())
            for key, pixels, grid in zip(content.keys, patches, content.grid_thw, strict=True):
                kept = self._seen.get(key)
                if kept is None:
                    unseen[key] = pixels, grid
                else:
                    known[key] = kept
        if unseen:
            looked = self._look_at(list(unseen.values()))
            for key, features in zip(unseen, looked, strict=True):
                known[key] = features
                self._seen.put(key, features)
        ordered = [known[key] for content in contents for key in content.keys]
        prompts.embeddings[prompts.pictures] = torch.cat([features.seen for features in ordered])
        prompts.deep_features = [torch.cat(layer) for layer in zip(*(f.deep for f in ordered), strict=True)]

    def _look_at(self, pictures: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[Features]:
        pixels = [patches.to(self.device, non_blocking=True) for patches, _ in pictures]
        grids = torch.stack([grid for _, grid in pictures]).to(self.device)
        out = self._vision.get_image_features(torch.cat(pixels), grids, return_dict=True)
        deep = getattr(out, "deepstack_features", None) or []
        dtype = self._embed.weight.dtype
        # Copies, because a part of a tensor keeps all of it.
        return [
            Features(seen.to(dtype).clone(), tuple(layer[number].clone() for layer in deep))
            for number, seen in enumerate(out.pooler_output)
        ]

    def _step_positions(self, places: torch.Tensor, rope_deltas: torch.Tensor) -> torch.Tensor:
        positions = places.expand(4, -1).clone()
        positions[1:] += rope_deltas
        return positions[..., None]


def _picture_arguments(prompts: Prompts, start: int, end: int) -> dict[str, Any]:
    """What Qwen3-VL's decoder adds to the picture tokens of these columns in its first layers."""
    if not prompts.deep_features or prompts.pictures is None:
        return {}
    visible = prompts.pictures[:, start:end]
    if end - start < prompts.columns:  # a prompt read in pieces is alone, so its features stand in reading order
        first = int(prompts.pictures[:, :start].sum())
        last = first + int(visible.sum())
    else:
        first, last = 0, len(prompts.deep_features[0])
    if first == last:
        return {}
    features = [layer[first:last] for layer in prompts.deep_features]
    return {"visual_pos_masks": visible, "deepstack_visual_embeds": features}


def _bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Memory of one token's keys and values."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * dtype.itemsize)


def _check_attention(config: Any) -> None:
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if kinds != {DynamicLayer} or getattr(config, "sliding_window", None) is not None:
        raise ServiceError(
            f"this {config.model_type} checkpoint attends through a sliding window or a hybrid of layers, which is "
            "not supported; take one with full attention (Mistral 7B v0.3 instead of v0.1, for instance)"
        )
