"""Ground truth at pixel level: the union of a sample's masks, and its defect regions one by one.

A mask may have another size than its picture (sets are often stored smaller than their masks): evaluation brings the
anomaly map to the size of the mask, never the other way round. Masks of one sample must agree, and none may lie
where its picture stands.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from manyeyes.data.images import image_size, read_mask
from manyeyes.data.sample import Region, Sample
from manyeyes.errors import DataError

Mask = NDArray[np.bool_]
EIGHT = np.ones((3, 3), dtype=bool)


def ground_truth_mask(sample: Sample, size: tuple[int, int] | None = None) -> Mask:
    """Every pixel of any region; all False for a good sample, in ``size`` or else the size of its picture.

    Shapes: (H, W) of the masks, or ``size`` where there are none.
    Raises: DataError if masks differ in size, or if a defective sample has none: its pixels are unknown.
    """
    if not sample.regions:
        if sample.label:
            raise DataError(f"{sample.path}: is defective and has no mask; leave it out of figures at pixel level")
        return np.zeros(size or image_size(sample.path), dtype=bool)
    union: Mask = np.logical_or.reduce([mask for _, mask in _masks(sample)])
    return union


def region_masks(sample: Sample) -> list[tuple[Mask, float]]:
    """Each defect region of a sample and the area in px at which it counts as found.

    A file marked ``whole`` is one region, any other is split into its 8-connected components. A relative saturation is
    a fraction of the region's area in whole pixels, an absolute one is capped at that area. Empty masks give no region.

    Shapes: [((H, W), area)]. Raises: DataError if masks differ in size.
    """
    found = []
    for region, mask in _masks(sample):
        for part in [mask] if region.whole else components(mask):
            area = int(part.sum())
            if area:
                # Whole pixels, rounded down: so does the official LOCO evaluation, to judge by its answers.
                limit = max(1, int(region.saturation * area)) if region.relative else region.saturation
                found.append((part, float(min(limit, area))))
    return found


def components(mask: Mask) -> list[Mask]:
    """The 8-connected components. Shapes: (H, W) -> [(H, W)]. Equals scipy.ndimage.label with a full 3 x 3 square."""
    labels, count = ndimage.label(mask, structure=EIGHT)
    return [labels == index for index in range(1, count + 1)]


def _masks(sample: Sample) -> list[tuple[Region, Mask]]:
    masks = [(region, read_mask(region.path)) for region in sample.regions]
    if masks and sample.path.is_file():  # the ground truth of anyone's maps comes without pictures
        _require_upright(*masks[0], sample.path)
    for region, mask in masks[1:]:
        first, expected = masks[0]
        if mask.shape != expected.shape:
            raise DataError(
                f"{region.path}: is {mask.shape[1]} x {mask.shape[0]} px, but {first.path.name} of the same picture is "
                f"{expected.shape[1]} x {expected.shape[0]} px; all masks of a picture must have one size"
            )
    return masks


def _require_upright(region: Region, mask: Mask, picture: Path) -> None:
    """A mask drawn on a picture whose EXIF turn was not heeded lies where its picture stands."""
    h, w = image_size(picture)
    if h != w and mask.shape == (w, h):
        raise DataError(
            f"{region.path}: is {h} x {w} px, but its picture {picture.name} is {w} x {h} px, its EXIF turn included; "
            "turn the mask too"
        )
