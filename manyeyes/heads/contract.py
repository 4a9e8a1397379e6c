"""The contract of heads: learn what normal looks like from stored features, then judge. Higher is more anomalous.

A head's config says what it ``reads``. Heads that read a ``map`` or a ``pyramid`` draw an anomaly map (picturable);
heads that read a ``vector`` do not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from torch import Tensor

from manyeyes.fitted import Fitted
from manyeyes.progress import Advance

Reads = Literal["map", "vector", "pyramid"]
"""The fused embedding (b, d, h, w); the pooled features (b, c); every member map at its own resolution."""
Pyramid = tuple[Tensor, ...]
"""k x (b, c_i, h_i, w_i), in the order of the specs that the head was built with."""


def unseen(done: int, total: int) -> None:
    """Progress that nobody looks at."""


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


class PyramidHead(Fitted, ABC):
    """A picturable head on all member maps at their own resolutions, after the neighbourhood mean of their specs.

    Its config's ``build`` takes the specs of these maps, all of them spatial. Otherwise as `MapHead`.
    """

    @abstractmethod
    def fit(
        self,
        pyramids: Iterable[Pyramid],
        seed: int,
        advance: Advance = unseen,
        checkpoint: Path | None = None,
    ) -> Self:
        """Learn from a re-iterable of k x (b, c_i, h_i, w_i) batches of normal images; afterwards the head can judge.

        ``checkpoint`` is a file that a fit which takes long may write as often as it likes, and that a killed fit of
        the same config on the same pictures with the same seed may have left behind: resumed from it, the fit ends
        with the same head. It is kept until everything around the head is fitted, so a finished fit may leave its
        last state there. Raises: as `MapHead.fit`.
        """

    def calibrate(self, pyramids: Iterable[Pyramid]) -> Self:
        """Adjust scales on a re-iterable of normal images that were not trained on; by default nothing is adjusted.

        Called once after ``fit``, before these images are scored.
        """
        del pyramids
        return self

    def left_out(self, pyramids: Iterable[Pyramid], members: Tensor) -> Tensor | None:
        """Scores of the images of `calibrate`, once for each group of them as if it had not been in `calibrate`.

        A threshold for a promised false-alarm rate needs scores that do not know the image that they are of. None where
        nothing is adjusted, so that `score` is such a one.
        Shapes: number of each image's group (n,) -> (groups, n).
        """
        del pyramids, members
        return None

    @abstractmethod
    def judge(self, maps: Pyramid) -> tuple[Tensor, Tensor]:
        """The map, on a grid of the head's choice, and the image score.

        Shapes: k x (b, c_i, h_i, w_i) -> (b, h, w), (b,). Raises: NotFittedError before ``fit``.
        """

    def examine(self, maps: Pyramid) -> tuple[Tensor, Tensor, Pyramid]:
        """`judge`, and the values whose rarity an a-contrario mask counts: the map, where a head has no better ones.

        Shapes: k x (b, c_i, h_i, w_i) -> (b, h, w), (b,), m x (b, d_j, h_j, w_j).
        """
        anomaly_map, scores = self.judge(maps)
        return anomaly_map, scores, (anomaly_map[:, None],)

    def score(self, maps: Pyramid) -> Tensor:
        """Image score. Shapes: k x (b, c_i, h_i, w_i) -> (b,)."""
        return self.judge(maps)[1]
