"""Recognise how a set lies on disk by its folders, and say what was recognised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from manyeyes.data.listing import below, listed, names
from manyeyes.data.readers.folder import Folder
from manyeyes.data.readers.layout import Inventory, Layout, test_of
from manyeyes.data.readers.loco import TABLE, MvtecLoco
from manyeyes.data.readers.mtd import Mtd
from manyeyes.data.readers.split_folders import Btad, MvtecAd
from manyeyes.data.readers.visa import IMAGES, Visa
from manyeyes.data.readers.visa import TABLE as VISA_TABLE
from manyeyes.data.sample import ImageSet
from manyeyes.errors import DataError


class Auto(Layout):
    """The first kind whose folders are there. MPDD lies like MVTec AD and is called so."""

    kind: Literal["auto"] = "auto"

    def _find(self, inventory: Inventory, seed: int) -> ImageSet:
        layout, because = recognise(inventory.root)
        found = layout._find(inventory, seed)
        return replace(found, notes=(f"recognised as {found.layout}: found {because}", *found.notes))

    def _looked_for(self) -> str:
        return f"train/good, train/ok, MT_Free, {VISA_TABLE} and pictures in train or the folder itself"


def recognise(root: Path) -> tuple[Layout, str]:
    """The layout of the set in ``root`` and the sign it was recognised by.

    Raises: DataError saying what was looked for, and which subfolders are image sets.
    """
    good = below(root, "train/good")
    groups = ("test/logical_anomalies", "test/structural_anomalies")
    if good and (root / TABLE).is_file():
        return MvtecLoco(), TABLE
    if good and (group := next((name for name in groups if below(root, name)), None)):
        return MvtecLoco(), group
    if below(root, IMAGES):
        return Visa(), IMAGES
    if (root / VISA_TABLE).is_file():
        return Visa(), VISA_TABLE
    if below(root, "MT_Free"):
        return Mtd(), "MT_Free"
    test = test_of(root)
    if good and (test or below(root, "ground_truth")):
        return MvtecAd(), f"train/good and {test.name if test else 'ground_truth'}"
    if below(root, "train/ok") and test:
        return Btad(), f"train/ok and {test.name}"
    if train := below(root, "train"):
        return Folder(), train.name
    pictures, _, folders = listed(root)
    if test:
        return Folder(), test.name
    if pictures:
        return Folder(), "pictures without subfolders named train" if folders else "pictures only"
    inner = [folder.name for folder in folders if is_recognised(folder)]
    if inner:
        advice = f"image sets lie in its subfolders {', '.join(inner[:5])}: give one of them"
    else:
        there = names(folders) or "no folder at all"
        advice = (
            f"found {there}: give another folder, or name those of good and defective parts in a YAML file for --layout"
        )
    raise DataError(f"{root}: no known layout; looked for {Auto()._looked_for()}; {advice}")


def is_recognised(folder: Path) -> bool:
    return any(below(folder, name) for name in ("train", "MT_Free", IMAGES))
