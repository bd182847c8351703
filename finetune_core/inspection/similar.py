"""Similar images: nearest neighbours among the embeddings of a data set."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from sklearn.preprocessing import normalize

_AT_ONCE = 8192  # images


@dataclass(frozen=True)
class Embeddings:
    """One vector per image.

    Attributes:
        ids: ids of the images, ``[n]``.
        vectors: float16 ``[n, d]``, each of unit length.
    """

    ids: np.ndarray
    vectors: np.ndarray

    @classmethod
    def from_features(cls, ids: np.ndarray, features: np.ndarray) -> "Embeddings":
        """Return embeddings of features ``[n, d]``, scaled to unit length."""
        return cls(ids, normalize(features).astype(np.float16))

    @cached_property
    def _position(self) -> pd.Index:
        position: pd.Index = pd.Index(self.ids)
        return position

    def find_nearest(self, sample: str, count: int) -> list[tuple[str, float]]:
        """Return (id, cosine distance) of the images nearest to one of them, the nearest first.

        The image itself is left out. Cosine distances are 0…2.

        Returns:
            At most ``count`` images; empty if the image has no embedding.
        """
        if sample not in self._position:
            return []
        position = self._position.get_loc(sample)
        query = self.vectors[position].astype(np.float32)
        blocks = (
            self.vectors[start : start + _AT_ONCE] for start in range(0, len(self.ids), _AT_ONCE)
        )
        distances = 1 - np.concatenate([block.astype(np.float32) @ query for block in blocks])
        order = [
            index
            for index in np.argsort(distances, kind="stable")[: count + 1]
            if index != position
        ][:count]
        return [(str(self.ids[index]), max(0.0, float(distances[index]))) for index in order]
