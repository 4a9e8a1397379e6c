"""Sets that lie in the folders train, test and ground_truth: MVTec AD, MPDD and BTAD.

MVTec AD: Bergmann et al., CVPR 2019. MPDD: Jezek et al., ICUMT 2021. BTAD: Mishra et al., ISIE 2021 (arXiv:2104.10036).
Masks may be called ``<stem>_mask`` or ``<stem>``, may have another extension than the picture, and may be missing.
A test folder called good, ok or normal holds good parts, whichever of the sets it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from manyeyes.data.listing import below, listed
from manyeyes.data.readers.layout import MASKS, Inventory, Layout, Samples, is_good
from manyeyes.data.sample import ImageSet
from manyeyes.errors import DataError


class MvtecAd(Layout):
    """train/good, test/good, test/<defect>, ground_truth/<defect>; validation/good where there is one.

    MVTec AD 2 (arXiv:2503.21622): test_public/good, test_public/bad and test_public/ground_truth/bad instead.
    """

    kind: Literal["mvtec-ad"] = "mvtec-ad"

    def _find(self, inventory: Inventory, seed: int) -> ImageSet:
        return read_split(inventory, self.kind, "good")

    def _looked_for(self) -> str:
        return "train/good"


class Mpdd(Layout):
    """The folders of MVTec AD under another name."""

    kind: Literal["mpdd"] = "mpdd"

    def _find(self, inventory: Inventory, seed: int) -> ImageSet:
        return read_split(inventory, self.kind, "good")

    def _looked_for(self) -> str:
        return "train/good"


class Btad(Layout):
    """train/ok, test/ok, test/ko, ground_truth/ko."""

    kind: Literal["btad"] = "btad"

    def _find(self, inventory: Inventory, seed: int) -> ImageSet:
        return read_split(inventory, self.kind, "ok")

    def _looked_for(self) -> str:
        return "train/ok"


def read_split(inventory: Inventory, kind: str, good: str) -> ImageSet:
    """Raises: DataError if train/``good`` is missing or a mask has no picture."""
    train = inventory.good_within(inventory.require(f"train/{good}", kind))
    validation, test = inventory.validation(), read_test(inventory)
    inventory.aside((*train, *validation, *test))
    return inventory.image_set(kind, train, validation, test)


def read_test(inventory: Inventory) -> Samples:
    """Good pictures first, then the defects in natural order of their folders; masks of good parts are not read.

    Raises: DataError if a mask has no picture.
    """
    test, masks = inventory.test(), usual_masks(inventory)
    folders = [folder for folder in inventory.folders(test) if folder != masks]
    defects = [folder for folder in folders if not is_good(folder)]
    samples = tuple(sample for folder in folders if is_good(folder) for sample in inventory.good(folder))
    for folder, inside in zip(defects, masks_in(inventory, masks, defects), strict=True):
        samples += inventory.defective(folder, inside)
    inventory.loose(test)
    return samples


def usual_masks(inventory: Inventory) -> Path | None:
    """The folder of masks under its usual names, beside test or in it."""
    if beside := next(filter(None, map(inventory.below, MASKS)), None):
        return beside
    test = inventory.test()
    # A folder called mask in test may be one of defective solder masks.
    return next(filter(None, (below(test, word) for word in MASKS if word != "mask")), None) if test else None


def masks_in(inventory: Inventory, shared: Path | None, defects: Sequence[Path]) -> list[Path | None]:
    """A subfolder of ``shared`` for each defect, or ``shared`` itself where it holds the masks of the only one.

    Raises: DataError if it holds those of several side by side, or a subfolder that is no defect's.
    """
    if shared is None or not listed(shared)[0]:
        return mask_folders(inventory, shared, defects)
    if len(defects) == 1:
        return [shared]
    raise DataError(
        f"{shared}: holds masks of {len(defects)} defects side by side; expected a subfolder for each of "
        f"{', '.join(folder.name for folder in defects)}"
    )


def mask_folders(inventory: Inventory, truth: Path | None, defects: Sequence[Path]) -> list[Path | None]:
    """The subfolder of ``truth`` for each folder of defective pictures.

    Raises: DataError if another subfolder holds masks.
    """
    by_name = {folder.name.casefold(): folder for folder in inventory.folders(truth) if not is_good(folder)}
    found = [by_name.pop(folder.name.casefold(), None) for folder in defects]
    for folder in by_name.values():
        for inner in [folder, *inventory.folders(folder)]:
            if orphans := inventory.pictures(inner):
                raise DataError(f"{orphans[0]}: mask without a picture; there is no test folder called {folder.name}")
    return found
