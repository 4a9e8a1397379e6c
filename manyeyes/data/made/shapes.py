"""Shapes of defects and how they are laid over a picture."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from manyeyes.data.made.contract import Mask, Picture
from manyeyes.data.synthesize.material import smooth_noise

Array = NDArray[Any]
AREA = (0.0008, 0.03)
"""Blobs as shares of the picture, drawn evenly in their logarithm."""


def place(part: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """A point of the part: y, x."""
    spot = int(rng.choice(np.flatnonzero(part)))
    return spot // part.shape[1], spot % part.shape[1]


def blob(part: Mask, rng: np.random.Generator, area: tuple[float, float] = AREA) -> Mask:
    """A ragged spot on the part, from smooth noise over a falling slope; at least 9 px."""
    h, w = part.shape
    size = max(9.0, h * w * np.exp(rng.uniform(*np.log(area))))
    y, x = place(part, rng)
    stretch, angle = np.exp(rng.uniform(-0.7, 0.7)), rng.uniform(0, np.pi)
    dy, dx = np.mgrid[:h, :w].astype(np.float32) - np.array([y, x], np.float32)[:, None, None]
    along = (dx * np.cos(angle) + dy * np.sin(angle)) * stretch
    across = (dy * np.cos(angle) - dx * np.sin(angle)) / stretch
    radius = np.sqrt(size / np.pi)
    cells = max(4, round(1.5 * h / radius)), max(4, round(1.5 * w / radius))
    field = rng.uniform(0.1, 0.6) * smooth_noise(rng, (h, w), (min(cells[0], h), min(cells[1], w)))
    field = field - (along**2 + across**2) / radius**2
    count = min(int(size), field.size)
    mask = field >= np.partition(field.ravel(), -count)[-count]
    return on(part, mask)


def strip(part: Mask, rng: np.random.Generator) -> Mask:
    """A thin, slightly bent stroke that starts on the part: half a percent to two of the longer side wide."""
    h, w = part.shape
    side = max(h, w)
    y, x = place(part, rng)
    length, angle = side * rng.uniform(0.05, 0.3), rng.uniform(0, 2 * np.pi)
    bend = rng.normal(0, 0.15)
    steps = np.linspace(-0.5, 0.5, 12)
    bent = bend * (steps**2 - 0.25) * length
    points = np.stack(
        [
            x + steps * length * np.cos(angle) - bent * np.sin(angle),
            y + steps * length * np.sin(angle) + bent * np.cos(angle),
        ],
        axis=1,
    )
    canvas = np.zeros((h, w), np.uint8)
    width = max(1, round(side * rng.uniform(0.004, 0.02)))
    cv2.polylines(canvas, [np.round(points).astype(np.int32)[:, None]], False, 255, width, cv2.LINE_8)
    return on(part, canvas > 0)


def on(part: Mask, mask: Mask) -> Mask:
    """What of the mask lies on the part, if that is most of it; else the mask: some defects hang over the edge."""
    common = mask & part
    return common if 2 * common.sum() >= mask.sum() else mask


def soft(mask: Mask, sigma: float) -> Array:
    """Opacity 0..1 that falls smoothly over the mask's edge. Shapes: (h, w) -> (h, w, 1) float32."""
    alpha = mask.astype(np.float32)
    if sigma > 0.3:
        alpha = np.maximum(cv2.GaussianBlur(alpha, (0, 0), sigma), 0.6 * alpha)
    return np.asarray(alpha[..., None], np.float32)


def blend(picture: Picture, over: Array, alpha: Array) -> Picture:
    """``over`` laid on the picture with opacity ``alpha``. Shapes: (h, w, 3), (h, w, 3), (h, w, 1) -> (h, w, 3)."""
    mixed = picture + alpha * (over.astype(np.float32) - picture)
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)


def box(mask: Mask) -> tuple[int, int, int, int]:
    """top, left, bottom, right of a mask that is not empty, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def shifted(values: Array, dy: int, dx: int) -> Array:
    """Move by whole px; what comes in from outside is zero (False). Shapes: (h, w, ...) -> the same."""
    h, w = values.shape[:2]
    result = np.zeros_like(values)
    if abs(dy) < h and abs(dx) < w:
        result[max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = values[
            max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)
        ]
    return result
