"""The contracts of fusion: maps to one map, and scores to one score.

The public method checks its input once; a kind writes only the mathematics, in the method with the underscore.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from manyeyes.errors import DataError, ShapeError
from manyeyes.fitted import Fitted
from manyeyes.fusion.moments import KnownMoments
from manyeyes.maps import Grid, MapSpec, check_maps

MapBatches = Iterable[tuple[Tensor, ...]]


@dataclass(frozen=True)
class Projection:
    """What one map adds to the fused map: rows ``start`` to ``start + d_i`` gain resize(resize(W F, via), grid).

    ``weight`` is W, (d_i, c_i), or the diagonal of W, (c_i,). The rows of two maps are the same or disjoint.
    """

    weight: Tensor
    start: int
    via: Grid

    @property
    def size(self) -> int:
        """d_i, the rows of the fused map that this map takes part in."""
        return self.weight.shape[0]


class Fusion(Fitted, ABC):
    """Fuse the spatial maps of all members into one map on one grid. Linear in the maps.

    ``fit`` reads a re-iterable of map tuples (after their neighbourhood mean), streaming; ``transform`` is the plain
    way and takes the same maps; `folded.Folded` is the fast way and takes the maps before their neighbourhood mean.
    Raises: ShapeError if no map is given, or one that is not spatial.
    """

    def __init__(self, specs: Sequence[MapSpec], grid: Grid) -> None:
        super().__init__()
        flat = [spec.name for spec in specs if not spec.spatial]
        if flat or not specs:
            raise ShapeError(
                f"expected spatial maps to fuse, got {', '.join(flat) or 'none'}; leave those out of the fused map "
                "(they join at score level), or use kind: score_level"
            )
        self.specs = tuple(specs)
        self.grid = grid

    @property
    def members(self) -> dict[str, tuple[int, ...]]:
        """Which maps belong to which member: a map is named ``member/stage``. Order: of first appearance."""
        found: dict[str, tuple[int, ...]] = {}
        for index, spec in enumerate(self.specs):
            member = spec.name.partition("/")[0]
            found[member] = (*found.get(member, ()), index)
        return found

    @property
    @abstractmethod
    def channels(self) -> int:
        """d, the channels of the fused map. Raises: NotFittedError if only known after ``fit``."""

    @abstractmethod
    def shares(self) -> dict[str, float]:
        """The part of the fused map's variance that comes from each member, summing to one; all zero if constant."""

    @abstractmethod
    def projections(self) -> tuple[tuple[Projection, ...], Tensor]:
        """What the block does, as matrices: one `Projection` per map, and the bias (d,) that is added last."""

    def fit(self, batches: MapBatches, known: KnownMoments | None = None) -> Self:
        """Learn from normal images. Shapes: batches of k x (b, c_i, h_i, w_i).

        ``known`` has the moments that other blocks took of the same images; the batches are read for what is missing.

        Raises: ShapeError if a batch is not as ``specs`` declare; DataError if there is no image, or too few, or a
        value is not finite.
        """
        with torch.no_grad():
            self._fit(self._checked(batches), known or KnownMoments())
        return self

    def transform(self, maps: tuple[Tensor, ...]) -> Tensor:
        """The plain way. Shapes: k x (b, c_i, h_i, w_i) -> (b, d, *grid). Raises: NotFittedError, ShapeError."""
        self.require_fit()
        check_maps(maps, self.specs)
        with torch.no_grad():
            return self._transform(tuple(value.float() for value in maps))

    @abstractmethod
    def _fit(self, batches: Iterator[tuple[Tensor, ...]], known: KnownMoments) -> None: ...

    @abstractmethod
    def _transform(self, maps: tuple[Tensor, ...]) -> Tensor: ...

    def _checked(self, batches: MapBatches) -> Iterator[tuple[Tensor, ...]]:
        for maps in batches:
            check_maps(maps, self.specs)
            yield tuple(value.float() for value in maps)


class ScoreNormaliser(Fitted, ABC):
    """Bring one head's scores to a common scale with scores of normal images only. Monotone, never decreasing.

    NaN stays NaN. What comes back is float32, or float64 where that came.
    """

    def fit(self, scores: Tensor) -> Self:
        """Shapes: (n,) finite, or any shape for the pixels of maps. Raises: DataError if empty or not finite."""
        if scores.numel() == 0:
            raise DataError("expected scores of normal images to fit a normaliser on, got none; hold out more images")
        if not torch.isfinite(scores).all():
            bad = int((~torch.isfinite(scores)).sum())
            raise DataError(
                f"expected finite scores, got {bad} NaN or infinite among {scores.numel()}; look at the head"
            )
        with torch.no_grad():
            self._fit((scores if scores.dtype == torch.float64 else scores.float()).detach().flatten())
        return self

    def transform(self, scores: Tensor) -> Tensor:
        """Shapes: any -> the same. Raises: NotFittedError before ``fit``."""
        self.require_fit()
        with torch.no_grad():
            return self._transform(scores if scores.dtype == torch.float64 else scores.float())

    @abstractmethod
    def _fit(self, scores: Tensor) -> None: ...

    @abstractmethod
    def _transform(self, scores: Tensor) -> Tensor: ...


class Combiner(Fitted, ABC):
    """Many normalised scores to one; higher is more anomalous. ``names`` are the heads', in the scores' order.

    A combiner that learns nothing is ready without ``fit``. Labels are only needed where ``needs_labels``; where
    they are given to another combiner, it reads the normal images only.
    """

    needs_labels: bool = False

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def fit(self, scores: Tensor, labels: Tensor | None = None) -> Self:
        """Shapes: (n, k) normalised scores of validation images; labels (n,) in {0, 1} where ``needs_labels``.

        Raises: ShapeError; DataError if empty, not finite, or without the labels that are needed.
        """
        self._check(scores)
        if len(scores) == 0:
            raise DataError("expected scores of validation images to fit a combiner on, got none; hold out more images")
        if not torch.isfinite(scores).all():
            raise DataError("expected finite scores to fit a combiner on, got NaN or infinite ones; look at the heads")
        if labels is None:
            if self.needs_labels:
                raise DataError(
                    f"{type(self).__name__} learns from labels and got none; supply a validation set with labelled "
                    "defects, or use a combiner that needs normal images only, such as sum or positive_square"
                )
            labels = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        if labels.shape != scores.shape[:1]:
            raise ShapeError(f"expected one label for each of {len(scores)} images, got {tuple(labels.shape)}")
        if not ((labels == 0) | (labels == 1)).all():
            raise DataError(f"expected labels 0 (good) and 1 (defective), got {sorted(set(labels.tolist()))[:8]}")
        normal = labels == 0
        if not normal.any() or (self.needs_labels and normal.all()):
            wanted, got = "good and defective" if self.needs_labels else "good", "good" if normal.all() else "defective"
            raise DataError(
                f"expected {wanted} images to fit a combiner on, got only {got} ones; "
                "supply the other kind too, or use another combiner"
            )
        with torch.no_grad():
            if self.needs_labels:
                self._fit(scores.detach(), labels)
            else:
                self._fit(scores.detach()[normal], labels[normal])
        return self

    def combine(self, scores: Tensor) -> Tensor:
        """Shapes: (n, k) -> (n,). Raises: NotFittedError before ``fit``; ShapeError."""
        self.require_fit()
        self._check(scores)
        with torch.no_grad():
            return self._combine(scores if scores.dtype == torch.float64 else scores.float())

    def _fit(self, scores: Tensor, labels: Tensor) -> None:
        """Nothing to learn, unless a kind says so."""
        return

    @abstractmethod
    def _combine(self, scores: Tensor) -> Tensor: ...

    def _check(self, scores: Tensor) -> None:
        if scores.ndim != 2 or scores.shape[1] != len(self.names):
            raise ShapeError(f"expected scores (n, {len(self.names)}) of {list(self.names)}, got {tuple(scores.shape)}")
