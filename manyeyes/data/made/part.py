"""Where the part is and what it consists of, crudely: few colours, those of the border count as background.

Nothing is learnt and nothing may fail: a picture without a background (a texture, a part that fills the picture) is
all part, one without pieces has no regions.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from manyeyes.data.made.contract import Mask, Picture, Subject
from manyeyes.data.regions import components

COLOURS = 6
KERNEL = np.ones((3, 3), np.uint8)
SIDE = 128
"""The picture is looked at with its longer side at this many px."""
BORDER = 0.5
"""A colour is background if it holds this part of its fair share of the border ring or more of the ring itself."""
PART = (0.03, 0.95)
"""A part outside this range of the picture is a failed segmentation."""
REGION = (0.002, 0.2)
"""Pieces as shares of the picture: smaller ones are grain, larger ones the part itself."""
CONTRAST = 10.0
"""Distance in CIE Lab (8 bits per channel) across an outline; less is a shade, not an outline."""


def subject(picture: Picture, donor: Picture) -> Subject:
    """A picture with its part and regions found. Shapes: (h, w, 3), (h, w, 3)."""
    h, w = picture.shape[:2]
    scale = min(1.0, SIDE / max(h, w))
    small = cv2.resize(picture, (max(4, round(w * scale)), max(4, round(h * scale))), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(cv2.medianBlur(small, 3), cv2.COLOR_RGB2LAB).astype(np.float32)
    labels = _colours(lab)
    part = _part(lab, labels)

    def enlarge(mask: Mask) -> Mask:
        smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0)  # or the pixels of the small picture show
        return np.asarray(cv2.resize(smooth, (w, h), interpolation=cv2.INTER_LINEAR) > 0.5, dtype=np.bool_)

    regions = [enlarge(region) for region in _regions(lab, labels, part)]
    whole = enlarge(part)
    return Subject(
        picture, donor, whole if whole.any() else np.ones((h, w), dtype=bool), tuple(r for r in regions if r.any())
    )


def _colours(lab: NDArray[Any]) -> NDArray[np.int32]:
    """Each pixel's colour among few, found by k-means. Shapes: (h, w, 3) -> (h, w)."""
    points = rearrange(lab, "h w c -> (h w) c")
    # Starting from equal parts of the pixels in order of lightness needs no random numbers.
    rank = np.argsort(np.argsort(points[:, 0], kind="stable"), kind="stable")
    start = (rank * COLOURS // len(points)).astype(np.int32)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1.0)
    _, labels, _ = cv2.kmeans(points, COLOURS, start[:, None], stop, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    return np.asarray(labels.reshape(lab.shape[:2]), dtype=np.int32)


def _part(lab: NDArray[Any], labels: NDArray[np.int32]) -> Mask:
    """All that is not joined to the border by the border's own colours; everything where that is no sensible part."""
    ring = np.ones(labels.shape, dtype=bool)
    edge = max(1, min(labels.shape) // 32)
    ring[edge:-edge, edge:-edge] = False
    shares = np.bincount(labels[ring], minlength=COLOURS) / ring.sum()
    outside = np.isin(labels, np.flatnonzero(shares >= BORDER / COLOURS))
    _, joined = cv2.connectedComponents(outside.astype(np.uint8), connectivity=4)
    touching = np.unique(joined[ring & outside])
    part = ~(outside & np.isin(joined, touching))
    part = cv2.morphologyEx(part.astype(np.uint8), cv2.MORPH_OPEN, KERNEL) > 0
    sensible = PART[0] <= part.mean() <= PART[1] and _contrast(lab, part) >= CONTRAST
    return part if sensible else np.ones_like(part)


def _contrast(lab: NDArray[Any], mask: Mask) -> float:
    """Typical colour distance between what lies just inside and just outside of an outline."""
    seed = mask.astype(np.uint8)
    inside, outside = seed > cv2.erode(seed, KERNEL, iterations=2), cv2.dilate(seed, KERNEL, iterations=2) > seed
    if not inside.any() or not outside.any():
        return 0.0
    # Local means over each side, so that a slow change of light across the picture is no outline.
    means = []
    for side in (inside, outside):
        weight = cv2.blur(side.astype(np.float32), (7, 7))[..., None]
        means.append(cv2.blur(lab * side[..., None], (7, 7)) / np.maximum(weight, 1e-6))
    edge = inside & (cv2.blur(outside.astype(np.float32), (7, 7)) > 0)
    return float(np.median(np.linalg.norm(means[0] - means[1], axis=2)[edge])) if edge.any() else 0.0


def _regions(lab: NDArray[Any], labels: NDArray[np.int32], part: Mask) -> list[Mask]:
    """Pieces of one colour inside the part, of sensible size and shape, with an outline that shows."""
    found: list[Mask] = []
    inner = cv2.erode(part.astype(np.uint8), KERNEL) > 0
    for colour in range(COLOURS):
        piece = cv2.morphologyEx(((labels == colour) & inner).astype(np.uint8), cv2.MORPH_OPEN, KERNEL) > 0
        for region in components(piece):
            if REGION[0] <= region.mean() <= REGION[1] and _compact(region) and _contrast(lab, region) >= CONTRAST:
                found.append(region)
    return found


def _compact(region: Mask) -> bool:
    """Whether a region fills its box enough to be a piece and not the outline of one."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return bool(region.sum() >= 0.35 * box)
