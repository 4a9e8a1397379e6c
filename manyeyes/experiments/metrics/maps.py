"""``manyeyes metrics``: measure anyone's anomaly maps with the same ruler.

Maps lie in MAPS/test/<defect>/<name>.tiff (or .tif, .npy), as the official MVTec LOCO evaluation has them. Each is
resized bilinearly (no smoothing) to the size of its ground truth; its image score is its maximum afterwards, as in the
official evaluation, which takes maps of that size only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from manyeyes.data import ImageSet, Sample, image_size, layout_of, read_image_set
from manyeyes.errors import DataError
from manyeyes.experiments.metrics.ground_truth import find_samples, loco_groups, regions_of, shared_size
from manyeyes.experiments.metrics.image import ImageStatistics
from manyeyes.experiments.metrics.pixel import PixelStatistics
from manyeyes.experiments.metrics.ranks import Array
from manyeyes.experiments.metrics.summary import summarise

SUFFIXES = (".tiff", ".tif", ".npy")
BY_GROUND_TRUTH = ("auto", "mvtec-ad", "mvtec-loco")


def evaluate_maps(
    maps: str | Path,
    data: str | Path | ImageSet,
    layout: str = "auto",
    repetitions: int = 0,
    seed: int = 0,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Every figure of the maps, as ``summarise`` gives them.

    ``data`` is an image set, of which the test split is measured, or a folder. One that holds ``ground_truth`` (and
    ``defects_config.json`` for LOCO) needs no pictures: its good images are then the maps in MAPS/test/good. Any other
    folder, or one of another ``layout`` (as `layout_of` takes it), is read by ``manyeyes.data``. ``threshold`` serves
    image scores and pixels alike.
    Raises: DataError naming the file: a map is missing, unreadable, not 2-d, not finite, or has no ground truth.
    """
    folder = Path(maps) / "test"
    if not folder.is_dir():
        raise DataError(f"{folder}: does not exist; expected maps as {folder}/<defect>/<name>.tiff, .tif or .npy")
    index = _index(folder)
    samples = _samples(data, layout, index)
    groups = loco_groups(samples)
    image, pixel = ImageStatistics(groups), PixelStatistics(groups)
    for sample, path, scores, regions in _each(samples, index, folder):
        name = str(path.relative_to(folder))
        image.update([float(scores.max())], [name], [sample.defect], [sample.group])
        pixel.update(scores, regions, name=name, defect=sample.defect, group=sample.group)
    return summarise(image, pixel, threshold, threshold, repetitions, seed)


def read_map(path: Path) -> Array:
    """One anomaly map. Shapes: (H, W), float32 or float64. Raises: DataError naming the file."""
    try:
        scores = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _read_tiff(path)
    except (OSError, ValueError, EOFError, cv2.error, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read as an anomaly map ({' '.join(str(error).split())})") from None
    if scores.ndim != 2 or scores.dtype.kind not in "fiu" or not scores.size:
        raise DataError(
            f"{path}: expected an anomaly map of shape (H, W) with real numbers, found {scores.shape} of {scores.dtype}"
        )
    if not np.isfinite(scores).all():
        raise DataError(f"{path}: has NaN or infinite scores; expected finite ones")
    return scores.astype(np.float64 if scores.dtype in (np.float64, np.int32, np.uint32, np.int64) else np.float32)


def resize_map(scores: Array, size: tuple[int, int]) -> Array:
    """Bilinear, pixel centres kept in place. Shapes: (h, w) -> ``size``; unchanged where it has that size."""
    if scores.shape == tuple(size):
        return scores
    return np.asarray(cv2.resize(scores, (size[1], size[0]), interpolation=cv2.INTER_LINEAR))


def _read_tiff(path: Path) -> Array:
    with warnings.catch_warnings():
        # Pillow warns of tags that it does not know; whether the pixels can be read shows below.
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise ValueError(f"has {pages} pages, expected one")
    decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise ValueError("broken, or compressed in a way that OpenCV does not know")
    return np.asarray(decoded)


def _index(folder: Path) -> dict[tuple[str, str], Path]:
    """Maps by (defect, name). Raises: DataError if two files are maps of one image."""
    index: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            key = path.parent.name, path.stem
            if key in index:
                raise DataError(f"{path}: is a second map of the image of {index[key].name}; remove one of them")
            index[key] = path
    return index


def _samples(data: str | Path | ImageSet, layout: str, index: dict[tuple[str, str], Path]) -> tuple[Sample, ...]:
    if isinstance(data, ImageSet):
        return data.test  # who gives a set has chosen its pictures
    root = Path(data)
    if layout in BY_GROUND_TRUTH and (root / "ground_truth").is_dir():
        return _known(_with_good_maps(find_samples(root), index, root), index, root)
    return _known(read_image_set(root, layout_of(layout)).test, index, root)


def _with_good_maps(samples: tuple[Sample, ...], index: dict[tuple[str, str], Path], root: Path) -> tuple[Sample, ...]:
    """Without pictures, the maps in test/good say which good images there are."""
    if not any(sample.label == 0 for sample in samples):
        samples += tuple(Sample(root / "test" / "good" / f"{n}.png") for d, n in index if d == "good")
    return samples


def _known(samples: tuple[Sample, ...], index: dict[tuple[str, str], Path], root: Path) -> tuple[Sample, ...]:
    """The samples, if every map is of one of them. Raises: DataError naming a map that is not."""
    if not samples:
        raise DataError(f"{root}: has no test pictures to measure the maps of; expected test/<defect> folders")
    known = {(word, each.path.stem) for each in samples for word in (each.defect, each.path.parent.name)}
    for key, path in index.items():
        if key not in known:
            raise DataError(f"{path}: has no ground truth in {root}; remove the map, or add its picture or mask")
    return samples


def _each(
    samples: tuple[Sample, ...], index: dict[tuple[str, str], Path], folder: Path
) -> Iterator[tuple[Sample, Path, Array, list[tuple[Array, float]]]]:
    """Each sample with its map at the size of its masks.

    A good image has no mask: it takes the size that all masks share, else that of its picture, else of its map.
    """
    shared = shared_size(samples)
    for sample in samples:
        name = sample.path.stem
        path = index.get((sample.defect, name)) or index.get((sample.path.parent.name, name))
        if path is None:
            raise DataError(f"{folder / sample.defect / name}.tiff: does not exist; every test image needs a map")
        scores, regions = read_map(path), regions_of(sample)
        size = regions[0][0].shape if regions else shared
        if size is None:
            size = image_size(sample.path) if sample.path.is_file() else scores.shape
        yield sample, path, resize_map(scores, size), regions
