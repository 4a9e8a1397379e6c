"""Image sizes in configs, and the way from any image to a trunk's own input."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

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


class Pixels(nn.Module):
    """From any image to a trunk's own input: resized (antialiased bilinear; not where the size is right), normalised.

    Shapes: (b, 3, H, W) in [0, 1] -> (b, 3, *size), on the device of this module.
    """

    def __init__(self, size: Grid, mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return self.normalise(self.resize(images.to(self.mean)))

    def resize(self, images: Tensor) -> Tensor:
        """Shapes: (b, 3, H, W) -> (b, 3, *size)."""
        if tuple(images.shape[-2:]) == tuple(self.size):
            return images
        return F.interpolate(images, size=self.size, mode="bilinear", align_corners=False, antialias=True)

    def normalise(self, images: Tensor) -> Tensor:
        """Shapes: (b, 3, h, w) -> (b, 3, h, w), any h and w."""
        return (images - self.mean) / self.std
