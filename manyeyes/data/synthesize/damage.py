"""The structural defects: a sheared corner, a blow to the edge, a groove ploughed into the face."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np

from manyeyes.data.synthesize.contract import Defect, Spot, nearest_free
from manyeyes.data.synthesize.geometry import Array, Grid, Plate, Surface, gradient, outline
from manyeyes.data.synthesize.material import smooth_noise


class Structural(Defect):
    group = "structural_anomalies"
    saturation_holes = None


@dataclass(frozen=True)
class CutCorner(Structural):
    """A corner sheared off along a slightly ragged line."""

    name = "cut_corner"
    pixel_value = 251

    angle: float = 0.0
    """Direction of the cut's outward normal, radians from the corner's diagonal."""
    seed: int = 0

    @classmethod
    def draw(cls, rng: np.random.Generator, plate: Plate, strength: float, taken: tuple[Spot, ...]) -> Self:
        corners = [(sx * plate.length / 2, sy * plate.width / 2) for sx in (-1, 1) for sy in (-1, 1)]
        x, y = nearest_free(corners, taken, rng.permutation(4))
        return cls(x, y, strength, angle=rng.uniform(-0.35, 0.35), seed=int(rng.integers(2**31)))

    def carve(self, plate: Plate, grid: Grid) -> Array:
        # Leg of the missing triangle: 1.8 mm more than the rounding takes anyway, up to 9 mm.
        leg = 5.2 + 5.0 * self.strength
        towards = np.arctan2(np.sign(self.y), np.sign(self.x)) + self.angle
        along = (grid.x - np.float32(self.x)) * np.float32(np.cos(towards))
        along = along + (grid.y - np.float32(self.y)) * np.float32(np.sin(towards))
        ragged = 0.12 * smooth_noise(np.random.default_rng(self.seed), grid.shape, (60, 130))
        return np.asarray(-(along + np.float32(leg * np.sqrt(0.5))) + ragged, np.float32)

    def footprint(self, plate: Plate, grid: Grid) -> Array:
        near_metal = outline(plate, grid) - np.float32(0.5)
        return np.asarray(np.maximum(self.carve(plate, grid) - np.float32(0.9), near_metal), np.float32)

    def mar(self, plate: Plate, grid: Grid, surface: Surface) -> Surface:
        return _bare_rim(self.carve(plate, grid), surface)


@dataclass(frozen=True)
class DamagedEdge(Structural):
    """A blow to a long or short edge: a ragged nick, a bright burr and dented metal behind it."""

    name = "damaged_edge"
    pixel_value = 252

    seed: int = 0

    @classmethod
    def draw(cls, rng: np.random.Generator, plate: Plate, strength: float, taken: tuple[Spot, ...]) -> Self:
        half_x, half_y = plate.length / 2, plate.width / 2
        spots = [(float(x), side * half_y) for x in np.linspace(-50, 50, 21) for side in (-1, 1)]
        spots += [(side * half_x, float(y)) for y in np.linspace(-14, 14, 7) for side in (-1, 1)]
        x, y = nearest_free(spots, taken, rng.permutation(len(spots)), apart=24.0)
        return cls(x, y, strength, seed=int(rng.integers(2**31)))

    def _extent(self) -> tuple[float, float]:
        """Half width along the edge and depth into the plate."""
        return 2.2 + 3.6 * self.strength, 1.0 + 2.2 * self.strength

    def _local(self, plate: Plate, grid: Grid) -> tuple[Array, Array]:
        """Coordinates along the edge and into the plate."""
        if abs(self.y) > plate.width / 2 - 1e-6:
            return grid.x - np.float32(self.x), np.float32(-np.sign(self.y)) * (grid.y - np.float32(self.y))
        return grid.y - np.float32(self.y), np.float32(-np.sign(self.x)) * (grid.x - np.float32(self.x))

    def carve(self, plate: Plate, grid: Grid) -> Array:
        along, into = self._local(plate, grid)
        half, depth = self._extent()
        rng = np.random.default_rng(self.seed)
        ragged = 0.28 * smooth_noise(rng, grid.shape, (45, 100)) + 0.12 * smooth_noise(rng, grid.shape, (100, 220))
        lean = rng.uniform(-0.25, 0.25)
        floor = depth * np.sqrt(np.maximum(1 - ((along + lean * into) / half) ** 2, 0)) + ragged - 0.2
        window = np.abs(along) - np.float32(half)
        return np.asarray(np.maximum(into - floor, window), np.float32)

    def footprint(self, plate: Plate, grid: Grid) -> Array:
        along, into = self._local(plate, grid)
        half, depth = self._extent()
        blow = np.hypot(along / (half + 1.6), np.maximum(into, 0) / (depth + 2.4)) - 1
        inside = outline(plate, grid) - np.float32(0.5)
        return np.asarray(np.maximum(blow * depth, inside), np.float32)

    def mar(self, plate: Plate, grid: Grid, surface: Surface) -> Surface:
        rng = np.random.default_rng(self.seed + 1)
        behind = np.clip(-self.footprint(plate, grid) / 1.5, 0, 1)
        relief = behind * (0.45 * smooth_noise(rng, grid.shape, (32, 70)) - 0.5 * behind)
        across, down = gradient(np.asarray(relief, np.float32), grid)
        dented = replace(surface, slope_x=surface.slope_x - across, slope_y=surface.slope_y - down)
        return _bare_rim(self.carve(plate, grid), dented)


@dataclass(frozen=True)
class DeepScratch(Structural):
    """A groove ploughed across the brushing, its displaced metal standing up on both sides."""

    name = "deep_scratch"
    pixel_value = 250

    points: tuple[Spot, ...] = ()

    @classmethod
    def draw(cls, rng: np.random.Generator, plate: Plate, strength: float, taken: tuple[Spot, ...]) -> Self:
        spots = [(float(x), float(y)) for x in np.linspace(-48, 48, 13) for y in (-19.5, -6.75, 6.75, 19.5)]
        x, y = nearest_free(spots, taken, rng.permutation(len(spots)), apart=20.0)
        length = 9 + 22 * strength + rng.uniform(0, 6)
        heading = rng.uniform(0.35, 1.15) * rng.choice((-1, 1))
        heading = float(heading if abs(y) < 10 else 0.45 * heading)
        steps = np.linspace(-0.5, 0.5, 25) * length
        curve = rng.normal(0, 0.006) * (steps**2 - (length / 2) ** 2)
        wobble = np.interp(steps, steps[::4], rng.normal(0, 0.12, 7))
        px = x + steps * np.cos(heading) - (curve + wobble) * np.sin(heading)
        py = y + steps * np.sin(heading) + (curve + wobble) * np.cos(heading)
        return cls(x, y, strength, points=tuple(zip(px.tolist(), py.tolist(), strict=True)))

    @property
    def _half_width(self) -> float:
        return 0.34 + 0.20 * self.strength

    def _along(self, plate: Plate, grid: Grid) -> tuple[Array, Array]:
        """Distance from the centre line in millimetres, and a factor that thins the groove towards its ends."""
        points = np.array(self.points, np.float32)
        distance = np.full(grid.shape, 99, np.float32)
        taper = np.zeros(grid.shape, np.float32)
        count = len(points) - 1
        for index, (start, stop) in enumerate(pairwise(points)):
            middle, reach = (start + stop) / 2, float(np.hypot(*(stop - start))) / 2 + 2
            window = grid.around(float(middle[0]), float(middle[1]), reach)
            rows, columns = window
            dx, dy = grid.x[:, columns] - start[0], grid.y[rows] - start[1]
            step = stop - start
            share = np.clip((dx * step[0] + dy * step[1]) / float(step @ step), 0, 1)
            here = np.hypot(dx - share * step[0], dy - share * step[1])
            nearer = here < distance[window]
            distance[window][nearer] = here[nearer]
            taper[window][nearer] = np.sqrt(np.sin(np.pi * np.clip((index + share) / count, 0.02, 0.98)))[nearer]
        return distance, taper

    def footprint(self, plate: Plate, grid: Grid) -> Array:
        distance, _ = self._along(plate, grid)
        off_metal = outline(plate, grid)
        for hole in plate.holes:
            off_metal = np.maximum(off_metal, np.float32(hole.radius) - grid.disc(hole.x, hole.y))
        return np.asarray(np.maximum(distance - np.float32(2.0 * self._half_width), off_metal), np.float32)

    def mar(self, plate: Plate, grid: Grid, surface: Surface) -> Surface:
        distance, taper = self._along(plate, grid)
        width = self._half_width
        groove = np.exp(-((distance / (0.7 * width)) ** 2))
        ridge = np.exp(-(((distance - 1.35 * width) / (0.45 * width)) ** 2))
        edge = np.clip(2.2 - distance / width, 0, 0.4) / 0.4
        relief = np.asarray(taper * edge * width * (0.6 * ridge - 1.1 * groove), np.float32)
        across, down = gradient(relief, grid)
        deep = 0.6 + 0.2 * self.strength
        light = surface.light * (1 + taper * edge * (0.45 * ridge - deep * groove))
        return replace(
            surface,
            slope_x=surface.slope_x - across,
            slope_y=surface.slope_y - down,
            light=np.asarray(light, np.float32),
        )


def _bare_rim(cut: Array, surface: Surface) -> Surface:
    """Fresh steel along a cut, brighter than the zinc around it."""
    burr = np.exp(-(((cut - 0.25) / 0.3) ** 2)) * (cut < 0.9)
    return replace(surface, light=np.asarray(surface.light * (1 + 0.9 * burr), np.float32))
