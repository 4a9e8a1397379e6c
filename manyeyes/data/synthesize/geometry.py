"""The flat connector as drawn by its maker: outline, holes, and their relief on a grid in the plate's own frame.

Lengths are millimetres, the origin is the plate's centre, x runs along the plate and y downwards. Everything is drawn
in this frame and turned into the picture at the very end, so that a mask and its picture share one pose by
construction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

HOLE_RADIUS = 3.2
SINK_RADIUS = 5.6
HOLE_ROWS = {-13.5: (-45.0, -15.0, 15.0, 45.0), 0.0: (-30.0, 0.0, 30.0), 13.5: (-45.0, -15.0, 15.0, 45.0)}
HOLE_CENTRES = tuple((x, y) for y, row in HOLE_ROWS.items() for x in row)
BEVEL = 0.55
"""Width of the rounded rim that shearing leaves on the outline."""


@dataclass(frozen=True)
class Hole:
    """A round through hole with a conical sink around it."""

    x: float
    y: float
    radius: float = HOLE_RADIUS
    sink: float = SINK_RADIUS

    def resized(self, factor: float) -> Hole:
        return replace(self, radius=self.radius * factor, sink=self.sink * factor)


@dataclass(frozen=True)
class Plate:
    length: float = 120.0
    width: float = 50.0
    corner: float = 4.5
    holes: tuple[Hole, ...] = tuple(Hole(x, y) for x, y in HOLE_CENTRES)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """A plate within the maker's tolerances: 0.3 mm on the outline, 0.2 mm on hole positions, 2 % on diameters."""
        holes = tuple(
            Hole(x + dx, y + dy).resized(1 + grow)
            for (x, y), (dx, dy), grow in zip(
                HOLE_CENTRES,
                rng.uniform(-0.2, 0.2, (len(HOLE_CENTRES), 2)).tolist(),
                rng.uniform(-0.02, 0.02, len(HOLE_CENTRES)).tolist(),
                strict=True,
            )
        )
        return cls(
            length=120.0 + rng.uniform(-0.3, 0.3),
            width=50.0 + rng.uniform(-0.3, 0.3),
            corner=rng.uniform(4.2, 4.8),
            holes=holes,
        )


@dataclass(frozen=True)
class Grid:
    """Pixel centres over the nominal plate and a margin: ``x`` is (1, w), ``y`` is (h, 1), both in millimetres."""

    x: Array
    y: Array
    density: float
    """Grid pixels per millimetre."""

    @classmethod
    def over_plate(cls, density: float, margin: float = 3.0) -> Self:
        columns = round((120.0 + 2 * margin) * density)
        rows = round((50.0 + 2 * margin) * density)
        x = (np.arange(columns, dtype=np.float32) - (columns - 1) / 2) / density
        y = (np.arange(rows, dtype=np.float32) - (rows - 1) / 2) / density
        return cls(x[None, :].astype(np.float32), y[:, None].astype(np.float32), density)

    @property
    def shape(self) -> tuple[int, int]:
        return self.y.shape[0], self.x.shape[1]

    def around(self, x: float, y: float, radius: float) -> tuple[slice, slice]:
        """Rows and columns of the square that holds a disc."""
        rows, columns = self.shape
        left = (x - radius - float(self.x[0, 0])) * self.density
        top = (y - radius - float(self.y[0, 0])) * self.density
        across = 2 * radius * self.density
        return (
            slice(min(max(int(top), 0), rows), min(max(int(top + across) + 2, 0), rows)),
            slice(min(max(int(left), 0), columns), min(max(int(left + across) + 2, 0), columns)),
        )

    def disc(self, x: float, y: float) -> Array:
        """Distance in millimetres of every grid point from a point."""
        return np.asarray(np.hypot(self.x - np.float32(x), self.y - np.float32(y)), np.float32)

    def coverage(self, distance: Array) -> Array:
        """Share of each grid pixel inside a shape given its signed distance (negative inside): antialiased edges."""
        return np.asarray(np.clip(0.5 - distance * np.float32(self.density), 0, 1), np.float32)


@dataclass(frozen=True)
class Surface:
    """The plate's upper side on a grid: where there is metal, how it slopes, how much light reaches it."""

    metal: Array
    """Share of each pixel that is metal."""
    slope_x: Array
    slope_y: Array
    """Slopes of the normal, n = (slope_x, slope_y, 1) up to length."""
    light: Array
    """Factor on all light: recesses get less, fresh metal more."""


def outline(plate: Plate, grid: Grid) -> Array:
    """Signed distance from the rounded rectangle, negative inside."""
    across = np.abs(grid.x) - np.float32(plate.length / 2 - plate.corner)
    down = np.abs(grid.y) - np.float32(plate.width / 2 - plate.corner)
    corner = np.hypot(np.maximum(across, 0), np.maximum(down, 0))
    return corner + np.minimum(np.maximum(across, down), 0) - np.float32(plate.corner)


def gradient(field: Array, grid: Grid) -> tuple[Array, Array]:
    """d/dx and d/dy per millimetre."""
    scale = grid.density / 8
    return (
        np.asarray(cv2.Sobel(field, cv2.CV_32F, 1, 0, ksize=3, scale=scale), np.float32),
        np.asarray(cv2.Sobel(field, cv2.CV_32F, 0, 1, ksize=3, scale=scale), np.float32),
    )


def shape_surface(plate: Plate, grid: Grid, carved: list[Array]) -> Surface:
    """Metal, slopes and recesses of a plate.

    ``carved`` holds signed distances of shapes cut out of the outline; their rims are as bare as a fresh break.
    """
    distance = outline(plate, grid)
    for cut in carved:
        distance = np.maximum(distance, -cut)
    along_x, along_y = gradient(distance, grid)
    rim = np.clip(1 + distance / BEVEL, 0, 1.2)
    slope_x, slope_y = 1.3 * along_x * rim, 1.3 * along_y * rim
    light = np.ones(grid.shape, np.float32)
    metal = grid.coverage(distance)
    for hole in plate.holes:
        window = grid.around(hole.x, hole.y, hole.sink + 1)
        rows, columns = window
        dx, dy = grid.x[:, columns] - np.float32(hole.x), grid.y[rows] - np.float32(hole.y)
        radius = np.hypot(dx, dy)
        cone = grid.coverage(radius - np.float32(hole.sink))
        # The tool leaves rings in the cone and turns up a hair of metal around it.
        tilt = cone * (0.85 + 0.1 * np.sin(radius * 9)) - 0.35 * np.exp(-(((radius - hole.sink - 0.2) / 0.25) ** 2))
        away = 1 / np.maximum(radius, 1e-3)
        slope_x[window] -= tilt * dx * away
        slope_y[window] -= tilt * dy * away
        depth = np.clip((hole.sink - radius) / max(hole.sink - hole.radius, 1e-3), 0, 1)
        light[window] *= 1 - 0.45 * cone * depth
        metal[window] *= 1 - grid.coverage(radius - np.float32(hole.radius))
    return Surface(metal, slope_x, slope_y, light)
