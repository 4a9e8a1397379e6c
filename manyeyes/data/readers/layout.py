"""What all readers share: find folders, pair masks with pictures, collect notes, and refuse sets without training."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import compress
from operator import not_
from pathlib import Path

from manyeyes.config import Config
from manyeyes.data.listing import SUFFIXES, below, is_picture, listed, names, pictures_within
from manyeyes.data.sample import ImageSet, Region, Sample
from manyeyes.errors import DataError

Samples = tuple[Sample, ...]
GOOD = ("good", "ok", "normal")
MASKS = ("ground_truth", "groundtruth", "masks", "mask")
TESTS = ("test", "test_public")


class Layout(Config, ABC):
    """How an image set lies on disk. ``read`` is the same for all; a subclass says which file is what."""

    def read(self, root: str | Path, seed: int = 0, train: bool = True) -> ImageSet:
        """List the set under ``root``; ``seed`` matters only where the set has no split of its own.

        Without ``train``, test pictures are enough.
        Raises: DataError if a folder is missing, no training picture was found, or a mask has no picture.
        """
        root = Path(root)
        if not root.is_dir():
            reason = "is a file" if root.exists() else "does not exist"
            raise DataError(f"{root}: {reason}; expected the folder of an image set")
        found = self._find(Inventory(root), seed)
        if train and not found.train:
            aside = "".join(f"; {note}" for note in found.notes if "subfolder" in note)
            advice = f"{aside}; name the folders in a YAML file for --layout" if aside else ""
            raise DataError(f"{root}: no picture of a good part to train on; looked for {self._looked_for()}{advice}")
        if not found.train and not found.test:
            raise DataError(f"{root}: no picture; looked for test and for {self._looked_for()}")
        return found

    @abstractmethod
    def _find(self, inventory: Inventory, seed: int) -> ImageSet: ...

    @abstractmethod
    def _looked_for(self) -> str:
        """Where training pictures should have been, for the error."""


class Inventory:
    """What was met under ``root`` while reading a set, for the notes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []
        self._others: list[Path] = []
        self._beside: list[Path] = []

    def below(self, name: str) -> Path | None:
        return below(self.root, name)

    def test(self) -> Path | None:
        return test_of(self.root)

    def folders(self, folder: Path | None) -> list[Path]:
        return listed(folder)[2] if folder else []

    def pictures(self, folder: Path | None) -> list[Path]:
        """Pictures directly in ``folder``; files of another kind are noted."""
        if folder is None:
            return []
        pictures, others, _ = listed(folder)
        self._others += others
        return pictures

    def parts(self, folder: Path | None) -> tuple[list[Path], list[Path]]:
        """Pictures of parts directly in ``folder``, and the masks that lie beside them.

        Subfolders with pictures are noted: nothing says what they hold.
        """
        if folder is None:
            return [], []
        pictures, others, inside = listed(folder)
        self._others += others
        for inner in inside:
            if count := len(listed(inner)[0]):
                self.notes.append(
                    f"left out {count} picture{'s' * (count > 1)} in {inner}: a subfolder of a folder of parts"
                )
        stems = {path.stem for path in pictures}
        beside = [stem_of_masked(path.stem) in stems for path in pictures]
        return list(compress(pictures, map(not_, beside))), list(compress(pictures, beside))

    def good(self, folder: Path | None) -> Samples:
        pictures, masks = self.parts(folder)
        self._beside += masks
        if twins := of_one_name(pictures):
            self.notes.append(
                f"{len(twins)} pictures of {folder} share their names: {names(twins)}; all count as parts, so call a "
                "mask among them <name>_mask"
            )
        return tuple(Sample(path) for path in pictures)

    def good_within(self, folder: Path, others: Collection[Path] = ()) -> Samples:
        """Good parts to fit on: those directly in ``folder`` or, where there is none, in its subfolders; that is noted.

        Folders of masks are left out, and ``others``, which have another part in the set. Not for test pictures, which
        are told apart by their names within a folder.
        """
        taken = {other.resolve() for other in others}
        pictures, _, folders = listed(folder)
        folders = [inner for inner in folders if inner.resolve() not in taken]
        inside = [inner for inner in folders if inner.name.casefold() not in MASKS and listed(inner)[0]]
        if pictures:
            return self.good(folder)
        for inner in folders:
            deep = len(pictures_within(inner)) if inner not in inside and inner.name.casefold() not in MASKS else 0
            if deep > len(listed(inner)[0]):
                self.notes.append(f"left out {deep} picture{'s' * (deep > 1)} deep in the subfolder {inner}")
        if not inside:
            return self.good(folder)
        self.pictures(folder)  # for the note on other files
        self._beside += [mask for inner in folders if inner not in inside for mask in listed(inner)[0]]
        found = [sample for inner in inside for sample in self.good(inner)]
        many = "s" * (len(inside) > 1)
        self.notes.append(f"took {len(found)} pictures from {len(inside)} subfolder{many} of {folder}: {names(inside)}")
        return tuple(found)

    def validation(self) -> Samples:
        """Good parts in validation or val: in its folder good, ok or normal, or directly in it."""
        for name in ("validation", "val"):
            folder = self.below(name)
            if folder is not None:
                inner = [each for each in self.folders(folder) if is_good(each)]
                if inner:
                    return tuple(sample for each in inner for sample in self.good_within(each))
                return self.good(folder)
        return ()

    def loose(self, test: Path | None) -> None:
        """Note pictures directly in ``test``."""
        if count := len(self.pictures(test)):
            plural = "s" * (count > 1)
            self.notes.append(
                f"left out {count} picture{plural} directly in test: only its subfolders say what is good"
            )

    def aside(self, samples: Samples) -> None:
        """Note folders of the set, and of its good parts, that hold pictures of which none was taken."""
        held = {file.parent for each in samples for file in (each.path, *(region.path for region in each.regions))}
        held |= {folder.resolve() for folder in held}  # a config may spell them otherwise, and any may be a link
        taken = {above for folder in held for above in (folder, *folder.parents)}
        known = (*MASKS, "test")  # masks of good parts are not read, and what is left out of test is noted
        for within in (self.root, *filter(None, map(self.below, ("train", "validation", "val")))):
            if not held.isdisjoint((within, within.resolve())):
                continue  # `parts` has noted the subfolders
            others = [folder for folder in self.folders(within) if taken.isdisjoint((folder, folder.resolve()))]
            if unread := [each for each in others if each.name.casefold() not in known and _holds_pictures(each)]:
                where = "" if within == self.root else f" in {within.name}"
                self.notes.append(f"left out the folder{'s' * (len(unread) > 1)} {names(unread)}{where}")

    def require(self, name: str, kind: str) -> Path:
        """The folder ``name`` of a set of ``kind``. Raises: DataError listing what is there instead."""
        folder = self.below(name)
        if folder is None:
            there = names(listed(self.root)[2]) or "no folder at all"
            raise DataError(f"{self.root}: kind {kind} needs the folder {name}, which is missing; found {there}")
        return folder

    def defective(self, folder: Path, masks: Path | None) -> Samples:
        """Pictures of one defect and the mask of each, where there is one, from the folder ``masks``.

        Raises: DataError if the folder has a good part's name, two pictures share one, or masks and pictures do not
        pair.
        """
        if is_good(folder):
            raise DataError(f"{folder}: a folder of defective pictures cannot be called {folder.name}; rename it")
        (pictures, beside), word = self.parts(folder), folder.name
        if twins := of_one_name(pictures):
            raise DataError(
                f"{folder}: {twins[0].name} and {twins[1].name} have one name; call the mask among them "
                f"{twins[0].stem}_mask, or rename one if both are pictures"
            )
        paired = pair_masks(pictures, self.pictures(masks) if masks else beside, masks or folder)
        self._beside += beside if masks else []
        if deep := [mask for inner in self.folders(masks) if not is_good(inner) for mask in listed(inner)[0]]:
            self.notes.append(f"left out {len(deep)} mask{'s' * (len(deep) > 1)} in subfolders of {masks}")
        return tuple(
            Sample(path, word, word, (Region(paired[path], defect=word),) if path in paired else ())
            for path in pictures
        )

    def image_set(self, layout: str, train: Samples, validation: Samples, test: Samples, name: str = "") -> ImageSet:
        """Finish: add the notes that every layout has.

        Raises: DataError if a picture would be trained on and tested with, or be in two splits in another way.
        """
        notes = list(self.notes)
        seen: dict[Path, str] = {}
        for split, samples in (("training", train), ("validation", validation), ("test", test)):
            for sample in samples:
                if (first := seen.setdefault(sample.path, split)) != split:
                    raise DataError(f"{sample.path}: would be both a {first} and a {split} picture; name other folders")
        if self._others:
            count = len(self._others)
            notes.append(f"left out {count} file{'s' * (count > 1)} without an image extension: {names(self._others)}")
        if self._beside:
            notes.append(f"left out {len(self._beside)} masks beside pictures: {names(self._beside)}")
        defective = [sample for sample in test if sample.label]
        bare = [sample.path for sample in defective if not sample.regions]
        if not test:
            notes.append("no test pictures: the set can train but not evaluate")
        elif len(bare) == len(defective) and defective:
            notes.append("no masks: figures at image level only")
        elif bare:
            notes.append(f"{len(bare)} of {len(defective)} defective pictures have no mask: {names(bare)}")
        name = name or named(self.root).name
        return ImageSet(name, self.root, layout, train, validation, test, tuple(notes))


def named(root: Path) -> Path:
    """``root``, resolved where its last part is no name: a link keeps its own."""
    return root if root.name not in ("", "..") else root.resolve()


def stem_of_masked(stem: str) -> str | None:
    """The stem of the picture that a file called ``<stem>_mask`` is the mask of."""
    return stem[: -len("_mask")] if stem.lower().endswith("_mask") else None


def of_one_name(pictures: Sequence[Path]) -> list[Path]:
    """Pictures whose name differs from that of another by its extension alone; one may be the mask of the other."""
    stems = Counter(path.stem for path in pictures)
    return [path for path in pictures if stems[path.stem] > 1]


def test_of(root: Path) -> Path | None:
    """The folder of test pictures; MVTec AD 2 calls the one with ground truth test_public."""
    return next(filter(None, (below(root, name) for name in TESTS)), None)


def _holds_pictures(folder: Path) -> bool:
    # Folders that may not be listed, such as lost+found, are none of the set's.
    return any(is_picture(name) for _, _, files in os.walk(folder) for name in files if not name.startswith("."))


def is_good(folder: Path) -> bool:
    return folder.name.casefold() in GOOD


def pair_masks(pictures: Sequence[Path], masks: Sequence[Path], where: Path | None) -> dict[Path, Path]:
    """The mask of each picture: the file called ``<stem>_mask`` or ``<stem>``, of whatever image format.

    Raises: DataError if a mask has no picture, or a picture two masks.
    """
    by_stem: dict[str, Path] = {}
    stems = {path.stem for path in pictures}
    alike = {stem.casefold(): stem for stem in stems}
    for mask in masks:
        stem = mask.stem
        # A picture may itself be called something_mask.
        if stem not in stems:
            stem = stem_of_masked(stem) or stem
        if stem not in stems and len(alike) == len(stems):
            stem = alike.get(stem.casefold(), stem)
        if stem not in stems:
            raise DataError(f"{mask}: mask without a picture; expected one called {stem} among the test pictures")
        if stem in by_stem:
            raise DataError(f"{where}: {by_stem[stem].name} and {mask.name} are masks of one picture; keep one")
        by_stem[stem] = mask
    return {path: by_stem[path.stem] for path in pictures if path.stem in by_stem}


def extensions() -> str:
    return " ".join(SUFFIXES)
