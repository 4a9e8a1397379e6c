"""MVTec LOCO AD (Bergmann et al., IJCV 2022): logical and structural defects, each mask file one region.

A mask's pixel value names its entry in ``defects_config.json``, which gives the area at which the region counts as
found, in pixels or as a fraction of the region. Reading a set therefore opens its masks, in threads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from manyeyes.config import describe
from manyeyes.data.images import read_mask_values
from manyeyes.data.listing import names
from manyeyes.data.readers.layout import Inventory, Layout, is_good, pair_masks
from manyeyes.data.readers.split_folders import mask_folders
from manyeyes.data.sample import ImageSet, Region, Sample
from manyeyes.data.threads import in_threads
from manyeyes.errors import DataError

TABLE = "defects_config.json"
MERGED_FROM = 10


class Defect(BaseModel):
    """One entry of defects_config.json; fields of other tools are ignored."""

    defect_name: str
    pixel_value: int = Field(gt=0, le=65535)
    saturation_threshold: float = Field(gt=0)
    relative_saturation: bool


class MvtecLoco(Layout):
    """train/good, validation/good, test/<group>, ground_truth/<group>/<stem>/*.png, defects_config.json.

    Without defects_config.json, or with ``merged`` masks, every mask saturates at its whole area, and a note says so.
    """

    kind: Literal["mvtec-loco"] = "mvtec-loco"
    merged: bool | None = Field(
        None,
        description="masks were merged to one file of 0 and 255 per picture, so that their values name no defect; by "
        f"default taken to be so where {MERGED_FROM} or more masks all hold 255 and {TABLE} has several entries",
    )

    def _find(self, inventory: Inventory, seed: int) -> ImageSet:
        train = inventory.good(inventory.require("train/good", self.kind))
        validation = inventory.good(inventory.below("validation/good"))
        folders = inventory.folders(inventory.below("test"))
        test = tuple(sample for folder in folders if is_good(folder) for sample in inventory.good(folder))
        found = {folder: inventory.pictures(folder) for folder in folders if not is_good(folder)}
        truths = mask_folders(inventory, inventory.below("ground_truth"), list(found))
        masks = {
            group: _masks(inventory, truth, pictures)
            for truth, (group, pictures) in zip(truths, found.items(), strict=True)
        }
        regions = self._regions(inventory, [mask for by_stem in masks.values() for m in by_stem.values() for mask in m])
        for group, pictures in found.items():
            for path in pictures:
                parts = tuple(regions[mask] for mask in masks[group].get(path.stem, ()) if mask in regions)
                words = sorted({part.defect for part in parts if part.defect})
                test += (Sample(path, "+".join(words) or group.name, group.name, parts),)
        return inventory.image_set(self.kind, train, validation, test)

    def _looked_for(self) -> str:
        return "train/good"

    def _regions(self, inventory: Inventory, masks: Sequence[Path]) -> dict[Path, Region]:
        table = inventory.root / TABLE
        if not table.is_file():
            if masks:
                inventory.notes.append(f"no {TABLE}: every region saturates at its whole area, sPRO is not official")
            return {mask: Region(mask, whole=True) for mask in masks}
        defects = read_table(table)
        values = region_values(masks)
        if empty := [mask for mask in masks if mask not in values]:
            inventory.notes.append(f"left out {len(empty)} empty masks: {names(empty)}")
        looks_merged = len(values) >= MERGED_FROM and set(values.values()) == {255} and len(defects) > 1
        if looks_merged if self.merged is None else self.merged:
            inventory.notes.append(
                f"masks are merged to 0 and 255: {TABLE} cannot apply, every region saturates at its whole area, "
                "sPRO is not official"
            )
            return {mask: Region(mask, whole=True) for mask in values}
        regions = {}
        for mask, value in values.items():
            if value not in defects:
                known = ", ".join(map(str, sorted(defects)))
                raise DataError(f"{mask}: pixel value {value} is not in {TABLE}; it has {known}")
            entry = defects[value]
            regions[mask] = Region(mask, True, entry.saturation_threshold, entry.relative_saturation, entry.defect_name)
        return regions


def read_table(path: Path) -> dict[int, Defect]:
    """The entries of defects_config.json by pixel value. Raises: DataError if it is not such a table."""
    try:
        entries = TypeAdapter(list[Defect]).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise DataError(f"{path}: {describe(error)}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    return {entry.pixel_value: entry for entry in entries}


def region_values(masks: Sequence[Path]) -> dict[Path, int]:
    """The pixel value of each mask that is not empty. Raises: DataError if a mask holds two different ones."""
    values = in_threads(_region_value, masks)
    return {mask: value for mask, value in zip(masks, values, strict=True) if value}


def _region_value(mask: Path) -> int:
    values = read_mask_values(mask)
    highest = int(values.max())
    if not np.isin(values, (0, highest)).all():
        other = int(values[(values > 0) & (values < highest)][0])
        raise DataError(f"{mask}: holds the values {other} and {highest}; a mask file is one region with one value")
    return highest


def _masks(inventory: Inventory, truth: Path | None, pictures: Sequence[Path]) -> dict[str, list[Path]]:
    """Mask files of each picture of a group, by stem: those in the folder of its name, or one beside such folders.

    Raises: DataError if a mask has no picture.
    """
    by_stem = {folder.name: inventory.pictures(folder) for folder in inventory.folders(truth)}
    stems = {path.stem for path in pictures}
    for stem, masks in by_stem.items():
        if stem not in stems and masks:
            raise DataError(f"{masks[0]}: mask without a picture; there is no test picture called {stem}")
    for picture, mask in pair_masks(pictures, inventory.pictures(truth), truth).items():
        by_stem.setdefault(picture.stem, []).append(mask)
    return by_stem
