"""Every kind of file that a camera, a scanner or an annotation tool writes, and the ways in which they break."""

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from manyeyes.data.images import MIN_SIDE, image_size, read_image, read_mask, read_mask_values, to_rgb, unused_bits
from manyeyes.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 33, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (20, 33), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 33), dtype=np.uint16)
DEEP_RGB = RNG.integers(0, 65536, (20, 33, 3), dtype=np.uint16)


def saved(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def written(path, array):
    assert cv2.imwrite(str(path), array)
    return path


def stacked(grey):
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tiff", "a.webp", "a.ppm", "a.jp2", "a.wrong.txt"])
def test_lossless_colour_files_give_the_stored_pixels(tmp_path, name):
    options = {"format": "PNG"} if name.endswith("txt") else {"lossless": True} if name.endswith("webp") else {}
    read = read_image(saved(tmp_path / name, RGB, **options))
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, RGB)


def test_jpeg_gives_nearly_the_stored_pixels(tmp_path):
    smooth = np.full((24, 24, 3), (200, 90, 30), dtype=np.uint8)
    read = read_image(saved(tmp_path / "a.jpg", smooth, quality=95))
    assert np.abs(read.astype(int) - smooth).max() <= 3


def test_grey_two_level_and_palette_files_become_three_channels(tmp_path):
    np.testing.assert_array_equal(read_image(saved(tmp_path / "grey.png", GREY)), stacked(GREY))
    np.testing.assert_array_equal(
        read_image(saved(tmp_path / "two.png", GREY > 127)), stacked(np.where(GREY > 127, 255, 0))
    )
    palette = Image.fromarray((GREY % 4).astype(np.uint8), mode=None).convert("L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    colours = np.array([[0, 0, 0], [250, 10, 20], [30, 240, 50], [60, 70, 230]], dtype=np.uint8)
    palette.putpalette(colours.ravel().tolist())
    np.testing.assert_array_equal(read_image(saved(tmp_path / "palette.png", palette)), colours[GREY % 4])


def test_cmyk_is_converted(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = read_image(saved(tmp_path / "a.tiff", image))
    np.testing.assert_array_equal(red, np.broadcast_to(np.uint8([255, 0, 0]), (16, 16, 3)))


def test_transparency_is_composited_over_black(tmp_path):
    rgba = np.dstack([np.full((16, 16, 3), 200, np.uint8), np.full((16, 16), 255, np.uint8)])
    rgba[:8, :, 3] = 0
    rgba[8:12, :, 3] = 128
    read = read_image(saved(tmp_path / "a.png", rgba))
    assert (read[:8] == 0).all()
    assert (read[8:12] == round(200 * 128 / 255)).all()
    assert (read[12:] == 200).all()


def test_hidden_pixels_cannot_matter(tmp_path):
    one, other = (np.dstack([colour, np.zeros((20, 33), np.uint8)]) for colour in (RGB, 255 - RGB))
    np.testing.assert_array_equal(
        read_image(saved(tmp_path / "a.png", one)), read_image(saved(tmp_path / "b.png", other))
    )


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_16_bit_grey_is_divided_by_257(tmp_path, suffix):
    expected = stacked(np.rint(DEEP / 257).astype(np.uint8))
    np.testing.assert_array_equal(read_image(written(tmp_path / f"a{suffix}", DEEP)), expected)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_colour_is_divided_by_257_not_cut_to_its_high_byte(tmp_path, suffix):
    expected = np.rint(DEEP_RGB / 257).astype(np.uint8)
    assert (expected != DEEP_RGB >> 8).any()
    read = read_image(written(tmp_path / f"a{suffix}", DEEP_RGB[..., ::-1]))
    np.testing.assert_array_equal(read, expected)


def test_16_bit_rgba_is_composited(tmp_path):
    alpha = np.full((20, 33, 1), 65535, np.uint16)
    alpha[:10] = 0
    read = read_image(written(tmp_path / "a.png", np.concatenate([DEEP_RGB[..., ::-1], alpha], axis=2)))
    assert (read[:10] == 0).all()
    np.testing.assert_array_equal(read[10:], np.rint(DEEP_RGB[10:] / 257).astype(np.uint8))


def test_16_bit_scale_does_not_depend_on_the_image(tmp_path):
    dark = np.minimum(DEEP, 4095)
    np.testing.assert_array_equal(read_image(written(tmp_path / "a.png", dark)), stacked(np.rint(dark / 257)))


def test_bits_tells_how_many_bits_a_camera_stored(tmp_path):
    stored = written(tmp_path / "a.png", DEEP >> 4)
    np.testing.assert_array_equal(read_image(stored, bits=12), stacked(np.rint((DEEP >> 4) * (255 / 4095))))
    assert unused_bits(stored) == 12
    assert unused_bits(written(tmp_path / "b.png", DEEP)) is None
    assert unused_bits(saved(tmp_path / "c.png", GREY)) is None
    with pytest.raises(DataError, match=r"b\.png: holds the value \d+, more than 12 bits; raise frame\.bits"):
        read_image(tmp_path / "b.png", bits=12)


def test_a_pgm_that_declares_its_maximum_needs_no_bits(tmp_path):
    values = (DEEP >> 4).astype(">u2")
    values[0, 0] = 4095
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 33 20 4095\n" + values.tobytes())
    read = read_image(path, bits=12)
    assert np.abs(read[..., 0] - np.rint(values * (255 / 4095))).max() <= 1
    assert read[0, 0, 0] == 255


@pytest.mark.parametrize("shape", [(20, 33), (20, 33, 3)])
def test_float_tiff_is_0_to_1(tmp_path, shape):
    values = RNG.random(shape, dtype=np.float32)
    read = read_image(written(tmp_path / "a.tiff", values))
    expected = np.rint(values * 255).astype(np.uint8)
    np.testing.assert_array_equal(read, expected[..., ::-1] if len(shape) == 3 else stacked(expected))


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (7.5, "floats from 0 to 7.5"), (-1, "floats from -1")],
)
def test_float_tiff_with_other_values_is_refused(tmp_path, value, reason):
    values = np.zeros((16, 16), np.float32)
    values[3, 3] = value
    with pytest.raises(DataError, match=rf"a\.tiff: holds {reason}"):
        read_image(written(tmp_path / "a.tiff", values))


def test_32_bit_integers_are_refused(tmp_path):
    with pytest.raises(DataError, match="32-bit integers"):
        read_image(written(tmp_path / "a.tiff", np.full((16, 16), -5, np.int32)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "image"), [(".png", RGB), (".tiff", RGB), (".jpg", GREY), (".png", DEEP)])
def test_exif_turned_equals_upright(tmp_path, suffix, image, orientation):
    """Pillow's own exif_transpose is the oracle; the picture on disk is the one that a turned camera stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a{suffix}", image, exif=exif)
    untagged = read_image(saved(tmp_path / f"plain{suffix}", image))
    flipped = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: np.transpose(x, (1, 0, 2)),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.transpose(x[::-1, ::-1], (1, 0, 2)),
        8: lambda x: np.rot90(x),
    }[orientation](untagged)
    read = read_image(path)
    np.testing.assert_array_equal(read, flipped)
    assert read.flags.c_contiguous
    assert image_size(path) == read.shape[:2]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_turned_16_bit_colour_equals_upright(tmp_path, suffix, orientation):
    written(tmp_path / f"plain{suffix}", DEEP_RGB)
    upright = read_image(tmp_path / f"plain{suffix}")
    path = tmp_path / f"turned{suffix}"
    if suffix == ".png":
        data = (tmp_path / "plain.png").read_bytes()
        exif = Image.Exif()
        exif[0x0112] = orientation
        path.write_bytes(data[:33] + chunk(b"eXIf", exif.tobytes()[6:]) + data[33:])
    else:
        data = bytearray((tmp_path / "plain.tiff").read_bytes())
        path.write_bytes(with_tiff_orientation(data, orientation))
    expected = np.rot90(upright, {1: 0, 3: 2, 6: -1}[orientation])
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_turned_float_colour_that_only_opencv_knows(tmp_path, orientation):
    written(tmp_path / "plain.tiff", RNG.random((20, 33, 3), dtype=np.float32))
    data = bytearray((tmp_path / "plain.tiff").read_bytes())
    (tmp_path / "turned.tiff").write_bytes(with_tiff_orientation(data, orientation))
    expected = np.rot90(read_image(tmp_path / "plain.tiff"), {1: 0, 3: 2, 6: -1}[orientation])
    np.testing.assert_array_equal(read_image(tmp_path / "turned.tiff"), expected)
    assert image_size(tmp_path / "turned.tiff") == expected.shape[:2]


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_tiff_orientation(data, orientation):
    """Append a copy of the first directory with an orientation tag in its place among the sorted tags."""
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    entries = [bytes(data[start + 2 + 12 * i : start + 14 + 12 * i]) for i in range(count)]
    entries = [entry for entry in entries if struct.unpack_from("<H", entry)[0] != 274]
    entries.append(struct.pack("<HHIHH", 274, 3, 1, orientation, 0))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    if len(data) % 2:
        data += b"\0"
    struct.pack_into("<I", data, 4, len(data))
    return bytes(data) + struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)


def test_20_megapixels(tmp_path):
    big = np.zeros((4000, 5000), np.uint8)
    big[3999, 4999] = 255
    read = read_image(saved(tmp_path / "big.png", big, compress_level=1))
    assert read.shape == (4000, 5000, 3)
    assert read[-1, -1].tolist() == [255, 255, 255]


BROKEN = ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"]


@pytest.mark.parametrize("kind", BROKEN)
def test_truncated_file(tmp_path, kind, capfd):
    path = saved(tmp_path / "a.img", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), format=kind)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=r"a\.img: is damaged or truncated \(.+\)") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_truncated_file_that_only_opencv_knows(tmp_path, capfd):
    path = written(tmp_path / "a.tiff", RNG.random((64, 64, 3), dtype=np.float32))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.tiff: "):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_files_that_are_no_usable_image(tmp_path, capfd):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "folder.png").mkdir()
    saved(tmp_path / "thin.png", np.zeros((40, 1), np.uint8))
    cases = {
        "missing.png": "does not exist",
        "empty.png": "is empty (0 bytes)",
        "text.png": "is no image that Pillow or OpenCV can read",
        "folder.png": "is a folder",
        "thin.png": f"is 1 x 40 px; both sides must be at least {MIN_SIDE} px",
    }
    for name, reason in cases.items():
        for read in (read_image, read_mask, read_mask_values):
            with pytest.raises(DataError) as caught:
                read(tmp_path / name)
            assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
            assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is empty"):
        image_size(tmp_path / "empty.png")
    assert capfd.readouterr() == ("", "")


def test_smallest_image(tmp_path):
    saved(tmp_path / "a.png", np.zeros((MIN_SIDE, MIN_SIDE), np.uint8))
    assert read_image(tmp_path / "a.png").shape == (MIN_SIDE, MIN_SIDE, 3)


def test_size_without_decoding(tmp_path):
    path = saved(tmp_path / "a.png", RNG.integers(0, 256, (64, 80, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:200])  # the header alone is whole
    assert image_size(path) == (64, 80)


MASK = np.zeros((20, 33), np.uint8)
MASK[4:8, 5:9] = 254
MASK[10:12, 20:30] = 3


def test_mask_values_are_those_stored(tmp_path):
    values = read_mask_values(saved(tmp_path / "a.png", MASK))
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, MASK)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), MASK > 0)


def test_16_bit_mask_is_not_scaled(tmp_path):
    values = read_mask_values(written(tmp_path / "a.png", MASK.astype(np.uint16) * 200))
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, MASK.astype(np.uint16) * 200)


def test_two_level_mask(tmp_path):
    np.testing.assert_array_equal(
        read_mask_values(saved(tmp_path / "a.png", MASK > 0)), np.where(MASK > 0, 255, 0).astype(np.uint8)
    )


def indexed(indices, colours):
    image = Image.frombytes("P", indices.shape[::-1], indices.astype(np.uint8).tobytes())
    image.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
    return image


def test_coloured_palette_mask_gives_indices(tmp_path):
    colours = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    path = saved(tmp_path / "a.png", indexed(MASK // 85 + (MASK == 3), colours))
    np.testing.assert_array_equal(read_mask_values(path), MASK // 85 + (MASK == 3))


def test_grey_palette_mask_gives_greys(tmp_path):
    """Optimisers of PNG files store 0/255 masks as palettes, and may put white first."""
    path = saved(tmp_path / "a.png", indexed(MASK == 0, [[255, 255, 255], [0, 0, 0]]))
    np.testing.assert_array_equal(read_mask_values(path), np.where(MASK > 0, 255, 0))


def test_black_palette_mask_gives_indices(tmp_path):
    path = saved(tmp_path / "a.png", indexed(MASK > 0, [[0, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(read_mask(path), MASK > 0)


def test_colour_mask_counts_any_channel_and_transparent_pixels_do_not(tmp_path):
    rgba = np.zeros((20, 33, 4), np.uint8)
    rgba[..., 0] = MASK
    rgba[..., 3] = 255
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "rgb.png", rgba[..., :3])), MASK > 0)
    rgba[:9, :, 3] = 0
    expected = MASK > 0
    expected[:9] = False
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "rgba.png", rgba)), expected)


def test_jpeg_noise_is_no_defect(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[20:31, 13:37] = 255
    path = saved(tmp_path / "a.jpg", mask, quality=60)
    assert (np.asarray(Image.open(path)) > 0).sum() > mask.astype(bool).sum()
    np.testing.assert_array_equal(read_mask(path), mask > 0)


LOSSY = [
    ("a.webp", {"quality": 50}),
    ("a.jp2", {"quality_layers": [20]}),
    ("a.tiff", {"compression": "jpeg"}),
    ("a.jpg", {}),
]


@pytest.mark.parametrize(("name", "options"), LOSSY)
@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0), (0, 0, 255)])
def test_masks_in_lossy_formats_of_any_colour(tmp_path, name, options, colour):
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[16:32, 16:48] = colour
    found = read_mask(saved(tmp_path / name, mask, **options))
    assert (found != mask.any(axis=2)).sum() <= 8 * 16  # blocks beside the border at most: chroma is halved
    assert found[18:30, 18:46].all()
    assert not found[:12].any()


def test_an_empty_lossy_mask_is_empty(tmp_path):
    for name, options in LOSSY:
        assert not read_mask(saved(tmp_path / name, np.zeros((32, 32, 3), np.uint8), **options)).any()


def test_masks_of_ones_in_jpeg(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:32, 16:48] = 1
    assert read_mask(saved(tmp_path / "a.jpg", mask, quality=95)).sum() == pytest.approx(16 * 32, rel=0.1)


def test_black_is_no_defect_wherever_it_stands_in_the_palette(tmp_path):
    path = saved(tmp_path / "a.png", indexed(MASK == 0, [[200, 30, 30], [0, 0, 0]]))
    np.testing.assert_array_equal(read_mask(path), MASK > 0)


def test_a_mask_drawn_in_alpha_alone(tmp_path):
    rgba = np.zeros((20, 33, 4), np.uint8)
    rgba[..., 3] = np.where(MASK > 0, 255, 0)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "a.png", rgba)), MASK > 0)


def test_float_mask_with_fractions_is_refused(tmp_path):
    with pytest.raises(DataError, match="no whole numbers"):
        read_mask(written(tmp_path / "a.tiff", np.full((16, 16), 0.25, np.float32)))
    with pytest.raises(DataError, match="NaN"):
        read_mask(written(tmp_path / "b.tiff", np.full((16, 16), np.nan, np.float32)))
    np.testing.assert_array_equal(read_mask(written(tmp_path / "c.tiff", MASK.astype(np.float32))), MASK > 0)


def in_memory() -> dict[str, Any]:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    grey = rgb[..., 0]
    return {"rgb": rgb, "grey": grey, "one channel": grey[..., None], "deep": grey.astype(np.uint16) * 257}


@pytest.mark.parametrize("name", ["rgb", "grey", "one channel", "deep"])
def test_pictures_in_memory_are_what_their_files_are(name: str, tmp_path: Path) -> None:
    picture = in_memory()[name]
    stored = picture[..., 0] if name == "one channel" else picture
    Image.fromarray(stored).save(tmp_path / "a.png")
    expected = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(to_rgb(picture), expected)
    np.testing.assert_array_equal(to_rgb(Image.open(tmp_path / "a.png")), expected)
    if stored.dtype == np.uint8:
        np.testing.assert_array_equal(to_rgb(stored / 255), expected)


def test_twelve_bits_and_transparency_in_memory() -> None:
    deep = np.full((10, 10), 4095, np.uint16)
    assert (to_rgb(deep, bits=12) == 255).all()
    clear = np.full((10, 10, 4), 200, np.uint8)
    clear[:5, :, 3] = 0
    found = to_rgb(clear)
    assert (found[:5] == 0).all()
    assert (found[5:] == round(200 * 200 / 255)).all()


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (np.zeros((3, 20, 20), np.uint8), r"has the shape \(3, 20, 20\); expected"),
        (np.zeros((20, 20, 2), np.uint8), "has the shape"),
        (np.zeros(20, np.uint8), "has the shape"),
        (np.zeros((4, 20), np.uint8), "is 20 x 4 px; both sides must be at least 8 px"),
        (np.full((20, 20), np.nan), "holds NaN or infinite values"),
        (np.full((20, 20), 200.0), "holds floats from 200 to 200; expected 0..1"),
        (np.zeros((20, 20), np.int64), "holds int64 values; convert it to 8 or 16 bits"),
    ],
)
def test_what_is_no_picture_in_memory_is_told(picture: Any, why: str) -> None:
    with pytest.raises(DataError, match=f"picture in memory: {why}"):
        to_rgb(picture)


def test_a_truncated_picture_of_pillows_is_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "a.jpg") as half, pytest.raises(DataError, match=r"picture in memory: .*truncated"):
        to_rgb(half)


def test_black_and_white_bmp_of_eight_bits_a_pixel(tmp_path: Path) -> None:
    """Pillow read eight bits as one: such a mask was empty, and its defect had no pixel."""
    marked = np.zeros((20, 40), dtype=np.uint8)
    marked[3:9, 10:30] = 1
    picture = Image.fromarray(marked)
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "8.bmp")
    Image.fromarray(marked > 0).save(tmp_path / "1.bmp")
    for name in ("8.bmp", "1.bmp"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), marked > 0)
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 0], marked * 255)
