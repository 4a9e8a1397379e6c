"""Small JPEGs for the page: a part, and its anomaly map in colour with the true defect's outline."""

from __future__ import annotations

import base64
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from manyeyes.data import Frame, read_image, read_mask
from manyeyes.errors import DataError
from manyeyes.experiments.pictures import heatmap, outlined, shade

Image = NDArray[np.uint8]
SIDE = 224
QUALITY = 80


@lru_cache(maxsize=256)
def thumbnail(path: str, bits: int) -> Image | None:
    """The picture with its longer side at ``SIDE`` px at most; None if it is gone or broken since the study."""
    try:
        image = read_image(path, bits)
    except DataError:
        return None
    h, w = image.shape[:2]
    scale = min(1.0, SIDE / max(h, w))
    size = max(1, round(w * scale)), max(1, round(h * scale))
    resized: Image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return resized


def truth(masks: tuple[str, ...], size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """The union of mask files at (h, w): a pixel counts if any of it is defect, so that small ones stay visible.

    None if there is none, or a file is gone or broken since the study.
    """
    union = np.zeros(size, dtype=bool)
    for mask in masks:
        try:
            full = read_mask(mask).astype(np.float32)
        except DataError:
            return None
        union |= cv2.resize(full, size[::-1], interpolation=cv2.INTER_AREA) > 0
    return union if masks else None


def overlay(
    image: Image,
    anomaly_map: NDArray[np.float16],
    frame: Frame,
    scale: tuple[float, float],
    mask: NDArray[np.bool_] | None,
) -> Image:
    """The heatmap of a small map over a thumbnail; the true defect's outline.

    ``scale`` is the map value where colour says alarm, and the one where it is strongest.
    Shapes: (h, w, 3) uint8, (64, 64) -> (h, w, 3) uint8.
    """
    frame = frame.sized(anomaly_map.shape)
    H, W = frame.canvas
    on_canvas = cv2.resize(anomaly_map.astype(np.float32), (W, H), interpolation=cv2.INTER_LINEAR)
    h, w = image.shape[:2]
    drawn = heatmap(image, shade(frame.to_image(on_canvas, (h, w)), *scale))
    return drawn if mask is None else contoured(drawn, mask)


def contoured(image: Image, mask: NDArray[np.bool_]) -> Image:
    """The outline of a mask in white on black, to show on any colour. Shapes: (h, w, 3), (h, w) -> (h, w, 3)."""
    around = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return outlined(outlined(image, around, (0, 0, 0)), mask, (255, 255, 255))


def data_uri(image: Image) -> str:
    """The picture as a JPEG inside a URI. Shapes: (h, w, 3) uint8 RGB."""
    done, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise DataError(f"a thumbnail of {image.shape[1]} x {image.shape[0]} px cannot be encoded as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
