"""Feature maps: their declaration, and the three linear operations that move them to a common grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from manyeyes.errors import ShapeError

Grid = tuple[int, int]
BLOCK = 256
"""Columns of a block in `upper_gram`."""
ROUNDING = 1e-12
"""A variance below this part of the squared mean is float32 rounding of a constant (1e-6 of the mean, squared)."""


@dataclass(frozen=True)
class MapSpec:
    """What one feature map is, declared before any image is seen and tested against what comes out.

    ``stride`` is in pixels of the trunk's input. ``neighbourhood`` is the side of the square mean taken around every
    position (1: none). A map that is not ``spatial`` is (b, c, 1, 1): it cannot be fused, only scored.
    """

    name: str
    channels: int
    stride: int
    grid: Grid
    neighbourhood: int = 1
    spatial: bool = True


def neighbourhood_mean(maps: Tensor, side: int) -> Tensor:
    """Mean of the ``side`` x ``side`` square around each position, with zeros beyond the border.

    PatchCore's own patches see the same zeros. They draw the features of border positions, which a convolutional
    trunk's padding makes erratic, towards zero on every picture alike; a mean over the part inside costs a memory bank
    7 points of image AUROC where the border is busy (docs/decisions.md).
    Linear on the spatial axes, so it commutes with any projection of the channels; a constant changes at the border.

    Shapes: (b, c, h, w) -> (b, c, h, w). ``side`` is odd.
    """
    if side == 1:
        return maps
    return F.avg_pool2d(maps, side, stride=1, padding=side // 2)


def to_grid(maps: Tensor, grid: Grid) -> Tensor:
    """Resize to ``grid``: bilinear upwards, antialiased bilinear downwards; pixel centres are kept in place.

    Shapes: (b, c, h, w) -> (b, c, *grid). Linear and constant-preserving.
    """
    h, w = maps.shape[-2:]
    if (h, w) == tuple(grid):
        return maps
    shrinks = grid[0] < h or grid[1] < w
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False, antialias=shrinks)


def finest_grid(specs: tuple[MapSpec, ...]) -> Grid:
    """The largest grid among the spatial maps, taken apart for rows and columns."""
    grids = [spec.grid for spec in specs if spec.spatial]
    if not grids:
        raise ShapeError("none of the members gives a spatial map, so there is nothing to fuse; use kind: score_level")
    return max(h for h, _ in grids), max(w for _, w in grids)


def check_maps(maps: tuple[Tensor, ...], specs: tuple[MapSpec, ...]) -> None:
    """Raises: ShapeError unless ``maps`` are (b, c_i, h_i, w_i) with the channels of ``specs`` and one b."""
    if len(maps) != len(specs):
        raise ShapeError(f"expected {len(specs)} maps ({', '.join(s.name for s in specs)}), got {len(maps)}")
    for value, spec in zip(maps, specs, strict=True):
        if value.ndim != 4 or value.shape[1] != spec.channels or value.shape[0] != maps[0].shape[0]:
            raise ShapeError(
                f"map {spec.name!r}: expected (b, {spec.channels}, h, w) with b = {maps[0].shape[0]}, "
                f"got {tuple(value.shape)}"
            )


def pooled(maps: tuple[Tensor, ...]) -> Tensor:
    """Spatial means of all maps, concatenated.

    Shapes: k x (b, c_i, h_i, w_i) -> (b, sum of c_i).
    """
    return torch.cat([value.mean(dim=(2, 3)) for value in maps], dim=1)


def all_finite(*values: Tensor) -> bool:
    """Whether no value is NaN or infinite. A sum with room to spare is finite where all its terms are, also of float16,
    and costs a tenth of looking at each. A GPU is waited for once, however many tensors there are."""
    return bool(torch.stack([value.sum(dtype=torch.float64) for value in values]).isfinite().all())


def even_step(count: int, most: int, period: int) -> int:
    """A step through ``count`` values that leaves about ``most``, and meets all places of rows or maps of ``period``
    values alike: a common divisor would meet the same few columns in every row.

    >>> even_step(1024, 256, 32), even_step(100, 256, 10)
    (5, 1)
    """
    step = max(1, count // most)
    while math.gcd(step, period) > 1:
        step += 1
    return step


def spread_evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly spread.

    >>> spread_evenly(10, 4), spread_evenly(3, 4)
    ([0, 2, 5, 7], [0, 1, 2])
    """
    chosen = min(count, most)
    return [index * count // chosen for index in range(chosen)]


def upper_gram(rows: Tensor) -> Tensor:
    """The upper triangle of ``rows.T @ rows``, without gradient; below it stand zeros or what belongs there.

    The product is symmetric, so that blocks under the diagonal are left out: little more than half the work.
    Shapes: (n, c) -> (c, c), of the same type.
    """
    rows = rows.detach()
    found = rows.new_zeros(rows.shape[1], rows.shape[1])
    for start in range(0, rows.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        found[block, start:] = rows[:, block].T @ rows[:, start:]
    return found


def total_variance(variance: Tensor, mean: Tensor) -> float:
    """Sum of the channels' variances, or 0.0 if it is no more than the rounding of constant features.

    Shapes: (c,), (c,) -> a number in squared feature units.
    """
    total, floor = float(variance.clamp_min(0).sum()), ROUNDING * float((mean**2).sum())
    return total if total > floor else 0.0
