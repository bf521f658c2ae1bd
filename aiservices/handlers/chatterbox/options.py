"""The ``options`` table of a Chatterbox service."""

from __future__ import annotations

from typing import Annotated, Literal

import attrs
import msgspec

OWN_VOICE = "default"
"""The voice in the checkpoint's ``conds.pt``."""


@attrs.frozen
class ChatterboxOptions:
    """The ``options`` of the service.

    Args:
        variant: which of the checkpoints in the folder; ``auto`` takes the first whose files are there, in the order
            ``english``, ``multilingual``, ``turbo``, ``nano``.
        default_voice: the voice of a request that names none.
        default_language: what a multilingual checkpoint speaks if neither request nor voice says.
        voices_dir: folder with a clip of each further voice, named after it, as ``anna.wav``; ``anna.json`` beside it
            may hold ``description`` and ``language``. What the model makes of a clip is kept there as well. In the
            settings it is whatever ``model`` may be, as ``s3://bucket/voices/``.
        watermark: whether Resemble AI's inaudible watermark, which tells that the speech is synthetic, is put in.
        loudness_lufs: where the loudness of each part is set (ITU-R BS.1770); None leaves it as it comes.
        pause_s: silence between two sentences that are spoken apart; twice that between paragraphs.
        dtype: of the language model that makes the speech tokens; the rest stays in float32, which it needs. ``auto``
            is bfloat16 on a GPU that computes in it.
        cpu_threads: how many threads torch's CPU kernels use; None leaves that to torch.
        cuda_graphs: whether the language model's steps are captured on a GPU; buffers are then taken once for
            ``rows`` pieces.
        rows: most pieces of text that are spoken at once, of all requests together.
        sound_rows: how many finished pieces become sound together.
        max_new_tokens: bound on one piece of a text, 25 tokens a second.
        redraws: how often a piece that went wrong is spoken again with another seed.
        flow_steps: of the sound's flow; fewer are faster and duller. None takes the library's number.
        cached_voices: how many voices are kept in memory, 0.2 MB each.
        finish_threads: threads that set loudness and tempo and put the watermark in.
    """

    variant: Literal["auto", "english", "multilingual", "turbo", "nano"] = "auto"
    default_voice: str = OWN_VOICE
    default_language: str = "en"
    voices_dir: str | None = None
    watermark: bool = True
    loudness_lufs: Annotated[float, msgspec.Meta(ge=-40, le=-10)] | None = -20.0
    pause_s: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.15
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    cpu_threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    cuda_graphs: bool = True
    rows: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    sound_rows: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    max_new_tokens: Annotated[int, msgspec.Meta(ge=25, le=1000)] = 1000
    redraws: Annotated[int, msgspec.Meta(ge=0, le=10)] = 2
    flow_steps: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    cached_voices: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64
    finish_threads: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
