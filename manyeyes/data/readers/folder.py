"""Any folders of pictures: the usual names are found by themselves, others are named in the config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from manyeyes.data.listing import below
from manyeyes.data.readers.layout import GOOD, Inventory, Layout, Samples, extensions, is_good
from manyeyes.data.readers.split_folders import masks_in, usual_masks
from manyeyes.data.sample import ImageSet
from manyeyes.errors import DataError


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Folders = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
"""Several folders, or one by its name alone."""


class Folder(Layout):
    """Folders relative to the set's own, or absolute. A folder that is not named is looked for under its usual names.

    train: train/good, train/ok, train/normal, else train, else the set's folder itself. good: test/good (or ok,
    normal). defective: every other folder in test. masks: ground_truth or masks beside test, or in it;
    in them a folder for each defect.
    """

    kind: Literal["folder"] = "folder"
    train: Folders = Field((), description="folders of good pictures to train on")
    validation: Folders = Field((), description="folders of good pictures for calibration")
    good: Folders = Field((), description="folders of good test pictures")
    defective: Folders = Field((), description="folders of defective test pictures; the folder's name is the defect")
    masks: Folders = Field((), description="folder of masks for each folder in defective, or one that holds them all")

    def _find(self, inventory: Inventory, seed: int) -> ImageSet:
        train: Samples = ()
        others = self._named(inventory, (*self.validation, *self.good, *self.defective, *self.masks))
        for folder in self._train(inventory):
            within = self.train or is_good(folder)
            train += inventory.good_within(folder, others) if within else inventory.good(folder)
        good, defective = self._named(inventory, self.good), self._named(inventory, self.defective)
        masks = self._named(inventory, self.masks) or list(filter(None, [usual_masks(inventory)]))
        tested = inventory.test()
        if not self.good:
            good = _usual(tested)
        if not self.defective:
            taken = {folder.resolve() for folder in (*good, *masks)}
            folders = inventory.folders(tested)
            defective = [folder for folder in folders if not is_good(folder) and folder.resolve() not in taken]
        test: Samples = tuple(sample for folder in good for sample in inventory.good(folder))
        for folder, inside in zip(defective, self._masks(inventory, masks, defective), strict=True):
            test += inventory.defective(folder, inside)
        if tested not in (*good, *defective):
            inventory.loose(tested)
        validation = self._named(inventory, self.validation)
        held = tuple(sample for folder in validation for sample in inventory.good_within(folder))
        held = held or inventory.validation()
        inventory.aside((*train, *held, *test))
        return inventory.image_set(self.kind, train, held, test)

    def _looked_for(self) -> str:
        where = ", ".join(self.train) or "train/good, train/ok, train/normal, train and the folder itself"
        return f"{extensions()} in {where}"

    def _named(self, inventory: Inventory, folders: Folders) -> list[Path]:
        return [_existing(inventory.root, name) for name in folders]

    def _train(self, inventory: Inventory) -> list[Path]:
        if self.train:
            return self._named(inventory, self.train)
        inner = inventory.below("train")
        if usual := _usual(inner):
            return usual
        inventory.notes.append(f"all pictures directly in {inner.name if inner else 'the folder'} count as good")
        return [inner or inventory.root]

    def _masks(self, inventory: Inventory, masks: list[Path], defective: list[Path]) -> list[Path | None]:
        """The folder of masks of each defective folder."""
        if self.masks and len(self.masks) not in (1, len(defective)):
            raise DataError(
                f"{inventory.root}: masks names {len(self.masks)} folders for {len(defective)} folders of defective "
                "pictures; expected as many, or one that holds them all"
            )
        return list(masks) if len(masks) > 1 else masks_in(inventory, masks[0] if masks else None, defective)


def _existing(root: Path, name: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        raise DataError(f"{folder}: does not exist or is no folder; it is named in the data config")
    return folder


def _usual(split: Path | None) -> list[Path]:
    """The folders of good parts in a split."""
    return [folder for word in GOOD if split is not None and (folder := below(split, word)) is not None]
