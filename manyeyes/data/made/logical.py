"""Logical made defects: a piece of the part is missing, there twice, out of place, or in another's place."""

from __future__ import annotations

import cv2
import numpy as np

from manyeyes.data.made.contract import Mask, Picture, Subject
from manyeyes.data.made.shapes import Array, blend, blob, box, place, shifted, soft

Spoilt = tuple[Picture, Mask]
FILL_SIDE = 112
"""Gaps are filled on a picture with its longer side at this many px: large gaps take seconds otherwise."""
BLOB = (0.004, 0.04)
"""Without pieces, a spot of this share of the picture stands for one."""


def removed(subject: Subject, strength: float, rng: np.random.Generator) -> Spoilt:
    """A piece gone, its surroundings grown over the gap. Strength chooses among the pieces by size."""
    region = _piece(subject, strength, rng)
    return filled(subject.picture, region, rng), region


def doubled(subject: Subject, strength: float, rng: np.random.Generator) -> Spoilt | None:
    """A piece there a second time, elsewhere on the part."""
    region = _piece(subject, strength, rng)
    y, x = _centre(region)
    for _ in range(20):
        to_y, to_x = place(subject.part, rng)
        target = shifted(region, to_y - y, to_x - x)
        extra = target & ~region & subject.part
        if extra.sum() >= 0.6 * region.sum():
            return _pasted(subject.picture, subject.picture, region, to_y - y, to_x - x), target & ~region
    return None


def moved(subject: Subject, strength: float, rng: np.random.Generator) -> Spoilt | None:
    """A piece shifted by 2 to 20 percent of the picture's longer side; the gap behind it is filled."""
    region = _piece(subject, float(rng.random()), rng)
    reach = max(2.0, max(region.shape) * 0.02 * 10**strength)
    for _ in range(20):
        angle = rng.uniform(0, 2 * np.pi)
        dy, dx = round(reach * np.sin(angle)), round(reach * np.cos(angle))
        target = shifted(region, dy, dx)
        if target.sum() >= 0.9 * region.sum():
            bare = filled(subject.picture, region, rng)
            return _pasted(bare, subject.picture, region, dy, dx), target | region
    return None


def swapped(subject: Subject, strength: float, rng: np.random.Generator) -> Spoilt | None:
    """Two pieces of like size in each other's place."""
    if len(subject.regions) < 2:
        return None
    first = subject.regions[int(rng.integers(len(subject.regions)))]
    # The plainer the defect, the less alike in size they may be.
    limit = 1.5 + 2.5 * strength
    others = [
        region
        for region in subject.regions
        if region is not first and 1 / limit <= region.sum() / first.sum() <= limit and not (region & first).any()
    ]
    if not others:
        return None
    second = others[int(rng.integers(len(others)))]
    (y, x), (other_y, other_x) = _centre(first), _centre(second)
    dy, dx = other_y - y, other_x - x
    bare = filled(filled(subject.picture, first, rng), second, rng)
    once = _pasted(bare, subject.picture, first, dy, dx)
    twice = _pasted(once, subject.picture, second, -dy, -dx)
    return twice, first | second | shifted(first, dy, dx) | shifted(second, -dy, -dx)


def filled(picture: Picture, region: Mask, rng: np.random.Generator) -> Picture:
    """The region painted over from its surroundings (Telea 2004), with their grain. Shapes: (h, w, 3), (h, w)."""
    h, w = region.shape
    wide = max(1, round(max(h, w) * 0.008))
    gap = cv2.dilate(region.astype(np.uint8), np.ones((2 * wide + 1, 2 * wide + 1), np.uint8))
    scale = min(1.0, FILL_SIDE / max(h, w))
    size = (max(4, round(w * scale)), max(4, round(h * scale)))
    # Where any of a small pixel is gap it is unknown, or the removed piece would shine through.
    small_gap = (cv2.resize(gap.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    painted = cv2.resize(cv2.inpaint(small, small_gap, 3, cv2.INPAINT_TELEA), (w, h), interpolation=cv2.INTER_CUBIC)
    ring = (cv2.dilate(gap, np.ones((4 * wide + 1, 4 * wide + 1), np.uint8)) > gap).astype(bool)
    grain = picture.astype(np.float32) - cv2.GaussianBlur(picture, (0, 0), 1.0)
    level = float(np.median(np.abs(grain[ring]))) * 1.48 if ring.any() else 0.0
    noise = level * rng.standard_normal((h, w, 1), dtype=np.float32)
    return blend(picture, painted + noise, soft(gap > 0, wide / 2))


def _piece(subject: Subject, strength: float, rng: np.random.Generator) -> Mask:
    """A region, larger ones for greater strength; a spot of the part where there are none."""
    if not subject.regions:
        return blob(subject.part, rng, BLOB)
    by_size = sorted(subject.regions, key=lambda region: int(region.sum()))
    middle = strength * (len(by_size) - 1)
    return by_size[int(np.clip(round(rng.normal(middle, 0.2 * len(by_size))), 0, len(by_size) - 1))]


def _pasted(base: Picture, source: Picture, region: Mask, dy: int, dx: int) -> Picture:
    """The source's region, shifted, on the base."""
    wide = max(1, round(max(region.shape) * 0.004))
    grown = cv2.dilate(region.astype(np.uint8), np.ones((2 * wide + 1, 2 * wide + 1), np.uint8)) > 0
    alpha: Array = soft(shifted(grown, dy, dx), wide / 2)
    inside = shifted(np.ones(region.shape, dtype=bool), dy, dx)
    return blend(base, shifted(source, dy, dx), alpha * inside[..., None])


def _centre(region: Mask) -> tuple[int, int]:
    top, left, bottom, right = box(region)
    return (top + bottom) // 2, (left + right) // 2
