"""The contract of heads: learn what normal looks like from stored embeddings, then judge. Higher is more anomalous."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Self

from torch import Tensor

from manyeyes.fitted import Fitted


class MapHead(Fitted, ABC):
    """A picturable head: an anomaly score for every position of the embedding map.

    Scores of one image never depend on the other images of its batch. A second fit forgets the first.
    """

    @abstractmethod
    def fit(self, embeddings: Iterable[Tensor], seed: int) -> Self:
        """Learn from a re-iterable of (b, d, h, w) batches of normal images, streaming.

        Raises: DataError if there is no image or a value is not finite.
        """

    @abstractmethod
    def anomaly_map(self, embedding: Tensor) -> Tensor:
        """Shapes: (b, d, h, w) -> (b, h, w). Raises: NotFittedError before ``fit``."""

    def judge(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The map and the image score, which is the map's maximum where a head has no better one.

        Shapes: (b, d, h, w) -> (b, h, w), (b,).
        """
        anomaly_map = self.anomaly_map(embedding)
        return anomaly_map, anomaly_map.amax(dim=(1, 2))

    def score(self, embedding: Tensor) -> Tensor:
        """Image score. Shapes: (b, d, h, w) -> (b,)."""
        return self.judge(embedding)[1]


class VectorHead(Fitted, ABC):
    """An unpicturable head: one score for the pooled features of an image."""

    @abstractmethod
    def fit(self, vectors: Iterable[Tensor], seed: int) -> Self:
        """Learn from a re-iterable of (b, c) batches of normal images, streaming. Raises: as `MapHead.fit`."""

    @abstractmethod
    def score(self, vectors: Tensor) -> Tensor:
        """Shapes: (b, c) -> (b,). Raises: NotFittedError before ``fit``."""
