"""Slow float64 references: one Python loop per threshold, by the definitions, sharing no code with the package."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def overlap_curve(maps, region_lists, good_maps):
    """(false-positive rates, mean sPRO) at every distinct score, after the point (0, 0), as float64 arrays."""
    everything = [np.asarray(m, dtype=np.float64) for m in (*maps, *good_maps)]
    regions = [*region_lists, *([] for _ in good_maps)]
    outside = [
        ~np.logical_or.reduce([np.zeros(m.shape, bool), *(mask for mask, _ in r)])
        for m, r in zip(everything, regions, strict=True)
    ]
    total = sum(int(o.sum()) for o in outside)
    xs, ys = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([m.ravel() for m in everything]))[::-1]:
        called = [m >= threshold for m in everything]
        xs.append(sum(int((c & o).sum()) for c, o in zip(called, outside, strict=True)) / total)
        covered = [min((c & mask).sum() / area, 1.0) for c, r in zip(called, regions, strict=True) for mask, area in r]
        ys.append(float(np.mean(covered)))
    return np.array(xs), np.array(ys)


def area(xs, ys, limit):
    """Trapezoids up to the limit, where the curve is interpolated; divided by the limit."""
    total = 0.0
    for x0, x1, y0, y1 in zip(xs[:-1], xs[1:], ys[:-1], ys[1:], strict=True):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        total += (x1 - x0) * (y0 + y1) / 2
    return total / limit


def components(mask):
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return [(labels == i, float((labels == i).sum())) for i in range(1, count + 1)]
