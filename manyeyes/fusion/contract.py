"""The contracts of fusion: maps to one map, and scores to one score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Self

from torch import Tensor

from manyeyes.fitted import Fitted
from manyeyes.maps import Grid, MapSpec

MapBatches = Iterable[tuple[Tensor, ...]]


class Fusion(Fitted, ABC):
    """Fuse the spatial maps of all members into one map on one grid. Linear in the maps.

    ``fit`` reads a re-iterable of map tuples (after their neighbourhood mean), streaming; ``transform`` is the plain
    way and takes the same maps; `folded.Folded` is the fast way and takes the maps before their neighbourhood mean.
    Maps that are not spatial must not be given.
    """

    def __init__(self, specs: Sequence[MapSpec], grid: Grid) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.grid = grid

    @property
    @abstractmethod
    def channels(self) -> int:
        """d, the channels of the fused map. Raises: NotFittedError if only known after ``fit``."""

    @abstractmethod
    def fit(self, batches: MapBatches) -> Self:
        """Learn from normal images. Shapes: batches of k x (b, c_i, h_i, w_i)."""

    @abstractmethod
    def projections(self) -> tuple[tuple[Tensor, ...], Tensor, bool]:
        """What the block does, as matrices: (W_i, bias, stacked).

        ``W_i`` is (d_i, c_i). Stacked: the fused map is concat_i resize(W_i F_i) + bias with d = sum of d_i; else it
        is sum_i resize(W_i F_i) + bias with every d_i = d. ``bias`` is (d,).
        """

    @abstractmethod
    def transform(self, maps: tuple[Tensor, ...]) -> Tensor:
        """The plain way. Shapes: k x (b, c_i, h_i, w_i) -> (b, d, *grid)."""


class ScoreNormaliser(Fitted, ABC):
    """Bring one head's scores to a common scale with scores of normal images only. Monotone increasing."""

    @abstractmethod
    def fit(self, scores: Tensor) -> Self:
        """Shapes: (n,) finite, or any shape for the pixels of maps. Raises: DataError if empty or not finite."""

    @abstractmethod
    def transform(self, scores: Tensor) -> Tensor:
        """Shapes: any -> the same."""


class Combiner(Fitted, ABC):
    """Many normalised scores to one; higher is more anomalous."""

    needs_labels: bool = False

    @abstractmethod
    def fit(self, scores: Tensor, labels: Tensor | None = None) -> Self:
        """Shapes: (n, k) normalised scores of validation images; labels (n,) in {0, 1} where ``needs_labels``."""

    @abstractmethod
    def combine(self, scores: Tensor) -> Tensor:
        """Shapes: (n, k) -> (n,)."""
