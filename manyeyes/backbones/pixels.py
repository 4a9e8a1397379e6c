"""Image sizes in configs, and the way from any image to a trunk's own input."""

from __future__ import annotations

from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor

from manyeyes.maps import Grid

Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


SMALLEST, LARGEST = 16, 4096


def _square_as_one(value: Any) -> Any:
    """[256, 256] and 256 are one size, so they must have one fingerprint."""
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and SMALLEST <= side <= LARGEST for side in sides):
        raise ValueError(
            f"expected one whole number of pixels from {SMALLEST} to {LARGEST}, or [height, width], got {value!r}"
        )
    return sides[0] if sides[0] == sides[1] else tuple(sides)


Side = Annotated[int, Field(ge=SMALLEST, le=LARGEST)]
Size = Annotated[Side | tuple[Side, Side], BeforeValidator(_square_as_one)]


def as_grid(size: int | tuple[int, int]) -> Grid:
    """(H, W) of a size."""
    return (size, size) if isinstance(size, int) else size


def to_input(images: Tensor, size: Grid, mean: Tensor, std: Tensor) -> Tensor:
    """Resize (antialiased bilinear; nothing where the size is right) and normalise.

    Shapes: (b, 3, H, W) in [0, 1], mean and std (3, 1, 1) -> (b, 3, *size), on the device and in the type of ``mean``.
    """
    images = images.to(mean)
    if tuple(images.shape[-2:]) != tuple(size):
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return (images - mean) / std
