"""A test set known by its ground truth alone: masks and defects_config.json, with or without the pictures.

Reads the layouts of MVTec LOCO (ground_truth/<defect>/<name>/*.png, each file one region, its saturation looked up by
pixel value) and MVTec AD (ground_truth/<defect>/<name>_mask.png). Sets in other layouts come from ``manyeyes.data``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyeyes.data import Region, Sample, image_size, is_good, read_mask_values, region_masks, stem_of_masked
from manyeyes.errors import DataError
from manyeyes.maps import Grid

LOCO_GROUPS = ("logical_anomalies", "structural_anomalies")
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def find_samples(root: Path) -> tuple[Sample, ...]:
    """Every defective image that has ground truth, and every picture under root/test, in alphabetical order.

    A sample's path is where its picture is, or would be. Raises: DataError if there is no ground truth, or a LOCO mask
    has no entry in defects_config.json.
    """
    truth = root / "ground_truth"
    if not truth.is_dir():
        raise DataError(f"{truth}: does not exist; expected masks in ground_truth/<defect>/ or another --layout")
    saturations = _saturations(root / "defects_config.json")
    found: dict[tuple[str, str], Sample] = {}
    for path in _visible(root / "test", "*/*"):
        if path.suffix.lower() in PICTURES:
            word = "good" if is_good(path.parent) else path.parent.name
            found[path.parent.name, path.stem] = Sample(path, word, word)
    for entry in _visible(truth, "*/*"):
        defect = entry.parent.name
        if is_good(entry.parent):  # an empty mask says no more than the folder
            continue
        if entry.is_dir():
            regions = tuple(_whole(path, saturations, root) for path in _visible(entry, "*.png"))
            name = entry.name
        elif entry.suffix.lower() in PICTURES:
            regions, name = (Region(entry),), stem_of_masked(entry.stem) or entry.stem
        else:
            continue
        known = found.get((defect, name))
        path = known.path if known else root / "test" / defect / f"{name}.png"
        found[defect, name] = Sample(path, defect, defect, regions)
    if not any(sample.regions for sample in found.values()):
        raise DataError(f"{truth}: holds no masks; expected ground_truth/<defect>/<name>_mask.png or <name>/000.png")
    return tuple(found[key] for key in sorted(found))


def regions_of(sample: Sample) -> list[tuple[NDArray[np.bool_], float]]:
    """``region_masks``, the saturation area of whole regions cut to whole pixels as the official evaluation does."""
    whole = any(region.whole for region in sample.regions)
    return [(mask, float(max(1, math.floor(area))) if whole else area) for mask, area in region_masks(sample)]


def shared_size(samples: Iterable[Sample]) -> Grid | None:
    """(h, w) of all masks, at which good images count too, or every rate would weigh the two differently; None where
    masks differ in size, or there are none. What cannot be read is passed over: its picture may be left out, too."""
    sizes = set()
    for sample in samples:
        for region in sample.regions:
            with suppress(DataError):
                sizes.add(image_size(region.path))
    return sizes.pop() if len(sizes) == 1 else None


def loco_groups(samples: tuple[Sample, ...]) -> tuple[str, ...]:
    """The groups that AU-sPRO is reported for: LOCO's two, or those of the set where it names others; () if no LOCO."""
    groups = {sample.group for sample in samples if any(region.whole for region in sample.regions)}
    if not groups:
        return ()
    return LOCO_GROUPS if groups <= set(LOCO_GROUPS) else tuple(sorted(groups))


def _visible(folder: Path, pattern: str) -> list[Path]:
    """In alphabetical order, without what file managers and archives leave behind."""
    return [path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")]


def _whole(path: Path, saturations: dict[int, dict[str, Any]], root: Path) -> Region:
    values = [int(value) for value in np.unique(read_mask_values(path)) if value]
    if len(values) > 1:
        raise DataError(f"{path}: has pixel values {values}; expected one, because each file is one region")
    if not values:
        return Region(path, whole=True)
    entry = saturations.get(values[0])
    if entry is None:
        raise DataError(
            f"{path}: pixel value {values[0]} is not in {root / 'defects_config.json'}; it knows {sorted(saturations)}"
        )
    return Region(
        path,
        whole=True,
        saturation=float(entry["saturation_threshold"]),
        relative=bool(entry["relative_saturation"]),
        defect=str(entry["defect_name"]),
    )


def _saturations(path: Path) -> dict[int, dict[str, Any]]:
    """Entries by pixel value; empty where there is no file, which only LOCO needs."""
    if not path.is_file():
        return {}
    needed = ("pixel_value", "saturation_threshold", "relative_saturation", "defect_name")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {int(entry["pixel_value"]): {key: entry[key] for key in needed} for entry in entries}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: expected a list of objects with {', '.join(needed)} ({error!r})") from None
