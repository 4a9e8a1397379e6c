"""The canvas: pixel centres stay in place on the way there and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.data.frame import Frame
from manyeyes.errors import ConfigError, ShapeError

SIZES = [(64, 64), (61, 173), (200, 37), (33, 48), (480, 641)]
FRAMES = [
    Frame(size=64),
    Frame(size=(48, 80)),
    Frame(size=64, aspect="keep"),
    Frame(size=(40, 72), aspect="keep"),
    Frame(size=64, region=(0.1, 0.2, 0.83, 0.95)),
    Frame(size=(56, 40), aspect="keep", region=(0.25, 0.0, 1.0, 0.7)),
]


def centre_of_mass(values):
    values = values - values.min()
    y, x = np.mgrid[: values.shape[0], : values.shape[1]]
    return (values * y).sum() / values.sum(), (values * x).sum() / values.sum()


def spots(size, frame):
    """Squares at the corners and in the middle of the region of interest, as (y, x, side)."""
    h, w = size
    left, top, right, bottom = frame.region or (0, 0, 1, 1)
    left, right, top, bottom = round(left * w), round(right * w), round(top * h), round(bottom * h)
    side = max(3, min(h, w) // 8)
    middle = ((top + bottom - side) // 2, (left + right - side) // 2)
    corners = [(y, x) for y in (top, bottom - side) for x in (left, right - side)]
    return [(*spot, side) for spot in [*corners, middle]]


@pytest.mark.parametrize("frame", FRAMES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_a_spot_comes_back_where_it_was(frame, size):
    for y, x, side in spots(size, frame):
        image = np.zeros((*size, 3), np.uint8)
        image[y : y + side, x : x + side] = 255
        placed = frame.place(image)
        assert placed.shape == (*frame.canvas, 3)
        back = frame.to_image(placed[..., 0].astype(np.float32), size)
        assert back.shape == size
        found = centre_of_mass(np.where(back > 64, back, 0))
        assert np.abs(np.subtract(found, (y + (side - 1) / 2, x + (side - 1) / 2))).max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_placing_is_centred_to_a_tenth_of_a_canvas_pixel(size):
    """A linear ramp over the picture is a linear ramp over the canvas: no half-pixel shift."""
    w = size[1]
    ramp = np.repeat(np.broadcast_to(np.linspace(20, 235, w), size).astype(np.uint8)[..., None], 3, axis=2)
    placed = Frame(size=64).place(ramp)[..., 0].astype(float)
    expected = np.interp((np.arange(64) + 0.5) / 64 * w - 0.5, np.arange(w), ramp[0, :, 0])
    inner = slice(2, -2)
    greys_per_pixel = (235 - 20) / 64
    assert abs((placed[32] - expected)[inner].mean()) < 0.1 * greys_per_pixel


def test_shrinking_is_an_area_mean():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    expected = image.reshape(16, 4, 16, 6, 3).mean(axis=(1, 3))
    assert np.abs(Frame(size=16).place(image) - expected).max() <= 0.51


def test_an_axis_that_shrinks_is_averaged_although_the_other_grows():
    """OpenCV's area mode silently samples single points then."""
    stripes = np.zeros((16, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    placed = Frame(size=64).place(stripes)
    assert np.abs(placed.astype(int) - 128).max() <= 1


def test_keep_repeats_edges_and_does_not_stretch():
    image = np.zeros((20, 40, 3), np.uint8)
    image[0], image[-1] = 200, 90
    placed = Frame(size=40, aspect="keep").place(image)
    assert placed.shape == (40, 40, 3)
    np.testing.assert_array_equal(placed[10:30], image)
    assert (placed[:10] == 200).all()
    assert (placed[30:] == 90).all()


def test_equal_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    for aspect in ("square", "keep"):
        np.testing.assert_array_equal(Frame(size=(32, 48), aspect=aspect).place(image), image)


def test_outside_the_region_stands_the_lowest_value():
    frame = Frame(size=16, region=(0.25, 0.25, 0.75, 0.75))
    back = frame.to_image(np.full((16, 16), -3.0) + np.arange(16), (40, 40))
    outside = np.ones((40, 40), bool)
    outside[10:30, 10:30] = False
    assert (back[outside] == -3).all()
    assert back[10:30, 10:30].max() == 12


def test_to_image_takes_tensors_and_leaves_them_alone():
    values = torch.rand(16, 16, requires_grad=True)
    back = Frame(size=16).to_image(values, (31, 23))
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, Frame(size=16).to_image(values.detach().numpy(), (31, 23)))


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(8, 90), st.integers(8, 90)),
    st.tuples(st.integers(8, 40), st.integers(8, 40)),
    st.sampled_from(["square", "keep"]),
    st.tuples(*[st.floats(0, 0.45)] * 2, *[st.floats(0.55, 1)] * 2),
)
def test_constants_and_shapes_survive(size, canvas, aspect, region):
    frame = Frame(size=canvas, aspect=aspect, region=region)
    placed = frame.place(np.full((*size, 3), 77, np.uint8))
    assert placed.shape == (*canvas, 3)
    assert (placed == 77).all()
    back = frame.to_image(np.full(canvas, 0.5, np.float32), size)
    assert back.shape == size
    np.testing.assert_allclose(back, 0.5, rtol=1e-6)


def test_narrow_region_of_a_small_picture_keeps_a_pixel():
    frame = Frame(size=16, region=(0.99, 0.99, 1.0, 1.0))
    image = np.zeros((8, 8, 3), np.uint8)
    image[-1, -1] = 9
    assert (frame.place(image) == 9).all()


def test_wrong_shapes_are_refused():
    for image in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3), np.float32)):
        with pytest.raises(ShapeError, match="expected an image"):
            Frame(size=16).place(image)
    with pytest.raises(ShapeError, match=r"expected a map of the canvas \(16, 16\), got \(8, 8\)"):
        Frame(size=16).to_image(np.zeros((8, 8)), (20, 20))


def test_size_is_filled_in_once():
    with pytest.raises(ConfigError, match=r"frame\.size: not known yet"):
        _ = Frame().canvas
    assert Frame().sized(256).canvas == (256, 256)
    assert Frame(aspect="keep").sized((32, 64)) == Frame(aspect="keep", size=(32, 64))
    assert Frame(size=64).sized(256).canvas == (64, 64)


@pytest.mark.parametrize(
    "values",
    [{"size": 0}, {"size": [32]}, {"aspect": "stretch"}, {"region": [0.5, 0, 0.5, 1]}, {"region": [0, 0, 2, 1]},
     {"sise": 64}, {"bits": 8}],
)  # fmt: skip
def test_bad_configs_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        Frame.parse(values)


def test_round_trip(tmp_path):
    frame = Frame(size=(32, 64), aspect="keep", region=(0, 0.1, 1, 0.9), bits=12)
    (tmp_path / "frame.yaml").write_text(frame.to_yaml())
    read = Frame.from_yaml(tmp_path / "frame.yaml")
    assert read == frame
    assert read.fingerprint() == frame.fingerprint() != Frame(size=64).fingerprint()


def test_a_square_canvas_is_one_canvas_however_it_is_written() -> None:
    """Two spellings had two fingerprints, and every trunk ran again for the second."""
    ways = [Frame(size=96), Frame(size=(96, 96)), Frame().sized(96), Frame().sized((96, 96))]
    assert len({way.fingerprint() for way in ways}) == 1
    assert all(way.canvas == (96, 96) for way in ways)
