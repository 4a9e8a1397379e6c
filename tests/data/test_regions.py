"""Ground truth at pixel level."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from manyeyes.data.regions import components, ground_truth_mask, region_masks
from manyeyes.data.sample import Region, Sample
from manyeyes.errors import DataError

TWO = np.zeros((24, 30), np.uint8)
TWO[2:6, 3:8] = 255
TWO[10:20, 15:25] = 255


@pytest.fixture
def masked(tmp_path):
    """A defective sample of the given masks; its picture is 48 x 60 px."""
    Image.new("RGB", (60, 48)).save(tmp_path / "a.png")

    def build(*masks, **options):
        regions = []
        for index, mask in enumerate(masks):
            Image.fromarray(mask).save(tmp_path / f"mask{index}.png")
            regions.append(Region(tmp_path / f"mask{index}.png", **options))
        return Sample(tmp_path / "a.png", "scratch", "scratch", tuple(regions))

    return build


def test_union_in_the_size_of_the_mask(masked):
    np.testing.assert_array_equal(ground_truth_mask(masked(TWO)), TWO > 0)
    other = np.roll(TWO, 5, axis=1)
    np.testing.assert_array_equal(ground_truth_mask(masked(TWO, other)), (TWO > 0) | (other > 0))


def test_good_samples_have_no_defect_pixel(tmp_path):
    Image.new("RGB", (60, 48)).save(tmp_path / "a.png")
    mask = ground_truth_mask(Sample(tmp_path / "a.png"))
    assert mask.shape == (48, 60)
    assert not mask.any()
    assert ground_truth_mask(Sample(tmp_path / "a.png"), (5, 7)).shape == (5, 7)
    assert region_masks(Sample(tmp_path / "a.png")) == []


def test_defective_without_mask_is_refused(masked):
    with pytest.raises(DataError, match=r"a\.png: is defective and has no mask"):
        ground_truth_mask(masked())


def test_components_of_an_ordinary_mask_and_one_region_of_a_whole_one(masked):
    parts = region_masks(masked(TWO))
    assert [(int(mask.sum()), area) for mask, area in parts] == [(20, 20.0), (100, 100.0)]
    ((whole, area),) = region_masks(masked(TWO, whole=True))
    np.testing.assert_array_equal(whole, TWO > 0)
    assert area == 120


@pytest.mark.parametrize(
    ("saturation", "relative", "areas"),
    [
        (0.5, True, [10, 50]),
        (0.33, True, [6, 33]),
        (0.01, True, [1, 1]),
        (30, False, [20, 30]),
        (1.0, True, [20, 100]),
        (1e6, False, [20, 100]),
    ],
)
def test_saturation(masked, saturation, relative, areas):
    parts = region_masks(masked(TWO, saturation=saturation, relative=relative))
    assert [area for _, area in parts] == areas


def test_components_touch_at_corners():
    mask = np.zeros((6, 6), bool)
    mask[0, 0] = mask[1, 1] = mask[2, 0] = mask[5, 5] = True
    assert [int(part.sum()) for part in components(mask)] == [3, 1]


def test_components_equal_scipy_on_noise():
    mask = np.random.default_rng(0).random((40, 40)) < 0.2
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    parts = components(mask)
    assert len(parts) == count
    np.testing.assert_array_equal(sum(part * (index + 1) for index, part in enumerate(parts)), labels)


def test_empty_mask_gives_no_region(masked):
    empty = np.zeros_like(TWO)
    assert region_masks(masked(empty)) == []
    assert region_masks(masked(empty, whole=True)) == []
    assert not ground_truth_mask(masked(empty)).any()


def test_masks_of_one_sample_must_have_one_size(masked):
    sample = masked(TWO, TWO[:20])
    for function in (ground_truth_mask, region_masks):
        with pytest.raises(DataError, match=r"mask1\.png: is 30 x 20 px, but mask0\.png .* is 30 x 24 px"):
            function(sample)


def test_a_mask_that_was_not_turned_with_its_picture_is_refused(tmp_path):
    """The map was squeezed onto a mask that lies on its side, and all pixel figures were wrong."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 48)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(np.full((48, 60), 255, np.uint8)).save(tmp_path / "mask.png")
    sample = Sample(tmp_path / "a.jpg", "scratch", "scratch", (Region(tmp_path / "mask.png"),))
    for read in (ground_truth_mask, region_masks):
        with pytest.raises(DataError, match=r"mask\.png: is 60 x 48 px, but its picture a\.jpg is 48 x 60 px"):
            read(sample)
    Image.fromarray(np.full((60, 48), 255, np.uint8)).save(tmp_path / "mask.png")
    assert ground_truth_mask(sample).shape == (60, 48)
