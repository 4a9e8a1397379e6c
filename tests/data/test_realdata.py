"""The readers on real image sets: set MANYEYES_REALDATA to the folder that holds them.

Counts are those of the copy that docs/benchmark_sets.md describes, which is smaller than the public sets.
"""

import os
from pathlib import Path

import pytest

from manyeyes.data import Frame, ImageBatches, ImageSet, ground_truth_mask, read_image_set, region_masks

FOLDER = os.environ.get("MANYEYES_REALDATA")
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not FOLDER, reason="set MANYEYES_REALDATA to the folder of the real image sets"),
]

# pictures on disk by folder: training, validation, good in test, defective, files of ground truth
COPY = {
    "mvtec_ad/bottle": (209, 0, 20, 63, 63),
    "mvtec_ad/transistor": (213, 0, 60, 40, 0),
    "mvtec_loco/juice_bottle": (281, 54, 54, 142, 142),
    "mtd": (400, 0, 191, 392, 392),
    "otx_hazelnut_toy": (28, 0, 6, 17, 17),
}
# layout, training, validation, test, defective, defective with a mask
SETS = {
    "mvtec_ad/bottle": ("mvtec-ad", 209, 0, 83, 63, 63),
    "mvtec_ad/transistor": ("mvtec-ad", 213, 0, 100, 40, 0),
    "mvtec_loco/juice_bottle": ("mvtec-loco", 281, 54, 196, 142, 142),
    "mtd": ("mvtec-ad", 400, 0, 583, 392, 392),
    "otx_hazelnut_toy": ("mvtec-ad", 28, 0, 23, 17, 17),
    "natural_images": ("folder", 1000, 0, 0, 0, 0),
}


def on_disk(folder: Path) -> tuple[int, ...]:
    """Files as they lie, without a reader, so that a reader that loses some is not taken for another copy."""

    def files(*parts: str) -> int:
        return sum(path.is_file() for path in folder.joinpath(*parts).rglob("*"))

    good = files("test", "good")
    return files("train"), files("validation"), good, files("test") - good, files("ground_truth")


def read(name: str) -> ImageSet:
    """Skips where the set is not there, or not in the copy that is expected here."""
    folder = Path(str(FOLDER)) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    if name in COPY and (found := on_disk(folder)) != COPY[name]:
        pytest.skip(
            f"{folder} is another copy: it has {found} files of training, validation, good test, defective test and "
            f"ground truth; the copy of docs/benchmark_sets.md has {COPY[name]}"
        )
    if name not in COPY and (count := len(list(folder.iterdir()))) != SETS[name][1]:
        pytest.skip(f"{folder} is another copy: it has {count} files; the copy that is expected has {SETS[name][1]}")
    return read_image_set(folder)


@pytest.mark.parametrize("name", SETS)
def test_real_set(name):
    found = read(name)
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
    assert any("sPRO is not official" in note for note in read("mvtec_loco/juice_bottle").notes)
