"""The readers on real image sets: set MANYEYES_REALDATA to the folder that holds them."""

import os
from pathlib import Path

import pytest

from manyeyes.data import Frame, ImageBatches, ground_truth_mask, read_image_set, region_masks

FOLDER = os.environ.get("MANYEYES_REALDATA")
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not FOLDER, reason="set MANYEYES_REALDATA to the folder of the real image sets"),
]

# layout, training, validation, test, defective, defective with a mask
SETS = {
    "mvtec_ad/bottle": ("mvtec-ad", 209, 0, 83, 63, 63),
    "mvtec_ad/transistor": ("mvtec-ad", 213, 0, 100, 40, 0),
    "mvtec_loco/juice_bottle": ("mvtec-loco", 281, 54, 196, 142, 142),
    "mtd": ("mvtec-ad", 400, 0, 583, 392, 392),
    "otx_hazelnut_toy": ("mvtec-ad", 28, 0, 23, 17, 17),
    "natural_images": ("folder", 1000, 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", SETS)
def test_real_set(name):
    found = read_image_set(Path(FOLDER) / name)
    masked = [sample for sample in found.test if sample.regions]
    counts = (len(found.train), len(found.validation), len(found.test), sum(s.label for s in found.test), len(masked))
    assert (found.layout, *counts) == SETS[name]
    batch = next(iter(ImageBatches(found.train, Frame(size=64), 4)))
    assert batch.images.shape == (4, 3, 64, 64)
    assert 0.02 < batch.images.std() < 0.5
    for sample in masked[:20]:
        union = ground_truth_mask(sample)
        assert sum(mask.sum() for mask, _ in region_masks(sample)) == union.sum()


def test_merged_loco_masks_are_noticed():
    found = read_image_set(Path(FOLDER) / "mvtec_loco/juice_bottle")
    assert any("sPRO is not official" in note for note in found.notes)
