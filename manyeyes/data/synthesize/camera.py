"""From a shaded plate to a photograph: pose, cloth, shadow, lens and sensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from manyeyes.data.synthesize.geometry import Array, Grid
from manyeyes.data.synthesize.material import Light, smooth_noise

FIELD = (140.0, 112.0)
"""Width and height in millimetres that the camera sees, at the least."""
OVERSAMPLING = 2
THICKNESS = 2.5


def density_of(size: tuple[int, int]) -> float:
    """Picture pixels per millimetre for a picture of (height, width)."""
    return min(size[1] / FIELD[0], size[0] / FIELD[1])


@dataclass(frozen=True)
class Pose:
    """Where the plate lies: angle in radians, shift in millimetres, scale about 1."""

    angle: float
    dx: float
    dy: float
    scale: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        return cls(
            float(np.radians(rng.uniform(-6, 6))), rng.uniform(-3.5, 3.5), rng.uniform(-8, 8), rng.uniform(0.97, 1.03)
        )

    def matrix(self, grid: Grid, size: tuple[int, int], oversampling: int) -> npt.NDArray[np.float64]:
        """2 x 3 affine map from grid pixels to pixels of a picture of (height, width) times ``oversampling``.

        Pixel centres are whole numbers on both sides.
        """
        density = density_of(size) * oversampling
        scale = self.scale * density / grid.density
        cosine, sine = scale * np.cos(self.angle), scale * np.sin(self.angle)
        turn = np.array([[cosine, -sine], [sine, cosine]])
        centre = np.array([(grid.shape[1] - 1) / 2, (grid.shape[0] - 1) / 2])
        middle = np.array([size[1] * oversampling - 1, size[0] * oversampling - 1]) / 2
        shift = middle + density * np.array([self.dx, self.dy]) - turn @ centre
        return np.column_stack([turn, shift])


@dataclass(frozen=True)
class Camera:
    """Exposure and faults of one shot."""

    exposure: float
    white: tuple[float, float, float]
    """Gains of blue, green and red."""
    blur: float
    """Standard deviation in picture pixels at 320 px width."""
    noise: float
    vignette: float
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        blue, red = rng.normal(0, 0.025, 2)
        return cls(
            exposure=rng.uniform(0.88, 1.14),
            white=(1 + float(blue), 1.0, 1 + float(red)),
            blur=rng.uniform(0.35, 0.75),
            noise=rng.uniform(0.006, 0.012),
            vignette=rng.uniform(0.15, 0.35),
            seed=int(rng.integers(2**31)),
        )


def draw_cloth(rng: np.random.Generator, size: tuple[int, int], density: float) -> Array:
    """Reflectance (h, w) of black woven cloth with folds, uneven threads and a little lint; ``size`` and ``density``
    are those of the oversampled picture."""
    height, width = size
    x = (np.arange(width, dtype=np.float32) / density)[None]
    y = (np.arange(height, dtype=np.float32) / density)[:, None]
    angle, pitch = rng.uniform(-0.35, 0.35), rng.uniform(0.95, 1.25)
    bend = 0.25 * smooth_noise(rng, size, (4, 5))
    cosine, sine = float(np.cos(angle)) / pitch, float(np.sin(angle)) / pitch
    u, v = x * cosine + (y * sine + bend), y * cosine + (bend - x * sine)
    floor_u, floor_v = np.floor(u), np.floor(v)
    warp, weft = floor_u.astype(np.int32), floor_v.astype(np.int32)
    in_u, in_v = (2 * (u - floor_u) - 1) ** 2, (2 * (v - floor_v) - 1) ** 2
    over = ((warp + weft) & 1).astype(bool)
    threads = rng.normal(1, 0.16, (2, 512)).astype(np.float32)
    body = np.where(over, threads[0][warp & 511], threads[1][weft & 511])
    bulge = np.where(over, (1 - in_u) * (1 - 0.5 * in_v), 0.72 * (1 - in_v) * (1 - 0.5 * in_u))
    fibres = 1 + 0.18 * rng.standard_normal(size, dtype=np.float32)
    folds = 1 + 0.10 * smooth_noise(rng, size, (3, 4))
    cloth = 0.018 * folds * fibres * body * (0.30 + bulge)
    return np.asarray(np.maximum(cloth, 0) + _lint(rng, size, density), np.float32)


def _lint(rng: np.random.Generator, size: tuple[int, int], density: float) -> Array:
    layer = np.zeros(size, np.uint8)
    for _ in range(int(rng.integers(3, 9))):
        start = rng.uniform((0, 0), FIELD)
        steps = rng.normal(0, 0.5, (6, 2)).cumsum(axis=0) * rng.uniform(0.1, 1.0)
        points = np.round((start + steps) * density * 16).astype(np.int32)
        cv2.polylines(layer, [points.reshape(-1, 1, 2)], False, int(rng.integers(60, 255)), 1, cv2.LINE_AA, 4)
    return np.asarray(layer * np.float32(0.09 / 255), np.float32)


def place(
    shaded: Array, metal: Array, cloth: Array, light: Light, pose: Pose, grid: Grid, size: tuple[int, int]
) -> Array:
    """Lay the shaded plate (h, w, 3) on the cloth: linear light of the picture (H, W, 3) times the oversampling."""
    density = density_of(size) * OVERSAMPLING
    matrix = pose.matrix(grid, size, OVERSAMPLING)
    full = cloth.shape[1], cloth.shape[0]
    # Premultiplied by coverage, so that interpolation mixes no colour from beyond the rim.
    layers = cv2.warpAffine(np.dstack([shaded * metal[..., None], metal]), matrix, full, flags=cv2.INTER_LINEAR)
    plate, alpha = np.asarray(layers[..., :3], np.float32), np.ascontiguousarray(layers[..., 3])
    lx, ly, lz = light.direction()
    thrown = matrix.copy()
    thrown[:, 2] -= np.array([lx, ly]) / lz * THICKNESS * density
    shadow = _soften(cv2.warpAffine(metal, thrown, full, flags=cv2.INTER_LINEAR), light.shadow * density)
    nearby = _soften(alpha, 1.5 * density)
    lit = light.ambient * (1 - 0.6 * nearby) + light.key * (1 - 0.93 * shadow)
    tint = light.colour * np.array([1.08, 1.0, 0.97], np.float32)
    return np.asarray(plate + (cloth * lit * (1 - alpha))[..., None] * tint, np.float32)


def _soften(layer: cv2.typing.MatLike, sigma: float) -> Array:
    """A blur by a triangle of the Gaussian's variance, whose cost does not grow with its width."""
    size = 2 * max(1, round(np.sqrt(6 * sigma**2 + 1) - 1)) + 1
    return np.asarray(cv2.stackBlur(layer, (size, size)), np.float32)


def expose(linear: Array, camera: Camera, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Blur, scale down to ``size`` (H, W), and develop to 8 bits, blue first."""
    sigma = camera.blur * OVERSAMPLING * density_of(size) * FIELD[0] / 320
    if sigma > 0.1:
        linear = np.asarray(cv2.GaussianBlur(linear, (0, 0), sigma), np.float32)
    small = np.asarray(cv2.resize(linear, size[::-1], interpolation=cv2.INTER_AREA), np.float32)
    x = np.linspace(-1, 1, size[1], dtype=np.float32)[None]
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    falloff = camera.exposure * (1 - camera.vignette * 0.5 * (x**2 + y**2))
    small = small * falloff[..., None] * np.array(camera.white, np.float32)
    rng = np.random.default_rng(camera.seed)
    grain = rng.standard_normal((*size, 3), dtype=np.float32)
    # Shot noise grows with the square root of the light; a demosaiced sensor's noise is slightly smeared.
    grain = np.asarray(cv2.GaussianBlur(grain, (0, 0), 0.55), np.float32)
    small = small + camera.noise * grain * np.sqrt(small + 0.01)
    developed = (1 - np.exp(-1.55 * np.maximum(small, 0))) / (1 - np.exp(-1.55 * 1.25))
    return np.asarray(np.clip(np.round(255 * developed ** (1 / 2.2)), 0, 255), np.uint8)
