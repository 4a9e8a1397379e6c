"""Image sets on disk: readers that list them, files as arrays, the canvas, batches, and ground truth by region."""

from manyeyes.data.frame import Frame
from manyeyes.data.images import MIN_SIDE, image_size, read_image, read_mask, read_mask_values, to_rgb
from manyeyes.data.listing import paths_to_samples
from manyeyes.data.loading import Batch, ImageBatches
from manyeyes.data.readers import (
    Auto,
    Btad,
    DataConfig,
    Folder,
    Layout,
    Mpdd,
    Mtd,
    MvtecAd,
    MvtecLoco,
    Visa,
    layout_of,
    read_image_set,
)
from manyeyes.data.readers.layout import is_good, stem_of_masked
from manyeyes.data.regions import ground_truth_mask, region_masks
from manyeyes.data.sample import ImageSet, Region, Sample
from manyeyes.data.splits import folds, hold_out

__all__ = [
    "MIN_SIDE",
    "Auto",
    "Batch",
    "Btad",
    "DataConfig",
    "Folder",
    "Frame",
    "ImageBatches",
    "ImageSet",
    "Layout",
    "Mpdd",
    "Mtd",
    "MvtecAd",
    "MvtecLoco",
    "Region",
    "Sample",
    "Visa",
    "folds",
    "ground_truth_mask",
    "hold_out",
    "image_size",
    "is_good",
    "layout_of",
    "paths_to_samples",
    "read_image",
    "read_image_set",
    "read_mask",
    "read_mask_values",
    "region_masks",
    "stem_of_masked",
    "to_rgb",
]
