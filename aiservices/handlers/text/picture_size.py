"""How large the pictures may be that a checkpoint sees. transformers is imported when asked for."""

from __future__ import annotations

from typing import Any

import attrs

from aiservices.errors import ServiceError
from aiservices.handlers.text.checkpoint import Checkpoint
from aiservices.handlers.torch_runtime import import_lock


@attrs.frozen(eq=False)
class PictureSize:
    """A checkpoint's image processor and the bounds it works within.

    Attributes:
        processor: transformers' image processor, the one that needs Pillow only.
        merge: patches along each side of what becomes one token.
        side: a picture's height and width are multiples of so many pixels.
        least_pixels: smaller pictures are made larger until they have so many.
        most_pixels: larger pictures are made smaller until they have so many.
    """

    processor: Any
    merge: int
    side: int
    least_pixels: int
    most_pixels: int

    @property
    def edges(self) -> dict[str, int]:
        """The bounds as the processor takes them."""
        return {"shortest_edge": self.least_pixels, "longest_edge": self.most_pixels}


def read_picture_size(checkpoint: Checkpoint, max_picture_tokens: int) -> PictureSize:
    """Read a checkpoint's bounds and lower them.

    Args:
        checkpoint: with ``preprocessor_config.json``.
        max_picture_tokens: most tokens that one picture may take; never more than the checkpoint's own bound.

    Raises:
        ServiceError: the folder has no image processor.
    """
    with import_lock:
        from transformers import AutoImageProcessor
    auto: Any = AutoImageProcessor
    try:
        processor: Any = auto.from_pretrained(
            checkpoint.folder, trust_remote_code=False, local_files_only=True, backend="pil"
        )
    except (OSError, ValueError) as error:
        raise ServiceError("the checkpoint has no image processor (preprocessor_config.json)") from error
    side = processor.patch_size * processor.merge_size
    own_least, own_most = (processor.size[edge] for edge in ("shortest_edge", "longest_edge"))
    most = min(own_most, max_picture_tokens * side**2)
    return PictureSize(processor, processor.merge_size, side, min(own_least, most), most)
