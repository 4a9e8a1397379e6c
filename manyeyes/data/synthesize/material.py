"""Brushed zinc-plated steel under one soft lamp: what each point of the plate sends to the camera.

The brushing runs along x, so microfacets scatter little along x and much along y: the anisotropic Gaussian lobe in
slope space of Ward 1992 ("Measuring and modeling anisotropic reflection"), without its normalising factors, which an
exposure would undo anyway. The half vector drifts linearly over the plate because the lamp is near: this draws the
bright band.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from manyeyes.data.synthesize.geometry import Array, Grid, Surface


@dataclass(frozen=True)
class Light:
    """One lamp over the table; angles in radians in the picture's frame, y down."""

    azimuth: float
    elevation: float
    key: float
    ambient: float
    warmth: float
    """Share by which red gains and blue loses in the lamp's light."""
    shadow: float
    """Softness of cast shadows in millimetres."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        return cls(
            azimuth=rng.uniform(-np.pi, 0.0),
            elevation=float(np.radians(rng.uniform(48, 70))),
            key=rng.uniform(0.85, 1.2),
            ambient=rng.uniform(0.22, 0.34),
            warmth=rng.uniform(-0.02, 0.07),
            shadow=rng.uniform(0.6, 1.6),
        )

    def direction(self, turned: float = 0.0) -> tuple[float, float, float]:
        """Unit vector to the lamp in a frame that is turned by ``turned`` radians."""
        flat = np.cos(self.elevation)
        angle = self.azimuth - turned
        return float(flat * np.cos(angle)), float(flat * np.sin(angle)), float(np.sin(self.elevation))

    @property
    def colour(self) -> Array:
        """Blue, green, red."""
        return np.array([1 - self.warmth, 1.0, 1 + self.warmth], np.float32)


@dataclass(frozen=True)
class Finish:
    """Brushing, mottling, stains and hairlines of one good plate."""

    streaks: Array
    """Zero mean, unit variance, drawn out along x."""
    tone: Array
    """Factor on the reflectance per colour (h, w, 3): stains and mottling, all within tolerance."""
    depth: float
    """Slope of the brushing."""

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: Grid) -> Self:
        hairlines = _hairlines(rng, grid)
        streaks = _streaks(rng, grid)
        return cls(streaks + hairlines, _tone(rng, grid), rng.uniform(0.06, 0.11))


def shade(surface: Surface, finish: Finish, light: Light, turned: float, grid: Grid) -> Array:
    """Linear light per colour (h, w, 3), about 1 at full exposure, of a plate turned by ``turned`` radians."""
    lx, ly, lz = light.direction(turned)
    slope_x = surface.slope_x + 0.25 * finish.depth * finish.streaks
    slope_y = surface.slope_y + finish.depth * finish.streaks
    half_x, half_y = lx / (lz + 1) - grid.x / 220, ly / (lz + 1) - grid.y / 220
    across = ((slope_y - half_y) / 0.55) ** 2
    # The lamp's own image, drawn out into a band, on the broad glow of its soft box.
    band = np.exp(-(((slope_x - half_x) / 0.10) ** 2) - across)
    glow = np.exp(-(((slope_x - half_x) / 0.36) ** 2) - across)
    facing = np.maximum(lx * slope_x + ly * slope_y + lz, 0) / np.sqrt(1 + slope_x**2 + slope_y**2)
    # The room: a bright ceiling that slopes turn away from.
    room = 0.62 * light.ambient * (1 + 0.05 * finish.streaks) / np.sqrt(1 + 0.8 * (slope_x**2 + slope_y**2))
    lamp = light.key * (0.10 * facing + 0.22 * glow + 0.26 * band) * (1 + 0.07 * finish.streaks)
    cool = np.array([1.04, 1.0, 0.97], np.float32)
    colour = room[..., None] * cool + lamp[..., None] * light.colour
    return np.asarray(colour * surface.light[..., None] * finish.tone, np.float32)


def _streaks(rng: np.random.Generator, grid: Grid) -> Array:
    total = np.zeros(grid.shape, np.float32)
    for length, weight in ((45.0, 0.55), (12.0, 0.65), (3.0, 0.55)):
        noise = rng.standard_normal(grid.shape, dtype=np.float32)
        width = max(1, round(length * grid.density))
        drawn_out = cv2.blur(noise, (width, 1), borderType=cv2.BORDER_REFLECT)
        total += weight * np.sqrt(width, dtype=np.float32) * drawn_out
    return total


def _hairlines(rng: np.random.Generator, grid: Grid) -> Array:
    """Faint handling marks nearly along the brushing, as every plate from a box has."""
    canvas = np.zeros(grid.shape, np.float32)
    for _ in range(int(rng.integers(3, 9))):
        x, y, length = rng.uniform(-60, 50), rng.uniform(-24, 24), rng.uniform(5, 28)
        lean, strength = rng.normal(0, 0.06), rng.uniform(0.5, 1.4) * rng.choice((-1, 1))
        _line(canvas, grid, np.array([[x, y], [x + length, y + length * lean]]), float(strength))
    return canvas


def _line(canvas: Array, grid: Grid, points: np.ndarray, value: float) -> None:
    origin = np.array([grid.x[0, 0], grid.y[0, 0]])
    fixed = np.round((points - origin) * grid.density * 16).astype(np.int32)
    layer = np.zeros(grid.shape, np.uint8)
    cv2.polylines(layer, [fixed.reshape(-1, 1, 2)], False, 255, 1, cv2.LINE_AA, 4)
    canvas += layer * np.float32(value / 255)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> Array:
    """Standard normal values on a coarse grid of ``cells``, interpolated to ``shape``."""
    coarse = rng.standard_normal(cells, dtype=np.float32)
    return np.asarray(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _tone(rng: np.random.Generator, grid: Grid) -> Array:
    mottle = 1 + 0.02 * smooth_noise(rng, grid.shape, (6, 14)) + 0.012 * smooth_noise(rng, grid.shape, (40, 90))
    tone = np.repeat(mottle[..., None], 3, axis=2).astype(np.float32)
    for _ in range(int(rng.integers(0, 4))):
        x, y, radius = rng.uniform(-55, 55), rng.uniform(-22, 22), rng.uniform(3, 10)
        window = grid.around(x, y, 2.2 * radius + 2)
        shape = (window[0].stop - window[0].start, window[1].stop - window[1].start)
        ragged = radius * (1 + 0.18 * smooth_noise(rng, shape, (8, 8)))
        distance = grid.disc(x, y)[window] * rng.uniform(0.9, 1.2) - ragged
        body = 1 / (1 + np.exp(distance * 1.6))
        # Dried liquid leaves most of its salt at the rim.
        stain = rng.uniform(0.03, 0.12) * body + rng.uniform(0.0, 0.10) * np.exp(-((distance / 0.6) ** 2))
        tone[window] *= 1 - stain[..., None] * np.array([1.25, 1.0, 0.8], np.float32)
    return np.asarray(tone, np.float32)
