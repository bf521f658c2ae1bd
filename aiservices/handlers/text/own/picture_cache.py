"""What the vision tower saw in the pictures asked about last. Imports torch: import it inside ``load``."""

from __future__ import annotations

from collections import OrderedDict

import attrs
import torch


@attrs.frozen(eq=False)
class Features:
    """What the tower makes of one picture.

    Attributes:
        seen: ``[tokens, hidden]``.
        deep: for some early decoder layers what is added there, ``[tokens, hidden]`` each.
    """

    seen: torch.Tensor
    deep: tuple[torch.Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory they take."""
        return sum(states.nbytes for states in (self.seen, *self.deep))


class PictureCache:
    """Features by picture, those used last; for one thread.

    Args:
        most_bytes: bound of the memory they take together; 0 keeps none.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._features: OrderedDict[bytes, Features] = OrderedDict()
        self.nbytes = 0

    def get(self, key: bytes) -> Features | None:
        """Get what is kept of a picture."""
        features = self._features.get(key)
        if features is not None:
            self._features.move_to_end(key)
        return features

    def put(self, key: bytes, features: Features) -> None:
        """Keep the features of a picture, in place of those used longest ago."""
        if key in self._features or features.nbytes > self._most_bytes:
            return
        self._features[key] = features
        self.nbytes += features.nbytes
        while self.nbytes > self._most_bytes:
            _, oldest = self._features.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def clear(self) -> None:
        """Forget all of them."""
        self._features.clear()
        self.nbytes = 0
