"""Run every distinct trunk once per image and hand the tapped stages to all extractors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from manyeyes.backbones.contract import FeatureExtractor, Trunk
from manyeyes.errors import DataError, ShapeError


def check_images(images: Tensor) -> None:
    """Raises: ShapeError or DataError unless ``images`` is a finite floating (b, 3, H, W) in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"images: expected (b, 3, H, W) RGB, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ShapeError(f"images: expected floating point in [0, 1], got {images.dtype}; divide 8-bit images by 255")
    if not images.numel():
        raise ShapeError(f"images: expected at least one image of one pixel, got {tuple(images.shape)}")
    low, high = (float(v) for v in torch.aminmax(images))
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # also catches NaN
        raise DataError(f"images: expected finite values in [0, 1], got {low:.3g} to {high:.3g}")


class Eyes(nn.Module):
    """The trunks of all members, each run once.

    Shapes: (b, 3, H, W) RGB in [0, 1] -> {tap key: (b, c, h, w)}.
    """

    def __init__(self, extractors: Sequence[FeatureExtractor]) -> None:
        super().__init__()
        self.stages: dict[str, list[str]] = {}
        trunks: dict[str, Trunk] = {}
        for tap in (tap for extractor in extractors for tap in extractor.taps):
            trunks.setdefault(tap.trunk.key, tap.trunk)
            names = self.stages.setdefault(tap.trunk.key, [])
            if tap.stage.name not in names:
                names.append(tap.stage.name)
        self.trunks = nn.ModuleDict(trunks)
        self.eval()

    def each(self) -> tuple[Trunk, ...]:
        """The distinct trunks."""
        return tuple(cast(Trunk, trunk) for trunk in self.trunks.values())

    def restricted(self, keys: Sequence[str]) -> Eyes:
        """The same trunk modules and stages, only some of the trunks."""
        part = Eyes([])
        part.stages = {key: self.stages[key] for key in keys}
        part.trunks = nn.ModuleDict({key: self.trunks[key] for key in keys})
        return part

    # Not inference mode: its tensors could not be saved for a backward pass when heads train on these features.
    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        check_images(images)
        taps: dict[str, Tensor] = {}
        for key, trunk in self.trunks.items():
            for stage, value in trunk(images, self.stages[key]).items():
                taps[f"{key}.{stage}"] = value
        return taps
