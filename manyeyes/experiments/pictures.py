"""Pictures for people: heatmaps over parts, masks, outlines, boxes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Map = NDArray[np.float32]
OUTLINE = (0, 230, 255)


def shade(anomaly_map: Map, threshold: float, ceiling: float) -> Map:
    """Map values to 0..1: 0 at or below half the threshold, 0.5 at the threshold, 1 at ``ceiling``; straight between.

    A fixed scale for all pictures of a run, so that good parts stay calm instead of being stretched to red.
    Shapes: (h, w) -> (h, w).
    """
    below = max(abs(threshold) * 0.5, 1e-6)
    above = max(ceiling - threshold, below)
    over = anomaly_map - threshold
    shaded: Map = np.clip(0.5 + 0.5 * over / np.where(over < 0, below, above), 0, 1).astype(np.float32)
    return shaded


def heatmap(image: Image, shaded: Map, strength: float = 0.65) -> Image:
    """The part with its anomaly map in colour, transparent where nothing is wrong.

    Shapes: (h, w, 3) uint8 RGB, (h, w) in 0..1 -> (h, w, 3) uint8 RGB.
    """
    colours = cv2.applyColorMap((shaded * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1].astype(np.float32)
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.6 + image * 0.4
    weight = strength * np.clip(shaded[..., None] * 1.6, 0, 1)
    blended: Image = np.clip(grey * (1 - weight) + colours * weight, 0, 255).astype(np.uint8)
    return blended


def outlined(image: Image, mask: NDArray[np.bool_], colour: tuple[int, int, int] = OUTLINE) -> Image:
    """The picture with the border of a mask drawn on it."""
    drawn = np.ascontiguousarray(image)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(min(image.shape[:2]) / 200))
    result: Image = cv2.drawContours(drawn.copy(), contours, -1, colour, width).astype(np.uint8)
    return result


def boxes(mask: NDArray[np.bool_], anomaly_map: Map) -> list[dict[str, Any]]:
    """Connected parts of a mask: x, y, width, height in px and the highest map value inside, worst first."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = []
    for part in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[part])
        peak = float(anomaly_map[labels == part].max())
        found.append({"x": x, "y": y, "width": width, "height": height, "area": area, "peak": peak})
    return sorted(found, key=lambda box: -box["peak"])
