"""What every defect of a made part is: a place, a strength, a footprint and up to three steps of drawing.

Each is drawn in the plate's frame (other holes, a carved outline, a marred surface) and changes nothing outside of its
footprint. ``strength`` runs from 0, just visible, to 1, plain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from manyeyes.data.synthesize.geometry import Array, Grid, Plate, Surface

Spot = tuple[float, float]


@dataclass(frozen=True)
class Defect(ABC):
    name: ClassVar[str]
    group: ClassVar[str]
    pixel_value: ClassVar[int]
    saturation_holes: ClassVar[float | None]
    """Saturation area in nominal holes with their sinks; None: the whole region."""

    x: float
    y: float
    strength: float

    @classmethod
    @abstractmethod
    def draw(cls, rng: np.random.Generator, plate: Plate, strength: float, taken: tuple[Spot, ...]) -> Self:
        """Choose place and shape on this plate, away from the ``taken`` spots."""

    @abstractmethod
    def footprint(self, plate: Plate, grid: Grid) -> Array:
        """Signed distance in millimetres (h, w), negative where the defect may change the good ``plate``."""

    def drill(self, plate: Plate) -> Plate:
        return plate

    def carve(self, plate: Plate, grid: Grid) -> Array | None:
        """Signed distance of what is cut out of the outline, negative inside."""
        return None

    def mar(self, plate: Plate, grid: Grid, surface: Surface) -> Surface:
        return surface


def nearest_free(spots: list[Spot], taken: tuple[Spot, ...], order: np.ndarray, apart: float = 16.0) -> Spot:
    """The first spot in ``order`` that keeps ``apart`` millimetres from all taken ones, else the first."""
    ordered: list[Spot] = [spots[int(index)] for index in order]
    for spot in ordered:
        if all(np.hypot(spot[0] - x, spot[1] - y) >= apart for x, y in taken):
            return spot
    return ordered[0]
