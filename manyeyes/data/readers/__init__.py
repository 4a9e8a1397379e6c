"""Readers of image sets: the union of all kinds is the registry."""

from typing import Annotated

from pydantic import Field

from manyeyes.data.readers.auto import Auto
from manyeyes.data.readers.folder import Folder
from manyeyes.data.readers.layout import Layout
from manyeyes.data.readers.loco import MvtecLoco
from manyeyes.data.readers.mtd import Mtd
from manyeyes.data.readers.read import read_image_set
from manyeyes.data.readers.split_folders import Btad, Mpdd, MvtecAd
from manyeyes.data.readers.visa import Visa

DataConfig = Annotated[Folder | MvtecAd | MvtecLoco | Visa | Mpdd | Btad | Mtd | Auto, Field(discriminator="kind")]

__all__ = [
    "Auto",
    "Btad",
    "DataConfig",
    "Folder",
    "Layout",
    "Mpdd",
    "Mtd",
    "MvtecAd",
    "MvtecLoco",
    "Visa",
    "read_image_set",
]
