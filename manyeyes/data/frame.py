"""How a picture comes to the canvas that all trunks see, and how maps on the canvas go back to the picture.

Every step keeps pixel centres in place: position x of n pixels is (x + 0.5) / n of the side on both ends.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import ConfigError, ShapeError

Size = tuple[int, int]
Side = Annotated[int, Field(ge=8, le=8192)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Region = tuple[Fraction, Fraction, Fraction, Fraction]
Array = NDArray[Any]


def _square_as_one(value: Any) -> Any:
    """[256, 256] and 256 are one canvas, so they must have one fingerprint and share stored features."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]
    return value[0] if pair else value


class Frame(Config):
    """The common canvas. Without ``size``, the ensemble fills in the largest input size of its trunks."""

    size: Annotated[Side | tuple[Side, Side] | None, BeforeValidator(_square_as_one)] = Field(
        None, description="side of the canvas in px, or its [height, width]; by default what the largest trunk expects"
    )
    aspect: Literal["square", "keep"] = Field(
        "square",
        description="square: stretch the picture over the canvas; keep: fit it inside and repeat its edges around it",
    )
    region: Region | None = Field(
        None, description="region of interest [left, top, right, bottom] in fractions 0..1 of the picture"
    )
    bits: int = Field(16, ge=9, le=16, description="significant bits of 16-bit pictures: 12 for values of 0..4095")

    @field_validator("region")
    @classmethod
    def _not_empty(cls, region: Region | None) -> Region | None:
        if region is not None and (region[0] >= region[2] or region[1] >= region[3]):
            raise ValueError(f"expected [left, top, right, bottom] with left < right and top < bottom, got {region}")
        return region

    @property
    def canvas(self) -> Size:
        """(H, W). Raises: ConfigError while ``size`` is None."""
        if self.size is None:
            raise ConfigError("frame.size: not known yet; give the side of the canvas in px, such as size: 256")
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def sized(self, size: int | Size) -> Frame:
        """This frame with ``size`` filled in; unchanged if it has one."""
        return self if self.size is not None else self.model_copy(update={"size": _square_as_one(size)})

    def place(self, image: Array) -> NDArray[np.uint8]:
        """Crop, resize and pad. Area mean where an axis shrinks, bilinear where it grows.

        Shapes: (h, w, 3) uint8 -> (H, W, 3) uint8. Raises: ShapeError for another shape or type.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ShapeError(f"expected an image (h, w, 3) of uint8, got {image.shape} of {image.dtype}")
        left, top, right, bottom = self._box(image.shape[:2])
        y, x, h, w = self._inside((bottom - top, right - left))
        placed = _resize(image[top:bottom, left:right], (h, w))
        H, W = self.canvas
        if (h, w) == (H, W):
            return placed
        return np.pad(placed, ((y, H - y - h), (x, W - x - w), (0, 0)), mode="edge")

    def to_image(self, map: Array | Tensor, image_size: Size) -> NDArray[np.float32]:
        """Bring a map on the canvas back to its picture of (h, w) px: the inverse of `place`.

        Outside the region of interest stands the map's lowest value, so that nothing there can look anomalous.

        Shapes: (H, W) -> image_size. Raises: ShapeError unless the map is as large as the canvas.
        """
        values = map.detach().cpu().numpy() if isinstance(map, Tensor) else np.asarray(map)
        if values.shape != self.canvas:
            raise ShapeError(f"expected a map of the canvas {self.canvas}, got {values.shape}")
        left, top, right, bottom = self._box(image_size)
        y, x, h, w = self._inside((bottom - top, right - left))
        part = values[y : y + h, x : x + w].astype(np.float32)
        result = np.full(image_size, part.min(), dtype=np.float32)
        result[top:bottom, left:right] = _resize(part, (bottom - top, right - left))
        return result

    def looked_at(self, image_size: Size) -> NDArray[np.bool_]:
        """Which pixels of a picture of (h, w) px lie in the region of interest. Shapes: -> (h, w)."""
        left, top, right, bottom = self._box(image_size)
        inside = np.zeros(image_size, dtype=bool)
        inside[top:bottom, left:right] = True
        return inside

    def _box(self, image_size: Size) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the region of interest in px, at least one px each way."""
        h, w = image_size
        if self.region is None:
            return 0, 0, w, h
        left, right = _span(self.region[0], self.region[2], w)
        top, bottom = _span(self.region[1], self.region[3], h)
        return left, top, right, bottom

    def _inside(self, size: Size) -> tuple[int, int, int, int]:
        """y, x, h, w of a cropped picture of ``size`` on the canvas."""
        H, W = self.canvas
        if self.aspect == "square":
            return 0, 0, H, W
        scale = min(H / size[0], W / size[1])
        h, w = max(1, min(H, round(size[0] * scale))), max(1, min(W, round(size[1] * scale)))
        return (H - h) // 2, (W - w) // 2, h, w


def _span(start: float, stop: float, length: int) -> tuple[int, int]:
    first = min(round(start * length), length - 1)
    return first, max(round(stop * length), first + 1)


def _resize(values: Array, size: Size) -> Array:
    """Area mean on axes that shrink, bilinear on axes that grow: OpenCV's area mode gives neither if one of each."""
    h, w = values.shape[:2]
    smaller = min(h, size[0]), min(w, size[1])
    if smaller != (h, w):
        values = cv2.resize(values, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != tuple(size):
        values = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(values)
