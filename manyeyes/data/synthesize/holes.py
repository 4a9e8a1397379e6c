"""The logical defects: a hole that is missing, superfluous or of the wrong size, each hole flawless in itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from manyeyes.data.synthesize.contract import Defect, Spot, nearest_free
from manyeyes.data.synthesize.geometry import SINK_RADIUS, Array, Grid, Plate


class Logical(Defect):
    group = "logical_anomalies"


@dataclass(frozen=True)
class MissingHole(Logical):
    """A hole was never punched: the brushing runs on."""

    name = "missing_hole"
    pixel_value = 255
    saturation_holes = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator, plate: Plate, strength: float, taken: tuple[Spot, ...]) -> Self:
        return cls(*_pick_hole(rng, plate, taken), strength=strength)

    def footprint(self, plate: Plate, grid: Grid) -> Array:
        sink = next(hole.sink for hole in plate.holes if (hole.x, hole.y) == (self.x, self.y))
        return grid.disc(self.x, self.y) - np.float32(sink + 0.5)

    def drill(self, plate: Plate) -> Plate:
        return replace(plate, holes=tuple(hole for hole in plate.holes if (hole.x, hole.y) != (self.x, self.y)))


@dataclass(frozen=True)
class ExtraHole(Logical):
    """A hole where none belongs, a little smaller than its neighbours when subtle."""

    name = "extra_hole"
    pixel_value = 254
    saturation_holes = 1.0

    SPOTS: ClassVar[tuple[Spot, ...]] = (
        (-30.0, -13.5),
        (0.0, -13.5),
        (30.0, -13.5),
        (-30.0, 13.5),
        (0.0, 13.5),
        (30.0, 13.5),
        (-15.0, 0.0),
        (15.0, 0.0),
        (-45.0, 0.0),
        (45.0, 0.0),
    )

    @property
    def factor(self) -> float:
        return 0.75 + 0.25 * self.strength

    @classmethod
    def draw(cls, rng: np.random.Generator, plate: Plate, strength: float, taken: tuple[Spot, ...]) -> Self:
        x, y = nearest_free(list(cls.SPOTS), taken, rng.permutation(len(cls.SPOTS)))
        dx, dy = rng.uniform(-1, 1, 2)
        return cls(x + float(dx), y + float(dy), strength)

    def footprint(self, plate: Plate, grid: Grid) -> Array:
        return grid.disc(self.x, self.y) - np.float32(SINK_RADIUS * self.factor + 0.5)

    def drill(self, plate: Plate) -> Plate:
        bore = replace(plate.holes[0], x=self.x, y=self.y).resized(self.factor)
        return replace(plate, holes=(*plate.holes, bore))


@dataclass(frozen=True)
class WrongSizedHole(Logical):
    """A hole that is too narrow or too wide for its screw."""

    name = "wrong_sized_hole"
    pixel_value = 253
    saturation_holes = 0.5

    factor: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator, plate: Plate, strength: float, taken: tuple[Spot, ...]) -> Self:
        x, y = _pick_hole(rng, plate, taken)
        narrow = rng.random() < 0.5
        return cls(x, y, strength, factor=1 - 0.22 - 0.26 * strength if narrow else 1 + 0.20 + 0.26 * strength)

    def footprint(self, plate: Plate, grid: Grid) -> Array:
        sink = next(hole.sink for hole in plate.holes if (hole.x, hole.y) == (self.x, self.y))
        return grid.disc(self.x, self.y) - np.float32(sink * max(1, self.factor) + 0.5)

    def drill(self, plate: Plate) -> Plate:
        at = (self.x, self.y)
        holes = tuple(hole.resized(self.factor) if (hole.x, hole.y) == at else hole for hole in plate.holes)
        return replace(plate, holes=holes)


def _pick_hole(rng: np.random.Generator, plate: Plate, taken: tuple[Spot, ...]) -> Spot:
    spots = [(hole.x, hole.y) for hole in plate.holes]
    return nearest_free(spots, taken, rng.permutation(len(spots)), apart=1.0)
