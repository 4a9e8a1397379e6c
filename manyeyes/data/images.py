"""Image files as arrays: whatever Pillow or OpenCV reads becomes 8-bit RGB, upright, by rules blind to single images.

No value is ever stretched to an image's own minimum and maximum, so that equal surfaces stay equal across images:
16-bit values are divided by 257; where a camera stored fewer bits unscaled (12 bits: 0..4095), ``bits`` says so once
for the whole set. Bits that the file itself declares (12-bit TIFF, PGM's maximum) count as declared. Floats are 0..1.
Transparency is composited over black, so that hidden pixels cannot matter. EXIF turns are applied, colour profiles are
not. Of files with several pages the first is read. Pillow decodes, because it notices truncated files; OpenCV takes
colour deeper than 8 bits, which Pillow cuts, black-and-white BMP, which it misreads, and formats that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from manyeyes.errors import DataError

# A broken file is reported once, by our error, and not by OpenCV on the terminal.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

MIN_SIDE = 8
ORIENTATION, IMAGE_WIDTH, IMAGE_HEIGHT, BITS_PER_SAMPLE = 0x0112, 256, 257, 258
LOSSY = {"JPEG", "MPO", "WEBP", "JPEG2000"}

Array = NDArray[Any]


class _Unusable(Exception):
    """The short fact; `_reading` adds the file's name."""


def read_image(path: str | Path, bits: int = 16) -> NDArray[np.uint8]:
    """The picture as 8-bit RGB, upright. ``bits``: significant bits of 16-bit files, 9..16.

    Shapes: (H, W, 3), both sides at least 8 px.
    Raises: DataError naming the file and the reason.
    """
    with _reading(path):
        values, declared = _decode(Path(path), _colours)
        return _eight_bit_rgb(values, declared or bits)


def to_rgb(picture: Array | Image.Image, bits: int = 16) -> NDArray[np.uint8]:
    """A picture in memory by the rules of `read_image`: an array of 8 or 16 bits or floats in 0..1, or Pillow's.

    Arrays are grey (H, W) or (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4), in this order of the channels: OpenCV's own
    pictures are BGR, ``picture[..., ::-1]`` turns them.
    Shapes: -> (H, W, 3), both sides at least 8 px. Raises: DataError with the reason.
    """
    try:
        if isinstance(picture, Image.Image):
            values, declared = _turn(_colours(picture), _orientation(picture)), _declared_bits(picture)
        else:
            values, declared = np.asarray(picture), None
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[..., 0]
        if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
            raise _Unusable(f"has the shape {values.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")
        _require_sides(values)
        return _eight_bit_rgb(values, declared or bits)
    except (_Unusable, OSError, SyntaxError) as error:  # a file of Pillow's may be opened and not yet decoded
        raise DataError(f"picture in memory: {error}") from None


def read_mask_values(path: str | Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The mask's values as stored, upright: LOCO looks them up.

    Palette masks give their greys where the palette is grey, else their indices, black being 0; colour masks the
    largest of their channels, or alpha where all of them are black; two-level masks 0 and 255; masks in a lossy format
    (JPEG, WebP, JPEG 2000, TIFF with JPEG) 0 and 255, split at half of their largest value.

    Shapes: (H, W). Raises: DataError naming the file and the reason.
    """
    with _reading(path):
        return _mask_values(_decode(Path(path), _stored)[0])


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Where the mask is not zero. Shapes: (H, W). Raises: as `read_mask_values`."""
    return read_mask_values(path) > 0


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of the upright picture from its header alone (formats that only OpenCV knows are decoded).

    Raises: DataError naming the file and the reason.
    """
    with _reading(path):
        try:
            with Image.open(path) as image:
                w, h = image.size
                if image.format == "TIFF":  # Pillow's own size may or may not be turned already
                    tags: Any = image.tag_v2  # type: ignore[attr-defined]  # a TIFF's own class has it
                    w, h = tags[IMAGE_WIDTH], tags[IMAGE_HEIGHT]
                return (w, h) if _orientation(image) >= 5 else (h, w)
        except UnidentifiedImageError:
            return _opencv(Path(path)).shape[:2]


def unused_bits(path: str | Path) -> int | None:
    """10, 12 or 14 if the picture has 16 bits and its brightest value needs no more, as some cameras store; else None.

    Raises: DataError naming the file and the reason.
    """
    with _reading(path):
        values, declared = _decode(Path(path), _colours)
        if values.dtype != np.uint16 or declared:
            return None
        highest = int(values.max())
        return next((bits for bits in (10, 12, 14) if highest < 1 << bits), None)


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a DataError of one line."""
    try:
        if Path(path).is_dir():
            raise _Unusable("is a folder; expected an image file")
        if Path(path).stat().st_size == 0:
            raise _Unusable("is empty (0 bytes); copy it again or remove it")
        yield
    except (DataError, MemoryError):
        raise
    except _Unusable as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: does not exist") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: is no image that Pillow or OpenCV can read") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}; cut it into smaller pictures") from None
    except Exception as error:  # decoders raise almost anything on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: is damaged or truncated ({reason}); copy it again or remove it") from None


def _decode(path: Path, to_array: Callable[[Image.Image], Array]) -> tuple[Array, int | None]:
    """Values as (H, W) or (H, W, RGB or RGBA) of any depth, upright, and the bits that the file itself declares."""
    try:
        with Image.open(path) as image:
            turn, declared = _orientation(image), _declared_bits(image)
            by_opencv = _is_deep_colour(image) or _is_two_coloured_bmp(image)
            image.load()
            values = _opencv(path) if by_opencv else to_array(image)
            # Both libraries turn a TIFF when they load it, and nothing else.
            values = values if image.format == "TIFF" else _turn(values, turn)
    except UnidentifiedImageError:
        values, declared = _opencv(path), None
    _require_sides(values)
    return values, declared


def _require_sides(values: Array) -> None:
    h, w = values.shape[:2]
    if min(h, w) < MIN_SIDE:
        raise _Unusable(f"is {w} x {h} px; both sides must be at least {MIN_SIDE} px")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 without decoding; a PNG's EXIF counts only if it stands before the pixels."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & set(image.info):
        return 1
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _turn(values: Array, orientation: int) -> Array:
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _declared_bits(image: Image.Image) -> int | None:
    if image.format == "PPM":  # Pillow has scaled it by the maximum in its header
        return 16
    if image.format == "TIFF":
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (8,))[0]  # type: ignore[attr-defined]  # a TIFF's own class has it
        return bits if 9 <= bits <= 15 else None
    return None


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether Pillow would cut 16-bit channels to 8 bits: its raw mode is then something like RGB;16B."""
    if image.mode not in ("RGB", "RGBA", "LA", "RGBX"):
        return False
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _is_two_coloured_bmp(image: Image.Image) -> bool:
    """Whether Pillow may read 4 or 8 bits a pixel as if they were one, and so another picture or none."""
    return image.format == "BMP" and image.mode == "1"


def _opencv(path: Path) -> Array:
    data = np.fromfile(path, dtype=np.uint8)
    try:
        values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        values = None
    if values is None:
        raise UnidentifiedImageError(str(path))
    if values.ndim == 3:
        order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(values.shape[2])
        values = values[..., 0] if order is None else values[..., order]
    return values


def _colours(image: Image.Image) -> Array:
    """(H, W) grey of 8 or 16 bits or float, (H, W, 3) RGB or (H, W, 4) RGBA."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise _Unusable("holds 32-bit integers beyond 0..65535; convert it to 8 or 16 bits")
        return values.astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image)
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))


def _stored(image: Image.Image) -> Array:
    if image.format in LOSSY or image.info.get("compression") == "jpeg":
        # Compression leaves noise beside the edges that would all count as defect.
        brightest = np.asarray(image.convert("RGB")).max(axis=2)
        return np.where(brightest > brightest.max() / 2, 255, 0).astype(np.uint8)
    if image.mode != "P":
        return _colours(image)
    indices = np.asarray(image)
    palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=1))
    if used[-1] >= len(palette):
        return indices
    greys = palette[used]
    is_grey = (greys == greys[:, :1]).all() and len(np.unique(greys[:, 0])) == len(used)
    if is_grey:
        return np.asarray(palette[indices, 0])
    black = used[~greys.any(axis=1)]
    if len(black) == 1 and black[0]:  # a palette in another order: black is no defect
        return np.asarray(np.where(indices == black[0], 0, indices.astype(np.uint16) + 1), dtype=np.uint16)
    return indices


def _eight_bit_rgb(values: Array, bits: int) -> NDArray[np.uint8]:
    if values.ndim == 2:
        return np.asarray(cv2.cvtColor(_eight_bit(values, bits), cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    colours = _eight_bit(values[..., :3], bits)
    if values.shape[2] == 4:
        alpha = _eight_bit(values[..., 3:], 16)
        if alpha.min() < 255:
            colours = ((colours.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(colours)


def _eight_bit(values: Array, bits: int) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.uint16:
        highest = int(values.max())
        if highest >= 1 << bits:
            raise _Unusable(f"holds the value {highest}, more than {bits} bits; raise frame.bits")
        scaled: NDArray[np.uint8] = _scale(bits)[values]
        return scaled
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            raise _Unusable("holds NaN or infinite values")
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise _Unusable(f"holds floats from {low:g} to {high:g}; expected 0..1: rescale the set or convert it")
        rounded: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
        return rounded
    raise _Unusable(f"holds {values.dtype} values; convert it to 8 or 16 bits")


@lru_cache(maxsize=8)
def _scale(bits: int) -> NDArray[np.uint8]:
    """Table from ``bits``-bit values to 8 bits; at 16 bits, rounded division by 257."""
    highest = (1 << bits) - 1
    table: NDArray[np.uint8] = np.rint(np.arange(highest + 1) * (255 / highest)).astype(np.uint8)
    return table


def _mask_values(values: Array) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if values.ndim == 3:
        if values.shape[2] == 4 and not values[..., :3].any() and values[..., 3].min() < values[..., 3].max():
            return _mask_values(values[..., 3])  # drawn in black on nothing: only the alpha channel says where
        visible = values[..., 3] > 0 if values.shape[2] == 4 else True
        values = np.where(visible, values[..., :3].max(axis=2), 0).astype(values.dtype)
    if values.dtype in (np.uint8, np.uint16):
        return np.ascontiguousarray(values)
    if not np.isfinite(values).all():
        raise _Unusable("holds NaN or infinite values")
    whole = np.rint(values)
    if (whole != values).any() or whole.min() < 0 or whole.max() > 65535:
        raise _Unusable("is a mask with values that are no whole numbers in 0..65535; convert it to 8 bits")
    return whole.astype(np.uint16)
