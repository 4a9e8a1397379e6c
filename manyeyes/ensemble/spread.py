"""Bring anomaly maps from their small grid to the canvas: bilinear resize, then Gaussian blur, in two matrix products.

Source: PatchCore's map (Roth et al. 2022, section 3.3). Both operations are linear and separable, so that each axis has
one matrix for both; the plain way, a two-dimensional convolution at full size, costs more than a small trunk.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from manyeyes.maps import Grid

REACH = 4
"""Sigmas at which the Gaussian is cut."""


def spread(maps: Tensor, canvas: Grid, sigma: float) -> Tensor:
    """Resize bilinearly and blur with ``sigma`` in px of the canvas; the border is repeated outwards.

    Shapes: (b, h, w) -> (b, *canvas). Equals F.interpolate and a padded convolution (tests/ensemble/test_spread.py).
    """
    rows, columns = (
        axis(size, target, sigma, maps.device, maps.dtype) for size, target in zip(maps.shape[1:], canvas, strict=True)
    )
    return rows @ maps @ columns.T


@lru_cache(maxsize=32)
def axis(size: int, target: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What resizing to ``target`` and blurring make of each unit vector, computed in float64. Shapes: (target, size).

    Kept where the maps are: a copy to a GPU would be waited for at every batch.
    """
    unit = rearrange(torch.eye(size, dtype=torch.float64), "c h -> 1 c h 1").expand(-1, -1, -1, 2)
    resized = F.interpolate(unit, size=(target, 2), mode="bilinear", align_corners=False)[0, :, :, 0]
    if sigma > 0:
        reach = max(1, round(REACH * sigma))
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma).square())
        padded = F.pad(resized[:, None], (reach, reach), mode="replicate")
        resized = F.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0]
    return resized.T.to(device, dtype)
