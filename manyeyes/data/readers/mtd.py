"""Magnetic tile defects (Huang et al., The Visual Computer 2020) as published: pictures with their masks beside them.

The publisher gives no split. Good tiles are split by seed, 80 % for training as is usual in print (PatchCore), and
every defective tile is a test picture. Some masks are empty: their pictures count at image level only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from manyeyes.data.images import read_mask
from manyeyes.data.listing import below, names
from manyeyes.data.readers.layout import Inventory, Layout, Samples, pair_masks
from manyeyes.data.sample import ImageSet, Region, Sample
from manyeyes.data.splits import hold_out
from manyeyes.data.threads import in_threads

PREFIX = "mt_"


class Mtd(Layout):
    """MT_Free/Imgs and MT_<Defect>/Imgs with <stem>.jpg and its mask <stem>.png; masks of good tiles are not read."""

    kind: Literal["mtd"] = "mtd"
    train_fraction: float = Field(0.8, gt=0, lt=1, description="share of the good tiles that train; the others test")

    def _find(self, inventory: Inventory, seed: int) -> ImageSet:
        good = inventory.require("MT_Free", self.kind)
        tiles = tuple(Sample(path) for path in self._tiles(inventory, good)[0])
        train, held = hold_out(tiles, 1 - self.train_fraction, seed)
        inventory.notes.append(f"no split published: {len(train)} good tiles train, {len(held)} test, by seed {seed}")
        test: Samples = held
        for folder in inventory.folders(inventory.root):
            if folder.name.casefold().startswith(PREFIX) and folder != good:
                test += self._defective(inventory, folder)
        return inventory.image_set(self.kind, train, (), test)

    def _looked_for(self) -> str:
        return "MT_Free/Imgs/*.jpg"

    def _tiles(self, inventory: Inventory, folder: Path) -> tuple[list[Path], list[Path]]:
        """Pictures and masks of one kind of tile."""
        files = inventory.pictures(below(folder, "Imgs") or folder)
        masks = [file for file in files if file.suffix.lower() == ".png"]
        return [file for file in files if file.suffix.lower() != ".png"], masks

    def _defective(self, inventory: Inventory, folder: Path) -> Samples:
        defect = folder.name[len(PREFIX) :].lower()
        tiles, masks = self._tiles(inventory, folder)
        paired = pair_masks(tiles, masks, folder)
        marked = in_threads(_is_marked, list(paired.values()))
        if empty := [mask for mask, seen in zip(paired.values(), marked, strict=True) if not seen]:
            inventory.notes.append(f"{len(empty)} masks of {folder.name} are empty and left out: {names(empty)}")
        regions = {tile: (Region(mask, defect=defect),) for tile, mask in paired.items() if mask not in empty}
        return tuple(Sample(tile, defect, defect, regions.get(tile, ())) for tile in tiles)


def _is_marked(mask: Path) -> bool:
    return bool(read_mask(mask).any())
