"""What a Chatterbox job asks of the model: its text cut into pieces, its voice, its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from aiservices.handlers.chatterbox.pieces import Piece
from aiservices.handlers.chatterbox.sound import Finish
from aiservices.handlers.chatterbox.voices import Voice
from aiservices.handlers.speech import SpeechRequest

if TYPE_CHECKING:
    from aiservices.handlers.chatterbox.sampling import Sampling


@attrs.frozen(eq=False)
class ChatterboxRequest(SpeechRequest):
    """One job, read and cut.

    Attributes:
        pieces: what to say, at least one.
        voice_name: what the answer calls the voice.
        voice: what the model made of it.
        sampling: how to choose speech tokens.
        cfg_weight: of the guidance, 0 for none.
        exaggeration: how lively, 0 to 2; 0.5 is normal.
        seed: of the job.
        finish: what is done to the sound.
        warnings: what is already known not to be done as asked, a sentence each.
    """

    pieces: Sequence[Piece]
    voice_name: str
    voice: Voice
    sampling: Sampling
    cfg_weight: float
    exaggeration: float
    seed: int
    finish: Finish
    warnings: Sequence[str]
