"""VisA (Zou et al., ECCV 2022): the publisher's folders with split_csv/1cls.csv, or reorganised for one class."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

from pydantic import Field

from manyeyes.data.listing import below, listed, names
from manyeyes.data.readers.layout import Inventory, Layout, named
from manyeyes.data.readers.split_folders import read_split
from manyeyes.data.sample import ImageSet, Region, Sample
from manyeyes.errors import DataError

TABLE = "split_csv/1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")
IMAGES = "Data/Images"


class Visa(Layout):
    """An object's folder of VisA, or the folder of all objects with ``category``. Defects are called ``anomaly``.

    Publisher: <object>/Data/Images/{Normal,Anomaly}, <object>/Data/Masks/Anomaly, and split_csv/1cls.csv beside the
    objects. Reorganised: <object>/train/good, test/{good,bad}, ground_truth/bad, where defects are called ``bad``.
    """

    kind: Literal["visa"] = "visa"
    category: str | None = Field(None, description="object to read, where the folder holds all objects")

    def _find(self, inventory: Inventory, seed: int) -> ImageSet:
        root = inventory.root
        folder: Path | None = named(root)
        if self.category is not None and root.name.casefold() != self.category.casefold():
            folder = below(root, self.category)
        if folder is None or not is_object(folder):
            objects = [each for each in listed(root)[2] if is_object(each)]
            wanted = f"the object {self.category!r}" if self.category else f"{IMAGES} or train/good"
            found = ", ".join(each.name for each in objects)
            advice = f"; give one of its subfolders {found}, or category in a study" if objects else ""
            raise DataError(f"{root}: kind visa needs {wanted}, which is missing{advice}")
        if below(folder, IMAGES) is None:
            return read_split(Inventory(folder), self.kind, "good")
        places = (folder.parent, root, folder, folder.resolve().parent)
        table = next((place / TABLE for place in places if (place / TABLE).is_file()), None)
        if table is None:
            raise DataError(f"{folder}: the publisher's split is missing; expected {folder.parent / TABLE}")
        samples = read_rows(table, folder.name)
        train = tuple(sample for split, sample in samples if split == "train")
        test = tuple(sample for split, sample in samples if split == "test")
        if bad := [sample.path for sample in train if sample.label]:
            raise DataError(f"{table}: {names(bad)} of the training split is defective; expected the one-class split")
        return inventory.image_set(self.kind, train, (), test, folder.name)

    def _looked_for(self) -> str:
        return f"rows with split train in {TABLE}, or train/good"


def is_object(folder: Path) -> bool:
    return below(folder, IMAGES) is not None or below(folder, "train/good") is not None


def read_rows(table: Path, category: str) -> list[tuple[str, Sample]]:
    """(split, sample) of each row of one object. Raises: DataError naming the line that cannot be used."""
    base = table.parent.parent
    samples = []
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = set(COLUMNS) - set(rows.fieldnames or ())
            if missing:
                raise DataError(f"{table}: columns {', '.join(sorted(missing))} are missing; expected {COLUMNS}")
            for row in rows:
                if row["object"].casefold() == category.casefold():
                    samples.append(_sample(row, base, f"{table}, line {rows.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as CSV ({error})") from None
    return samples


def _sample(row: dict[str, str | None], base: Path, where: str) -> tuple[str, Sample]:
    split, label, image, mask = ((row[column] or "").strip() for column in COLUMNS[1:])
    if split not in ("train", "test") or label not in ("normal", "anomaly"):
        raise DataError(f"{where}: expected split train or test and label normal or anomaly, got {split!r}, {label!r}")
    for file in filter(None, (image, mask)):
        if not (base / file).is_file():
            raise DataError(f"{where}: {base / file} does not exist")
    if label == "normal":
        return split, Sample(base / image)
    regions = (Region(base / mask, defect="anomaly"),) if mask else ()
    return split, Sample(base / image, "anomaly", "anomaly", regions)
